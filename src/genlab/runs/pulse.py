"""A sign of life of each rank, so that a time-out can name the rank that the others waited for. Free of torch."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Pulse:
    """Writes RUN/ranks/RANK.pulse: how many marks this rank has passed, when, and where it was.

    Ranks pass the same marks in the same order, the last before they wait for each other included; so the one with the
    fewest marks is the one that the others wait for.

    Args:
        folder: of the run.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        (folder / "ranks").mkdir(exist_ok=True)
        self._file = os.open(folder / "ranks" / f"{rank}.pulse", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.marks = 0
        self.mark("had started")

    def mark(self, where: str) -> None:
        """Passes a mark; costs some microseconds."""
        self.marks += 1
        os.pwrite(self._file, f"{self.marks} {time.time():.1f} {where}".ljust(100).encode()[:100], 0)

    def close(self) -> None:
        os.close(self._file)


def begun(folder: Path, rank: int) -> bool:
    """Whether a rank has passed a mark since it started; before, it has nothing to save."""
    try:
        words = (folder / "ranks" / f"{rank}.pulse").read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return False
    return len(words) > 0 and int(words[0]) > 1


def stalled(folder: Path, least_s: float = 5.0) -> tuple[list[int], str]:
    """Ranks behind the others that gave no sign for `least_s` seconds, and what to say of them; ([], "") if none."""
    read = {}
    for path in sorted((folder / "ranks").glob("*.pulse")):
        words = path.read_text(encoding="utf-8").strip().split(" ", 2)
        if len(words) < 3:  # just made
            continue
        marks, when, where = words
        read[int(path.stem)] = (int(marks), time.time() - float(when), where)
    fewest = min((marks for marks, _, _ in read.values()), default=0)
    behind = [rank for rank, (marks, age, _) in sorted(read.items()) if marks == fewest and age > least_s]
    if not behind or len(behind) == len(read):
        return [], ""
    _, age, where = read[behind[0]]
    names = f"rank{'s' if len(behind) > 1 else ''} {', '.join(map(str, behind))}"
    return behind, f"{names} gave no sign for {age:.0f} s, last {where}; the others waited in vain (rank_timeout_s)"
