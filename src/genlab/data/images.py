"""Image data modules: the standard sets, .npz files and a user's own Dataset (folders: `genlab.data.folder`)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch

from genlab.data.fetch import fetch, find
from genlab.data.held_out import Items, with_held_out
from genlab.data.manifest import Manifest, digest
from genlab.data.module import Common, DataModule, Split
from genlab.data.readers import read_cifar, read_idx, read_npz
from genlab.data.sources import Batch, DatasetSource, ImageArrays, Source, check_label, keyed
from genlab.errors import ConfigError, DataError
from genlab.modality import to_float
from genlab.noise import Stream, bits


class ImageOptions(Common, total=False):
    """The options of every image set; see `ImageData`."""

    shape: Sequence[int]
    num_classes: int | None
    class_names: Sequence[str] | None
    random_flip: bool
    subset: Sequence[int] | None
    val_fraction: float
    modality: Literal["image"]


Parts = dict[Split, tuple[Source, str]]  # split -> items and the sha256 that identifies their content


class ImageData(DataModule):
    """Base of the image sets. A batch has "image" float32 [-1,1] NCHW and, where there are labels, "label" int64.

    Args:
        shape: [C,H,W] of every image; asserted.
        num_classes: labels lie in [0, num_classes); asserted. None = labels, if any, are not used.
        class_names: of the labels, for people; None = numbers.
        random_flip: in training, mirror each image left-right with probability 1/2, by (seed, epoch, id).
        subset: keep the items of these classes only (labels keep their numbers).
        val_fraction: this part of train, chosen once for all seeds, becomes val and leaves train. 0 = val is the
            held-out split that the data set has, an alias of test where it has but one.
    """

    modality = "image"
    notes: Mapping[Split, str] = {}  # how a split that the set has was made, for the manifest

    def __init__(
        self,
        name: str,
        *,
        shape: Sequence[int],
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        random_flip: bool = False,
        subset: Sequence[int] | None = None,
        val_fraction: float = 0.0,
        modality: Literal["image"] = "image",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(name, **common)
        self.shape = tuple(int(n) for n in shape)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ConfigError(f"data.shape={list(shape)} must be [channels, height, width]")
        if self.shape[0] not in (1, 3, 4):
            raise ConfigError(f"data.shape={list(shape)}: an image has 1 (grey), 3 (RGB) or 4 (RGBA) channels")
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"data.val_fraction={val_fraction} must lie in [0, 1)")
        self.class_names = class_names
        self.num_classes, self.random_flip, self.val_fraction = num_classes, random_flip, val_fraction
        self.subset = None if subset is None else sorted({int(c) for c in subset})

    @abstractmethod
    def parts(self) -> Parts:
        """'train' and, where the data set has them, 'val' and 'test'."""

    def filter(self) -> dict[str, Any]:
        """What was done to the images, for the manifest."""
        return {}

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        items: Items = {}
        for split, (source, sha256) in self.parts().items():
            self._check(source)
            items[split] = self._of_classes(source), digest([sha256, self.subset]), self.notes.get(split, "own")
        items = with_held_out(self.name, items, self.val_fraction)
        splits: dict[str, dict[str, Any]] = {
            split: {"count": len(source), "sha256": sha, "from": note} for split, (source, sha, note) in items.items()
        }
        facts = {"shape": list(self.shape), "num_classes": self.num_classes}
        done = self.filter() | ({} if self.subset is None else {"subset": self.subset})
        sources = {split: source for split, (source, _, _) in items.items()}
        return sources, Manifest(self.name, self.modality, facts, splits, done)

    def finish(self, batch: Batch, split: Split) -> Batch:
        image = batch["image"]
        if self.random_flip and split == "train":
            epochs = batch["position"] // len(self.source("train"))
            flip = bits(keyed(batch["id"], self.seed), (Stream.AUGMENT, epochs), 1)[:, 0] & 1
            image = torch.where(flip.bool()[:, None, None, None], image.flip(-1), image)
        return {**batch, "image": image if image.is_floating_point() else to_float(image)}

    def _check(self, source: Source) -> None:
        """The facts in the configuration against the data."""
        if isinstance(source, ImageArrays) and source.image_shape != self.shape:
            raise DataError(f"{source.origin}: images are {list(source.image_shape)}, data.shape is {list(self.shape)}")
        if self.num_classes is not None and (labels := source.labels) is not None:
            wrong = ((labels < 0) | (labels >= self.num_classes)).nonzero()
            if len(wrong):
                check_label(int(labels[wrong[0, 0]]), self.num_classes, f"{source.origin}, record {int(wrong[0, 0])}")

    def _of_classes(self, source: Source) -> Source:
        if self.subset is None:
            return source
        if (labels := source.labels) is None:
            raise ConfigError(
                f"data.subset={self.subset}: the labels of {source.origin} are not known without reading it"
            )
        ids = np.flatnonzero(np.isin(labels.numpy(), self.subset))
        if len(ids) == 0:
            raise ConfigError(f"data.subset={self.subset} leaves 0 of the {len(source)} items of {source.origin}")
        return source.select(ids)


class StandardImages(ImageData):
    """MNIST, Fashion-MNIST, CIFAR-10: fetched at first use; splits train and test, val an alias of test.

    Args:
        name: as in scripts/fetch_data.py --list.
    """

    def parts(self) -> Parts:
        folder = fetch(self.name)
        sha256 = {file.name: file.sha256 for file in find(self.name).files}
        if "test_batch.bin" in sha256:
            names = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
            sources = {split: read_cifar([folder / f for f in files]) for split, files in names.items()}
        else:
            names = {
                split: [f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"]
                for split, stem in (("train", "train"), ("test", "t10k"))
            }
            sources = {split: read_idx(folder / image, folder / label) for split, (image, label) in names.items()}
        return {split: (sources[split], digest([sha256[f] for f in names[split]])) for split in names}  # type: ignore[misc]


class Npz(ImageData):
    """A .npz file: `image` uint8 [N,H,W,C], [N,C,H,W] or [N,H,W], and perhaps `label`, integers [N].

    Args:
        path: of the training items.
        val_path: of the validation items; None = data.val_fraction of the training items.
    """

    def __init__(self, name: str, *, path: str, val_path: str | None = None, **options: Unpack[ImageOptions]) -> None:
        super().__init__(name, **options)
        self.path, self.val_path = path, val_path

    def parts(self) -> Parts:
        paths: dict[Split, str | None] = {"train": self.path, "val": self.val_path}
        sources = {split: read_npz(Path(path).expanduser(), self.shape) for split, path in paths.items() if path}
        return {split: (source, source.sha256()) for split, source in sources.items()}


class UserDataset(ImageData):
    """A user's own torch Dataset class; see `genlab.data.sources.DatasetSource` for what an item may be.

    Args:
        dataset: the training items (a node with `_target_`).
        val_dataset: the validation items; None = data.val_fraction of the training items.
    """

    def __init__(self, name: str, *, dataset: Any, val_dataset: Any = None, **options: Unpack[ImageOptions]) -> None:
        super().__init__(name, **options)
        self.datasets: dict[Split, Any] = {"train": dataset}
        if val_dataset is not None:
            self.datasets["val"] = val_dataset

    def parts(self) -> Parts:
        out: Parts = {}
        for split, dataset in self.datasets.items():
            source = DatasetSource(dataset, self.shape, self.num_classes, self.seed)
            if len(source) == 0:
                raise ConfigError(f"data.dataset: {source.origin} ({split}) is empty: 0 items")
            probe = np.unique(np.linspace(0, len(source) - 1, 16).round().astype(np.int64))
            items = source.select(probe).batch(torch.arange(len(probe)), torch.zeros(len(probe), dtype=torch.int64))
            if (image := items["image"]).is_floating_point() and bool((image >= 0).all()) and bool((image > 0).any()):
                raise ConfigError(
                    f"data.dataset: floats of {source.origin} lie in [{image.min():.3g}, {image.max():.3g}], not in "
                    "[-1, 1]; give 2 * image - 1, or uint8"
                )
            sample = {key: digest(value.numpy().tobytes()) for key, value in items.items()}
            out[split] = source, digest([source.origin, len(source), sample])
        return out

    def filter(self) -> dict[str, Any]:
        return {"sha256": "of the class's name, its length and 16 items spread evenly"}
