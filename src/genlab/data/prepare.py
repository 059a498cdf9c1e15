"""Documents to a prepared folder: normalised, filtered, without duplicates, split so that none straddles two splits.

FOLDER/train.jsonl, val.jsonl, test.jsonl    a document a line: {"text", "source", and what its record had beside it}
FOLDER/report.json                           what was read, dropped and why, kept; sha256 of each file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from genlab.data.documents import SCRIPTS, Document, find_files, normalised, read_documents, script_shares
from genlab.errors import ConfigError
from genlab.files import replacing, sha256_of, write_json

REPORT = "report.json"
SPLITS = ("train", "val", "test")
Documents = Callable[[], Iterator[tuple[Document, str]]]  # reads them anew, each with its text as it is to be kept
CAUSES = {
    "not UTF-8": "the bytes are no UTF-8, or half a surrogate pair",
    "empty": "no character but spaces",
    "too short": "fewer than min_chars characters",
    "too long": "more than max_chars characters",
    "script": "too few letters of the script asked for (a script is no language: no model is asked)",
    "exact duplicate": "the same text, after normalisation, was kept already",
    "near duplicate": "one of its cluster was kept",
}


@dataclass(frozen=True)
class Preparation:
    """What is done to documents.

    Attributes:
        normalise: NFC, line ends, control characters, spaces at line ends (`genlab.data.documents.normalised`).
        min_chars, max_chars: a document outside is dropped; None = no bound.
        scripts: least share of a script among a document's letters, e.g. {han: 0.5}; the names are those of SCRIPTS.
        near_duplicates: "drop": of a cluster the longest document is kept; "together": all are kept, in one split;
            "ignore": not looked for, so that they may straddle the splits.
        threshold: of the Jaccard index of two documents' shingles, above which they are near duplicates.
        shingle: characters a shingle.
        permutations: words of a MinHash signature, a multiple of 4.
        val_fraction, test_fraction: of the bytes; whole clusters are drawn.
        seed: of the hash functions and of the split.
    """

    normalise: bool = True
    min_chars: Annotated[int, "ge 1"] = 1
    max_chars: Annotated[int, "ge 1"] | None = None
    scripts: Mapping[str, float] | None = None
    near_duplicates: Literal["drop", "together", "ignore"] = "drop"
    threshold: Annotated[float, "gt 0, le 1"] = 0.8
    shingle: Annotated[int, "ge 1"] = 9
    permutations: Annotated[int, "ge 4"] = 128
    val_fraction: Annotated[float, "ge 0, lt 1"] = 0.05
    test_fraction: Annotated[float, "ge 0, lt 1"] = 0.05
    seed: Annotated[int, "ge 0"] = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.scripts or {}) - SCRIPTS.keys()):
            raise ConfigError(f"prepare.scripts: no script {unknown[0]!r}; known: {', '.join(SCRIPTS)}")
        if self.permutations % 4 or self.permutations < 4:
            raise ConfigError(f"prepare.permutations={self.permutations} must be a multiple of 4")
        if self.near_duplicates not in ("drop", "together", "ignore"):
            raise ConfigError(f"prepare.near_duplicates={self.near_duplicates!r}: drop, together or ignore")
        for name, low in (("min_chars", 1), ("shingle", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"prepare.{name}={getattr(self, name)} must be >= {low}")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise ConfigError("prepare.val_fraction and prepare.test_fraction must be >= 0 and below 1 together")

    def options(self) -> dict[str, Any]:
        """As primitives: what a cache is keyed by, and whose MinHash it is."""
        options = {**asdict(self), "scripts": dict(self.scripts) if self.scripts else None}
        if self.near_duplicates == "ignore":
            return options
        from genlab.data.near_duplicates import IMPLEMENTATION

        return {**options, "minhash": IMPLEMENTATION}

    def cause(self, document: Document, text: str) -> str | None:
        """Why a document is dropped by itself, or None."""
        if document.text is None:
            return "too long" if self.max_chars is not None and document.size > 4 * self.max_chars else "not UTF-8"
        if not text.strip():
            return "empty"
        if len(text) < self.min_chars:
            return "too short"
        if self.max_chars is not None and len(text) > self.max_chars:
            return "too long"
        if self.scripts:
            shares = script_shares(text)
            if any(shares[name] < least for name, least in self.scripts.items()):
                return "script"
        return None


def prepare(source: Path, target: Path, preparation: Preparation, *args: Any, **options: Any) -> dict[str, Any]:
    """`prepare_into`, whose arguments it takes, but into a folder that is not there and appears whole or not at all.

    Raises:
        ConfigError: likewise, or `target` exists.
        StorageError: `target` cannot be written.
    """
    if target.exists():
        raise ConfigError(f"{target} exists; delete it or name another folder")
    with replacing(target) as folder:
        folder.mkdir()
        return prepare_into(source, folder, preparation, *args, **options)


def prepare_into(
    source: Path,
    folder: Path,
    preparation: Preparation,
    suffixes: Sequence[str] = (".txt",),
    exclude: Sequence[str] = (),
    text_field: str = "text",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes a prepared folder of a folder, a file or JSON Lines; reads it twice, and keeps only signatures in memory.

    The split, and which documents are kept, are functions of the set of texts and of `preparation`: names and the order
    of files play no part (but for which of equal texts gives its record's fields).

    Args:
        source: a folder, a text file, or JSON Lines.
        folder: a folder that is there.
        suffixes: of the files of a folder that are read.
        exclude: names of folders and files that are not.
        text_field: of a JSON Lines record, its text.
        facts: kept in the report, e.g. a version.

    Returns:
        The report, as in report.json.

    Raises:
        ConfigError: nothing to read, nothing is left.
        DataError: a file or line that cannot be read.
    """
    files = find_files(source, suffixes, exclude)
    limit = None if preparation.max_chars is None else 4 * preparation.max_chars

    def documents() -> Iterator[tuple[Document, str]]:
        for document in read_documents(source, files, text_field, limit):
            text = document.text or ""
            yield document, normalised(text) if preparation.normalise else text

    dropped, read, wanted = _choose(documents, preparation)
    if not wanted:
        causes = ", ".join(f"{row['documents']} {cause}" for cause, row in dropped.items())
        raise ConfigError(f"{source}: no document is left of {read['documents']} ({causes or 'none found'})")
    report: dict[str, Any] = {
        "version": 1,
        "options": {**preparation.options(), "suffixes": [*suffixes], "exclude": [*exclude], "text_field": text_field},
        "facts": dict(facts or {}),
        "read": {"files": len(files), **read},
        "dropped": {cause: dropped[cause] for cause in CAUSES if cause in dropped},
        "kept": _write(documents, wanted, folder),
    }
    write_json(folder / REPORT, report)
    return report


def _choose(
    documents: Documents, preparation: Preparation
) -> tuple[dict[str, dict[str, Any]], dict[str, int], dict[int, int]]:
    """First reading: what is dropped (documents, bytes and the first places by cause), what was read, and place of a
    document -> number of its split."""
    dropped: dict[str, dict[str, Any]] = {}
    read = {"documents": 0, "bytes": 0}
    places: list[int] = []
    candidates: list[Document] = []  # without their texts, sizes after normalisation
    digests: dict[bytes, int] = {}
    lengths: list[int] = []

    def drop(cause: str, document: Document) -> None:
        row = dropped.setdefault(cause, {"documents": 0, "bytes": 0, "first": []})
        row["documents"] += 1
        row["bytes"] += document.size
        row["first"] += [document.origin] if len(row["first"]) < 5 else []

    def texts() -> Iterator[str]:
        for place, (document, text) in enumerate(documents()):
            read["documents"] += 1
            read["bytes"] += document.size
            cause = preparation.cause(document, text)
            digest = hashlib.sha256(text.encode()).digest()
            if cause is None and digest in digests:
                cause = "exact duplicate"
            if cause is not None:
                drop(cause, document)
                continue
            digests[digest] = len(places)
            places.append(place)
            candidates.append(Document(None, document.origin, len(text.encode())))
            lengths.append(len(text))
            yield text

    if preparation.near_duplicates == "ignore":
        cluster = np.arange(sum(1 for _ in texts()))
    else:
        from genlab.data.near_duplicates import clusters, signature

        drawn = preparation.shingle, preparation.permutations, preparation.seed
        signatures = [signature(text, *drawn) for text in texts()]
        cluster = np.arange(len(places))
        if signatures:  # in the order of their digests, so that the order of the files plays no part
            order = np.argsort(np.array(list(digests)))
            cluster[order] = order[clusters(np.stack(signatures)[order], preparation.threshold)]
    members: dict[int, list[int]] = {}
    for i, root in enumerate(cluster.tolist()):
        members.setdefault(root, []).append(i)
    names = list(digests)  # in the order of the candidates
    keep = []
    for group in members.values():
        group.sort(key=lambda i: (-lengths[i], names[i]))
        if preparation.near_duplicates == "drop":
            for i in group[1:]:
                drop("near duplicate", candidates[i])
            del group[1:]
        keep.append(group)
    split = _split([(min(names[i] for i in g), sum(candidates[i].size for i in g)) for g in keep], preparation)
    return dropped, read, {places[i]: which for g, which in zip(keep, split, strict=True) for i in g}


def _split(groups: Sequence[tuple[bytes, int]], preparation: Preparation) -> list[int]:
    """Split of each cluster (digest, bytes): in an order drawn by (seed, digest), test and val take what they want.

    A cluster that is larger than what a split wants goes to train, unless the split would stay empty.
    """
    fractions = {2: preparation.test_fraction, 1: preparation.val_fraction}
    total = sum(size for _, size in groups)
    key = preparation.seed.to_bytes(16, "little")
    order = sorted(range(len(groups)), key=lambda i: hashlib.sha256(key + groups[i][0]).digest())
    out = [0] * len(groups)
    for which, fraction in fractions.items():
        filled = 0
        for i in order:
            if out[i] == 0 and filled < fraction * total and filled + groups[i][1] <= 1.5 * fraction * total:
                out[i] = which
                filled += groups[i][1]
        left = [i for i in order if out[i] == 0]
        if fraction and not filled and len(left) > 1:
            out[min(left, key=lambda i: groups[i][1])] = which
    return out


def _write(documents: Documents, wanted: Mapping[int, int], folder: Path) -> dict[str, dict[str, Any]]:
    """Second reading: the documents of each split, in the order of the files; what each split has."""
    kept = {split: {"documents": 0, "bytes": 0, "characters": 0} for split in SPLITS}
    with contextlib.ExitStack() as stack:
        outs = [stack.enter_context(open(folder / f"{s}.jsonl", "w", encoding="utf-8", newline="\n")) for s in SPLITS]
        for place, (document, text) in enumerate(documents()):
            if (which := wanted.get(place)) is None:
                continue
            record = {"text": text, "source": document.origin, **document.fields}
            outs[which].write(json.dumps(record, ensure_ascii=False) + "\n")
            row = kept[SPLITS[which]]
            row["documents"] += 1
            row["bytes"] += len(text.encode())
            row["characters"] += len(text)
    return {split: {**row, "sha256": sha256_of(folder / f"{split}.jsonl")} for split, row in kept.items()}


def readable(report: Mapping[str, Any]) -> str:
    """A report as lines for a person."""

    def row(name: str, values: Mapping[str, Any], note: str = "") -> str:
        return f"  {name:16} {values['documents']:>10,} documents {values['bytes']:>15,} bytes  {note}".rstrip()

    lines = [row("read", report["read"], f"{report['read']['files']:,} files")]
    if report["dropped"]:
        lines.append("dropped")
        lines += [row(cause, values, CAUSES[cause]) for cause, values in report["dropped"].items()]
    lines.append("kept")
    lines += [row(split, values) for split, values in report["kept"].items()]
    return "\n".join(lines)
