"""Features of real images and sounds, computed once and kept on disk under all that they depend on."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from genlab.data.clips import RATES, resampled
from genlab.data.order import SUBSET_SEED, subset
from genlab.data.sources import Source
from genlab.errors import ConfigError, StorageError
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.metrics.base import no_split
from genlab.evaluation.sharding import from_first_rank, sharded, world
from genlab.files import cache_root, read_json, replacing, write_bytes
from genlab.modality import Audio, Image, Modality, to_uint8

VERSION = 1  # of the way features are computed and stored: raise it when either changes
RESIZE = "bicubic, antialiased, rounded to uint8"


def key_of(facts: dict[str, Any]) -> str:
    """sha256 in hex of primitives."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, size, size]; unchanged where they have that size or `size` is None."""
    if size is None or tuple(images.shape[2:]) == (size, size):
        return images
    floats = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return floats.clamp_(0, 255).round_().to(torch.uint8)


def real_items(data: Any, split: str, n: int | None, key: str = "evaluation.reference_split") -> tuple[Source, Tensor]:
    """The source of a split, and the ids of n of its items, a fixed random choice; None or too many: all.

    Raises:
        ConfigError: no such split; names the key.
    """
    if split not in data.manifest.splits:
        raise no_split(data, split, key)
    source = data.source(split)
    return source, torch.from_numpy(subset(len(source), n))


def read_items(data: Any, source: Source, ids: Tensor, device: torch.device) -> dict[str, Tensor]:
    """Items of a split as a model is given them, never augmented."""
    raw = {"id": ids, "position": ids, **source.batch(ids, torch.zeros_like(ids))}
    return data.finish({key: value.to(device) for key, value in raw.items()}, "test")


def real_batch(source: Source, ids: Tensor) -> dict[str, Tensor]:
    """Items of a split, "item": images uint8 [B, C, H, W] or sounds float32 [B, C, T]; and what each is known to be,
    int64 [B]: its label as "labels", the rest by the names of conditions. On the CPU."""
    raw = source.batch(ids, torch.zeros_like(ids))
    item = raw["audio"] if "audio" in raw else raw["image"]
    if "image" in raw and item.dtype != torch.uint8:
        item = to_uint8(item)
    known = {name: raw[name].cpu() for name in source.known if name in raw and name != "label"}
    return {"item": item.cpu(), **({"labels": raw["label"].cpu()} if "label" in raw else {}), **known}


def conditions_in(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What items are known to be, by the names of conditions, of what `real_batch` gave and their features."""
    others = {"item", "features", "logits"}
    return {"label" if name == "labels" else name: row for name, row in rows.items() if name not in others}


def data_modality(data: Any) -> Modality:
    """What the items of a data set, or of a folder in its place, are: images or sounds."""
    if data.manifest.modality == "audio":
        return Audio(data.manifest.facts["sample_rate"])
    return Image()


def fitted(items: Tensor, modality: Modality, extractor: Extractor | None, size: int | None) -> Tensor:
    """Items as an extractor gets them: images of the height and width `size`, sounds of its own rate.

    Raises:
        ConfigError: the extractor reads images, these are sounds; a rate that no filter goes from.
    """
    if not isinstance(modality, Audio):
        return resized(items, size)
    if extractor is None:
        return items
    if (rate := getattr(extractor, "sample_rate", None)) is None:
        raise ConfigError(
            f"evaluation.extractor={extractor.name} reads no sounds: take spoken-digits-cnn, or clap with "
            "evaluation.extractor.path"
        )
    return at_rate(items, modality.sample_rate, rate)


def at_rate(sounds: Tensor, rate: int, wanted: int) -> Tensor:
    """Sounds float32 [N, C, T] in [-1, 1] brought from one rate in Hz to another as the data are (scipy's polyphase
    filter), on the CPU.

    Raises:
        ConfigError: a rate that no sound has.
    """
    if rate == wanted:
        return sounds
    if not RATES[0] <= rate <= RATES[1]:
        raise ConfigError(
            f"the sounds have {rate} Hz, which cannot be resampled to {wanted} Hz: expected {RATES[0]:,} to "
            f"{RATES[1]:,} Hz; set the sample_rate of the model and of the data to what the sounds have"
        )
    flat = resampled(sounds.cpu().flatten(0, 1).numpy(), rate, wanted)
    return torch.from_numpy(flat).view(*sounds.shape[:2], -1)


class RealItems:
    """Some items of a split, with what identifies their features.

    Args:
        data: a DataModule of images or sounds that has been set up.
        split: "train", "val" or "test".
        n: how many (a fixed random choice); None or too many: all.
        extractor: see Extractor; None: only the items are read.
        resize: see protocol.ExtractorChoice.

    Raises:
        ConfigError: the data set has no such split, or it is empty.
    """

    def __init__(self, data: Any, split: str, n: int | None, extractor: Extractor | None, resize: int | None) -> None:
        self.source, self.ids = real_items(data, split, n)
        if len(self.source) == 0:
            raise ConfigError(f"evaluation.reference_split={split}: this split of {data.manifest.name} is empty")
        self.extractor, self.resize, self.modality = extractor, resize, data_modality(data)
        self.identity = {
            "data": data.manifest.name,
            "split": split,
            "n": len(self.ids),
            "of": len(self.source),
            "sha256": data.manifest.identity(split),
        }
        self.key = key_of(
            {
                **self.identity,
                "extractor": extractor and [extractor.name, extractor.sha256, extractor.resize],
                "resize": [resize, RESIZE] if resize else None,
                "subset_seed": SUBSET_SEED,
                "version": VERSION,
            }
        )

    @property
    def path(self) -> Path:
        """Where the features are kept."""
        name = "" if self.extractor is None else self.extractor.name
        facts = [self.identity["data"], self.identity["split"], len(self.ids), name, self.key[:16]]
        return cache_root() / "reference" / (re.sub(r"[^\w.-]+", "_", "-".join(map(str, facts))) + ".safetensors")

    def cached(self) -> bool:
        """Whether the features need not be computed. Every rank must call it."""
        return bool(from_first_rank(self.path.is_file))

    def batch(self, start: int, stop: int) -> dict[str, Tensor]:
        """Items start .. stop - 1 of this choice, see real_batch; images as the extractor gets them."""
        rows = real_batch(self.source, self.ids[start:stop])
        return {**rows, "item": fitted(rows["item"], self.modality, None, self.resize)}

    def features(self, chunk: int = 500, done: Callable[[int], Any] = lambda count: None) -> dict[str, Tensor]:
        """{"features": float32 [n, D], "logits"?: float32 [n, K], "labels"?: int64 [n], ...}, cached or computed.

        Every rank must call it; the work is shared, and rank 0 has the result (others perhaps nothing). `done` hears of
        items as they are computed.
        """

        def work(start: int, stop: int) -> dict[str, Tensor]:
            rows = self.batch(start, stop)
            assert self.extractor is not None
            item = fitted(rows.pop("item"), self.modality, self.extractor, self.resize)
            return {**self.extractor.features(item), **rows}

        cached = self._load() if world()[0] == 0 else None
        if from_first_rank(lambda: cached is not None):
            return cached or {}
        rows = sharded(len(self.ids), 1, chunk, work, done)
        from_first_rank(lambda: self._store(rows))
        return rows

    def items(self, chunk: int = 500) -> dict[str, Tensor]:
        """All of `batch`."""
        parts = [self.batch(start, start + chunk) for start in range(0, len(self.ids), chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _load(self) -> dict[str, Tensor] | None:
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    return None
                rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:  # safetensors has its own exceptions; whatever is wrong, it can be computed again
            warnings.warn(f"{self.path}: unreadable cache of reference features is computed again ({error})")
            return None
        return rows if all(len(tensor) == len(self.ids) for tensor in rows.values()) else None

    def _store(self, rows: dict[str, Tensor]) -> None:
        try:
            with replacing(self.path) as temporary:
                save_file(rows, temporary, {"key": self.key, **{k: str(v) for k, v in self.identity.items()}})
        except StorageError as error:
            warnings.warn(f"reference features are not kept: {error}")


def cached_json(key: str, compute: Callable[[], Any]) -> Any:
    """The JSON value under `key` in the cache; computed and kept where it is not there. For one rank."""
    path = cache_root() / "reference" / f"{key[:32]}.json"
    stored = read_json(path)
    if isinstance(stored, dict) and stored.get("key") == key and "value" in stored:
        return stored["value"]
    value = compute()
    try:
        write_bytes(path, json.dumps({"key": key, "value": value}).encode())  # with NaN, which write_json refuses
    except StorageError as error:
        warnings.warn(f"a result is not kept: {error}")
    return value
