"""evaluate: what is judged, data and a protocol -> the metric record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from genlab.errors import ConfigError
from genlab.evaluation.features import IN_CACHE, FeatureEvaluation, lowered
from genlab.evaluation.judged import Judged, generated_by, reconstructions_of
from genlab.evaluation.metrics.base import Items, measure
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.record import FORMAT, identity, machine, versions
from genlab.evaluation.sharding import bar, from_first_rank, world
from genlab.evaluation.texts import item_record
from genlab.modality import Modality

Say = Callable[[str], None]


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
    picture: Path | None = None,
    table: Path | None = None,
    max_minutes: float | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Evaluates a model under a protocol. With torch.distributed every rank must call it; the work is shared.

    Args:
        model: a GenerativeModel on its device, holding the weights that are to be judged.
        data: a DataModule that has been set up.
        protocol: from conf/evaluation.
        sampler: from conf/sampler; None takes the model's own.
        weights: "ema" or "raw": which weights the model holds now, for the record; None: those the protocol asks for.
        seed: of the items: see generated_by.
        progress: a bar with the time that is left, on rank 0.
        context: primitives that go into the record as they are (run, config hash, ...).
        picture: where a protocol that asks for pictures saves them.
        table: where generated texts are written, each with what was found of it, as TABLE.jsonl and TABLE.md.
        max_minutes: of images, lowers their number so that the evaluation takes about so long, and calls it a proxy.
        say: of images, told beforehand how long it will take; rank 0 only.

    Returns:
        The record, of JSON's types, the same on every rank. `record["values"]` has a value or None for each name;
        `record["missing"]` says why a value is None.

    Raises:
        ConfigError: the protocol does not fit the model or the data.
    """
    protocol.check(model, data, modality_of(model))
    began, device = time.perf_counter(), torch.device(model.device)
    weights = weights or protocol.weights
    part: dict[str, Any] = {}
    was_training = model.training
    model.eval()
    try:
        if protocol.given is not None:
            part = _given(model, data, protocol, device, progress)
        elif protocol.metrics:

            def made(wanted: Protocol) -> Judged:
                if wanted.judged == "reconstructions":
                    return reconstructions_of(model, data, wanted)
                return generated_by(model, data, wanted, sampler, seed)

            part, protocol = _judge(
                made, model.modality, data, protocol, device, progress, picture, table, max_minutes, say
            )
    finally:
        model.train(was_training)
    part["model"] = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "weights": weights,
        "samples_seen": int(getattr(model, "samples_seen", 0)),
        "dtype": str(next((p.dtype for p in model.parameters()), torch.float32)).removeprefix("torch."),
    }
    if hasattr(model, "frozen") and (frozen := model.frozen()):
        part["model"]["frozen"] = frozen
    return _finished(part, protocol, device, began, context)


def evaluate_samples(
    judged: Callable[[Protocol], Judged],
    data: Any,
    protocol: Protocol,
    *,
    device: torch.device,
    progress: bool = True,
    context: Mapping[str, Any] | None = None,
    picture: Path | None = None,
    table: Path | None = None,
    max_minutes: float | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Evaluates items that some other program made: as `evaluate`, without a model.

    Args:
        judged: gives the items as many as the protocol says (see genlab.evaluation.judged).
        data: what they are compared with: a DataModule that has been set up or a `judged.Folder`; texts need none but
            for the floor and for text_copying.
        device: where the extractor runs.
    """
    began = time.perf_counter()
    modality = judged(protocol).read(0, 1).modality
    protocol.check(None, data, modality.name, "the samples are")
    if not protocol.metrics:
        raise ConfigError("evaluation.metrics is empty: name a metric, or choose another protocol")
    part, protocol = _judge(judged, modality, data, protocol, device, progress, picture, table, max_minutes, say)
    return _finished({**part, "model": None}, protocol, device, began, context)


def _judge(
    judged: Callable[[Protocol], Judged],
    modality: Modality,
    data: Any,
    protocol: Protocol,
    device: torch.device,
    progress: bool,
    picture: Path | None,
    table: Path | None,
    max_minutes: float | None,
    say: Say | None,
) -> tuple[dict[str, Any], Protocol]:
    """The part of the record that is about items, and the protocol with the number that was judged in the end."""
    items = judged(protocol)
    if not modality.extractor:
        return item_record(items, protocol, progress, data, device, table), protocol
    if items.n != protocol.n:  # files hold as many as they hold
        protocol = replace(protocol, n=items.n, name=None)
    evaluation = FeatureEvaluation(data, protocol, device, progress)
    if max_minutes is not None or say is not None:
        item_s, real_s = (seconds / world()[1] for seconds in evaluation.seconds(items))
        fewer = protocol
        if max_minutes is not None:
            fewer = lowered(protocol, items.unit, item_s, real_s, max_minutes)
        if say is not None and world()[0] == 0:
            assert fewer.n is not None
            minutes = (real_s + fewer.n * item_s) / 60
            speed = f"at {1 / item_s:.3g}/s" if item_s > IN_CACHE / world()[1] else "in the cache"
            words = f"{fewer.name}: about {minutes:.1f} min ({fewer.n:,} samples {speed}"
            words += f", real images {real_s / 60:.1f} min, kept for the next time)" if real_s else ")"
            say(words if fewer is protocol else f"{words}; {protocol.name} would take more than {max_minutes:g} min")
        if fewer is not protocol:
            protocol, items = fewer, judged(fewer)
            evaluation = FeatureEvaluation(data, protocol, device, progress)
    return evaluation.record(items, picture), protocol


def modality_of(model: Any) -> str:
    """The name of the modality that a model makes; "nothing" of one that does not generate."""
    return model.modality.name if hasattr(model, "modality") else "nothing"


def _finished(
    part: dict[str, Any], protocol: Protocol, device: torch.device, began: float, context: Mapping[str, Any] | None
) -> dict[str, Any]:
    record = {
        "format": FORMAT,
        "name": protocol.name,
        "protocol": protocol.record(),
        "values": {},
        "missing": {},
        "metric_of": {},
        **part,
    }
    record["identity"] = identity(record)
    record["machine"] = machine(device)
    record["versions"] = versions()
    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    record["seconds"] = round(time.perf_counter() - began, 2)
    record["context"] = dict(context or {})
    return from_first_rank(lambda: record)


def _given(model: Any, data: Any, protocol: Protocol, device: torch.device, progress: bool) -> dict[str, Any]:
    """The part of the record that is about given items."""
    ((name, metric),) = protocol.metrics.items()
    items = min(protocol.n or (1 << 62), len(metric.source(model, data, protocol)))
    with bar(progress, f"{protocol.name}: items", -(-items // world()[1])) as shown:
        rows = metric.read(model, data, protocol, device, shown.update)
    return {**protocol.named(measure({name: metric}, Items(rows))), "reference": metric.facts}
