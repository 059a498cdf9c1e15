"""A run directory as it is, also when it is unfinished or damaged: what cannot be read is said, not raised."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from genlab.cli.old_forms import modern
from genlab.cli.problem import one_line
from genlab.cli.stored import refuse_bombs
from genlab.errors import ConfigError
from genlab.files import read_json
from genlab.runs.directory import RunDirectory

WHILE_TRAINING = re.compile(r"-\d{9}$")  # records of EvaluateWhileTraining; their values are rows of metrics.jsonl
SPEED = "train/samples_per_s"


@dataclass(frozen=True)
class Record:
    """A metric record. `file` is its path inside the run, `own` whether it is the run's own of its protocol."""

    file: str
    own: bool
    data: dict[str, Any]


@dataclass
class Run:
    """What a run directory holds.

    Attributes:
        path: absolute. name: of the folder.
        state: as in status.json, or in words what is wrong.
        finished: whether it has seen all that it was to see.
        samples: seen so far, None if nothing says it.
        config: {} where config.yaml cannot be read.
        rows: of metrics.jsonl: each has "samples" and perhaps "time"; only finite numbers are kept.
        records: metric records, the run's own first.
        pictures: final samples, else the newest: a .png or .txt, or None.
        faults: what could not be read, a line each.
    """

    path: Path
    name: str
    state: str = ""
    finished: bool = False
    samples: int | None = None
    message: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    pictures: Path | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @cached_property
    def curves(self) -> dict[str, dict[int, tuple[float, float]]]:
        """Name -> samples -> (seconds since training began, value); a row that came again replaces the first."""
        found: dict[str, dict[int, tuple[float, float]]] = {}
        for row in self.rows:
            elapsed = row["time"] - self.began if "time" in row and self.began is not None else math.nan
            for name, value in row.items():
                if name not in ("samples", "time"):
                    found.setdefault(name, {})[int(row["samples"])] = (elapsed, value)
        return {name: dict(sorted(points.items())) for name, points in found.items()}

    @cached_property
    def began(self) -> float | None:
        """When training began, unix seconds: the first row's time less what its samples took."""
        first = next((row for row in self.rows if "time" in row), None)
        if first is None:
            return None
        return first["time"] - (first["samples"] / first[SPEED] if first.get(SPEED) else 0.0)

    @property
    def wall_s(self) -> float | None:
        """Seconds from the beginning of training to the last row, pauses between continuations included."""
        times = [row["time"] for row in self.rows if "time" in row]
        return max(times) - self.began if times and self.began is not None else None

    @property
    def samples_per_s(self) -> float | None:
        """Speed of training without validation: samples by the seconds that they took, over all rows."""
        seen, seconds, before = 0.0, 0.0, 0.0
        for row in self.rows:
            if row.get(SPEED, 0) > 0 and row["samples"] > before:
                seen += row["samples"] - before
                seconds += (row["samples"] - before) / row[SPEED]
                before = row["samples"]
        return seen / seconds if seconds else None

    def measured(self, name: str, floor: bool = False) -> float | None:
        """A value of the run's own metric records; with `floor`, what real data has under the same protocol."""
        for record in self.records:
            source = (record.data.get("floor") or {}) if floor else record.data
            if record.own and (value := source.get("values", {}).get(name)) is not None:
                return float(value)
        return None


def is_run(path: Path) -> bool:
    """Whether a folder is, or is left of, a run directory."""
    return any((path / name).is_file() for name in ("config.yaml", "status.json", "metrics.jsonl"))


def read_run(path: Path) -> Run:
    """Reads a run directory, or a stored copy of its files (docs/results)."""
    directory = RunDirectory(path)
    run = Run(path=directory.path, name=one_line(directory.path.name))
    try:
        run.config = _config(directory.config, run.faults)
        run.rows = _rows(directory.metrics, run.faults)
        run.records = list(_records(directory.path, run.faults))
        run.pictures = _pictures(directory.path)
        _state(directory, run)
    except (OSError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:  # none takes the others along
        run.state, run.finished = "not readable", False
        run.faults.append(one_line(str(error)))
    return run


def _state(directory: RunDirectory, run: Run) -> None:
    status, there = directory.status(), (directory.path / "status.json").exists()
    counts = [status.get("samples"), *(row["samples"] for row in run.rows)]
    seen = [int(count) for count in counts if isinstance(count, int | float) and not isinstance(count, bool)]
    run.samples = max(seen, default=None)
    run.message = one_line(str(status.get("message") or ""))
    run.state = one_line(str(status.get("state") or ("no status.json" if not there else "status.json damaged")))
    schedule = run.config.get("schedule")
    wanted = schedule.get("max_samples") if isinstance(schedule, dict) else None
    run.finished = run.state == "finished"
    if not there and run.samples is not None and isinstance(wanted, int):  # a stored copy
        run.finished = run.samples >= wanted
        run.state = "stored, finished" if run.finished else "stored, unfinished"
    if run.state in ("starting", "running") and _abandoned(directory):
        run.state = "died"
        run.message = run.message or f"status.json says {status['state']}, but no process works on the run"
    if not run.config and run.state != "starting":
        run.state = f"{run.state}, no configuration"
        run.finished = False


def _abandoned(directory: RunDirectory) -> bool:
    try:
        return directory.holder() is None
    except (ConfigError, OSError):  # somebody else's run: whether it is in use cannot be known
        return False


def _config(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        refuse_bombs(text, path)
        config = _plain(yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        faults.append(f"config.yaml: {error.strerror or error}")
        return {}
    except (ConfigError, ValueError, RecursionError, yaml.YAMLError):
        faults.append("config.yaml: not readable YAML")
        return {}
    if not isinstance(config, dict):
        faults.append("config.yaml: no configuration in it")
        return {}
    return modern(config)


def _plain(node: Any) -> Any:
    """YAML knows keys and values that JSON does not: they become text."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node if node is None or isinstance(node, str | int | float) else str(node)


def _rows(path: Path, faults: list[str]) -> list[dict[str, float]]:
    """The whole rows; damaged ones are counted, wherever they stand."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        faults.append(f"metrics.jsonl: {error.strerror or error}")
        return []
    rows, bad = [], []
    for i, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _is_number(row.get("samples")):
            rows.append({str(key): value for key, value in row.items() if _is_number(value)})
        else:
            bad.append(i)
    if bad:
        where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        lines_are = "1 damaged line left out" if len(bad) == 1 else f"{len(bad)} damaged lines left out"
        faults.append(f"metrics.jsonl: {lines_are} (line {where})")
    return rows


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _records(folder: Path, faults: list[str]) -> Iterator[Record]:
    """Metric records in RUN/evaluation, or beside config.yaml where a stored copy has them; own ones first, by date."""
    found = []
    for path in [*sorted((folder / "evaluation").glob("*.json")), *sorted(folder.glob("*.json"))]:
        inside = path.relative_to(folder).as_posix()
        data = read_json(path)
        whole = isinstance(data, dict) and isinstance(data.get("values"), dict) and data.get("protocol")
        if whole and not WHILE_TRAINING.search(path.stem):
            found.append(Record(inside, path.stem == data.get("name"), data))
        elif not whole and path.parent != folder:
            faults.append(f"{one_line(inside)}: not {'readable JSON' if data is None else 'a metric record'}")
    yield from sorted(found, key=lambda record: (not record.own, str(record.data.get("date")), record.file))


def _pictures(folder: Path) -> Path | None:
    for name in ("samples/final.png", "samples/final.txt", "final.png", "final.txt"):
        if (folder / name).is_file():
            return folder / name
    made = [path for path in (folder / "samples").glob("*") if re.fullmatch(r"\d{9}\.(png|txt)", path.name)]
    return max(made, key=lambda path: path.name, default=None)
