"""The part of a record that is about generated texts, or items of any other modality without an extractor."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from genlab.drawing import guarded
from genlab.errors import ConfigError
from genlab.evaluation.judged import Judged
from genlab.evaluation.metrics.base import Items, Measured, measure
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.reference import subset
from genlab.evaluation.sharding import bar, from_first_rank, sharded, world
from genlab.files import write_bytes
from genlab.modality import Text

CPU = torch.device("cpu")
ROWS, SHOWN = 1000, 100  # of the .jsonl; of the .md and of W&B
TEXTS = ("generated", "reference", "references", "matched", "nearest training text")  # shown as paragraphs
CHARACTERS = 2000  # of a cell in the .md and in W&B


def item_record(
    judged: Judged,
    protocol: Protocol,
    progress: bool,
    data: Any = None,
    device: torch.device = CPU,
    table: Path | None = None,
    examples: int = 8,
) -> dict[str, Any]:
    """What the protocol's metrics find in the items, the metrics' signatures, and a few of the texts themselves.

    Args:
        data: a DataModule that has been set up; None: there is none, and no floor but of texts with references.
        device: where an encoder runs.
        table: see evaluator.evaluate.
        examples: texts in the record.
    """
    if judged.items.references is None and protocol.needs_pairs:
        raise ConfigError(
            f"evaluation={protocol.name} compares with references, and these have none: give each line "
            '{"text": "...", "reference": "..."}'
        )
    began = time.perf_counter()
    with bar(progress, f"{protocol.name}: samples", -(-judged.n // world()[1])) as shown:
        rows = sharded(judged.n, judged.unit, judged.group, lambda a, b: {"data": judged.read(a, b).data}, shown.update)
    seconds = time.perf_counter() - began
    items = replace(judged.items, data=rows["data"])
    groups, floor = [items], None
    if protocol.floor and (found := from_first_rank(lambda: real_texts(items, data, protocol))) is not None:
        real, floor = found
        groups.append(real)
    for metric in protocol.metrics.values():
        metric.to(device).prepare(data, groups)
    measured = [measure(protocol.metrics, group) for group in groups]
    record: dict[str, Any] = {
        **protocol.named(measured[0]),
        "signatures": measured[0].signatures,
        "generated": {**judged.facts, "seconds": round(seconds, 2), "per_second": round(judged.n / seconds, 2)},
        "reference": {"with_samples": items.references is not None, "split": protocol.reference_split},
    }
    if floor is not None:
        record["floor"] = {"samples": floor, **protocol.named(measured[1])}
    if not isinstance(items.data, list):
        return record
    record["examples"] = [
        {"text": text, **({"references": items.references[i]} if items.references else {})}
        for i, text in enumerate(items.data[:examples])
    ]
    if table is not None:
        title = f"{protocol.name}: {judged.n} texts"

        def write() -> dict[str, Any] | None:
            with guarded(table):
                return write_table(table, _rows(items, measured[0]), title)
            return None

        if (written := from_first_rank(write)) is not None:
            record["table"] = written
    return record


def real_texts(items: Items, data: Any, protocol: Protocol) -> tuple[Items, dict[str, Any]] | None:
    """Real held-out texts for the floor, and what they are; None where there are none.

    The true rests where the texts go on from prompts or have references. Else documents of the reference split (val
    where that is train), a fixed random choice, the i-th cut to the length of the i-th text; where there are fewer
    documents than texts, passages of them that do not overlap, from the beginnings of unindented paragraphs.
    """
    texts = items.data
    if items.references is not None:
        facts = {"split": protocol.reference_split, "n": len(texts), "what": "the first reference of each text"}
        real = [several[0] for several in items.references]
        return replace(items, data=real, references=None, condition={}, modality=Text()), facts
    if not isinstance(texts, list) or not hasattr(data, "texts"):
        return None
    split = "val" if protocol.reference_split in ("train", "given", "folder") else protocol.reference_split
    documents = [text for _, text in data.texts(split)]
    starts = [(i, 0) for i in range(len(documents))]
    if len(documents) < len(texts):
        starts = _apart(documents, max(len(text) for text in texts))
    chosen = [starts[i] for i in subset(len(starts), len(texts)).tolist()]
    # fewer where there are not so many passages
    real = [documents[i][at : at + len(text)] for (i, at), text in zip(chosen, texts[: len(chosen)], strict=True)]
    what = "documents" if len(documents) >= len(texts) else "passages of documents"
    facts = {"split": split, "n": len(real), "what": f"{what}, cut to the lengths of the texts"}
    return (Items(real, modality=Text()), facts) if real else None


def _apart(documents: Sequence[str], length: int) -> list[tuple[int, int]]:
    """(document, character) of beginnings of documents and paragraphs, at least `length` characters apart."""
    starts = []
    for i, text in enumerate(documents):
        free = 0
        for at in (0, *(found.end() for found in re.finditer(r"\n\n+(?=\S)", text))):
            if at >= free:
                starts.append((i, at))
                free = at + max(1, length)
    return starts


def _rows(items: Items, measured: Measured) -> list[dict[str, Any]]:
    """Rows of the table; where copies were looked for, the nearest ones first."""
    columns: dict[str, Sequence[Any]] = {"number": range(len(items.data))}
    columns |= {} if items.prompts is None else {items.prompt_name: items.prompts}
    columns["generated"] = items.data
    if items.references is not None:
        one = all(len(several) == 1 for several in items.references)
        columns |= {"reference": [right for (right,) in items.references]} if one else {"references": items.references}
    columns |= measured.columns
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if "near copy" in measured.columns:
        rows.sort(key=lambda row: (row["near copy"], row["longest match"] / max(1, row["tokens"])), reverse=True)
    return rows


# ---- the table for people: STEM.jsonl, STEM.md, and rows for W&B


def write_table(stem: Path, rows: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Writes the first rows: as JSON Lines, and as a page to read.

    Args:
        stem: path without suffix.
        rows: columns by name, the same in all; "number" is the text's place among all; then what the text was made
            from, if that is known, and the text.
        title: of the page.

    Returns:
        For the record: the files' stem, how many rows they have, and of how many.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows[:ROWS]]
    write_bytes(Path(f"{stem}.jsonl"), "".join(line + "\n" for line in lines).encode())
    page = [f"# {title}", "", f"{min(len(rows), SHOWN)} of {len(rows)} texts."]
    paragraphs = dict.fromkeys([*list(rows[0])[1:2], *TEXTS])
    for row in rows[:SHOWN]:
        page += ["", f"## {row['number']}", ""]
        facts = {key: value for key, value in row.items() if key not in ("number", *paragraphs)}
        if shown := [f"{key} {_short(value)}" for key, value in facts.items() if value is not None]:
            page += ["; ".join(shown), ""]
        for key in paragraphs:
            if row.get(key):
                page += [f"{key}:", "", *("    " + line for line in _cut(row[key]).split("\n")), ""]
    write_bytes(Path(f"{stem}.md"), ("\n".join(page).rstrip() + "\n").encode())
    return {"file": stem.name, "rows": min(len(rows), ROWS), "of": len(rows)}


def table_columns(stem: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table that `write_table` has written, cut to what a page of W&B can show."""
    lines = Path(f"{stem}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")[:SHOWN]
    rows = [json.loads(line) for line in lines]
    columns = list(rows[0])
    cells = [[row[key] for key in columns] for row in rows]
    return columns, [[_cut(cell) if isinstance(cell, str | list) else cell for cell in row] for row in cells]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut(cell: str | list[str]) -> str:
    text = cell if isinstance(cell, str) else "\n".join(cell)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ... ({len(text)} characters)"
