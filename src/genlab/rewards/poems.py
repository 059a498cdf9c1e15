"""Rhyme and tonal pattern of Chinese verse, by modern readings (the package pypinyin).

Readings are those of today: a poem of the Tang that kept the rules of its time may break them here, because rhymes have
drifted apart and the entering tone is gone. What real poems reach is the floor to compare with.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any

from genlab.data.corpora import FORMS, form_of
from genlab.errors import ConfigError
from genlab.judges import Judge
from genlab.samples import Samples

# The fourteen groups of Zhonghua Xinyun (中华新韵, 2005) by finals as pypinyin writes them.
GROUPS = (
    ("a", "ia", "ua"), ("o", "e", "uo"), ("ie", "ve"), ("ai", "uai"), ("ei", "uei"), ("ao", "iao"), ("ou", "iou"),
    ("an", "ian", "uan", "van"), ("en", "in", "uen", "vn"), ("ang", "iang", "uang"),
    ("eng", "ing", "ueng", "ong", "iong"), ("i", "er", "v"), ("-i",), ("u",),
)  # fmt: skip
GROUP = {final: number for number, finals in enumerate(GROUPS) for final in finals}
SIBILANTS = ("zh", "ch", "sh", "r", "z", "c", "s")  # after which "i" is no i
LEVEL = (1, 2)  # tones; the others are oblique


@cache
def reading(character: str) -> tuple[int, bool] | None:
    """Group of the rhyme of a character's commonest reading, and whether its tone is level; None: unknown."""
    try:
        from pypinyin import Style, pinyin
    except ImportError:
        raise ConfigError('a reward of verse needs pypinyin: pip install "genlab[finetune]"') from None
    final = pinyin(character, style=Style.FINALS_TONE3, strict=True, errors="ignore", neutral_tone_with_five=True)
    if not final or not final[0][0][-1:].isdigit():
        return None
    name, tone = final[0][0][:-1], int(final[0][0][-1])
    initial = pinyin(character, style=Style.INITIALS, strict=True)[0][0]
    name = "-i" if name == "i" and initial in SIBILANTS else name
    return (GROUP[name], tone in LEVEL) if name in GROUP else None


def lines_of(poem: str) -> list[str]:
    """Lines of verse, without punctuation."""
    return [line for line in re.split(r"[，。！？；：、\s]", poem) if line]


def rhymes(lines: Sequence[str]) -> bool:
    """Whether the even lines end in level tones of one rhyme and in different characters (Zhonghua Xinyun)."""
    ends = [line[-1] for line in lines[1::2]]
    readings = {reading(end) for end in ends}
    return len(ends) > 1 and len({*ends}) == len(ends) and len(readings) == 1 and all(r and r[1] for r in readings)


def tonal_rules(lines: Sequence[str]) -> list[bool]:
    """Which rules of regulated verse hold (Wang Li, 漢語詩律學): in each line the tones at places 2 and 4 (and 6)
    alternate; within a couplet the second places differ; between couplets they agree; odd lines but the first end in
    an oblique tone, even ones in a level one."""
    level = [[(known[1] if (known := reading(c)) else None) for c in line] for line in lines]
    held: list[bool] = []

    def differ(a: bool | None, b: bool | None, wanted: bool = True) -> None:
        held.append(a is not None and b is not None and (a != b) == wanted)

    for tones in level:
        for place in range(3, len(tones), 2):
            differ(tones[place], tones[place - 2])
    for number in range(1, len(level)):
        differ(level[number][1], level[number - 1][1], number % 2 == 1)
    held += [tones[-1] is (number % 2 == 1) for number, tones in enumerate(level) if number]
    return held


class VerseJudge(Judge):
    """Judges poems of one of the four forms; what has another form has 0."""

    modality = "text"

    @abstractmethod
    def score(self, lines: Sequence[str]) -> float:
        """Number of a poem by its lines, in 0..1."""

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        prompts = [str(prompt) for prompt in condition.get("prompt", [""] * len(samples))]
        return [self._of(text, prompt) for text, prompt in zip(samples.data, prompts, strict=True)]

    def _of(self, text: str, prompt: str) -> float:
        asked = next((form for form in FORMS.values() if form in prompt), None)
        form = form_of(text.strip())
        return self.score(lines_of(text)) if form in FORMS.values() and asked in (None, form) else 0.0


class Rhyme(VerseJudge):
    """1 for a poem that rhymes, see `rhymes`."""

    def score(self, lines: Sequence[str]) -> float:
        return float(rhymes(lines))


class TonalPattern(VerseJudge):
    """Share of the rules of `tonal_rules` that a poem keeps.

    Args:
        share: least share; then 1 for a poem that reaches it, else 0. None: the share itself.
    """

    def __init__(self, share: Annotated[float, "gt 0, le 1"] | None = None) -> None:
        self.share = share

    def score(self, lines: Sequence[str]) -> float:
        held = tonal_rules(lines)
        kept = sum(held) / len(held)
        return kept if self.share is None else float(kept >= self.share)


class Verse(VerseJudge):
    """Rhyme and tones together: rhyme + (1 - rhyme) * tones of weights that add up to 1, for a poem of the form asked
    for; as a reward it has a slope everywhere.

    Args:
        rhyme: weight of the rhyme; the rest is that of the tones.
        both: 1 where a poem rhymes and keeps `share` of the tonal rules, else 0: what a table shows.
        share: see TonalPattern.
    """

    def __init__(
        self, rhyme: Annotated[float, "ge 0, le 1"] = 0.5, both: bool = False,
        share: Annotated[float, "gt 0, le 1"] = 1.0,
    ) -> None:  # fmt: skip
        self.rhyme, self.both, self.share = rhyme, both, share

    def score(self, lines: Sequence[str]) -> float:
        held = tonal_rules(lines)
        kept = sum(held) / len(held)
        if self.both:
            return float(rhymes(lines) and kept >= self.share)
        return self.rhyme * rhymes(lines) + (1 - self.rhyme) * kept
