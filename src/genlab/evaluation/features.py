"""The part of a record that is about images or sounds: features of what is judged and of real ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.drawing import guarded
from genlab.errors import ConfigError
from genlab.evaluation.extractors import Extractor, load_extractor
from genlab.evaluation.judged import Judged
from genlab.evaluation.metrics.base import Items, Measured, measure
from genlab.evaluation.neighbours import closest_pairs
from genlab.evaluation.pictures import save_closest
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.record import versions
from genlab.evaluation.reference import (
    RESIZE,
    SUBSET_SEED,
    VERSION,
    RealItems,
    cached_json,
    conditions_in,
    data_modality,
    fitted,
    key_of,
)
from genlab.evaluation.sharding import bar, from_first_rank, sharded, world
from genlab.modality import Modality

IN_CACHE = 1e-6  # seconds an item whose features are there
# Data sets that have an extractor of their own; all others take the usual one of their modality.
EXTRACTOR_OF = {"mnist": "mnist-cnn", "fashion_mnist": "fashion-cnn", "spoken_digits": "spoken-digits-cnn"}


class FeatureEvaluation:
    """Images or sounds against real ones under a protocol.

    Args:
        data: a DataModule that has been set up, or a `judged.Folder`.
        protocol: with n as it is to be used.
        device: where the extractor runs.
        progress: bars on rank 0.

    Raises:
        ConfigError: the data has no such split or is of another modality, or the extractor's weights are not here.
    """

    def __init__(self, data: Any, protocol: Protocol, device: torch.device, progress: bool) -> None:
        self.data, self.protocol, self.progress = data, protocol, progress
        self.alike = all(metric.judges(data_modality(data).name) for metric in protocol.metrics.values())
        if not self.alike and protocol.needs("reference"):
            raise ConfigError(
                f"evaluation={protocol.name} compares with real items of what it judges, {data.manifest.name} has "
                f"{data_modality(data).name}: choose other data"
            )
        self.extractor = _extractor(protocol, data, device) if protocol.needs("features") else None
        self.resize = protocol.extractor.resize
        self.real = RealItems(data, protocol.reference_split, protocol.reference_n, self.extractor, self.resize)
        classes = 0 if self.extractor is None else self.extractor.labels
        self.labelled = classes > 0 and classes == data.manifest.facts.get("num_classes")
        for metric in protocol.metrics.values():
            metric.to(device)
        self.other = self._other()

    def _other(self) -> RealItems | None:
        """Real images of another split, for the floor: train against held-out ones, or held-out against train."""
        if not self.protocol.floor or not self.alike:
            return None
        splits, reference = self.data.manifest.splits, self.protocol.reference_split
        others = ["train"] if reference != "train" else ["test", "val"]
        found = next((s for s in others if s in splits and s != reference and len(self.data.source(s))), None)
        if found is None:
            warnings.warn(f"no floor: {self.data.manifest.name} has no split besides {reference} to compare with")
            return None
        return RealItems(self.data, found, self.protocol.n, self.extractor, self.resize)

    def seconds(self, judged: Judged) -> tuple[float, float]:
        """Estimates of one process: seconds an item that is judged, and seconds for all real images not in the cache.

        Measured on one chunk and on one batch of the extractor. Every rank must call it.
        """
        size = 100 if self.extractor is None else self.extractor.batch
        count = min(judged.unit if judged.unit > 1 else size, judged.n)

        def judge() -> None:
            samples = judged.read(0, count)
            if self.extractor is not None:
                self.extractor.features(fitted(samples.data, samples.modality, self.extractor, self.resize))

        split = self._split(judged)
        item = IN_CACHE if split is not None and split.cached() else _timed(judge) / count
        compared = self.real if self.protocol.needs("reference") else None
        seconds, extractor = 0.0, self.extractor
        waiting = [real for real in (compared, self.other) if extractor and real is not None and not real.cached()]
        if extractor is not None and waiting:
            size = min(extractor.batch, len(waiting[0].ids))
            once = _timed(lambda: extractor.features(self._fitted(waiting[0].batch(0, size)["item"])))
            seconds = once / size * sum(len(real.ids) for real in waiting)
        return from_first_rank(lambda: (item, seconds))

    def _split(self, judged: Judged) -> RealItems | None:
        """What is judged, where it is a split of a data set, whose features may be in the cache."""
        if judged.split is None or self.extractor is None:
            return None
        return RealItems(*judged.split, judged.n, self.extractor, self.resize)

    def record(self, judged: Judged, picture: Path | None = None) -> dict[str, Any]:
        """Values, floor, and all that decides them. `picture`: where closest pairs are saved, if they are asked for."""
        protocol, real, extractor = self.protocol, self.real, self.extractor
        reference = self._items(real, f"{protocol.name}: real images") if protocol.needs("reference") else Items()
        drawn = picture is not None and any(metric.closest_pairs for metric in protocol.metrics.values())
        wanted = drawn or protocol.needs("samples")
        began = time.perf_counter()

        def work(start: int, stop: int) -> dict[str, Tensor]:
            samples = judged.read(start, stop)
            assert isinstance(samples.data, Tensor)
            rows = {}
            if extractor is not None:
                rows = extractor.features(fitted(samples.data, samples.modality, extractor, self.resize))
            return {**rows, "item": samples.data} if wanted or extractor is None else rows

        with bar(self.progress, f"{protocol.name}: samples", -(-judged.n // world()[1])) as shown:
            if (split := self._split(judged)) is not None and not wanted:
                rows = split.features(protocol.chunk, shown.update)
            else:
                rows = sharded(judged.n, judged.unit, judged.group, work, shown.update)
        seconds = time.perf_counter() - began
        items = rows.pop("item", None)
        dimensions = from_first_rank(lambda: rows["features"].shape[1] if "features" in rows else None)
        modality = judged.items.modality or real.modality
        shown = None if items is None else fitted(items, modality, None, self.resize)
        made = self._group(rows, shown, judged.items)
        for metric in protocol.metrics.values():
            metric.prepare(self.data, [made])
        measured = measure(protocol.metrics, made, reference)
        if picture is not None and drawn and world()[0] == 0:
            with guarded(picture):
                self._pairs(picture, shown, modality, rows["features"], reference.features)
        smallest = min(judged.n, len(real.ids))
        result: dict[str, Any] = {
            **protocol.named(measured),
            "generated": {**judged.facts, "seconds": round(seconds, 2), "per_second": round(judged.n / seconds, 2)},
            "reference": {**real.identity, "subset_seed": SUBSET_SEED},
            "resize": {
                "to": self.resize,
                "how": RESIZE if self.resize else "none",
                "extractor": "none" if extractor is None else extractor.resize,
            },
            "notes": [note for metric in protocol.metrics.values() for note in metric.notes(smallest, dimensions)],
        }
        if extractor is not None:
            result["extractor"] = {
                "name": extractor.name,
                "sha256": extractor.sha256,
                "dimensions": dimensions,
                "batch": extractor.batch,
                "dtype": "float32",
                "tf32": False,
                "autocast": False,
            }
        if self.other is not None:
            result["floor"] = self._floor(self.other, reference)
        return result

    def _items(self, real: RealItems, words: str) -> Items:
        """Real items, as far as a metric needs them; all of it on rank 0 only."""
        rows: dict[str, Tensor] = {}
        if self.extractor is not None:
            with bar(self.progress, words, len(real.ids)) as shown:
                rows = real.features(self.protocol.chunk, shown.update)
        if (self.protocol.needs("samples") or self.extractor is None) and world()[0] == 0:
            rows = {**rows, **real.items(self.protocol.chunk)}
        items = Items(condition=conditions_in(rows), modality=real.modality)
        return replace(self._group(rows, rows.get("item"), items), references=real.source.references(real.ids))

    def _group(self, rows: dict[str, Tensor], data: Tensor | None, items: Items) -> Items:
        """Items with their data and features."""
        features, logits = rows.get("features"), rows.get("logits")
        return replace(items, data=data, features=features, logits=logits, labelled=self.labelled)

    def _fitted(self, real: Tensor) -> Tensor:
        return fitted(real, self.real.modality, self.extractor, None)

    def _floor(self, other: RealItems, reference: Items) -> dict[str, Any]:
        """The same metrics of real images of another split, as many as were judged if there are so many."""
        protocol = self.protocol
        items = self._items(other, f"{protocol.name}: floor")
        settings = {name: metric.record() for name, metric in protocol.metrics.items()}
        facts = [other.key, self.real.key, settings, self.labelled, VERSION, versions()]

        def compute() -> list[Any]:
            measured = measure(protocol.metrics, items, reference, alone=True)
            return [measured.values, measured.missing, measured.metric]

        # What a class of the user's computes may have changed since.
        ours = all(node["_target_"].startswith("genlab.") for node in settings.values())
        key = key_of({"floor": facts})
        values = from_first_rank(lambda: cached_json(key, compute) if ours else compute())
        return {
            **protocol.named(Measured(*values)),
            "samples": {**other.identity, "subset_seed": SUBSET_SEED},
            "same_n": len(other.ids) == protocol.n,  # else the floor is lower or higher only for want of items
        }

    def _pairs(self, path: Path, data: Any, modality: Modality, features: Tensor, reference: Any) -> None:
        """The samples that lie closest to a real item, each beside it: a picture, of sounds also a page of players."""
        rows, ids, distances = closest_pairs(features, reference, 16)
        real = torch.cat([self.real.batch(int(i), int(i) + 1)["item"] for i in ids])
        save_closest(path, (data[rows], modality), (real, self.real.modality), rows, self.real.ids[ids], distances)


def _extractor(protocol: Protocol, data: Any, device: torch.device) -> Extractor:
    """The protocol's extractor, else the data set's, else the modality's usual one.

    Raises:
        ConfigError: there is none.
    """
    choice = protocol.extractor
    if not isinstance(choice.name, str | None):
        return choice.name
    modality = data_modality(data)
    name = choice.name or EXTRACTOR_OF.get(data.manifest.name) or modality.usual_extractor
    if name is None:
        raise ConfigError(
            f"evaluation.extractor.name=null: {data.manifest.name} has no extractor of its own; name one that reads "
            f"{modality.name}, such as spoken-digits-cnn or clap"
        )
    return load_extractor(name, batch=choice.batch, device=device, path=choice.path)


def _timed(function: Callable[[], Any], short_s: float = 3.0) -> float:
    """Seconds of a call; of a second one where the first is short, since it also warms up."""
    for _ in range(2):
        began = time.perf_counter()
        function()
        seconds = time.perf_counter() - began
        if seconds > short_s:
            break
    return seconds


def lowered(protocol: Protocol, judged_unit: int, item_s: float, real_s: float, minutes: float) -> Protocol:
    """The protocol with as many samples as `minutes` allow, in whole chunks, its values then called proxies.

    Args:
        protocol: the one that was asked for.
        judged_unit: items of a chunk, of which n becomes a multiple.
        item_s: seconds an item, from `FeatureEvaluation.seconds`, over all ranks.
        real_s: seconds of the real images, likewise.
        minutes: what there is.

    Raises:
        ConfigError: not even one chunk fits; says what would.
    """
    assert protocol.n is not None
    fits = int((minutes * 60 - real_s) / item_s)
    n = fits // judged_unit * judged_unit
    if n < 2:
        least = (real_s + max(2, judged_unit) * item_s) / 60
        raise ConfigError(
            f"max_minutes={minutes:g}: the smallest evaluation takes about {least:.1f} minutes here, {real_s / 60:.1f} "
            "of them for real images, whose features are kept for the next time."
        )
    return protocol if n >= protocol.n else protocol.with_fewer_samples(n)
