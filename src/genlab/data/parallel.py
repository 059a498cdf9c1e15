"""Pairs of texts as they lie in files, made into a prepared folder: two documents a pair, its source and its target.

A folder of lines    train.de, train.en, val.de, val.en, TEST.de, TEST.en, also as *.gz: line i of both is pair i
A folder of records  train.jsonl, val.jsonl, TEST.jsonl, or *.tsv
One file of records  a .jsonl, or a .tsv with a header (or of two columns), split by a hash of the group or the source

Of one field alone (captions of one language) each text is a document in the same way.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from genlab.data.characters import text_blocks
from genlab.data.documents import HALF, fingerprint
from genlab.data.manifest import digest
from genlab.data.prepare import REPORT, SPLITS
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, write_json

FORMAT = 1  # of the prepared folder: raise it where it changes
NAMES = ("source", "target")  # of the columns of a table without a header
WHERE = (
    "give data.path=FOLDER of parallel lines (Multi30k's is data/task1/raw of the repository "
    "github.com/multi30k/dataset), or a .jsonl or .tsv"
)
Texts = tuple[str, Sequence[str], str]  # file and line, the texts of an item, its group


@dataclass(frozen=True)
class Parallel:
    """Where texts lie, and which are taken: as they stand, but for white space at their ends.

    Attributes:
        fields: languages, which are the suffixes of files of lines, or names in records; a text of an item each.
        test: the test files' name without suffix.
        group: field of a record: records of one group fall in one split.
        empty: what is done to an item with an empty text.
        val_fraction, test_fraction: of the groups, or of the first texts, of one file.
    """

    path: Path
    fields: tuple[str, ...]
    test: str = "test"
    group: str | None = None
    empty: Literal["refuse", "drop"] = "refuse"
    val_fraction: float = 0.05
    test_fraction: float = 0.05

    def prepared(self) -> Path:
        """A prepared folder (`genlab.data.prepare`) in the cache, made at first use.

        Raises:
            ConfigError: no such file, folder or field; a split without items.
            DataError: not UTF-8, unequal line counts, a broken record, an empty text; with file and line.
        """
        files = self._files()
        stamps = fingerprint(self.path, [path for paths in files.values() for path in paths])
        key = digest([FORMAT, stamps, asdict(self) | {"path": None}])
        return made_once(cache_root() / "text" / f"pairs-{key[:24]}", lambda folder: self._make(files, folder))

    def _files(self) -> dict[str, list[Path]]:
        """Files of each split: one of records, or one of lines a field. One file, to be split, is that of ""."""
        if self.path.is_file() and {".jsonl", ".tsv"} & {*self.path.suffixes}:
            return {"": [self.path]}
        if not self.path.is_dir():
            raise ConfigError(f"data.path={self.path}: no folder, and no .jsonl or .tsv; {WHERE}")
        names = {path.name.removesuffix(".gz"): path for path in sorted(self.path.iterdir(), reverse=True)}
        files = {}
        for split, stem in zip(SPLITS, ("train", "val", self.test), strict=True):
            choices = [[f"{stem}.{field}" for field in self.fields], [f"{stem}.jsonl"], [f"{stem}.tsv"]]
            wanted = next((choice for choice in choices if names.keys() >= {*choice}), None)
            if wanted is None:
                lacking = next(name for name in choices[0] if name not in names)
                raise ConfigError(f"data.path={self.path} has no {lacking} and no {stem}.jsonl or .tsv; {WHERE}")
            files[split] = [names[name] for name in wanted]
        return files

    def _make(self, files: Mapping[str, list[Path]], folder: Path) -> None:
        kept = {split: {"documents": 0, "from": ""} for split in SPLITS}
        dropped: collections.Counter[str] = collections.Counter()
        with contextlib.ExitStack() as stack:
            outs = {s: stack.enter_context(open(folder / f"{s}.jsonl", "w", encoding="utf-8")) for s in SPLITS}
            for split, paths in files.items():
                for where, raw, group in self._items(paths):
                    texts = [text.strip() for text in raw]
                    which = split or self._split_of(group or texts[0])
                    if all(texts):
                        for text in texts:
                            record = {"text": text, "source": where.rpartition("/")[2]}
                            outs[which].write(json.dumps(record, ensure_ascii=False) + "\n")
                        kept[which]["documents"] += len(texts)
                        kept[which]["from"] = ", ".join(path.name.removesuffix(".gz") for path in paths)
                    elif self.empty == "drop":
                        dropped[f"empty ({which})"] += 1
                    else:
                        name = self.fields[texts.index("")]
                        raise DataError(f"{where}: the {name} is empty; data.empty=drop leaves such items out")
        if lacking := [split for split in SPLITS if not kept[split]["documents"]]:
            raise ConfigError(
                f"{self.path}: nothing is left for {lacking[0]}; add to it"
                + (", or raise data.val_fraction and data.test_fraction" if "" in files else "")
            )
        options = {key: value for key, value in asdict(self).items() if key not in ("path", "test")}
        causes = {cause: {"documents": count} for cause, count in dropped.items()}
        write_json(folder / REPORT, {"options": options, "facts": {}, "dropped": causes, "kept": kept})

    def _split_of(self, key: str) -> str:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        return (
            "test"
            if share < self.test_fraction
            else "val"
            if share < self.test_fraction + self.val_fraction
            else "train"
        )

    def _items(self, paths: Sequence[Path]) -> Iterator[Texts]:
        if not {".jsonl", ".tsv"} & {*paths[0].suffixes}:
            counts = [sum(1 for _ in lines(path)) for path in paths]
            if len({*counts}) > 1:
                each = ", ".join(f"{path.name} {count}" for path, count in zip(paths, counts, strict=True))
                raise DataError(f"{self.path}: parallel files have unequal numbers of lines: {each}")
            for number, texts in enumerate(zip(*map(lines, paths), strict=True), 1):
                yield f"{paths[0]}:{number}", texts, ""
            return
        for where, record in _records(paths[0], self.fields):
            for name in (*self.fields, self.group):
                if name is not None and name not in record:
                    raise ConfigError(f"{where}: no field {name!r}, only {', '.join(map(repr, record))}")
            texts = [record[name] for name in self.fields]
            if not all(isinstance(text, str) and not HALF.search(text) for text in texts):
                raise DataError(f"{where}: {' and '.join(self.fields)} must be texts of whole characters")
            yield where, texts, "" if self.group is None else str(record[self.group])


def lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, also of a .gz, without the newlines, which alone end them. Errors: see `text_blocks`."""
    rest = ""
    for block in text_blocks(path):
        *whole, rest = (rest + block).split("\n")
        yield from whole
    if rest:
        yield rest


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    names: list[str] = []
    for number, line in enumerate(lines(path), 1):
        cells: list[str] = line.removesuffix("\r").split("\t")
        if ".tsv" not in path.suffixes:
            record, form = _object(line), "a JSON object"
        elif not names and (fields != NAMES or {*NAMES} <= {*cells}):
            names = cells
            continue
        else:
            names = names or [*NAMES]
            record = dict(zip(names, cells, strict=True)) if len(cells) == len(names) else None
            form = f"{len(names)} columns ({', '.join(names)})"
        if record is None:
            raise DataError(f"{path}:{number}: expected {form}")
        yield f"{path}:{number}", record


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
