"""Rules of four-part writing, as shares in which texts of genlab.music keep or break them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np

from genlab import music
from genlab.evaluation.metrics.base import Items
from genlab.evaluation.metrics.generated import TextMetric

SHORTEST = 16  # characters of a bar that is looked for in train: a quarter note
# Distances from the bass note that is the root of a major or minor triad, and all sets of pitch classes within one.
_ROOT = ({0, 4, 7}, {0, 3, 7})
_TRIADS = [{(root + step) % 12 for step in triad} for root in range(12) for triad in _ROOT]


def rules(score: music.Score) -> dict[str, tuple[int, int]]:
    """How often, and of how many:

        faults            characters that cannot be read, of all
        in_range          notes within their voice's range (music.RANGES)
        crossings         sixteenths in which a voice is below the next lower one
        parallel_fifths   moves of two voices at once, both to other notes, in one direction and from a fifth to a
                          fifth (in any octaves), of all such moves of two voices
        parallel_octaves  likewise from an octave or unison to one
        consonant         sixteenths of four voices whose notes are of one major or minor triad
        final_triad       whether the last such is a triad over its root, of 1
        even_bars         bars, without the first and the last, of the commonest length

    Args:
        score: of any length, 0 too.
    """
    pitch, four = score.pitch, (score.pitch >= 0).all(1)
    notes = music.notes_of(score)
    inside = sum(music.RANGES[voice][0] <= note <= music.RANGES[voice][1] for voice, note, *_ in notes)
    fifths = octaves = moves = 0
    for upper, lower in combinations(range(4), 2):
        a, b = pitch[:, upper], pitch[:, lower]
        step = np.stack([np.diff(a), np.diff(b)])
        moving = (a[1:] >= 0) & (a[:-1] >= 0) & (b[1:] >= 0) & (b[:-1] >= 0) & (step != 0).all(0)
        interval = (a - b) % 12
        parallel = moving & (np.sign(step[0]) == np.sign(step[1])) & (interval[1:] == interval[:-1])
        moves += int(moving.sum())
        fifths += int((parallel & (interval[1:] == 7)).sum())
        octaves += int((parallel & (interval[1:] == 0)).sum())
    chords = [set((row % 12).tolist()) for row in pitch[four]]
    rooted = {(int(note) - int(last[3])) % 12 for last in pitch[four][-1:] for note in last}
    lengths = np.diff(score.bars).tolist()
    return {
        "faults": (score.faults, score.faults + 4 * len(score)),
        "in_range": (inside, len(notes)),
        "crossings": (int((np.diff(pitch[four], axis=1) > 0).any(1).sum()), len(chords)),
        "parallel_fifths": (fifths, moves),
        "parallel_octaves": (octaves, moves),
        "consonant": (sum(any(chord <= triad for triad in _TRIADS) for chord in chords), len(chords)),
        "final_triad": (int(bool(chords) and any(rooted <= triad for triad in _ROOT)), int(bool(chords))),
        "even_bars": (Counter(lengths).most_common(1)[0][1] if lengths else 0, len(lengths)),
    }


class ChoraleRules(TextMetric):
    """See `rules`, each share over all texts together; and copied_bars, the share of bars of at least a quarter note
    that stand in the train split, in any key that it has them in."""

    key, needs = "chorale_rules", frozenset({"training_texts"})
    outputs = (*rules(music.read_text("")), "copied_bars")

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """Reads the train split."""
        self._bars = {bar for _, text in data.texts("train") for bar in text.split(music.BAR)}

    def compute(self) -> dict[str, float]:
        found = [rules(music.read_text(text)) for text in self.judged.data]
        bars = [[bar for bar in text.split(music.BAR) if len(bar) >= SHORTEST] for text in self.judged.data]
        copied = [sum(bar in self._bars for bar in each) for each in bars]
        values: dict[str, float] = {}
        for name, kept, of in [
            *((name, sum(one[name][0] for one in found), sum(one[name][1] for one in found)) for name in found[0]),
            ("copied_bars", sum(copied), sum(map(len, bars))),
        ]:
            values[name] = kept / of if of else float("nan")
            if not of:
                self.missing[name] = "no text has what this is a share of"
        self.columns |= {name: [f"{one[name][0]} of {one[name][1]}" for one in found] for name in found[0]}
        self.columns["copied bars"] = [f"{n} of {len(each)}" for n, each in zip(copied, bars, strict=True)]
        return self.signed(values, "rules:1")
