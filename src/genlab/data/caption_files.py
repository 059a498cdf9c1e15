"""Captions of files in a folder: a .txt beside each, or a table that names files and their captions."""

from __future__ import annotations

import collections
import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from genlab.data.characters import text_blocks
from genlab.data.documents import HALF
from genlab.data.folder import list_images
from genlab.data.parallel import lines
from genlab.errors import ConfigError, DataError


class CaptionFiles:
    """Reads the captions of a folder.

    Args:
        table: name of the table in the folder, .jsonl or .csv; None: a .txt of the same stem beside each file.
        fields: of the table: the file's path from the folder, and its caption or (in .jsonl) a list of captions.
        faulty: "refuse" raises where something cannot be, "drop" leaves it out and counts it.
        extensions: of the files that are looked for beside their .txt.
        beside: what data.captions is for those, for a message.

    Attributes:
        dropped: how many were left out, by cause.
    """

    def __init__(
        self,
        table: str | None,
        fields: tuple[str, str],
        faulty: Literal["refuse", "drop"],
        extensions: Collection[str],
        beside: str = "null",
    ) -> None:
        if table is not None and Path(table).suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"data.captions={table}: give a .jsonl or a .csv, or {beside} for .txt files")
        self.table, self.faulty, self.extensions = table, faulty, extensions
        self.file_field, self.caption_field = fields
        self.dropped: collections.Counter[str] = collections.Counter()

    def read(self, folder: Path) -> dict[Path, list[str]]:
        """Captions by file, each with at least one.

        Raises:
            ConfigError: no such table, or none of its fields.
            DataError: what cannot be, where that is refused.
        """
        return self._beside(folder) if self.table is None else self._listed(folder, folder / self.table)

    def fault(self, cause: str, words: str) -> None:
        """Counts what cannot be, by its cause; where it is refused, raises DataError with these words."""
        if self.faulty == "refuse":
            raise DataError(f"{words}; data.faulty=drop leaves it out")
        self.dropped[cause] += 1

    def _beside(self, folder: Path) -> dict[Path, list[str]]:
        """Captions of each image with a .txt."""
        items: dict[Path, list[str]] = {}
        taken: dict[Path, Path] = {}
        for path in list_images(folder, [], self.extensions)[0]:
            text = path.with_suffix(".txt")
            if (first := taken.setdefault(text, path)) is not path:
                self.fault("same .txt", f"{path}: {text.name} is that of {first.name} already; rename one of the two")
            elif not text.is_file():
                self.fault("no caption", f"{path}: no {text.name} beside it; write it")
            else:
                self._read(items, path, text)
        return items

    def _read(self, items: dict[Path, list[str]], path: Path, text: Path) -> None:
        try:
            captions = [(number, line) for number, line in enumerate(lines(text), 1) if line.strip()]
        except DataError as error:
            return self.fault("broken text", str(error))
        if not captions:
            self.fault("empty caption", f"{text}: empty, no caption")
        for number, line in captions:
            self._add(items, path, line, f"{text}:{number}")

    def _listed(self, folder: Path, table: Path) -> dict[Path, list[str]]:
        """Captions of each image of a table."""
        items: dict[Path, list[str]] = {}
        for where, record in _rows(table):
            if record is None:
                kind = "a JSON object" if table.suffix == ".jsonl" else "as many cells as the header has"
                self.fault("broken row", f"{where}: expected {kind}")
                continue
            if unknown := [field for field in (self.file_field, self.caption_field) if field not in record]:
                known = ", ".join(map(repr, record))
                where += f": no field {unknown[0]!r}, only {known}"
                raise ConfigError(f"{where}; set data.file_field and data.caption_field")
            name, captions = str(record[self.file_field]), record[self.caption_field]
            path = folder / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file():
                self.fault("no file", f"{where}: no file {name!r} in {folder}")
                continue
            for caption in captions if isinstance(captions, list) and captions else [captions]:
                self._add(items, path, caption, where)
        return {path: captions for path, captions in items.items() if captions}

    def _add(self, items: dict[Path, list[str]], path: Path, caption: Any, where: str) -> None:
        several = items.setdefault(path, [])
        if not isinstance(caption, str) or HALF.search(caption):
            self.fault("broken row", f"{where}: the caption is no text of whole characters")
        elif not (text := caption.strip()):
            self.fault("empty caption", f"{where}: the caption of {path.name} is empty")
        elif text in several:
            self.fault("same caption", f"{where}: {path.name} has this caption already")
        else:
            several.append(text)


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(file and line, record) of a table; None where it is broken.

    Raises:
        ConfigError: no such file.
        DataError: it is not UTF-8.
    """
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO("".join(text_blocks(table)), newline=""))
        try:
            for record in reader:
                yield f"{table}:{reader.line_num}", None if None in record or None in record.values() else record
        except csv.Error as error:
            raise DataError(f"{table}:{reader.line_num}: {error}; repair it") from None
        return
    for number, line in enumerate(lines(table), 1):
        if line.strip():
            try:
                yield f"{table}:{number}", dict(json.loads(line))
            except (ValueError, TypeError, RecursionError):
                yield f"{table}:{number}", None
