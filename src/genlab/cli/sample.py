"""What sample.py calls."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.callbacks.pictures import save_samples
from genlab.cli.build import build_steps, set_threads
from genlab.cli.condition_values import read_conditions
from genlab.cli.load import LoadedRun, choose_sampler, load_run, set_chunk_size
from genlab.cli.ranks import place
from genlab.decoding.stream import Streamed
from genlab.errors import ConfigError
from genlab.evaluation import generate
from genlab.modality import Image
from genlab.models.base import GenerativeModel
from genlab.postprocess import apply_steps, recorded


def sample(config: DictConfig) -> Path:
    """Writes all items together (a grid, a page of texts, ...) and one by one; returns their folder."""
    here = place()
    set_threads(config.threads, here.local_world)
    loaded = load_run(config.run, config.weights, config.checkpoint, config.device, config.runs_dir)
    set_chunk_size(loaded, config.chunk_size)
    model, sampler = loaded.generative, choose_sampler(loaded, config.get("sampler"))
    wanted = wanted_conditions(config, model)
    seeds = torch.arange(config.n) + config.seed
    used = sampler or model.sampler
    steps = build_steps(config.get("postprocess"))
    if steps and not isinstance(model.modality, Image):
        raise ConfigError(f"postprocess: pictures only, and {loaded.directory.path.name} makes {model.modality.name}")
    streamed = _streamed(loaded, used, config.n, here.world) if config.stream else None
    samples = generate(model, seeds, loaded.condition(config.n, wanted), streamed or sampler)
    meta = {
        "model": str(loaded.config.name),
        "run": loaded.directory.path.name,
        "checkpoint": f"{loaded.checkpoint.name} at {model.samples_seen} samples, {loaded.weights} weights",
        "sampler": f"{type(used).__name__} {used}",
        "chunk_size": model.chunk_size,
        **(recorded(steps.values()) if steps else {}),
    }
    names = [f"{name}-{_short(value)}" for name, value in wanted.items()]
    name = "-".join(["seed", str(config.seed), *names, *map(_short, steps)])
    out = Path(config.out) if config.out else loaded.directory.path / "samples" / name
    if here.rank:
        return out
    out.mkdir(parents=True, exist_ok=True)
    samples = replace(samples, data=apply_steps(steps.values(), samples.data))
    known = model.shown(samples.condition)
    shown = save_samples(out / "grid", samples, known, config.columns, meta)
    for i in range(len(samples)):
        own = {"seed": config.seed + i, **{name: values[i] for name, values in known.items()}}
        samples.modality.save(out / f"{config.seed + i:06d}", samples.data[i], meta | own)
    if streamed is None and (text := samples.modality.text(samples.data)) is not None:
        print(text)
    print(f"{len(samples)} samples in {out}; see {shown}")
    return out


def wanted_conditions(config: DictConfig, model: GenerativeModel) -> dict[str, Any]:
    """What `condition.NAME=` and the file `conditions=` say, by name; item i takes line i of the file, which is gone
    round.

    Raises:
        ConfigError: one is said twice; a file that cannot be read or holds a value that cannot be.
    """
    container: Any = OmegaConf.to_container(config.condition, resolve=True)
    wanted = {name: value for name, value in container.items() if value is not None}
    if config.conditions is not None:
        for name, values in read_conditions(Path(config.conditions), model).items():
            if name in wanted:
                raise ConfigError(f"condition.{name} and conditions={config.conditions}: give one of them")
            wanted[name] = values[: config.n]  # condition_rows goes round them
    return wanted


def _short(value: Any) -> str:
    """A value as part of a folder's name: itself where it is a short word, else eight digits of its hash."""
    text = str(value)
    return text if re.fullmatch(r"[\w.]{1,16}", text) else hashlib.sha256(text.encode()).hexdigest()[:8]


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
