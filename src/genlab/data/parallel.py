"""Pairs of texts as they lie in files, made into a prepared folder: two documents a pair, its source and its target.

A folder of lines    train.de, train.en, val.de, val.en, TEST.de, TEST.en, also as *.gz: line i of both is pair i
A folder of records  train.jsonl, val.jsonl, TEST.jsonl, or *.tsv
One file of records  a .jsonl, or a .tsv with a header (or of two columns), split by a hash of the group or the source

Of one field alone (captions of one language) each text is a document in the same way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from genlab.data.characters import text_blocks
from genlab.data.documents import HALF, fingerprint
from genlab.data.manifest import digest
from genlab.data.prepare import REPORT, SPLITS
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, write_json

RECORDS = {".jsonl", ".tsv"}
NAMES = ("source", "target")  # of the columns of a table without a header
WHERE = (
    "give data.path=FOLDER of parallel lines (Multi30k's is data/task1/raw of the repository "
    "github.com/multi30k/dataset), or a .jsonl or .tsv"
)


def prepared(
    path: Path, fields: Sequence[str], test: str = "test", group: str | None = None, empty: str = "refuse",
    val_fraction: float = 0.05, test_fraction: float = 0.05,
) -> Path:  # fmt: skip
    """A prepared folder (`genlab.data.prepare`) in the cache, made at first use. Options: `genlab.data.pairs.Pairs`.

    Raises:
        ConfigError: no such file, folder or field; a split without items.
        DataError: not UTF-8, unequal line counts, a broken record, an empty text; with file and line.
    """
    files = _files(path, fields, test)
    options = {"fields": [*fields], "group": group, "empty": empty, "fractions": [val_fraction, test_fraction]}
    stamps = fingerprint(path, [file for several in files.values() for file in several])

    def split_of(key: str) -> str:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
        return "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"

    def make(folder: Path) -> None:
        kept, dropped = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
        with contextlib.ExitStack() as stack:
            outs = {s: stack.enter_context(open(folder / f"{s}.jsonl", "w", encoding="utf-8")) for s in SPLITS}
            for split, paths in files.items():
                for where, raw, key in _items(paths, fields, group):
                    texts = [text.strip() for text in raw]
                    if not all(texts) and empty == "refuse":
                        name = fields[texts.index("")]
                        raise DataError(f"{where}: the {name} is empty; data.empty=drop leaves such items out")
                    into = split or split_of(key or texts[0])
                    (kept if all(texts) else dropped)[into] += 1
                    for text in texts if all(texts) else ():
                        record = {"text": text, "source": Path(where).name}
                        outs[into].write(json.dumps(record, ensure_ascii=False) + "\n")
        if not all(kept.values()):
            remedy = ", or raise data.val_fraction and data.test_fraction" if "" in files else ""
            raise ConfigError(f"{path}: no item is left for {min(kept, key=kept.__getitem__)}; give it some{remedy}")
        origins = {
            split: {"from": ", ".join(f.name.removesuffix(".gz") for f in files.get(split, [path]))} for split in SPLITS
        }
        causes = {f"empty ({split})": {"documents": count} for split, count in dropped.items() if count}
        write_json(folder / REPORT, {"options": options, "facts": {}, "dropped": causes, "kept": origins})

    return made_once(cache_root() / "text" / f"pairs-{digest([stamps, options])[:24]}", make)


def _files(path: Path, fields: Sequence[str], test: str) -> dict[str, list[Path]]:
    """Files of each split: one of records, or one of lines a field. One file, to be split, is that of ""."""
    if path.is_file() and RECORDS & {*path.suffixes}:
        return {"": [path]}
    if not path.is_dir():
        raise ConfigError(f"data.path={path}: no folder, and no .jsonl or .tsv; {WHERE}")
    names = {file.name.removesuffix(".gz"): file for file in sorted(path.iterdir(), reverse=True)}
    files = {}
    for split, stem in zip(SPLITS, ("train", "val", test), strict=True):
        choices = [[f"{stem}.{field}" for field in fields], [f"{stem}.jsonl"], [f"{stem}.tsv"]]
        wanted = next((choice for choice in choices if names.keys() >= {*choice}), None)
        if wanted is None:
            lacking = next(name for name in choices[0] if name not in names)
            raise ConfigError(f"data.path={path} has no {lacking} and no {stem}.jsonl or .tsv; {WHERE}")
        files[split] = [names[name] for name in wanted]
    return files


def _items(files: Sequence[Path], fields: Sequence[str], group: str | None) -> Iterator[tuple[str, Sequence[str], str]]:
    """(file and line, the texts, the group) of each item."""
    file, names = files[0], list[str]()
    if not RECORDS & {*file.suffixes}:
        counts = [sum(1 for _ in lines(one)) for one in files]
        if len({*counts}) > 1:
            each = ", ".join(f"{one.name} {count}" for one, count in zip(files, counts, strict=True))
            raise DataError(f"{file.parent}: parallel files have unequal numbers of lines: {each}")
        for number, texts in enumerate(zip(*map(lines, files), strict=True), 1):
            yield f"{file}:{number}", texts, ""
        return
    for number, line in enumerate(lines(file), 1):
        where, cells = f"{file}:{number}", line.removesuffix("\r").split("\t")
        if ".tsv" in file.suffixes and not names:
            header = tuple(fields) != NAMES or {*NAMES} <= {*cells}
            names = cells if header else [*NAMES]
            if header:
                continue
        try:
            record = dict(zip(names, cells, strict=True)) if names else dict(json.loads(line))
        except (ValueError, TypeError, RecursionError):
            expected = f"{len(names)} columns, {', '.join(names)}" if names else "a JSON object"
            raise DataError(f"{where}: expected {expected}") from None
        if unknown := [name for name in (*fields, group) if name is not None and name not in record]:
            raise ConfigError(f"{where}: no field {unknown[0]!r}, only {', '.join(map(repr, record))}")
        found = [record[name] for name in fields]
        if not all(isinstance(text, str) and not HALF.search(text) for text in found):
            raise DataError(f"{where}: {' and '.join(fields)} must be texts of whole characters")
        yield where, found, "" if group is None else str(record[group])


def lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, also of a .gz, without the newlines, which alone end them. Errors: see `text_blocks`."""
    rest = ""
    for block in text_blocks(path):
        *whole, rest = (rest + block).split("\n")
        yield from whole
    if rest:
        yield rest
