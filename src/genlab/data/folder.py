"""Folders of images: class folders as labels, one stated resize and crop, decoded once into a memory-mapped cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from genlab.data.facts import class_names
from genlab.data.images import ImageData, ImageOptions, Parts
from genlab.data.manifest import digest
from genlab.data.module import SPLITS, Split
from genlab.data.sources import Batch, ImageArrays, Source
from genlab.errors import ConfigError, DataError, StorageError
from genlab.files import cache_root, locked, replacing, sha256_of, write_json

EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}
Resize = Literal["lanczos", "bicubic", "bilinear", "box", "none"]
Crop = Literal["center", "none"]


@dataclass(frozen=True)
class Decode:
    """File -> uint8 [C,H,W].

    The image is turned upright (EXIF), put over white if it has transparency and C < 4, and converted to grey (C = 1),
    RGB or RGBA. With `face` its central square of so many pixels takes its place. crop 'center': scaled so that it
    covers HxW, then cut at the centre; 'none': stretched to HxW.
    resize 'none': the image must be HxW (with crop 'center': at least HxW).
    """

    shape: tuple[int, ...]
    resize: Resize = "lanczos"
    crop: Crop = "center"
    face: int | None = None

    def __call__(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height > (limit := Image.MAX_IMAGE_PIXELS or 1 << 30):
                    raise ValueError(f"{file.width}x{file.height}: more than {limit} pixels, a decompression bomb?")
                image = self._colours(ImageOps.exif_transpose(file))
        except Exception as error:  # Pillow's decoders raise nearly everything on a broken file
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(f"{path}: cannot be read ({reason}); repair or remove it") from None
        pixels = np.asarray(self._size(self._face(image, path), path))
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _colours(self, image: Image.Image) -> Image.Image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
        mode = MODES[self.shape[0]]
        if mode != "RGBA" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)

    def _face(self, image: Image.Image, path: Path) -> Image.Image:
        if self.face is None:
            return image
        left, top = (image.width - self.face) // 2, (image.height - self.face) // 2
        if left < 0 or top < 0:
            raise DataError(f"{path}: {image.width}x{image.height} pixels; data.face={self.face} does not fit")
        return image.crop((left, top, left + self.face, top + self.face))

    def _size(self, image: Image.Image, path: Path) -> Image.Image:
        _, height, width = self.shape
        if self.resize != "none" and image.size != (width, height):
            scale = max(width / image.width, height / image.height)
            size = (width, height)
            if self.crop == "center":
                size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
            image = image.resize(size, FILTERS[self.resize])
        if self.crop == "center" and image.width >= width and image.height >= height:
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        if image.size != (width, height):
            raise DataError(
                f"{path}: {image.width}x{image.height} pixels, data.shape wants {width}x{height}; set data.resize"
            )
        return image

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "resize": self.resize,
            "crop": self.crop,
            "library": "Pillow, antialiased",
            "transparency": "over white",
        } | ({} if self.face is None else {"face": f"central {self.face}x{self.face}"})


class ImageFiles(Source):
    """Images decoded when asked for."""

    def __init__(self, paths: Sequence[Path], label: Tensor | None, decode: Decode, origin: str) -> None:
        self.paths, self.label, self.decode, self.origin = paths, label, decode, origin

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        out = {"image": torch.from_numpy(np.stack([self.decode(self.paths[i]) for i in ids.tolist()]))}
        if self.label is not None:
            out["label"] = self.label[ids]
        return out

    def select(self, ids: np.ndarray) -> ImageFiles:
        label = None if self.label is None else self.label[torch.from_numpy(ids)]
        return ImageFiles([self.paths[i] for i in ids], label, self.decode, self.origin)

    @property
    def labels(self) -> Tensor | None:
        return self.label


class ImageFolder(ImageData):
    """Images in class folders: ROOT/CLASS, or ROOT/train/CLASS with ROOT/val and ROOT/test; or without classes.

    Labels are the places of the class folders in alphabetical order. Every file with an image's extension counts; one
    that cannot be read is an error that names it.

    Args:
        root: the folder.
        resize: filter of the resize to data.shape; 'none' = the files have the size.
        crop: 'center' keeps the aspect ratio and cuts; 'none' stretches.
        cache_max: bytes; a split whose decoded pixels are at most this is decoded once into a memory-mapped file in the
            cache ($GENLAB_DATA), a larger one whenever an image is drawn.
    """

    def __init__(
        self,
        name: str,
        *,
        root: str,
        resize: Resize = "lanczos",
        crop: Crop = "center",
        cache_max: int = 20_000_000_000,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(name, **options)
        self.root, self.cache_max = Path(root).expanduser(), cache_max
        if resize not in (*FILTERS, "none"):
            raise ConfigError(f"data.resize={resize!r}: choose from {', '.join(FILTERS)}, none")
        if crop not in ("center", "none"):
            raise ConfigError(f"data.crop={crop!r}: choose from center, none")
        self.decode = Decode(self.shape, resize, crop)

    def filter(self) -> dict[str, Any]:
        return self.decode.describe()

    def parts(self) -> Parts:
        folders = split_folders(self.root)
        classes = class_folders(folders["train"], self.num_classes)
        out: Parts = {}
        for split, folder in folders.items():
            paths, labels = list_images(folder, classes)
            if not paths:
                raise ConfigError(f"{folder}: holds 0 images ({', '.join(sorted(EXTENSIONS))})")
            label = torch.tensor(labels, dtype=torch.int64) if classes else None
            out[split] = cached(ImageFiles(paths, label, self.decode, str(folder)), folder, self.name, self.cache_max)
        return out


def split_folders(root: Path) -> dict[Split, Path]:
    """ROOT/train, and val and test where they are; a ROOT without a folder train is train itself.

    Raises:
        ConfigError: no such folder.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder (data.root)")
    if not (root / "train").is_dir():
        return {"train": root}
    return {split: root / split for split in SPLITS if (root / split).is_dir()}


def class_folders(folder: Path, num_classes: int | None) -> list[str]:
    """Names of the class folders of the train split, in alphabetical order.

    Raises:
        ConfigError: not `num_classes` of them.
    """
    classes = class_names(folder) or []
    if num_classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"{folder} has {len(classes)} class folders, data.num_classes is {num_classes}; "
            f"set data.num_classes={len(classes) or 'null'}"
        )
    return classes


def cached(files: ImageFiles, folder: Path, name: str, cache_max: int) -> tuple[Source, str]:
    """The images, decoded once into a memory-mapped file if that has at most `cache_max` bytes, and the sha256 that
    identifies them: of their names and contents, or of their names and sizes where they stay files."""
    names = [str(path.relative_to(folder)) for path in files.paths]
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]
    if len(files) * int(np.prod(files.decode.shape)) > cache_max:
        return files, digest(["names and sizes", [[n, size] for n, (size, _) in zip(names, stats, strict=True)]])
    key = digest([str(folder.resolve()), names, stats, files.decode.shape, files.decode.describe()])
    image, sha256 = decoded(files, names, cache_root() / "folders" / f"{name}-{key[:16]}")
    return ImageArrays(image, files.label, files.origin), sha256


def list_images(
    folder: Path, classes: list[str], extensions: Collection[str] = EXTENSIONS, kind: str = "image"
) -> tuple[list[Path], list[int]]:
    """Paths of the images (or of another `kind` of files), sorted, and their labels; none without classes.

    Raises:
        DataError: an image outside the class folders, a class without an image, a class that training does not have.
    """
    if not classes:
        return _files(folder, extensions), []
    if loose := _files(folder, extensions, deep=False):
        raise DataError(f"{loose[0]}: lies beside the class folders ({', '.join(classes[:3])}, ...); move it into one")
    extra = sorted({path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."} - set(classes))
    if extra:
        raise DataError(f"{folder / extra[0]}: a class that the training {kind}s do not have")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        own = _files(folder / name, extensions) if (folder / name).is_dir() else []
        if not own:
            raise DataError(f"{folder / name}: a class folder with 0 {kind}s; remove it or fill it")
        paths += own
        labels += [label] * len(own)
    return paths, labels


def _files(folder: Path, extensions: Collection[str], deep: bool = True) -> list[Path]:
    there = folder.rglob("*") if deep else folder.glob("*")
    return sorted(
        path for path in there if path.suffix.lower() in extensions and path.name[0] != "." and path.is_file()
    )


def decoded(files: ImageFiles, names: Sequence[str], stored: Path) -> tuple[Tensor, str]:
    """All images as one memory-mapped uint8 [N,C,H,W], and the sha256 over names and file contents; made once.

    The cache appears whole or not at all; an image that cannot be read leaves nothing behind.
    """
    shape = (len(files), *files.decode.shape)
    pixels, facts = stored.with_suffix(".uint8"), stored.with_suffix(".json")
    with locked(stored.with_suffix(".lock")):
        if not (facts.exists() and pixels.exists() and pixels.stat().st_size == int(np.prod(shape))):
            _decode_all(files, names, pixels, facts, int(np.prod(shape)))
    image = torch.from_numpy(np.memmap(pixels, dtype=np.uint8, mode="c", shape=shape))
    return image, json.loads(facts.read_text())["sha256"]


def _decode_all(files: ImageFiles, names: Sequence[str], pixels: Path, facts: Path, size: int) -> None:
    free = shutil.disk_usage(pixels.parent).free
    if size > free:
        raise StorageError(f"{pixels.parent}: {free} bytes free, {size} needed for the decoded images; set GENLAB_DATA")

    hashes = []
    workers = min(8, os.cpu_count() or 1)  # Pillow decodes and resizes without the interpreter's lock
    bar = tqdm(total=len(files), desc=f"decoding {Path(files.origin).name}", unit="image")
    with ThreadPoolExecutor(workers) as pool, replacing(pixels) as temporary, open(temporary, "wb") as out, bar:
        for first in range(0, len(files), 512):
            part = files.paths[first : first + 512]
            for image, sha256 in pool.map(lambda path: (files.decode(path), sha256_of(path)), part):
                out.write(image.tobytes())
                hashes.append(sha256)
                bar.update()
    sha256 = digest(list(zip(names, hashes, strict=True)))
    write_json(facts, {"sha256": sha256, "count": len(files), "folder": files.origin})
