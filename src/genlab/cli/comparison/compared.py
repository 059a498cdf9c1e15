"""The comparison itself: overrides, cells, floors, and warnings where values of one name do not compare."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from genlab.cli.comparison.differences import ABSENT, overrides, same
from genlab.cli.comparison.entries import Cell, Entry, Value, cell, make_entries
from genlab.cli.comparison.numbers import shown
from genlab.cli.comparison.protocols import Facts, described, loss_facts, mapping, ranges
from genlab.cli.comparison.read import Run
from genlab.cli.problem import one_line
from genlab.errors import ConfigError

LOSS = "val/loss"
# Not drawn and not listed unless asked for: they say nothing about the model.
BOOKKEEPING = ("train/lr", "train/memory_gib", "train/samples_per_s")
BAD = ("failed", "died")  # states
MARKS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class Comparison:
    """Everything that is printed, drawn and written.

    Attributes:
        entries: runs and groups.
        overrides: configuration key -> value of each entry, only keys that differ ('' where an entry lacks the key).
        columns: names of values in their order.
        cells: name of a value -> cell of each entry, or None.
        times, speeds: seconds and samples a second of each entry.
        floors: name -> real data measured the same way, where all records agree on it.
        curves: names of metrics.jsonl that are drawn.
        warnings: values that do not compare, and what could not be read. notes: what is good to know.
    """

    entries: list[Entry]
    overrides: dict[str, list[str]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    cells: dict[str, list[Cell | None]] = field(default_factory=dict)
    times: list[Cell] = field(default_factory=list)
    speeds: list[Cell] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(runs: Sequence[Run], grouping: bool = True, metrics: Sequence[str] = ()) -> Comparison:
    """Sets runs side by side.

    Args:
        runs: from read_run.
        grouping: runs that differ only in their seed become one entry.
        metrics: patterns of the values and curves to show; none: val/loss, all evaluations, all curves.

    Raises:
        ConfigError: no value or curve has such a name.
    """
    entries, notes = make_entries(runs, grouping)
    made = Comparison(entries, notes=notes)
    with_config = [entry for entry in entries if entry.config]
    found = overrides([entry.config for entry in with_config], seeds=not grouping) if with_config else {}
    for key, values in found.items():
        by_number = {e.number: "" if v is ABSENT else shown(v) for e, v in zip(with_config, values, strict=True)}
        made.overrides[one_line(key)] = [by_number.get(entry.number, "") for entry in entries]
    _choose(made, metrics)
    for name in made.columns:
        _column(made, name)
    made.times = [cell([Value(run.wall_s) for run in entry.runs]) for entry in entries]
    made.speeds = [cell([Value(run.samples_per_s) for run in entry.runs]) for entry in entries]
    made.warnings = [*_loss_warnings(made), *_protocol_warnings(made), *_faults(runs)]
    made.notes += [*_unfinished(runs), *_incidental(made), *_missing(made), *_stale(made)]
    return made


def _choose(made: Comparison, patterns: Sequence[str]) -> None:
    """Names of the table and of the curves: all, or those that fit a pattern."""
    runs = [run for entry in made.entries for run in entry.runs]
    names = (name for entry in made.entries for values in entry.values for name in values)
    measured = sorted(dict.fromkeys(names), key=lambda name: "[" in name)  # a run's own protocol first
    # A row of the final evaluation is a copy of a value in a record, and no curve.
    logged = dict.fromkeys(name for run in runs for name in run.curves if not name.startswith("test/"))

    def fits(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    if patterns:
        made.columns = [f"{name} {which}" for name in logged if fits(name) for which in _whiches(name)]
        made.columns += [name for name in measured if fits(name) or fits(f"test/{name}") or fits(name.split(" [")[0])]
        chosen = [name for name in logged if fits(name)]
        if not made.columns:
            known = ", ".join([*logged, *measured]) or "none"
            raise ConfigError(f"--metrics {','.join(patterns)}: no value of these runs has such a name ({known}).")
    else:
        made.columns = [f"{LOSS} {which}" for which in _whiches(LOSS) if LOSS in logged] + [*measured]
        chosen = [name for name in logged if name not in BOOKKEEPING]
    # One point is no curve.
    made.curves = sorted(
        (name for name in chosen if any(len(run.curves.get(name, ())) > 1 for run in runs)),
        key=lambda name: (name != LOSS, name != "train/loss", not name.startswith("val/")),
    )


def _whiches(name: str) -> tuple[str, ...]:
    return ("best", "last") if name == LOSS else ("last",)


def _values(made: Comparison, name: str) -> list[list[Value | None]]:
    """For each entry, the value of each run."""
    if name.endswith((" best", " last")):
        curve, _, which = name.rpartition(" ")
        rows = [[[v for _, v in run.curves.get(curve, {}).values()] for run in e.runs] for e in made.entries]
        return [[Value(min(p) if which == "best" else p[-1]) if p else None for p in entry] for entry in rows]
    return [[values.get(name) for values in entry.values] for entry in made.entries]


def _column(made: Comparison, name: str) -> None:
    """Fills cells and floors of one name, marked where protocols differ."""
    values = _values(made, name)
    cells: list[Cell | None] = [cell(v) if any(v) else None for v in values]
    there = [[v for v in entry if v and v.value is not None and v.facts] for entry in values]
    facts: list[Any] = [value.facts for entry in there for value in entry]
    letters = _letters(facts, Facts.same_protocol)
    if len(set(letters)) > 1:
        sign = "~" if all(same(each.measured, facts[0].measured) for each in facts) else "!"
        following = iter(letters)
        own = ["".join(dict.fromkeys(next(following) for _ in entry)) for entry in there]
        cells = [replace(c, mark=sign + marks) if c and marks else c for c, marks in zip(cells, own, strict=True)]
    made.cells[name] = cells
    floors = {value.floor for entry in there for value in entry if value.floor is not None}
    if len(floors) == 1:
        made.floors[name] = floors.pop()


def _letters(items: Sequence[Any], equal: Callable[[Any, Any], bool]) -> list[str]:
    """A letter for each item, the same for those that are equal."""
    kinds: list[Any] = []
    letters = []
    for item in items:
        place = next((i for i, kind in enumerate(kinds) if equal(kind, item)), len(kinds))
        kinds += [item] if place == len(kinds) else []
        letters.append(MARKS[place % len(MARKS)])
    return letters


def _described(made: Comparison, name: str, part: str) -> list[str]:
    """The fields of a part of Facts in which the values of one name differ."""
    owned = [
        ((entry.number, one_line(str(run.seed))), getattr(value.facts, part))
        for entry, values in zip(made.entries, _values(made, name), strict=True)
        for run, value in zip(entry.runs, values, strict=True)
        if value is not None and value.value is not None and value.facts is not None
    ]
    return described([node for _, node in owned], [owner for owner, _ in owned])


def _protocol_warnings(made: Comparison) -> list[str]:
    """One line for all names with the same differences: which fields differ, with each value and whose it is."""
    said: dict[str, list[str]] = {}
    for name in made.columns:
        for sign, part, what in (
            ("!", "measured", "measured differently, the values do not compare"),
            ("~", "sampled", "sampled differently, the values compare model and sampler together"),
        ):
            if lines := _described(made, name, part):
                said.setdefault(f"{what}: {'; '.join(lines)}", []).append(f"{sign} {name}")
        cells = zip(made.entries, made.cells[name], strict=True)
        if split := [entry.number for entry, one in cells if one is not None and not one.averaged]:
            groups = f"group{'s' if len(split) > 1 else ''} {ranges(split)}"
            said.setdefault(f"no mean of {groups}, whose runs differ as said above", []).append(f"! {name}")
    return [f"{names[0][:2]}{', '.join(n[2:] for n in names)}: {text}" for text, names in said.items()]


def _loss_warnings(made: Comparison) -> list[str]:
    """Where val/loss is not the same quantity: other data or another objective."""
    shows = any(c.startswith(f"{LOSS} ") for c in made.columns) or LOSS in made.curves
    entries = [e for e in made.entries if e.config and any(LOSS in run.curves for run in e.runs)]
    facts = [loss_facts(entry.config) for entry in entries]
    lines = described(facts, [(entry.number, "") for entry in entries])
    if not shows or not lines:
        return []
    for entry, letter in zip(entries, _letters(facts, same), strict=True):
        for name in (f"{LOSS} best", f"{LOSS} last"):
            if (one := made.cells.get(name, {entry.number - 1: None})[entry.number - 1]) is not None:
                made.cells[name][entry.number - 1] = replace(one, mark=f"!{letter}")
    return [f"! {LOSS}: another loss or other data, the values do not compare: {'; '.join(lines)}"]


def _faults(runs: Sequence[Run]) -> list[str]:
    """What could not be read, and runs that failed."""
    said = [f"{run.name}: {fault}" for run in runs for fault in run.faults]
    return said + [f"{run.name}: {run.state}: {run.message}" for run in runs if run.state in BAD]


def _unfinished(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.name}: {run.state}{': ' if run.message else ''}{run.message}"
        for run in runs
        if not run.finished and run.state not in BAD
    ]


def _incidental(made: Comparison) -> list[str]:
    """Machines, dtypes, chunks, library versions that differ: one note for all names."""
    lines = dict.fromkeys(line for name in made.columns for line in _described(made, name, "incidental"))
    words = f"computed differently, which moves the times and the last digits of values: {'; '.join(lines)}"
    return [words] if lines else []


def _missing(made: Comparison) -> list[str]:
    said = []
    for entry in made.entries:
        for name in made.columns:
            one = made.cells[name][entry.number - 1]
            if one is not None and one.missing:
                said.append(f"{entry.number}: no {name}: {one_line(one.missing)}")
        for run in entry.runs:
            recorded = {name for record in run.records for name in record.data["values"]}
            lost = [n for n in run.curves if n.startswith("test/") and n.removeprefix("test/") not in recorded]
            if lost:
                said.append(
                    f"{run.name}: {', '.join(lost)} in metrics.jsonl has no record that says how it was measured, "
                    "so it is not shown"
                )
    return said


def _stale(made: Comparison) -> list[str]:
    """Records of fewer samples than the run has seen."""
    return [
        f"{run.name}: evaluated at {seen:,} samples, the run has seen {run.samples or 0:,}"
        for entry in made.entries
        for run, values in zip(entry.runs, entry.values, strict=True)
        for seen in sorted({_seen(v) for n, v in values.items() if n in made.columns} - {None, run.samples}, key=str)
    ]


def _seen(value: Value) -> int | None:
    seen = mapping(value.record.data.get("model") if value.record else None).get("samples_seen")
    return seen if isinstance(seen, int) else None
