"""The comparison as a table: its cells in words, and lines that fit a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size  # a Chinese character has two columns, a combining one none

from genlab.cli.comparison.compared import Comparison
from genlab.cli.comparison.entries import Cell, Entry
from genlab.cli.comparison.numbers import NONE, duration, mean_sd, number

NAME_WIDTH, CELL_WIDTH = 44, 34  # columns of a terminal; what is longer is cut
KEYS = 15  # differing keys of the configuration that are listed on a terminal


@dataclass(frozen=True)
class Grid:
    """A table of text, an entry a row: head[0] is the title of the names in front."""

    head: list[str]
    rows: list[list[str]]

    def transposed(self) -> Grid:
        turned = [list(line) for line in zip(self.head, *self.rows, strict=True)]
        return Grid(turned[0], turned[1:])


def grid(made: Comparison, keys: int | None = None) -> Grid:
    """An entry a row: overrides, samples, state, values, times; real data last. At most `keys` overrides."""
    chosen = list(made.overrides)[:keys]
    head = ["run", *chosen, "samples seen", "state", *made.columns, "wall time", "samples/s"]
    rows = []
    for i, entry in enumerate(made.entries):
        row = [entry.label, *(made.overrides[key][i] or NONE for key in chosen)]
        row += [number(entry.runs[0].samples), entry.runs[0].state]
        for name in made.columns:
            row.append(words(made.cells[name][i], entry, None if name in made.floors else "floor"))
        time, speed = made.times[i], made.speeds[i]
        rows.append([*row, duration(time.mean, time.sd), words(speed, entry)])
    if made.floors:
        blank = [NONE] * (len(chosen) + 2)
        floors = [number(made.floors[name]) if name in made.floors else NONE for name in made.columns]
        rows.append(["real data (floor)", *blank, *floors, NONE, NONE])
    return Grid(head, rows)


def words(cell: Cell | None, entry: Entry, floor: str | None = None) -> str:
    """'1.59', '1.59 ± 0.12', with n where it is not the whole group, the floor where it is asked for, and the mark."""
    if cell is None:
        return NONE
    if not cell.averaged:
        parts = ["not averaged"]
    elif cell.mean is None:
        parts = ["missing" if cell.missing else NONE]
    else:
        parts = [mean_sd(cell.mean, cell.sd)]
        parts += [f"(n={cell.n})"] if cell.n < len(entry.runs) else []
    if floor and cell.floor is not None:
        parts.append(f"({floor} {number(cell.floor)})")
    return " ".join([*parts, *([cell.mark] if cell.mark else [])])


def lines(made: Comparison, width: int = 120) -> list[str]:
    """The whole comparison for a terminal of `width` columns."""
    table = grid(made, KEYS)
    layouts = [blocks(table, width), blocks(table.transposed(), width)]
    best = min(layouts, key=lambda parts: (len(parts), sum(map(len, parts))))
    found = [line for i, part in enumerate(best) for line in ([""] if i else []) + part]
    if len(made.overrides) > KEYS:
        others = ", ".join([*made.overrides][KEYS:])
        found += ["", *_wrapped(f"other keys that differ: {others} (see compare.html)", width)]
    groups = [entry for entry in made.entries if entry.grouped]
    if groups:
        found += ["", *_wrapped("mean ± sample standard deviation over seeds (n - 1); n is the number of runs", width)]
        for entry in groups:
            found += _wrapped(f"{entry.label}: seeds {entry.seeds}: {', '.join(r.name for r in entry.runs)}", width)
    if made.warnings:
        found += ["", "WARNINGS", *(line for text in made.warnings for line in _wrapped(text, width))]
        if any(cell and len(cell.mark) > 1 for cells in made.cells.values() for cell in cells):
            found += _wrapped("values with the same letter after the sign were got by the same protocol", width)
    if made.notes:
        found += ["", "notes", *(line for text in made.notes for line in _wrapped(text, width))]
    return found


def blocks(table: Grid, width: int) -> list[list[str]]:
    """The table in as many blocks of columns as are needed to fit; the first column stands before each."""
    cells = [table.head, *table.rows]
    first = [_cut(row[0], NAME_WIDTH) for row in cells]
    columns = [[_cut(row[j], CELL_WIDTH) for row in cells] for j in range(1, len(table.head))]
    sizes = [max(map(cell_len, column)) for column in columns]
    front = max(map(cell_len, first))
    made: list[list[str]] = []
    start = 0
    while start < len(columns):
        stop, used = start, front
        while stop < len(columns) and (stop == start or used + 2 + sizes[stop] <= width):
            used += 2 + sizes[stop]
            stop += 1
        block = []
        for i, name in enumerate(first):
            parts = [set_cell_size(name, front)]
            parts += [" " * (sizes[j] - cell_len(columns[j][i])) + columns[j][i] for j in range(start, stop)]
            block.append("  ".join(parts).rstrip())
            if i == 0:
                block.append("-" * used)
        made.append(block)
        start = stop
    return made


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, cut between words; textwrap counts a Chinese character as one column."""
    found = [""]
    for word in text.split(" "):
        if found[-1].strip() and cell_len(found[-1]) + 1 + cell_len(word) > width:
            found.append(f"    {word}")
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return found


def _cut(text: str, width: int) -> str:
    """Its middle is left out where it is too long: the end of a name says which run it is."""
    if cell_len(text) <= width:
        return text
    tail = set_cell_size(text[::-1], width - width // 2 - 1)[::-1]
    return f"{set_cell_size(text, width // 2)}…{tail}"


def members(entry: Entry, made: Comparison) -> Sequence[Sequence[str]]:
    """The runs of a group, a row each: name, seed, and the value of each column."""
    cells = [made.cells[name][entry.number - 1] for name in made.columns]
    return [
        [run.name, str(run.seed), *(NONE if cell is None else number(cell.values[j]) for cell in cells)]
        for j, run in enumerate(entry.runs)
    ]
