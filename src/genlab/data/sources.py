"""Sources: the raw items of one split, by index, before anything random or floating happens to them."""

from __future__ import annotations

import contextlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.manifest import digest
from genlab.errors import ConfigError, DataError
from genlab.noise import Stream, bits, fold_in

Batch = dict[str, Tensor]


def keyed(ids: Tensor, seed: int) -> Tensor:
    """Keys for `genlab.noise`, int64 [B], of items of a run: 32 bits of its seed above the id, then further bits."""
    high = (seed & 0xFFFFFFFF) << 32
    keys = ids | (high - (1 << 64) if high >> 63 else high)
    return fold_in(keys, seed >> 32) if seed >> 32 else keys


class Source(ABC):
    """Items 0 .. len-1 of a split.

    `batch` gives raw tensors, e.g. {"image": uint8 [B,C,H,W], "label": int64 [B]} or {"input_ids": int64 [B,T],
    "labels": int64 [B,T]}, as a function of (ids, epochs) only.
    """

    origin: str = "the data"  # what error messages call it: a path
    rows: int | None = None  # items i, i + rows, i + 2 rows ... follow one another: never shuffled; a batch is all rows
    lengths: Tensor | None = None  # int64 [N]: training batches are of items that are alike in it

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        """Raw items; ids and epochs int64 [B] on the device of the storage (CPU before `to`)."""

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor | None:
        """Tokens of each item that a loss counts, int64 [B]; None where all items have as many (or are no text)."""
        return None

    def references(self, ids: Tensor) -> list[list[str]] | None:
        """The right answers of items, ids int64 [B], as they stand in the file; None where there are none."""
        return None

    @property
    def nbytes(self) -> int | None:
        """Size of the storage if it can be moved to a device, else None (items are read or decoded when asked for)."""
        return None

    def to(self, device: torch.device) -> Source:
        """The same source with its storage on `device`."""
        return self

    @abstractmethod
    def select(self, ids: np.ndarray) -> Source:
        """The source of these items alone, renumbered in this order."""

    @property
    def labels(self) -> Tensor | None:
        """All labels, int64 [N], if they are known without reading the items."""
        return None

    @property
    def known(self) -> Mapping[str, Tensor]:
        """What is known of all items without reading them, int64 [N] by the names of conditions, such as "label"."""
        return {} if self.labels is None else {"label": self.labels}


class ImageArrays(Source):
    """Images in one uint8 array.

    Args:
        image: uint8 [M,C,H,W], in memory or memory-mapped.
        label: int64 [M] or None.
        origin: the file they came from.
        index: int64 [N], the rows that are items; None = all. (So a part of a memory-mapped array stays where it is.)
    """

    def __init__(self, image: Tensor, label: Tensor | None, origin: str, index: Tensor | None = None) -> None:
        assert image.dtype == torch.uint8, f"expected uint8 [N,C,H,W], got {image.dtype}"
        assert image.ndim == 4, f"expected uint8 [N,C,H,W], got {tuple(image.shape)}"
        self._image, self._label, self.origin, self._index = image, label, origin, index

    def __len__(self) -> int:
        return len(self._image if self._index is None else self._index)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        rows = ids if self._index is None else self._index[ids]
        out = {"image": self._image.index_select(0, rows)}
        if self._label is not None:
            out["label"] = self._label.index_select(0, rows)
        return out

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[C,H,W] of every image."""
        return tuple(self._image.shape[1:])

    def sha256(self) -> str:
        """Of shape, pixels and labels; in hex."""
        label = b"" if self._label is None else self._label.numpy().tobytes()
        return digest([list(self._image.shape), digest(self._image.numpy().tobytes()), digest(label)])

    @property
    def nbytes(self) -> int:
        return len(self) * (math.prod(self.image_shape) + (0 if self._label is None else 8))

    def to(self, device: torch.device) -> ImageArrays:
        if device == self._image.device:
            return self
        image = self._image if self._index is None else self._image[self._index]
        return ImageArrays(image.to(device), None if self.labels is None else self.labels.to(device), self.origin)

    def select(self, ids: np.ndarray) -> ImageArrays:
        index = torch.from_numpy(ids)
        return ImageArrays(self._image, self._label, self.origin, index if self._index is None else self._index[index])

    @property
    def labels(self) -> Tensor | None:
        return self._label if self._label is None or self._index is None else self._label[self._index]


def check_label(label: int, num_classes: int | None, where: str) -> None:
    """DataError if a label lies outside [0, num_classes)."""
    if num_classes is not None and not 0 <= label < num_classes:
        raise DataError(f"{where}: label {label} is outside 0..{num_classes - 1} (data.num_classes={num_classes})")


@contextlib.contextmanager
def item_rng(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and random for one item, and puts them back afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class DatasetSource(Source):
    """A user's own torch Dataset of images, with `__len__`.

    An item is a dict with "image" and perhaps "label", or (image, label), or an image; an image is uint8 [C,H,W], float
    [C,H,W] in [-1, 1], a PIL image or a uint8 array [H,W,C]. Random transforms are repeatable: the global generators
    are seeded from (seed, epoch, id) around each item.

    Args:
        dataset: the user's object.
        shape: the [C,H,W] that every image must have.
        num_classes: labels must lie in [0, num_classes); None = any.
        seed: of the run.
        ids: the dataset's index of each item; None = all.
    """

    def __init__(
        self, dataset: Any, shape: tuple[int, ...], num_classes: int | None, seed: int, ids: np.ndarray | None = None
    ) -> None:
        self.origin = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ConfigError(f"data.dataset: {self.origin} needs __len__ and __getitem__ (a map-style torch Dataset)")
        self.dataset, self.shape, self.num_classes, self.seed = dataset, shape, num_classes, seed
        self.ids = np.arange(len(dataset)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        seeds = bits(keyed(ids, self.seed), (Stream.AUGMENT, epochs), 1)[:, 0]
        items = []
        for i, seed in zip(ids.tolist(), seeds.tolist(), strict=True):
            index = int(self.ids[i])
            with item_rng(seed):
                item = self.dataset[index]
            items.append(self._item(item, index))
            if items[-1].keys() != items[0].keys() or items[-1]["image"].dtype != items[0]["image"].dtype:
                raise DataError(
                    f"{self.origin}[{index}]: differs from other items in having a label or in the image's dtype"
                )
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def _item(self, item: Any, index: int) -> Batch:
        where = f"{self.origin}[{index}]"
        if isinstance(item, Mapping):
            image, label = item.get("image"), item.get("label")
        elif isinstance(item, tuple | list):
            image, label = (*item, None)[:2]
        else:
            image, label = item, None
        if not isinstance(image, Tensor):  # PIL or an array of pixels
            try:
                pixels = np.array(image)
            except (TypeError, ValueError) as error:
                raise DataError(f"{where}: no image ({error})") from None
            if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
                raise DataError(
                    f"{where}: expected a uint8 [C,H,W] tensor or an image as 'image' or first element, got "
                    f"{type(image).__name__} {pixels.dtype}"
                )
            image = torch.from_numpy(pixels[..., None] if pixels.ndim == 2 else pixels).permute(2, 0, 1).contiguous()
        if tuple(image.shape) != self.shape:
            raise DataError(f"{where}: image is {tuple(image.shape)}, data.shape is {self.shape}")
        if image.is_floating_point():
            image = image.to(torch.float32)
            if not (image.abs() <= 1).all():
                raise DataError(f"{where}: float image outside [-1, 1]: {image.min():.4g} .. {image.max():.4g}")
        elif image.dtype != torch.uint8:
            raise DataError(f"{where}: image is {image.dtype}; give uint8, or float in [-1, 1]")
        out = {"image": image}
        if label is not None:
            try:
                out["label"] = torch.tensor(int(label), dtype=torch.int64)
            except (TypeError, ValueError):
                raise DataError(f"{where}: label is {label!r}, expected an integer") from None
            check_label(int(label), self.num_classes, where)
        return out

    def select(self, ids: np.ndarray) -> DatasetSource:
        return DatasetSource(self.dataset, self.shape, self.num_classes, self.seed, self.ids[ids])
