"""What is compared: runs, or groups of runs that differ only in their seed, with the values of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from genlab.cli.comparison.differences import group_key
from genlab.cli.comparison.numbers import shown
from genlab.cli.comparison.protocols import Facts, changes, facts, mapping
from genlab.cli.comparison.read import Record, Run
from genlab.cli.problem import one_line


@dataclass(frozen=True)
class Value:
    """A value of a run, with the record that it stands in (None for a value of metrics.jsonl)."""

    value: float | None
    record: Record | None = None
    facts: Facts | None = None
    floor: float | None = None
    missing: str = ""


@dataclass
class Entry:
    """A run, or a group of finished runs that differ only in their seed.

    Attributes:
        number: from 1, by which warnings name it.
        values: a dict for each run: name of the value -> Value.
    """

    number: int
    runs: list[Run]
    values: list[dict[str, Value]] = field(default_factory=list)

    @property
    def grouped(self) -> bool:
        return len(self.runs) > 1

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config

    @property
    def name(self) -> str:
        if not self.grouped:
            return self.runs[0].name
        return f"{one_line(str(self.config.get('name', 'group')))}, n={len(self.runs)}"

    @property
    def label(self) -> str:
        return f"{self.number} {self.name}"

    @property
    def seeds(self) -> str:
        return ", ".join(one_line(str(run.seed)) for run in self.runs)


@dataclass(frozen=True)
class Cell:
    """A value of an entry.

    Attributes:
        mean, sd: over the runs that have it; sd is the sample standard deviation (n - 1), None for n = 1.
        n: runs that have it.
        averaged: False where the runs' protocols differ: then there is no mean.
        values: of each run, None where it has none.
        floor: real data measured the same way.
        mark: '' or what says that protocols differ, for example '!a'.
        missing: why there is no value.
    """

    mean: float | None
    sd: float | None
    n: int
    averaged: bool
    values: list[float | None]
    floor: float | None
    mark: str = ""
    missing: str = ""


def make_entries(runs: Sequence[Run], grouping: bool) -> tuple[list[Entry], list[str]]:
    """Runs as entries, in their order; a group stands where its first run stood.

    Unfinished runs are not averaged. Of several finished runs with one seed only the newest counts: they are no
    independent draws.

    Returns:
        The entries, and notes on runs that do not count.
    """
    members: dict[str, list[Run]] = {}
    for i, run in enumerate(runs):
        alone = not (grouping and run.finished and run.config)
        members.setdefault(f"run {i}" if alone else group_key(run.config), []).append(run)
    entries, notes = [], []
    for number, group in enumerate(members.values(), 1):
        newest: dict[str, Run] = {}
        for run in sorted(group, key=lambda run: max((row.get("time", 0) for row in run.rows), default=0)):
            newest[repr(run.seed)] = run
        kept = [run for run in group if newest[repr(run.seed)] is run]
        if len(kept) < len(group):
            left = ", ".join(run.name for run in group if run not in kept)
            notes.append(
                f"{number}: the same configuration and seed again, only the newest run counts; left out: {left} "
                "(--no-group shows them)"
            )
        entries.append(Entry(number, sorted(kept, key=_seed_order)))
    for entry in entries:
        entry.values = [values_of(run) for run in entry.runs]
    return entries, notes


def _seed_order(run: Run) -> tuple[bool, float, str]:
    number = isinstance(run.seed, int | float)
    return (not number, run.seed if number else 0, str(run.seed))


def values_of(run: Run) -> dict[str, Value]:
    """Values of the records by full name; those of a second record of that name say in brackets what it changed."""
    found: dict[str, Value] = {}
    for record in run.records:
        floors = mapping(mapping(record.data.get("floor")).get("values"))
        missing = mapping(record.data.get("missing"))
        for name, number in record.data["values"].items():
            value, floor = finite(number), finite(floors.get(name))
            decided = facts(record.data, name)
            why = "" if value is not None else one_line(str(missing.get(name, "no finite number")))
            made = Value(value, record, decided, floor, why)
            if name not in found:
                found[name] = made
                continue
            first = found[name]
            own = _origin(first.record or record)
            words = changes(first.facts or decided, decided)
            words += [f"{key}={value}" for key, value in _origin(record).items() if value != own[key]]
            if words or value != first.value:
                found[f"{name} [{', '.join(words) or record.file}]"] = made
    return found


def _origin(record: Record) -> dict[str, str]:
    """The checkpoint and the seed of a record's values, in words."""
    checkpoint = str(mapping(record.data.get("context")).get("checkpoint") or "last.ckpt").removesuffix(".ckpt")
    seed = mapping(mapping(record.data.get("generated")).get("seeds")).get("seed")
    return {"checkpoint": one_line(checkpoint), "seed": shown(seed)}


def finite(value: Any) -> float | None:
    """The value if it is a finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def summarise(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Mean, sample standard deviation (None for fewer than two) and number of the values that are there."""
    there = [float(value) for value in values if value is not None]
    if not there:
        return None, None, 0
    mean = there[0] if len(there) == 1 else math.fsum(there) / len(there)
    return mean, statistics.stdev(there) if len(there) > 1 else None, len(there)


def cell(values: Sequence[Value | None]) -> Cell:
    """The cell of an entry from the values of its runs; no mean where their protocols differ."""
    numbers = [value.value if value else None for value in values]
    there = [value for value in values if value is not None and value.value is not None]
    protocols = [value.facts for value in there if value.facts is not None]
    averaged = all(each.same_protocol(protocols[0]) for each in protocols)
    mean, sd, n = summarise(numbers)
    floors = {value.floor for value in there}
    missing = "; ".join(dict.fromkeys(value.missing for value in values if value and value.missing))
    floor = floors.pop() if len(floors) == 1 else None
    return Cell(mean if averaged else None, sd if averaged else None, n, averaged, numbers, floor, missing=missing)
