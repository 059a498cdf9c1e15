"""Documents as they are found: a folder of text files, one file, JSON Lines; normalisation and shares of scripts."""

from __future__ import annotations

import codecs
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from genlab.errors import ConfigError, DataError

JSONL = (".jsonl", ".ndjson")
# Control, format and private characters that no text needs: all of Cc but tab and newline, the byte order mark,
# bidirectional overrides, and the non-characters.
HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair: JSON can hold one, and no encoding can
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]")
# Blocks of Unicode by script, [first, last]. Letters of no block here count as letters of another script.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": (
        (0x41, 0x5A),
        (0x61, 0x7A),
        (0xAA, 0xAA),
        (0xBA, 0xBA),
        (0xC0, 0x24F),
        (0x1E00, 0x1EFF),
        (0xFF21, 0xFF5A),
    ),
    "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    "kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9D)),
    "hangul": ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7A3)),
    "cyrillic": ((0x400, 0x52F), (0x1C80, 0x1C8F), (0x2DE0, 0x2DFF)),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)),
    "hebrew": ((0x591, 0x5F4), (0xFB1D, 0xFB4F)),
    "devanagari": ((0x900, 0x97F),),
    "thai": ((0xE01, 0xE5B),),
}


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: None where the bytes are not UTF-8, or more than `Reading.max_bytes` of them (then not read).
        origin: the file, from the folder that was read, and of JSON Lines the line: "a/b.txt", "c.jsonl:7".
        size: bytes as they were found.
        fields: what a record has beside its text.
    """

    text: str | None
    origin: str
    size: int
    fields: Mapping[str, Any] = field(default_factory=dict)


def find_files(root: Path, suffixes: Sequence[str], exclude: Sequence[str] = ()) -> list[Path]:
    """The files of a folder and of those below it, sorted by their paths; links are not followed.

    Args:
        root: a folder, or one file, which is taken whatever its name.
        suffixes: of the names, e.g. [".txt", ".md"].
        exclude: names of folders and files to leave out, at any depth; so are those that begin with a dot.

    Raises:
        ConfigError: nothing is there, or no such file.
    """
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise ConfigError(f"{root}: no such file or folder (data.path)")
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in exclude and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            wanted = path.suffix in suffixes and name not in exclude and not name.startswith(".")
            if wanted and path.is_file() and not path.is_symlink():
                found.append(path)
    if not found:
        raise ConfigError(f"{root}: has no file {' or '.join('*' + suffix for suffix in suffixes)}; set data.suffixes")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def fingerprint(root: Path, files: Sequence[Path]) -> list[list[Any]]:
    """[name, bytes, time of change in ns] of each file: what is compared, instead of reading them, at a later start."""
    stats = [path.stat() for path in files]
    return [[name_of(root, path), s.st_size, s.st_mtime_ns] for path, s in zip(files, stats, strict=True)]


def name_of(root: Path, path: Path) -> str:
    """A file's name in messages and reports: its path from the folder that was read."""
    return path.name if path == root else path.relative_to(root).as_posix()


def read_documents(
    root: Path, files: Sequence[Path], text_field: str = "text", max_bytes: int | None = None
) -> Iterator[Document]:
    """The documents of files in turn: a file is one, each line of *.jsonl is one, each object of an array in *.json.

    Args:
        root: what `origin` is relative to.
        text_field: of a JSON Lines record, its text.
        max_bytes: a longer file is not read (its text is None).

    Raises:
        DataError: a line that is no JSON object with this field, with its number; a file that cannot be read.
    """
    for path in files:
        name = name_of(root, path)
        try:
            if path.suffix in JSONL:
                with open(path, "rb") as lines:
                    for number, line in enumerate(lines, 1):
                        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                        if line.strip():
                            yield _record(line, f"{name}:{number}", text_field)
                continue
            size = path.stat().st_size
            data = path.read_bytes() if max_bytes is None or size <= max_bytes else None
            array = _array(data) if data is not None and path.suffix == ".json" else None
            if array is None:
                yield Document(None if data is None else _decoded(data), name, size)
            for number, record in enumerate(array or ()):
                yield _document(record, f"{name}[{number}]", len(json.dumps(record)), text_field)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _array(data: bytes) -> list[Any] | None:
    """The objects of a JSON array; None: the file is something else, and so a text."""
    try:
        value = json.loads(data.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(one, dict) for one in value) else None


def _record(line: bytes, origin: str, text_field: str) -> Document:
    decoded = _decoded(line)
    if decoded is None:
        return Document(None, origin, len(line))
    try:
        record = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: not JSON ({str(error)[:80]})") from None
    return _document(record, origin, len(line), text_field)


def _document(record: Any, origin: str, size: int, text_field: str) -> Document:
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f"{origin}: expected an object with a text under {text_field!r} (data.text_field)")
    if HALF.search(json.dumps(record, ensure_ascii=False)):
        return Document(None, origin, size)
    rest = {key: value for key, value in record.items() if key != text_field}
    return Document(text, origin, len(text.encode()), rest)


def normalised(text: str, controls: bool = False) -> str:
    """NFC; every line end a newline; without control characters (but with `controls`), spaces at the ends of lines, and
    empty lines at the ends of the text."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = text if controls else _CONTROL.sub("", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


@cache
def _table() -> np.ndarray:
    """uint8 [0x110000]: 0 no letter, 1 a letter of another script, 2 + i a letter of the i-th of SCRIPTS."""
    table = np.fromiter((chr(point).isalpha() for point in range(0x110000)), dtype=np.uint8, count=0x110000)
    for i, blocks in enumerate(SCRIPTS.values()):
        for first, last in blocks:
            part = table[first : last + 1]
            part[part == 1] = i + 2
    return table


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters of a text; all 0 where it has none. No language is told apart: English and
    French are both latin, Chinese and Japanese both have han."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    counts = np.bincount(_table()[points], minlength=len(SCRIPTS) + 2)[1:]
    total = max(int(counts.sum()), 1)
    return {name: int(count) / total for name, count in zip(SCRIPTS, counts[1:], strict=True)}


def count_units(texts: Iterable[str]) -> dict[str, int]:
    """Bytes in UTF-8, characters, and words (runs between white space; not of scripts that put none between words)."""
    counts = {"byte": 0, "character": 0, "word": 0}
    spaced = unspaced = 0
    for text in texts:
        counts["byte"] += len(text.encode())
        counts["character"] += len(text)
        counts["word"] += len(text.split())
        if spaced + unspaced < 1 << 20:  # the first million characters say which script it is
            shares = script_shares(text)
            if shares["han"] + shares["kana"] + shares["thai"] < 0.5:
                spaced += len(text)
            else:
                unspaced += len(text)
    if unspaced > spaced:
        del counts["word"]
    return counts
