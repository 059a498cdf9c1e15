"""Whether generated Python can be parsed. Nothing is ever executed or compiled."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence


def parses(text: str) -> bool:
    """Whether `ast.parse` of this Python accepts the text and finds a statement in it: comments alone are none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange escapes and the like, which are valid
        try:
            return bool(ast.parse(text).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # null bytes; brackets nested too deeply
            return False


def valid_lines(text: str) -> tuple[int, int]:
    """Lines of the longest run of whole lines from the beginning that `parses`, and all lines; blank ones not counted.

    A text that was cut at a length ends within a statement, so the share of valid lines tells more of it than validity.
    """
    lines = text.split("\n")
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    for count in range(len(filled), 0, -1):
        if parses("\n".join(lines[: filled[count - 1]])):
            return count, len(filled)
    return 0, len(filled)


def code_validity(texts: Sequence[str]) -> tuple[dict[str, float], list[tuple[int, int]]]:
    """Shares in 0..1 over texts, and `valid_lines` of each.

    Returns:
        `code_valid`: texts that parse; `code_valid_prefix`: the mean share of a text's lines in its longest valid
        beginning, 0 for an empty text.
    """
    lines = [valid_lines(text) for text in texts]
    return {
        "code_valid": sum(map(parses, texts)) / len(texts),
        "code_valid_prefix": sum(valid / max(1, count) for valid, count in lines) / len(texts),
    }, lines
