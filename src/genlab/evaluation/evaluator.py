"""evaluate: a model, data and a protocol -> the metric record."""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.errors import ConfigError
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.fidelity import Settings, measure
from genlab.evaluation.files import replacing
from genlab.evaluation.likelihood import LogLikelihood, VariationalBound, text_likelihood, variational_bound
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.reference import RESIZE, SUBSET_SEED, VERSION, RealImages, cached_json, key_of, resized
from genlab.evaluation.sharding import from_first_rank, sharded, world

FORMAT = 1  # of the record
PACKAGES = ("genlab", "torch", "torch-fidelity", "numpy", "scipy", "diffusers", "transformers")
# Data sets that have an extractor of their own; all others take Inception.
EXTRACTOR_OF = {"mnist": "mnist-cnn", "fashion_mnist": "fashion-cnn"}

# Metrics of given items: the capability that the model must have, and what computes them.
LIKELIHOODS: dict[str, tuple[Any, Callable[..., tuple[dict[str, float], dict[str, Any]]]]] = {
    "text_likelihood": (LogLikelihood, text_likelihood),
    "variational_bound": (VariationalBound, variational_bound),
}


def evaluate(
    model: Any,
    data: Any,
    protocol: Protocol,
    *,
    sampler: Any = None,
    weights: str | None = None,
    seed: int = 0,
    progress: bool = True,
    context: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a model under a protocol. With torch.distributed every rank must call it; the work is shared.

    Args:
        model: a GenerativeModel on its device, holding the weights that are to be judged.
        data: a DataModule that has been set up.
        protocol: from conf/evaluation.
        sampler: from conf/sampler; None takes the model's own.
        weights: "ema" or "raw": which weights the model holds now, for the record; None: those the protocol asks for.
        seed: item i is made from seed * 2^32 + i (modulo 2^63).
        progress: a bar with the time that is left, on rank 0.
        context: primitives that go into the record as they are (run, config hash, ...).

    Returns:
        The record, of JSON's types, the same on every rank. `record["values"]` has a value or None for each name;
        `record["missing"]` says why a value is None.

    Raises:
        ConfigError: the protocol does not fit the model or the data.
    """
    began = time.perf_counter()
    if protocol.modality not in (model.modality, "none"):
        raise ConfigError(
            f"evaluation={protocol.name} judges {protocol.modality}, the model makes {model.modality}: "
            f"choose another protocol"
        )
    device = torch.device(model.device)
    record: dict[str, Any] = {
        "format": FORMAT,
        "name": protocol.name,
        "protocol": protocol.record(),
        "values": {},
        "missing": {},
    }
    was_training = model.training
    model.eval()
    try:
        if protocol.metrics and protocol.metrics[0] in LIKELIHOODS:
            record |= _likelihood(model, data, protocol, device, progress)
        elif protocol.modality == "image":
            record |= _images(model, data, protocol, sampler, seed, device, progress)
    finally:
        model.train(was_training)
    record["model"] = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "weights": weights or protocol.weights,
        "samples_seen": int(getattr(model, "samples_seen", 0)),
        "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
    }
    # All that decides the values but the weights' own numbers, the machine and the libraries.
    decisive = {key: record.get(key) for key in ("protocol", "reference", "extractor", "resize", "model")}
    decisive["generated"] = {k: v for k, v in record.get("generated", {}).items() if k not in ("seconds", "per_second")}
    record["identity"] = key_of(decisive)
    record["machine"] = _machine(device)
    record["versions"] = _versions()
    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    record["seconds"] = round(time.perf_counter() - began, 2)
    record["context"] = dict(context or {})
    return from_first_rank(lambda: record)


def write_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Writes a record as JSON, whole or not at all. Call it on one rank."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _images(
    model: Any, data: Any, protocol: Protocol, sampler: Any, seed: int, device: torch.device, progress: bool
) -> dict[str, Any]:
    """The part of the record that is about images."""
    extractor = _extractor(protocol, data, device)
    real = RealImages(data, protocol.reference_split, protocol.reference_n, extractor, protocol.resize)
    with _bar(progress, f"{protocol.name}: real images", len(real.ids)) as bar:
        reference = real.features(protocol.chunk, bar.update)
    assert protocol.n is not None
    n, unit = protocol.n, int(model.chunk_size)
    group = unit * -(-protocol.chunk // unit)  # whole chunks of the model
    conditions, distribution = _conditions(model, data, protocol)
    first = (seed << 32) % 2**63  # two seeds of an evaluation share no item
    began = time.perf_counter()

    def work(start: int, stop: int) -> dict[str, Tensor]:
        seeds = torch.arange(first + start, first + stop)
        condition = {key: value[start:stop] for key, value in conditions.items()}
        samples = model.sample(seeds, condition or None, sampler)
        return extractor.features(resized(samples.data, protocol.resize))

    with _bar(progress, f"{protocol.name}: samples", -(-n // world()[1])) as bar:
        generated = sharded(n, unit, group, work, bar.update)
    seconds = time.perf_counter() - began
    if "label" in conditions:
        generated["labels"] = conditions["label"]
    labelled = extractor.labels > 0 and extractor.labels == data.manifest.facts.get("num_classes")
    settings = replace(protocol.settings, labelled=labelled)
    values, missing = from_first_rank(lambda: measure(protocol.metrics, generated, reference, settings))
    sampled_by = sampler if sampler is not None else getattr(model, "sampler", None)
    result: dict[str, Any] = {
        "values": {protocol.key(name): value for name, value in values.items()},
        "missing": {protocol.key(name): reason for name, reason in missing.items()},
        "generated": {
            "n": n,
            "seeds": {"seed": seed, "first": first, "count": n},
            "labels": distribution,
            "sampler": describe(sampled_by),
            "nfe": getattr(sampled_by, "nfe", None),
            "guidance_scale": getattr(sampled_by, "guidance_scale", None),
            "chunk_size": unit,
            "seconds": round(seconds, 2),
            "per_second": round(n / seconds, 2),
        },
        "reference": {**real.identity, "subset_seed": SUBSET_SEED},
        "extractor": {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "dimensions": generated["features"].shape[1],
            "batch": extractor.batch,
            "dtype": "float32",
            "tf32": False,
            "autocast": False,
        },
        "resize": {
            "to": protocol.resize,
            "how": RESIZE if protocol.resize else "none",
            "extractor": extractor.resize,
        },
        "notes": [],
    }
    if protocol.floor:
        result["floor"] = _floor(data, protocol, extractor, real, reference, settings, progress)
    smallest = min(n, len(real.ids))
    if "fid" in protocol.metrics and smallest <= generated["features"].shape[1]:
        result["notes"].append(
            f"{smallest} samples for {generated['features'].shape[1]} dimensions: a covariance is singular, "
            f"FID is biased upwards"
        )
    return result


def _floor(
    data: Any,
    protocol: Protocol,
    extractor: Extractor,
    real: RealImages,
    reference: dict[str, Tensor],
    settings: Settings,
    progress: bool,
) -> dict[str, Any] | None:
    """The same metrics of real images of another split, as many as were generated if there are so many.

    Train images stand against a held-out reference; held-out images (test, else val) against a train reference.
    """
    splits = data.manifest.splits
    others = ["train"] if protocol.reference_split != "train" else ["test", "val"]
    other = next((s for s in others if s in splits and len(data.source(s))), None)
    if other is None:
        warnings.warn(f"no floor: {data.manifest.name} has no split besides {protocol.reference_split} to compare with")
        return None
    judged = RealImages(data, other, protocol.n, extractor, protocol.resize)
    with _bar(progress, f"{protocol.name}: floor", len(judged.ids)) as bar:
        rows = judged.features(protocol.chunk, bar.update)
    facts = [judged.key, real.key, protocol.metrics, asdict(settings), VERSION, _versions()]

    def compute() -> list[Any]:
        return list(measure(protocol.metrics, rows, reference, settings))

    values, missing = from_first_rank(lambda: cached_json(key_of({"floor": facts}), compute))
    return {
        "values": {protocol.key(name): value for name, value in values.items()},
        "missing": {protocol.key(name): reason for name, reason in missing.items()},
        "samples": {**judged.identity, "subset_seed": SUBSET_SEED},
        "same_n": len(judged.ids) == protocol.n,  # else the floor is lower or higher only for want of items
    }


def _likelihood(model: Any, data: Any, protocol: Protocol, device: torch.device, progress: bool) -> dict[str, Any]:
    """The part of the record that is about how likely given items are."""
    metric = protocol.metrics[0]
    capability, measured = LIKELIHOODS[metric]
    if not isinstance(model, capability):
        raise ConfigError(
            f"evaluation={protocol.name}: {type(model).__name__} cannot give a {metric.replace('_', ' ')}"
        )
    items = min(protocol.n or (1 << 62), len(data.source(protocol.reference_split)))
    with _bar(progress, f"{protocol.name}: items", -(-items // world()[1])) as bar:
        values, read = measured(model, data, protocol, device, bar.update)
    missing = {name: "not finite" for name, value in values.items() if not np.isfinite(value)}
    return {
        "values": {protocol.key(name): None if name in missing else value for name, value in values.items()},
        "missing": {protocol.key(name): reason for name, reason in missing.items()},
        "reference": read,
    }


def _extractor(protocol: Protocol, data: Any, device: torch.device) -> Extractor:
    """The protocol's extractor, else the data set's, else Inception."""
    if not isinstance(protocol.extractor, str | None):
        return protocol.extractor
    name = protocol.extractor or EXTRACTOR_OF.get(data.manifest.name, "inception-v3-compat")
    return load_extractor(name, batch=protocol.batch, device=device, path=protocol.extractor_path)


def _conditions(model: Any, data: Any, protocol: Protocol) -> tuple[dict[str, Tensor], str]:
    """Condition of all n samples by key (labels only, see Protocol), and their distribution in words."""
    if "label" not in model.conditions:
        return {}, "none: the model is not conditioned on labels"
    assert protocol.n is not None
    count = int(getattr(model, "num_classes", 0) or data.manifest.facts.get("num_classes") or 0)
    classes = data.manifest.filter.get("subset") or list(range(count))
    if not classes:
        raise ConfigError("evaluation: the model wants labels, but neither it nor the data says how many there are")
    if protocol.labels == "balanced":
        label = torch.tensor(classes)[torch.arange(protocol.n) % len(classes)]
        return {"label": label}, f"balanced: i % {len(classes)}"
    source = data.source("train")
    order = np.random.Generator(np.random.Philox(key=SUBSET_SEED)).permutation(len(source))
    ids = torch.from_numpy(np.resize(order, protocol.n))
    parts = [source.batch(part, torch.zeros_like(part)) for part in ids.split(protocol.chunk)]
    if "label" not in parts[0]:
        raise ConfigError(
            f"evaluation.labels=train: {data.manifest.name} has no labels; take evaluation.labels=balanced"
        )
    return {"label": torch.cat([part["label"] for part in parts]).cpu()}, "train: of real items, a fixed random choice"


def describe(value: Any) -> Any:
    """An object of a config as primitives: its own `record()`, its fields if it is a dataclass, else its name."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    named = {"_target_": f"{type(value).__module__}.{type(value).__qualname__}"}
    if callable(getattr(value, "record", None)):
        return named | describe(value.record())
    if is_dataclass(value) and not isinstance(value, type):
        return named | describe(asdict(value))
    return named


def _machine(device: torch.device) -> dict[str, Any]:
    """Where it ran, and the precision of its float32 products."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "device_type": device.type,
        "ranks": world()[1],
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": cuda and (torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32),
        "autocast": torch.is_autocast_enabled(device.type),
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _bar(progress: bool, words: str, total: int) -> Any:
    pause = 0.2 if sys.stderr.isatty() else 20.0  # where the output is no terminal each state is a line
    hidden = not progress or world()[0] != 0
    return tqdm(total=total, desc=words, unit="", leave=False, mininterval=pause, maxinterval=60, disable=hidden)
