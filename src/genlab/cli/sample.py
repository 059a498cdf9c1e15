"""What sample.py calls."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.callbacks.pictures import save_samples
from genlab.cli.build import build_steps, set_threads
from genlab.cli.chat import conversation, converse, spoken
from genlab.cli.condition_values import read_conditions
from genlab.cli.load import LoadedRun, choose_sampler, load_run, set_chunk_size
from genlab.cli.ranks import place
from genlab.conditions import Negative, TextCondition
from genlab.decoding.stream import Streamed
from genlab.diffusion.trace import Traced
from genlab.errors import ConfigError
from genlab.evaluation import generate
from genlab.modality import Image, Video
from genlab.models.base import GenerativeModel
from genlab.postprocess import apply_steps, recorded

TRACE_RATE = 8.0  # steps a second


def sample(config: DictConfig) -> Path:
    """Writes all items together (a grid, a page of texts, ...) and one by one; returns their folder."""
    here = place()
    set_threads(config.threads, here.local_world)
    loaded = load_run(config.run, config.weights, config.checkpoint, config.device, config.runs_dir)
    set_chunk_size(loaded, config.chunk_size)
    model, sampler = loaded.generative, choose_sampler(loaded, config.get("sampler"))
    if config.chat:
        return _talk(loaded, sampler or model.sampler, config, here.world)
    wanted = wanted_conditions(config, model)
    n, columns = config.n, config.columns
    seeds = torch.arange(n) + config.seed
    if config.each is not None:  # a row of seeds for each value
        values = max((len(value) for value in wanted.values() if isinstance(value, list)), default=1)
        n, columns, seeds = values * config.each, config.each, seeds[:1] + torch.arange(config.each).repeat(values)
        wanted = {name: _each(value, config.each) for name, value in wanted.items()}
    used = sampler or model.sampler
    steps = build_steps(config.get("postprocess"))
    if steps and not isinstance(model.modality, Image):
        raise ConfigError(f"postprocess: pictures only, and {loaded.directory.path.name} makes {model.modality.name}")
    streamed = _streamed(loaded, used, n, here.world) if config.stream else None
    traced = _traced(model, used, here.world) if config.trace else None
    with in_precision(config.precision, model.device):
        samples = generate(model, seeds, loaded.condition(n, wanted), streamed or traced or sampler)
    meta = {
        "model": str(loaded.config.name),
        "run": loaded.directory.path.name,
        "checkpoint": f"{loaded.checkpoint.name} at {model.samples_seen} samples, {loaded.weights} weights",
        "sampler": f"{type(used).__name__} {used}",
        "chunk_size": model.chunk_size,
        **({} if config.precision is None else {"precision": config.precision}),
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
    shown = save_samples(out / "grid", samples, known, columns, meta)
    for i, seed in enumerate(seeds.tolist()):
        own = {"seed": seed, **{name: values[i] for name, values in known.items()}}
        stem = f"{seed:06d}" if config.each is None else f"{i // config.each:03d}-{seed:06d}"
        samples.modality.save(out / stem, samples.data[i], meta | own)
    if traced is not None:
        video = Video(TRACE_RATE)
        video.show(out / "steps", video.to_data(traced.pictures(n, model.to_picture)), columns, meta)  # type: ignore[arg-type]
    if streamed is None and (text := samples.modality.text(samples.data)) is not None:
        print(text)
    print(f"{len(samples)} samples in {out}; see {shown}")
    return out


def _talk(loaded: LoadedRun, sampler: Any, config: DictConfig, ranks: int) -> Path:
    """A conversation in the terminal; the run's folder, in which nothing is written.

    Raises:
        ConfigError: several ranks; see genlab.cli.chat.conversation.
    """
    if ranks != 1:
        raise ConfigError("chat=true talks with one process: take devices=1")
    talk, path = conversation(loaded, sampler, config, _write), loaded.directory.path
    remembers = "" if talk.template is not None else "; each line is a source by itself: nothing is remembered"
    print(f"{path.name} answers: /new begins again, /quit ends{remembers}", flush=True)
    with in_precision(config.precision, loaded.generative.device):
        converse(talk, spoken())
    return path


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def wanted_conditions(config: DictConfig, model: GenerativeModel) -> dict[str, Any]:
    """What `condition.NAME=` and the file `conditions=` say, by name; item i takes line i of the file, which is gone
    round.

    Raises:
        ConfigError: one is said twice; a file that cannot be read or holds a value that cannot be.
    """
    whole: Any = OmegaConf.to_container(config, resolve=True)
    wanted = {name: value for name, value in whole["condition"].items() if value is not None}
    for key, kind in (("prompt", TextCondition), ("negative", Negative)):
        if (value := whole.get(key)) is not None:
            name = next((known.name for known in model.conditions if isinstance(known, kind)), None)
            if name is None:
                raise ConfigError(f"{key}={value}: {type(model).__name__} is told no text")
            if name in wanted:
                raise ConfigError(f"{key} and condition.{name} are the same: give one of them")
            wanted[name] = value
    if config.conditions is not None:
        for name, values in read_conditions(Path(config.conditions), model).items():
            if name in wanted:
                raise ConfigError(f"condition.{name} and conditions={config.conditions}: give one of them")
            wanted[name] = values[: config.n]  # condition_rows goes round them
    return wanted


def _each(value: Any, each: int) -> Any:
    """Each value of a list so many times; what is said of all items stays."""
    return [one for one in value for _ in range(each)] if isinstance(value, list) else value


@contextlib.contextmanager
def in_precision(precision: str | None, device: torch.device) -> Iterator[None]:
    """Autocast to half precision within it; None or 32-true: none."""
    if precision in (None, "32-true"):
        yield
        return
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast(device.type, dtype):
        yield


def _short(value: Any) -> str:
    """A value as part of a folder's name: itself where it is a short word, else eight digits of its hash."""
    text = str(value)
    return text if re.fullmatch(r"[\w.]{1,16}", text) else hashlib.sha256(text.encode()).hexdigest()[:8]


def _traced(model: GenerativeModel, sampler: Any, ranks: int) -> Traced:
    """The sampler, keeping what each step expects.

    Raises:
        ConfigError: a model that does not make its items step by step; several ranks.
    """
    if not hasattr(model, "to_picture"):
        raise ConfigError(f"trace=true: {type(model).__name__} does not make pictures step by step; leave it out")
    if ranks != 1:
        raise ConfigError("trace=true keeps the steps of one process: take devices=1")
    return Traced(sampler)


def _streamed(loaded: LoadedRun, sampler: Any, n: int, ranks: int) -> Streamed:
    """The sampler, printing as it goes.

    Raises:
        ConfigError: several items or ranks; a model or a sampler that does not make one token after another.
    """
    if n != 1 or ranks != 1:
        raise ConfigError("stream=true prints one text as it comes: take n=1 devices=1")
    if not getattr(sampler, "streams", False):
        raise ConfigError(f"stream=true: {type(sampler).__name__} has nothing to show before its end; leave it out")
    return Streamed(sampler, loaded.model.tokenizer, _write)
