"""compare.html: one file without scripts that needs no network: warnings, table, curves, samples side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from genlab.cli.comparison.compared import Comparison
from genlab.cli.comparison.entries import Entry
from genlab.cli.comparison.numbers import number
from genlab.cli.comparison.read import Run
from genlab.cli.comparison.text import grid, members
from genlab.cli.problem import one_line
from genlab.errors import DataError, unreadable

LARGEST = 2_000_000  # bytes of a picture that is embedded as it is; larger ones are made smaller
SIDE = 1024  # pixels, then
PIXELS = 1 << 26  # of a picture that is read at all: a small file can hold any number
TEXT = 1500  # characters of sampled text that are shown
FIGURES = 24  # pictures in a page; with more of them a group shows one
ACROSS = 6  # entries that stand side by side; with more an entry is a row

STYLE = """
:root { color-scheme: light dark; --back: #fff; --front: #1c1e21; --dim: #667; --line: #d5d9de; --soft: #f4f6f8;
  --warn: #fff4d6; --edge: #d99a00; }
@media (prefers-color-scheme: dark) { :root { --back: #17191c; --front: #d8dadd; --dim: #9aa0a8; --line: #3a3f46;
  --soft: #202328; --warn: #3a2f10; --edge: #c08a10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 1500px; background: var(--back); color: var(--front);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
.dim { color: var(--dim); } .warn { background: var(--warn); border-left: 4px solid var(--edge); padding: .6rem 1rem;
  margin: 1rem 0; overflow-wrap: anywhere; }
.warn ul, .notes ul { margin: .3rem 0; padding-left: 1.2rem; } .notes { overflow-wrap: anywhere; color: var(--dim); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; } td.long { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
thead th { background: var(--soft); overflow-wrap: anywhere; min-width: 7rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--soft); max-width: 24rem; }
td.marked { background: var(--warn); } details { margin: .6rem 0; } summary { cursor: pointer; }
img.curves { width: 100%; height: auto; } .samples { display: flex; flex-wrap: wrap; gap: 1.2rem; }
figure { margin: 0; max-width: 22rem; } figure img { max-width: 100%; border: 1px solid var(--line); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } pre { white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--soft); padding: .6rem; max-height: 24rem; overflow-y: auto; font-size: .8rem; }
"""


def page(made: Comparison, title: str, light: bytes | None, dark: bytes | None) -> str:
    """The whole document. light, dark: the curves as PNG, or None where there are none."""
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="dim">{escape(_summary(made))}</p>']
    if made.warnings:
        parts.append(f'<div class="warn"><strong>Warnings</strong>{_list(made.warnings)}{_legend(made)}</div>')
    parts += ["<h2>Values</h2>", _values(made), *(_group(entry, made) for entry in made.entries if entry.grouped)]
    if light:
        parts += ["<h2>Curves</h2>", _curves(light, dark)]
    pictured = [(entry, [run for run in entry.runs if run.pictures is not None]) for entry in made.entries]
    few = sum(len(runs) for _, runs in pictured) <= FIGURES
    figures = [_figure(entry, run) for entry, runs in pictured for run in (runs if few else runs[:1])]
    if figures:
        words = "" if few else '<p class="dim">Of each group only the first run.</p>'
        parts += ["<h2>Samples</h2>", words, f'<div class="samples">{"".join(figures)}</div>']
    if made.notes:
        parts += ["<h2>Notes</h2>", f'<div class="notes">{_list(made.notes)}</div>']
    return document(title, [*parts, "<h2>Runs</h2>", _paths(made)])


def document(title: str, parts: Sequence[str]) -> str:
    """A page of these parts of HTML, which may load nothing but what is in it."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _summary(made: Comparison) -> str:
    runs, groups = sum(len(entry.runs) for entry in made.entries), [e for e in made.entries if e.grouped]
    words = f"{runs} run{'s' if runs != 1 else ''}"
    if groups:
        words += (
            f", {len(groups)} group{'s' if len(groups) != 1 else ''} of runs that differ only in their seed: "
            "mean ± sample standard deviation (n - 1)"
        )
    return words


def _legend(made: Comparison) -> str:
    if any(cell and len(cell.mark) > 1 for cells in made.cells.values() for cell in cells):
        return '<span class="dim">Values with the same letter after the sign were got by the same protocol.</span>'
    return ""


def _list(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _values(made: Comparison) -> str:
    whole = grid(made)
    marked = {  # (row, column) of the grid with entries as rows
        (i, whole.head.index(name))
        for name in made.columns
        for i, cell in enumerate(made.cells[name])
        if cell is not None and cell.mark
    }
    if len(made.entries) > ACROSS:
        return table(whole.head, whole.rows, marked)
    turned = whole.transposed()
    return table(turned.head, turned.rows, {(column - 1, row + 1) for row, column in marked})


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Collection[tuple[int, int]] = ()) -> str:
    """A table whose first column names its rows."""
    body = []
    for i, row in enumerate(rows):
        cells = "".join(_cell(text, (i, j) in marked) for j, text in enumerate(row[1:], 1))
        body.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    names = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(text: str, marked: bool) -> str:
    kinds = [*(["marked"] if marked else []), *(["long"] if len(text) > 28 else [])]
    attribute = f' class="{" ".join(kinds)}"' if kinds else ""
    title = ' title="does not compare as it stands: see the warnings"' if marked else ""
    return f"<td{attribute}{title}>{escape(text)}</td>"


def _group(entry: Entry, made: Comparison) -> str:
    runs = table(["run", "seed", *made.columns], members(entry, made))
    return f"<details><summary>{escape(entry.label)}: each run</summary>{runs}</details>"


def _curves(light: bytes, dark: bytes | None) -> str:
    sources = f'<source media="(prefers-color-scheme: dark)" srcset="{embedded(dark)}">' if dark else ""
    return f'<picture>{sources}<img class="curves" alt="curves of the compared runs" src="{embedded(light)}"></picture>'


def _figure(entry: Entry, run: Run) -> str:
    assert run.pictures is not None
    words = f"{entry.number} {run.name}: {run.pictures.name}" + (
        f", seed {one_line(str(run.seed))}" if entry.grouped else ""
    )
    caption = f"<figcaption>{escape(words)}</figcaption>"
    try:
        if run.pictures.suffix == ".txt":
            return f"<figure><pre>{escape(_text(run.pictures))}</pre>{caption}</figure>"
        return f'<figure><img alt="samples" src="{embedded(read_png(run.pictures))}">{caption}</figure>'
    except (OSError, DataError) as error:
        return f'<figure class="dim">{escape(words)}: not readable: {escape(one_line(str(error)))}</figure>'


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    return text if len(text) <= TEXT else f"{text[:TEXT]} …"


def read_png(path: Path) -> bytes:
    """A PNG that browsers take, of reasonable size.

    Raises:
        OSError: it cannot be read.
        DataError: it is no picture, or one of too many pixels.
    """
    from PIL import Image

    raw = path.read_bytes()
    with unreadable(path), Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
        if picture.width * picture.height > PIXELS:
            raise DataError(f"{path}: {picture.width} x {picture.height} pixels")
        picture.load()
        if len(raw) <= LARGEST:
            return raw
        picture.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()


def embedded(png: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _paths(made: Comparison) -> str:
    rows = "".join(
        f"<tr><td>{entry.number}</td><td>{escape(run.state)}</td><td>{escape(number(run.samples))}</td>"
        f'<td class="long" style="text-align:left">{escape(one_line(str(run.path)))}</td></tr>'
        for entry in made.entries
        for run in entry.runs
    )
    return f'<div class="wide"><table><tbody>{rows}</tbody></table></div>'
