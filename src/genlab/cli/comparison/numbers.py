"""Numbers, durations and text as a person reads them."""

from __future__ import annotations

import json
import math
from typing import Any

from genlab.cli.problem import one_line

NONE = "-"  # nothing there


def number(value: float | None) -> str:
    """Four significant digits; thousands separated; powers of ten only outside 1e-4 to 1e7."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size == 0 or 1e-4 <= size < 1e4:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e4 <= size < 1e7 else f"{value:.3e}"


def mean_sd(mean: float, sd: float | None) -> str:
    """Mean ± sample standard deviation: two digits of the deviation, and as many decimals of the mean."""
    if sd is None:
        return number(mean)
    if sd == 0 or not math.isfinite(sd):
        return f"{number(mean)} ± {number(float(sd))}"
    if abs(mean) >= 1e7 or max(abs(mean), sd) < 1e-4:
        return f"{mean:.3e} ± {sd:.1e}"
    decimals = min(max(0, 1 - math.floor(math.log10(sd))), 8)
    return f"{mean:,.{decimals}f} ± {sd:,.{decimals}f}"


def duration(seconds: float | None, sd: float | None = None) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return NONE
    unit, name = time_unit(seconds)
    short = {"hours": "h", "minutes": "min", "seconds": "s"}[name]
    if sd is None:
        return f"{seconds / unit:.3g} {short}"
    return f"{mean_sd(seconds / unit, sd / unit)} {short}"


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit in which a time reads best, and its name."""
    units = ((3600.0, "hours"), (60.0, "minutes"))
    return next(((unit, name) for unit, name in units if seconds >= 2 * unit), (1.0, "seconds"))


def shown(value: Any) -> str:
    """A value of a configuration or record; digests shortened to 12 digits."""
    if value is None:
        return "none"
    if isinstance(value, str):
        digest = len(value) == 64 and all(c in "0123456789abcdef" for c in value)
        return value[:12] if digest else one_line(value)
    if isinstance(value, bool | list | dict):
        return one_line(json.dumps(value, ensure_ascii=False, default=str))
    return str(value)
