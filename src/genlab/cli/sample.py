"""What sample.py calls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.callbacks.pictures import save_samples
from genlab.cli.build import set_threads
from genlab.cli.load import LoadedRun, choose_sampler, load_run
from genlab.cli.ranks import place
from genlab.data.vocabulary import encode
from genlab.decoding.stream import Streamed
from genlab.errors import ConfigError, DataError
from genlab.evaluation import generate
from genlab.evaluation.pictures import save_png


def sample(config: DictConfig) -> Path:
    """Writes a grid (or one text file) and single files; returns their folder."""
    here = place()
    set_threads(config.threads, here.local_world)
    if config.n < 1:
        raise ConfigError(f"n={config.n}: expected at least 1.")
    loaded = load_run(config.run, config.weights, config.checkpoint, config.device, config.runs_dir)
    sampler = choose_sampler(loaded, config.get("sampler"))
    condition = wanted_condition(config)
    if config.prompts is not None:
        check_prompts(loaded, Path(config.prompts))
    seeds = torch.arange(config.seed, config.seed + config.n)
    used = sampler or loaded.model.sampler
    streamed = _streamed(loaded, used, config.n, here.world) if config.stream else None
    samples = generate(loaded.model, seeds, loaded.condition(config.n, condition), streamed or sampler)
    meta = {
        "model": str(loaded.config.name),
        "run": loaded.directory.path.name,
        "checkpoint": f"{loaded.checkpoint.name} at {loaded.model.samples_seen} samples, {loaded.weights} weights",
        "sampler": f"{type(used).__name__} {used}",
    }
    name = "-".join(["seed", str(config.seed), *(f"{k}-{v}" for k, v in condition.items() if k != "prompt")])
    out = Path(config.out) if config.out else loaded.directory.path / "samples" / name
    if here.rank:
        return out
    out.mkdir(parents=True, exist_ok=True)
    grid = save_samples(out / "grid", samples, config.columns, meta | {"seed": f"{config.seed} + index"})
    if samples.modality == "image":
        for i, image in enumerate(samples.data):
            own = {"seed": config.seed + i}
            if samples.labels is not None:
                own["label"] = int(samples.labels[i])
            save_png(out / f"{config.seed + i:06d}.png", image, meta | own)
    elif streamed is None:
        print(grid.read_text(encoding="utf-8"))
    print(f"{len(samples)} samples in {out}; see {grid}")
    return out


def wanted_condition(config: DictConfig) -> dict[str, Any]:
    """`condition`, with the prompt of `prompt=` or the prompts of the file `prompts=`, one an item.

    Raises:
        ConfigError: prompts are given twice; no such file, or it is empty or not UTF-8.
    """
    condition: Any = OmegaConf.to_container(config.condition, resolve=True)
    given = {"condition.prompt": condition.get("prompt"), "prompt": config.prompt, "prompts": config.prompts}
    named = [key for key, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)}: give one of them")
    if config.prompt is not None:
        condition["prompt"] = str(config.prompt)
    if config.prompts is not None:
        lines = list(_prompts(Path(config.prompts)).values())
        condition["prompt"] = [lines[i % len(lines)] for i in range(config.n)]
    return condition


def _prompts(path: Path) -> dict[int, str]:
    """Number and text of each line that is not empty."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"prompts={path}: cannot be read ({error.strerror})") from None
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:{data[: error.start].count(10) + 1}: not UTF-8; convert the file") from None
    found = {number: line for number, line in enumerate(lines, 1) if line}
    if not found:
        raise ConfigError(f"prompts={path}: holds no prompt")
    return found


def check_prompts(loaded: LoadedRun, path: Path) -> None:
    """Whether the vocabulary has all of a file's prompts.

    Raises:
        ConfigError: a character that it lacks, with the file and the line.
    """
    for number, line in _prompts(path).items() if "prompt_ids" in loaded.model.conditions else ():
        try:
            encode(loaded.model.tokenizer, line)
        except DataError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None


def _streamed(loaded: LoadedRun, sampler: Any, n: int, ranks: int) -> Streamed:
    """The sampler, printing as it goes.

    Raises:
        ConfigError: several items or ranks; a model or a sampler that does not make one token after another.
    """
    if n != 1 or ranks != 1:
        raise ConfigError("stream=true prints one text as it comes: take n=1 devices=1")
    if not getattr(sampler, "streams", False):
        raise ConfigError(f"stream=true: {type(sampler).__name__} has nothing to show before its end; leave it out")

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return Streamed(sampler, loaded.model.tokenizer, write)
