"""Texts that were judged, as a table for people: STEM.jsonl, STEM.md, and rows for W&B."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.files import write_bytes

ROWS, SHOWN = 1000, 100  # of the .jsonl; of the .md and of W&B
TEXTS = ("prompt", "generated", "matched", "nearest training text")  # columns that are shown as paragraphs
CHARACTERS = 2000  # of a cell in the .md and in W&B


def write_table(stem: Path, rows: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """Writes the first rows: as JSON Lines, and as a page to read.

    Args:
        stem: path without suffix.
        rows: columns by name, the same in all; "number" is the text's place among all.
        title: of the page.

    Returns:
        For the record: the files' stem, how many rows they have, and of how many.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows[:ROWS]]
    write_bytes(Path(f"{stem}.jsonl"), "".join(line + "\n" for line in lines).encode())
    page = [f"# {title}", "", f"{min(len(rows), SHOWN)} of {len(rows)} texts."]
    for row in rows[:SHOWN]:
        page += ["", f"## {row['number']}", ""]
        facts = {key: value for key, value in row.items() if key not in ("number", *TEXTS)}
        if shown := [f"{key} {_short(value)}" for key, value in facts.items() if value is not None]:
            page += ["; ".join(shown), ""]
        for key in TEXTS:
            if row.get(key):
                page += [f"{key}:", "", *("    " + line for line in _cut(row[key]).split("\n")), ""]
    write_bytes(Path(f"{stem}.md"), ("\n".join(page).rstrip() + "\n").encode())
    return {"file": stem.name, "rows": min(len(rows), ROWS), "of": len(rows)}


def table_columns(stem: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table that `write_table` has written, cut to what a page of W&B can show."""
    lines = Path(f"{stem}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")[:SHOWN]
    rows = [json.loads(line) for line in lines]
    columns = list(rows[0])
    return columns, [[_cut(row[key]) if isinstance(row[key], str) else row[key] for key in columns] for row in rows]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ... ({len(text)} characters)"
