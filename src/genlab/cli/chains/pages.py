"""A report's parts, and the two forms that they are written in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from genlab.cli.comparison.page import document, embedded, table
from genlab.cli.problem import one_line


@dataclass(frozen=True)
class Heading:
    """level: 2 for a part, 3 below it."""

    level: int
    text: str


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text as it stands: a command, a sample."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """png: the bytes of a file. name: of its file, without suffix."""

    name: str
    png: bytes


Block = Heading | Words | Code | Table | Picture


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The report as Markdown; pictures are files in pictures/."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_inline(text)}"
        case Words(text):
            return _inline(text)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}text\n{text}\n{fence}"
        case Table(head, rows):
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            return "\n".join(f"| {' | '.join(map(_inline, line))} |" for line in lines)
        case Picture(name, _):
            return f"![{name}](pictures/{name}.png)"


def _inline(text: str) -> str:
    """Text of one line that Markdown takes for no markup."""
    return re.sub(r"([\\`*\[\]<>|$]|(?<!\w)_|_(?!\w))", r"\\\1", one_line(text))


def html(title: str, blocks: Sequence[Block]) -> str:
    """The report as one page, pictures in it."""
    return document(title, [f"<h1>{escape(title)}</h1>", *map(_html, blocks)])


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Words(text):
            return f"<p>{escape(text)}</p>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Table(head, rows):
            return table(head, rows)
        case Picture(name, png):
            return f'<img alt="{escape(name)}" style="max-width: 100%" src="{embedded(png)}">'
