"""What scripts/compare.py calls: runs side by side, as a table, curves, a page and numbers. Free of torch."""

from __future__ import annotations

import argparse
import io
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab import __version__
from genlab.cli.comparison.compared import Comparison, compare
from genlab.cli.comparison.curves import draw, series
from genlab.cli.comparison.entries import Cell, Value
from genlab.cli.comparison.find import find_runs
from genlab.cli.comparison.page import page
from genlab.cli.comparison.read import Run, read_run
from genlab.cli.comparison.text import lines
from genlab.cli.problem import one_line
from genlab.errors import GenlabError, StorageError
from genlab.files import write_bytes, write_json

FORMAT = 1  # of compare.json


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for a run that is not there, 74 for a folder that cannot be written."""
    args = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that knows no ± or Chinese must not end the command
        sys.stdout.reconfigure(errors="replace")
    try:
        runs = [read_run(path) for path in find_runs(args.runs, args.runs_dir)]
        patterns = [pattern for given in args.metrics for pattern in given.split(",") if pattern]
        made = compare(runs, not args.no_group, patterns)
        folder = args.out or _default_folder(args.runs_dir)
        files = write(made, folder, args.x)
    except GenlabError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    try:
        print("\n".join([*lines(made, width), "", *(f"see  {one_line(str(path))}" for path in files)]), flush=True)
    except BrokenPipeError:  # `| head` has read enough; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Sets runs side by side: table, curves, samples; warns where values do not compare.",
        epilog="Runs that differ only in their seed become one entry: mean ± sample standard deviation.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="path, folder name, pattern, 'last', a folder of runs, a sweep's folder")
    add("--no-group", action="store_true", help="show each run, also those that differ only in the seed")
    patterns = "values and curves to show, e.g. 'val/*,fid*'"
    add("--metrics", action="append", default=[], metavar="GLOB[,GLOB]", help=patterns)
    add("--x", choices=("samples", "time"), default="samples", help="x-axis of the curves")
    add("--out", type=Path, metavar="FOLDER", help="default: RUNS_DIR/compare-DATE-TIME")
    runs_dir = Path(os.environ.get("GENLAB_RUNS") or "runs")
    where = "where names are looked up; default: $GENLAB_RUNS, else runs"
    add("--runs-dir", type=Path, default=runs_dir, help=where)
    return parser


def _default_folder(runs_dir: Path) -> Path:
    if runs_dir.is_dir() and os.access(runs_dir, os.W_OK):
        return runs_dir / time.strftime("compare-%Y-%m-%d-%H%M%S")
    return Path("compare")


def write(made: Comparison, folder: Path, x: str = "samples") -> list[Path]:
    """compare.html, compare.png (where there are curves) and compare.json in `folder`, each whole or not at all.

    Raises:
        StorageError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out: cannot make {folder}: {error.strerror or error}. Choose another folder.") from error
    light, dark = draw(made, x), draw(made, x, dark=True)
    title = f"GenLab: {len(made.entries)} compared, {time.strftime('%Y-%m-%d %H:%M')}"
    html = page(made, title, light, dark)
    write_json(folder / "compare.json", numbers(made, x))
    if light is not None:
        write_bytes(folder / "compare.png", light)
    write_bytes(folder / "compare.html", html.encode("utf-8", "replace"))
    names = ("compare.html", *(["compare.png"] if light is not None else []), "compare.json")
    return [folder / name for name in names]


def numbers(made: Comparison, x: str = "samples") -> dict[str, Any]:
    """All numbers of a comparison, of JSON's types, as docs/compare.md describes them."""
    entries = []
    for i, entry in enumerate(made.entries):
        curves = {
            name: {"samples": c.samples, x: c.x, "mean": c.mean, "sd": c.sd, "n": c.n}
            for name in made.curves
            if (c := series(entry, name, x)) is not None
        }
        entries.append(
            {
                "number": entry.number,
                "name": entry.name,
                "overrides": {key: values[i] for key, values in made.overrides.items()},
                "values": {name: _cell(one) for name in made.columns if (one := made.cells[name][i]) is not None},
                "wall_s": _cell(made.times[i]),
                "samples_per_s": _cell(made.speeds[i]),
                "curves": curves,
                "runs": [_run(run, values) for run, values in zip(entry.runs, entry.values, strict=True)],
            }
        )
    return _json(
        {
            "format": FORMAT,
            "genlab": __version__,
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "x": x,
            "entries": entries,
            "floors": made.floors,
            "warnings": made.warnings,
            "notes": made.notes,
        }
    )


def _cell(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in vars(cell).items() if key in ("mean", "sd") or value not in (None, "")}


def _run(run: Run, values: dict[str, Value]) -> dict[str, Any]:
    keys = ("name", "path", "state", "seed", "samples", "wall_s", "samples_per_s", "faults")
    return {key: getattr(run, key) for key in keys} | {"values": {name: _value(one) for name, one in values.items()}}


def _value(value: Value) -> dict[str, Any]:
    return {
        "value": value.value,
        "floor": value.floor,
        "record": value.record.file if value.record else None,
        "identity": value.record.data.get("identity") if value.record else None,
        "measured": value.facts.measured if value.facts else None,
        "sampled": value.facts.sampled if value.facts else None,
    }


def _json(value: Any) -> Any:
    """What is not finite becomes null, what cannot be UTF-8 is replaced, anything that JSON lacks becomes text."""
    if isinstance(value, dict):
        return {one_line(str(key)): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return one_line(value)
    return value if value is None or isinstance(value, int) else one_line(str(value))
