"""Curves of the compared runs: a panel a quantity, groups as their mean with a band of one standard deviation."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.cells import cell_len

from genlab.cli.comparison.compared import Comparison
from genlab.cli.comparison.entries import Entry, summarise
from genlab.cli.comparison.numbers import time_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WINDOW = 20  # points of a moving mean
NOISY = 60  # points from which the moving mean is drawn in front of the values
# Okabe and Ito's colours without black and yellow, which everyone can tell apart; the same, lighter, for dark pages.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7")
LIGHTER = ("#3D9BE0", "#F0B429", "#1FC498", "#FF7A33", "#A5DBFA", "#E9A3CB")
DASHES = ("-", "--", ":", "-.")
CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
           "Microsoft YaHei", "SimHei", "PingFang SC", "Arial Unicode MS")  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A curve of an entry. x in samples or seconds; sd is None where there is one run; n runs are in it."""

    samples: list[int]
    x: list[float]
    mean: list[float]
    sd: list[float] | None
    n: int


def series(entry: Entry, name: str, x: str) -> Series | None:
    """The curve `name` of an entry, or None. A group's has the points that all of its runs with this curve have.

    Args:
        x: "samples" or "time" (seconds since training began; of a group, their mean).
    """
    curves = [run.curves[name] for run in entry.runs if name in run.curves]
    if not curves:
        return None
    common = [at for at in curves[0] if all(at in curve for curve in curves)]
    if x == "time":
        common = [at for at in common if all(math.isfinite(curve[at][0]) for curve in curves)]
    if not common:
        return None
    times = [summarise([curve[at][0] for curve in curves])[0] or 0.0 for at in common]
    points = [summarise([curve[at][1] for curve in curves]) for at in common]
    return Series(
        common,
        times if x == "time" else [float(at) for at in common],
        [mean for mean, _, _ in points if mean is not None],
        [sd or 0.0 for _, sd, _ in points] if len(curves) > 1 else None,
        len(curves),
    )


def draw(made: Comparison, x: str = "samples", dark: bool = False) -> bytes | None:
    """A PNG of all curves, or None if there is none."""
    if not made.curves:
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    back, front = ("#17191c", "#d8dadd") if dark else ("#ffffff", "#1c1e21")
    style: Any = {
        "font.family": _fonts(),
        "axes.unicode_minus": False,
        "text.parse_math": False,  # a run may be called $x
        "axes.facecolor": back,
        "figure.facecolor": back,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), front),
    }
    columns = min(3, len(made.curves))
    rows = math.ceil(len(made.curves) / columns)
    labels = {entry.number: _label(entry, made) for entry in made.entries}
    longest = max(map(cell_len, labels.values()))
    inches = max(4.6 * columns, (longest + 8) / 14)
    beside = max(1, min(len(labels), int(inches * 14 / (longest + 8))))  # labels in a row of the legend
    legend = 0.24 * math.ceil(len(made.entries) / beside) + 0.2
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # no font here for a name: its number tells which it is
        figure = Figure(figsize=(inches, 3.1 * rows + legend), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        handles: dict[int, Any] = {}
        for i, name in enumerate(made.curves):
            axes = figure.add_subplot(rows, columns, i + 1)
            _panel(axes, made.entries, name, x, LIGHTER if dark else COLOURS, handles)
        figure.legend(
            [handles[number] for number in sorted(handles)],
            [labels[number] for number in sorted(handles)],
            loc="outside lower center",
            ncols=beside,
            fontsize=8,
            handlelength=3,
            frameon=False,
        )
        figure.get_layout_engine().set(h_pad=0.09, w_pad=0.06)  # type: ignore[union-attr,call-arg]
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def _label(entry: Entry, made: Comparison) -> str:
    """Number and name, and what was changed if that is short."""
    found = {key: values[entry.number - 1] for key, values in made.overrides.items()}
    changed = [f"{key.rpartition('.')[2]}={value}" for key, value in found.items() if value]
    words = ", ".join([entry.label, *(changed if len(found) <= 3 else []), *(["mean ± sd"] if entry.grouped else [])])
    return words if len(words) <= 90 else entry.label


def _panel(
    axes: Axes, entries: Sequence[Entry], name: str, x: str, colours: Sequence[str], handles: dict[int, Any]
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, MaxNLocator

    found = [(entry, made) for entry in entries if (made := series(entry, name, x)) is not None]
    longest = max((made.x[-1] for _, made in found), default=0.0)
    unit, unit_name = time_unit(longest) if x == "time" else (1.0, "")
    for entry, made in found:
        colour = colours[(entry.number - 1) % len(colours)]
        dash = DASHES[(entry.number - 1) // len(colours) % len(DASHES)]
        at, mean = np.array(made.x) / unit, np.array(made.mean)
        if made.sd is not None:
            sd = np.array(made.sd)
            axes.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.2, lw=0)
        if len(at) > NOISY:  # the values pale, their moving mean in front
            axes.plot(at, mean, color=colour, lw=0.7, alpha=0.25)
            kernel = np.ones(WINDOW) / WINDOW
            at, mean = np.convolve(at, kernel, "valid"), np.convolve(mean, kernel, "valid")
        marker = "o" if len(at) <= 12 else None
        axes.plot(at, mean, color=colour, ls=dash, lw=1.6, marker=marker, ms=3.5)
        handles.setdefault(entry.number, Line2D([], [], color=colour, ls=dash, lw=2))
    _scale(axes, [value for _, made in found for value in made.mean])
    smoothed = any(len(made.x) > NOISY for _, made in found)
    axes.set_title(f"{name} (dense curves: moving mean of {WINDOW})" if smoothed else name, fontsize=9.5)
    axes.set_xlabel(f"time, {unit_name}" if x == "time" else "samples seen", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if x != "time":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where a few values would press all others flat."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    array = np.array(values)
    if len(array) < 5 or array.min() <= 0 or array.max() < 5 * np.median(array):
        return
    axes.set_yscale("log")
    decades = math.log10(array.max() / array.min())
    axes.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _fonts() -> list[str]:
    """DejaVu, and after it a Chinese font of this machine for what DejaVu lacks."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in CHINESE if name in there)]
