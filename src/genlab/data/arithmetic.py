"""Sums as pairs of texts: the question "37+85=" and its answer "122", which can be checked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from genlab.data.manifest import digest
from genlab.data.pairs import Pairs
from genlab.data.text import Parts
from genlab.files import cache_root, made_once

FILE = "sums.jsonl"


class Arithmetic(Pairs):
    """All sums of two numbers of up to so many digits, or a fixed random choice of them, split by the question.

    Args:
        digits: of each number, at most.
        count: sums, if there are more.
        name: see Pairs.
        common: likewise.
    """

    def __init__(
        self,
        name: str,
        *,
        digits: Annotated[int, "gt 0, le 6"] = 2,
        count: Annotated[int, "gt 2"] = 20000,
        **common: Any,
    ) -> None:
        super().__init__(name, **common)
        self.digits, self.count = digits, count

    def _read(self) -> Parts:
        def make(folder: Path) -> None:
            with open(folder / FILE, "w", encoding="utf-8") as out:
                for a, b in sums(self.digits, self.count):
                    out.write(json.dumps({"source": f"{a}+{b}=", "target": str(a + b)}) + "\n")

        folder = made_once(cache_root() / "text" / f"sums-{digest([self.digits, self.count])[:24]}", make)
        self.path = str(folder / FILE)
        return super()._read()


def sums(digits: int, count: int) -> Iterator[tuple[int, int]]:
    """Pairs of numbers below 10^digits, each pair once, at most `count`, in an order that depends on nothing else."""
    most = 10**digits
    chosen = random.Random(0).sample(range(most * most), min(count, most * most))
    return (divmod(pair, most) for pair in chosen)
