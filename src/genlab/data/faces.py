"""Faces: CelebA (Liu et al. 2015, arXiv 1411.7766) and Labeled Faces in the Wild (Huang et al. 2007)."""

from __future__ import annotations

import difflib
import hashlib
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Unpack

import torch

from genlab.data.archive import unpack
from genlab.data.fetch import fetch
from genlab.data.folder import FILTERS, Decode, ImageFiles, Resize, cached
from genlab.data.images import ImageData, ImageOptions, Parts
from genlab.data.manifest import Manifest, digest
from genlab.data.module import Split
from genlab.data.sources import Source
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, write_bytes

LIMIT = 8_000_000_000  # bytes that an archive may unpack to
MD5 = {  # of the official files, as torchvision publishes them
    "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
    "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
    "lfw.tgz": "a17d05bd522c52d84eca14327a23d494",
    "lfw-funneled.tgz": "1b42dfed7d15c9b2dd63d5e5840c86ad",
    "lfw-deepfunneled.tgz": "68331da3eb755a505a502b5aacb3c201",
}


class FaceOptions(ImageOptions, total=False):
    """The options of both sets; see `Faces`."""

    path: str | None
    face: Annotated[int, "gt 0"] | None
    resize: Resize
    verify: bool
    cache_max: int


class Faces(ImageData):
    """Base of the sets of faces: a central square of each photograph, resized to data.shape and decoded once.

    Args:
        path: folder or archive of the set as downloaded; None = see the set.
        face: side of the central square in pixels, cut before the resize; None = the whole photograph, covered and cut.
        resize: filter of the resize to data.shape.
        verify: refuse files whose md5 is not that of the official ones; False for a part or a copy of your own.
        cache_max: bytes; see `genlab.data.folder.ImageFolder`.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str | None = None,
        face: Annotated[int, "gt 0"] | None = None,
        resize: Resize = "lanczos",
        verify: bool = True,
        cache_max: int = 20_000_000_000,
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(name, **options)
        if resize not in FILTERS:
            raise ConfigError(f"data.resize={resize!r}: choose from {', '.join(FILTERS)}")
        if self.shape[0] not in (1, 3):
            raise ConfigError(f"data.shape={list(self.shape)}: faces have 1 (grey) or 3 channels")
        self.path = None if path is None else Path(path).expanduser()
        self.verify, self.cache_max = verify, cache_max
        self.decode = Decode(self.shape, resize, "center", face)
        self.md5: dict[str, str] = {}  # of the files that were read
        self.split_note = "official partition"  # how the splits are made, for the manifest

    def filter(self) -> dict[str, Any]:
        return self.decode.describe()

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        sources, manifest = super().load()
        note = "; ".join([self.split_note, *(f"{name} md5 {md5}" for name, md5 in self.md5.items())])
        splits = {k: split | ({"from": note} if split["from"] == "own" else {}) for k, split in manifest.splits.items()}
        return sources, replace(manifest, splits=splits)

    @abstractmethod
    def items(self) -> tuple[Path, dict[Split, list[str]], dict[str, int]]:
        """The folder, each split's files in it, and each file's label; no labels at all where there are none."""

    def parts(self) -> Parts:
        folder, names, labels = self.items()
        out: Parts = {}
        for split, files in names.items():
            paths = [folder / name for name in files]
            if absent := next((path for path in paths if not path.is_file()), None):
                raise DataError(f"{absent}: listed for {split}, but not there; fetch the images again")
            label = torch.tensor([labels[name] for name in files]) if labels else None
            images = ImageFiles(paths, label, self.decode, str(folder))
            source, sha256 = cached(images, folder, self.name, self.cache_max)
            out[split] = source, sha256 if label is None else digest([sha256, label.tolist()])
        return out

    def check(self, path: Path) -> None:
        """Notes the md5 of a file of the set, and refuses another than the official one; read once, then remembered."""
        known = _stored("md5", path).with_suffix(".txt")
        if not known.exists():
            with open(path, "rb") as file:
                write_bytes(known, hashlib.file_digest(file, "md5").hexdigest().encode())
        found, expected = known.read_text(), MD5.get(path.name)
        if self.verify and found != expected:
            wanted = f"the official file's is {expected}" if expected else f"known are {', '.join(MD5)}"
            raise DataError(f"{path}: md5 {found}, {wanted}; download it again, or set data.verify=false")
        self.md5[path.name] = found

    def unpacked(self, archive: Path) -> Path:
        """The folder of an archive's files, unpacked once into the cache; whole or not at all."""
        return made_once(_stored(self.name, archive), lambda folder: unpack(archive, folder, None, LIMIT))


class CelebA(Faces):
    """CelebA, aligned (178x218): 162,770 train, 19,867 val, 19,962 test by the official partition.

    `path` is the folder with img_align_celeba.zip (or the folder img_align_celeba of its images),
    list_eval_partition.txt and list_attr_celeba.txt; None = `celeba` in the cache. There is no plain URL to fetch them.

    Args:
        attribute: the column of list_attr_celeba.txt that is the label: 0 where it is -1, 1 where it is 1; None = no
            labels.
    """

    SPLITS: tuple[Split, ...] = ("train", "val", "test")  # 0, 1 and 2 of the partition

    def __init__(self, name: str, *, attribute: str | None = None, **options: Unpack[FaceOptions]) -> None:
        super().__init__(name, **options)
        if (attribute is None) != (self.num_classes is None):
            raise ConfigError(
                f"data.attribute={attribute} with data.num_classes={self.num_classes}: an attribute has 2 classes, "
                "no attribute null"
            )
        self.attribute = attribute

    def filter(self) -> dict[str, Any]:
        return super().filter() | ({} if self.attribute is None else {"attribute": self.attribute})

    def items(self) -> tuple[Path, dict[Split, list[str]], dict[str, int]]:
        folder = self.path or cache_root() / "celeba"
        archive, images = folder / "img_align_celeba.zip", folder / "img_align_celeba"
        partition, attributes = folder / "list_eval_partition.txt", folder / "list_attr_celeba.txt"
        packed = archive.exists()
        files = [archive] if packed or not images.exists() else []
        files += [partition] if self.attribute is None else [partition, attributes]
        if absent := [path.name for path in files if not path.is_file()]:
            raise ConfigError(
                f"{folder}: no {' and no '.join(absent)}; download by hand (Google Drive, from "
                "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html) and set data.path=FOLDER"
            )
        for path in files:
            self.check(path)
        names: dict[Split, list[str]] = {split: [] for split in self.SPLITS}
        for row, line in _rows(partition, 0):
            if len(line) != 2 or line[1] not in ("0", "1", "2"):
                words = " ".join(line)[:80]
                raise DataError(f"{partition}, line {row}: expected an image and 0, 1 or 2, got {words!r}")
            names[self.SPLITS[int(line[1])]].append(line[0])
        if empty := [split for split, files in names.items() if not files]:
            raise DataError(f"{partition}: no image for {empty[0]}")
        labels = {} if self.attribute is None else self._labels(attributes)
        if labels and (missing := next((n for files in names.values() for n in files if n not in labels), None)):
            raise DataError(f"{attributes}: has no line for {missing}, which {partition.name} lists")
        return (self.unpacked(archive) / images.name if packed else images), names, labels

    def _labels(self, path: Path) -> dict[str, int]:
        """Line 1 has the number of images, line 2 the attributes; then a line an image: its name, -1 or 1 for each."""
        rows = _rows(path, 1)
        columns = rows[0][1] if rows else []
        if self.attribute not in columns:
            near = difflib.get_close_matches(str(self.attribute), columns, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(columns)}"
            raise ConfigError(f"data.attribute={self.attribute}: {path.name} has no such attribute; {hint}")
        at = 1 + columns.index(self.attribute)
        labels = {}
        for row, line in rows[1:]:
            if len(line) != len(columns) + 1 or line[at] not in ("-1", "1"):
                raise DataError(f"{path}, line {row}: expected an image and {len(columns)} times -1 or 1")
            labels[line[0]] = int(line[at] == "1")
        return labels


class LFW(Faces):
    """Labeled Faces in the Wild: 13,233 photographs (250x250) of 5,749 people, without labels.

    Split by people: a person is in val (test is its alias) or in train as sha256 of the name says, so nobody is in
    both. `path` is lfw.tgz, lfw-funneled.tgz or lfw-deepfunneled.tgz, or the unpacked folder with one folder a person;
    None = lfw.tgz, fetched at first use.

    Args:
        val_people: share of the people that are held out, about.
    """

    def __init__(
        self, name: str, *, val_people: Annotated[float, "gt 0, lt 1"] = 0.1, **options: Unpack[FaceOptions]
    ) -> None:
        super().__init__(name, **options)
        if not 0 < val_people < 1:
            raise ConfigError(f"data.val_people={val_people} must lie between 0 and 1")
        self.val_people = val_people
        self.split_note = f"by people: {val_people:g} of them, by sha256 of the name, are val"

    def items(self) -> tuple[Path, dict[Split, list[str]], dict[str, int]]:
        path = fetch("lfw") / "lfw.tgz" if self.path is None else self.path
        if not path.exists():
            raise ConfigError(f"{path}: no such archive or folder (data.path); null fetches lfw.tgz")
        folder = path
        if path.is_file():
            self.check(path)
            folder = self.unpacked(path)
            tops = [top for top in folder.iterdir() if top.is_dir()]
            if len(tops) == 1 and not list(folder.glob("*/*.jpg")):  # lfw/PERSON/PERSON_0001.jpg
                folder = tops[0]
        names: dict[Split, list[str]] = {"train": [], "val": []}
        for photo in sorted(folder.glob("*/*.jpg")):
            split: Split = "val" if held_out(photo.parent.name, self.val_people) else "train"
            names[split].append(str(photo.relative_to(folder)))
        if empty := [split for split, files in names.items() if not files]:
            raise DataError(f"{path}: 0 photographs PERSON/*.jpg for {empty[0]}")
        return folder, names, {}


def held_out(person: str, share: float) -> bool:
    """Whether a person is held out: a function of the name alone."""
    return int(hashlib.sha256(person.encode()).hexdigest()[:8], 16) / 2**32 < share


def _stored(kind: str, path: Path) -> Path:
    """A place in the cache for what is made of a file as it is now."""
    stat = path.stat()
    key = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return cache_root() / "folders" / f"{kind}-{key[:16]}"


def _rows(path: Path, skip: int) -> list[tuple[int, list[str]]]:
    """Line number and words of the lines that are not empty, after the first `skip` ones."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from None
    return [(i, line.split()) for i, line in enumerate(lines, 1) if i > skip and line.strip()]
