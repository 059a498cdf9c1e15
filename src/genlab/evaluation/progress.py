"""The bar of an evaluation."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from genlab.evaluation.sharding import world


def bar(progress: bool, words: str, total: int) -> Any:
    """A tqdm over `total` items on rank 0; on other ranks, and without `progress`, a hidden one."""
    pause = 0.2 if sys.stderr.isatty() else 20.0  # where the output is no terminal each state is a line
    hidden = not progress or world()[0] != 0
    return tqdm(total=total, desc=words, unit="", leave=False, mininterval=pause, maxinterval=60, disable=hidden)
