#!/usr/bin/env python
"""Stores what a finished run has shown in docs/results: python scripts/store_record.py RUN [RUN ...] [--to FOLDER]
[--without-texts]

Configuration, environment, metrics, metric records, final pictures, the first texts of each table in the order of their
seeds; no checkpoints, no curves (compare.py draws them), no proxies of validations (their values are in metrics.jsonl).
The paths of this machine are left out; with --without-texts also all texts, where the data may not be handed on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from genlab.cli.redact import without_paths
from genlab.errors import ConfigError
from genlab.evaluation.texts import write_table
from genlab.files import read_json, write_bytes
from genlab.runs.directory import find_run

TEXTS = 20  # of a table of generated ones
CHARACTERS = 400  # of a text in such a table
SAMPLES = 3000  # characters of final.txt
PICTURES = ("final.png", "reconstructions.png")
WITH_TEXTS = ("attention.png", "interpolation.txt", "reconstructions.txt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="path, folder name, or last")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where names are looked up")
    parser.add_argument("--to", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "results")
    parser.add_argument("--without-texts", action="store_true", help="for data that may not be handed on")
    options = parser.parse_args()
    try:
        for name in options.runs:
            store(find_run(name, options.runs_dir).path.resolve(), options.to, not options.without_texts)
    except ConfigError as error:
        print(f"genlab: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def store(run: Path, to: Path, with_texts: bool = True) -> None:
    """Copies the record of one run to `to`/NAME.

    Raises:
        ConfigError: the run has not finished.
    """
    if (read_json(run / "status.json") or {}).get("state") != "finished":
        raise ConfigError(f"{run} has not finished; nothing is stored of it")
    target = to / run.name
    target.mkdir(parents=True, exist_ok=True)
    texts = [run / "config.yaml", run / "environment.json", run / "metrics.jsonl"]
    texts += [path for path in (run / "evaluation").glob("*.json") if not re.search(r"-\d{9}\.json$", path.name)]
    runs_dir = run.parent.parent
    for path in texts:
        text = without_paths(path.read_text(encoding="utf-8").replace(str(runs_dir), "runs"))
        if path.parent.name == "evaluation" and "table" in (record := json.loads(text)):
            if with_texts:
                write_first(path.with_name(record["table"]["file"] + ".jsonl"), target, record)
            else:
                text = json.dumps({k: v for k, v in record.items() if k not in ("examples", "table")}, indent=1)
        write_bytes(target / path.name, text.encode())
    if with_texts and (final := run / "samples" / "final.txt").exists():
        write_bytes(target / final.name, final.read_text(encoding="utf-8")[:SAMPLES].encode())
    for picture in (*PICTURES, *(WITH_TEXTS if with_texts else ())):
        if (run / "samples" / picture).exists():
            shutil.copy(run / "samples" / picture, target / picture)
    print(target)


def write_first(table: Path, target: Path, record: dict[str, Any]) -> None:
    """The first TEXTS texts that were made, good or bad; the table itself has them sorted."""
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    rows = sorted(rows, key=lambda row: row["number"])[:TEXTS]
    rows = [
        {key: cut(without_paths(value)) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows
    ]
    first = record["generated"].get("seeds", {}).get("first", 0)
    title = f"{record['name']}: text i is made from seed {first} + i"
    write_table(target / table.name.removesuffix(".jsonl"), rows, title)
    (target / table.name).unlink()  # the page is enough


def cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ..."


if __name__ == "__main__":
    sys.exit(main())
