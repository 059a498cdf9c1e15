"""Features of real images, computed once and kept on disk under all that they depend on."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from genlab.data.order import SUBSET_SEED, subset
from genlab.data.sources import Source
from genlab.errors import ConfigError, StorageError
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.metrics.base import no_split
from genlab.evaluation.sharding import from_first_rank, sharded, world
from genlab.files import cache_root, read_json, replacing, write_bytes
from genlab.modality import to_uint8

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


def image_batch(source: Source, ids: Tensor) -> dict[str, Tensor]:
    """Images of a split: image uint8 [B, C, H, W], perhaps labels int64 [B]; on the CPU."""
    raw = source.batch(ids, torch.zeros_like(ids))
    image = raw["image"] if raw["image"].dtype == torch.uint8 else to_uint8(raw["image"])
    return {"image": image.cpu(), **({"labels": raw["label"].cpu()} if "label" in raw else {})}


class RealImages:
    """Some items of a split, with what identifies their features.

    Args:
        data: a DataModule of images that has been set up.
        split: "train", "val" or "test".
        n: how many (a fixed random choice); None or too many: all.
        extractor: see Extractor; None: only images are read.
        resize: see protocol.ExtractorChoice.

    Raises:
        ConfigError: the data set has no such split, or it is empty.
    """

    def __init__(self, data: Any, split: str, n: int | None, extractor: Extractor | None, resize: int | None) -> None:
        self.source, self.ids = real_items(data, split, n)
        if len(self.source) == 0:
            raise ConfigError(f"evaluation.reference_split={split}: this split of {data.manifest.name} is empty")
        self.extractor, self.resize = extractor, resize
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
        """Items start .. stop - 1 of this choice: image uint8 [B, C, H, W] as the extractor gets it, perhaps labels."""
        rows = image_batch(self.source, self.ids[start:stop])
        return {**rows, "image": resized(rows["image"], self.resize)}

    def features(self, chunk: int = 500, done: Callable[[int], Any] = lambda count: None) -> dict[str, Tensor]:
        """{"features": float32 [n, D], "logits"?: float32 [n, K], "labels"?: int64 [n]}, from the cache or computed.

        Every rank must call it; the work is shared, and rank 0 has the result (others perhaps nothing). `done` hears of
        items as they are computed.
        """

        def work(start: int, stop: int) -> dict[str, Tensor]:
            rows = self.batch(start, stop)
            assert self.extractor is not None
            return {**self.extractor.features(rows.pop("image")), **rows}

        cached = self._load() if world()[0] == 0 else None
        if from_first_rank(lambda: cached is not None):
            return cached or {}
        rows = sharded(len(self.ids), 1, chunk, work, done)
        from_first_rank(lambda: self._store(rows))
        return rows

    def images(self, chunk: int = 500) -> Tensor:
        """uint8 [n, C, H, W] as the extractor would get them."""
        return torch.cat([self.batch(start, start + chunk)["image"] for start in range(0, len(self.ids), chunk)])

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
