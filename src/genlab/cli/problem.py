"""A fault in a configuration, with the key it is at, and the search for the key that was meant."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from genlab.errors import ConfigError


class Problem(ConfigError):
    """One fault at one key: 'key: what (where). do'.

    Attributes:
        what: the fault.
        key: dotted key of the composed config, or ''.
        do: what to do, a sentence without its full stop, or ''.
        where: file or 'command line'; set by whoever knows where the key came from.
    """

    def __init__(self, what: str, key: str = "", do: str = "", where: str = "") -> None:
        self.what, self.key, self.do, self.where = what, key, do, where
        super().__init__(what, key, do, where)

    def __str__(self) -> str:
        at = "" if not self.key else f"{self.key} " if self.what.startswith(("must ", "is ")) else f"{self.key}: "
        where = f" ({self.where})" if self.where else ""
        do = f". {self.do}" if self.do else ""
        return one_line(f"{at}{self.what}{where}{do}")


def one_line(text: str) -> str:
    """One line that any terminal and any UTF-8 file takes: control characters and lone surrogates are replaced."""
    text = " ".join(text.split()).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str) -> None:
    """One line for a person, beside what a command prints."""
    print(text, file=sys.stderr, flush=True)


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of a plain value and all below it, outermost first; keys as 'model.layers[0].width'."""
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from walk(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from walk(inner, f"{key}[{i}]")


def leaves(value: Any) -> list[str]:
    """Dotted keys of every node and leaf of a plain container, lists not entered."""
    return [key for key, _ in walk(value) if key and "[" not in key]


# What other programs call a key.
OTHER_NAMES = {"learning_rate": "lr", "max_steps": "max_samples", "max_epochs": "max_samples", "epochs": "max_samples"}


def nearest(key: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `key` was meant to be, or None if none is close.

    First a sibling that is spelled nearly alike, then the same last name under another parent (`data.batch_size` for
    `model.batch_size`), then whatever is spelled alike.
    """
    pool = [c for c in candidates if c != key]
    parent, _, last = key.rpartition(".")
    if (usual := f"{parent}.{OTHER_NAMES.get(last)}") in pool:
        return usual
    pick = difflib.get_close_matches
    siblings = {c.rpartition(".")[2]: c for c in pool if c.rpartition(".")[0] == parent}
    alike = pick(last, siblings, 1, 0.75)
    if alike:
        return siblings[alike[0]]
    same = [c for c in pool if c.rpartition(".")[2] == last]
    if same:
        return max(same, key=lambda c: (difflib.SequenceMatcher(None, key, c).ratio(), -len(c)))
    alike = pick(last, siblings, 1, 0.6) or [s for s in siblings if len(last) > 2 and (last in s or s in last)][:1]
    if alike:
        return siblings[alike[0]]
    if whole := pick(key, pool, 1, 0.6):
        return whole[0]
    ends = {c.rpartition(".")[2]: c for c in reversed(pool)}
    return ends[close[0]] if (close := pick(last, ends, 1, 0.7)) else None
