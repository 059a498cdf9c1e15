"""Mistakes that a user makes at the command line, drawn from every group of conf with a fixed seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from genlab.cli.compose import compose_config
from genlab.cli.problem import leaves

CONF = Path(__file__).resolve().parent.parent / "conf"


def draw(seed: int = 0, count: int = 40) -> list[tuple[list[str], str]]:
    """(arguments, what the answer must name): half wrong keys, the rest wrong options, types, ranges and choices."""
    rng = random.Random(seed)
    kinds = [wrong_key, wrong_option, wrong_key, wrong_type, wrong_key, wrong_range, wrong_key, wrong_choice]
    found: list[tuple[list[str], str]] = []
    while len(found) < count:
        mistake = kinds[len(found) % len(kinds)](rng)
        if mistake not in found:
            found.append(mistake)
    return found


def some_config(rng: random.Random) -> tuple[list[str], dict[str, Any]]:
    own = {"reward", "stable_diffusion"}  # which need data of one's own
    models = {path.stem for path in (CONF / "model").glob("*.yaml")} - own
    model = rng.choice(sorted(models))
    chosen = [f"model={model}"]
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(compose_config(CONF, "train", chosen), resolve=False)
    plain.pop("debug", None)
    return chosen, plain


def misspelt(word: str, rng: random.Random) -> str:
    """One letter left out, doubled, exchanged with its neighbour, or another in its place."""
    i = rng.randrange(1, len(word))
    changed = rng.choice(
        [
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :],
            word[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + word[i + 1 :],
        ]
    )
    return changed if changed != word else misspelt(word, rng)


def wrong_key(rng: random.Random) -> tuple[list[str], str]:
    """A key of one of the groups, or the group's name in it, misspelt."""
    chosen, plain = some_config(rng)
    groups = [group for group in plain if isinstance(plain[group], dict) and plain[group]] + [""]
    group = rng.choice(groups)
    keys = [key for key in leaves(plain) if key.startswith(f"{group}.") or (not group and "." not in key)]
    key = rng.choice([key for key in keys if "_target_" not in key and "_partial_" not in key and len(key) > 3])
    parts = key.split(".")
    place = rng.randrange(len(parts)) if rng.random() < 0.3 else len(parts) - 1
    parts[place] = misspelt(parts[place], rng) if len(parts[place]) > 2 else parts[place] + "x"
    return [*chosen, f"{'.'.join(parts)}=1"], f"Did you mean {key}?"


def wrong_option(rng: random.Random) -> tuple[list[str], str]:
    groups = ["callbacks", "data", "evaluation", "experiment", "logger", "model", "optimizer", "sampler", "schedule",
              "trainer"]  # fmt: skip
    group = rng.choice(groups)
    option = rng.choice(sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml")))
    return [f"{group}={misspelt(option, rng)}"], f"Did you mean {group}={option}?"


def wrong_type(rng: random.Random) -> tuple[list[str], str]:
    key, value = rng.choice(
        [
            ("schedule.max_samples", "many"), ("optimizer.lr", "fast"), ("data.batch_size", "1.5"), ("seed", "x"),
            ("callbacks.samples.count", "[1]"), ("data.shape", "big"), ("trainer.enable_progress_bar", "perhaps"),
            ("callbacks.ema.decay", "none"), ("compile", "3"), ("data.num_workers", "two"), ("optimizer.betas", "0.9"),
            ("schedule.warmup", "soon"), ("rank_timeout_s", "never"), ("callbacks.final.columns", "wide"),
        ]
    )  # fmt: skip
    return [f"{key}={value}"], f" {key}"


def wrong_range(rng: random.Random) -> tuple[list[str], str]:
    key, value = rng.choice(
        [
            ("schedule.max_samples", "-5"), ("optimizer.lr", "0"), ("optimizer.lr", "-1e-3"), ("data.batch_size", "0"),
            ("seed", "-1"), ("callbacks.ema.decay", "2"), ("data.val_fraction", "1.5"), ("trainer.devices", "0"),
            ("optimizer.betas", "[0.9,1.1]"), ("schedule.warmup", "-2"), ("trainer.accumulate_grad_batches", "0"),
            ("data.num_workers", "-1"), ("callbacks.samples.count", "-3"), ("data.val_batch_size", "0"),
            ("rank_timeout_s", "-1"), ("threads", "0"), ("model.label_drop", "1.5"), ("sampler.steps", "0"),
        ]
    )  # fmt: skip
    return [f"{key}={value}"], f" {key}"


def wrong_choice(rng: random.Random) -> tuple[list[str], str]:
    key, value = rng.choice(
        [
            ("schedule.decay", "cosin"), ("weights", "emma"), ("callbacks.checkpoint.mode", "least"),
            ("trainer.precision", "float8"), ("trainer.accelerator", "gpuu"), ("model.process.schedule", "sqare"),
            ("optimizer._target_", "torch.optim.AdamX"), ("model._target_", "genlab.models.diffusion.Difusion"),
            ("trainer.strategy", "dpp"),
        ]
    )  # fmt: skip
    return [f"{'+' if key == 'trainer.strategy' else ''}{key}={value}"], f" {key}"
