"""Chorales in four voices: MusicXML -> genlab.music's text, in a prepared folder whose splits share no melody.

Imports no torch, but for what genlab.music draws with.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from genlab.data.corpora import write_lines
from genlab.data.prepare import REPORT, SPLITS
from genlab.errors import DataError, unreadable
from genlab.files import sha256_of, write_json
from genlab.music import LOWEST, PITCHES, STEPS, VOICES, Score, transpose, write_text

BEATS = 16  # quarter notes of a soprano on end that make two chorales settings of one melody
SILENCE = 2 * STEPS  # sixteenths that all voices may rest
HELD_OUT = {0: "val", 1: "test"}  # of ten parts of the melodies
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


class Unsuitable(DataError):
    """A score that is no chorale in four voices on a grid of sixteenths; says why."""


@dataclass(frozen=True)
class Chorale:
    """One piece.

    Attributes:
        name: of its file, "bwv66.6".
        score: as it is written, repeats not played.
        key: sharps of its signature, flats negative.
        mode: "major", "minor" or "".
    """

    name: str
    score: Score
    key: int
    mode: str


def read_chorale(path: Path) -> Chorale:
    """A MusicXML file, plain or .mxl, of four parts of one voice each, the highest first.

    Raises:
        Unsuitable: it is something else.
        DataError: it cannot be read.
    """
    with unreadable(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                name = next(n for n in file.namelist() if n.endswith("xml") and not n.startswith("META-INF"))
                root = ElementTree.fromstring(file.read(name))
        else:
            root = ElementTree.fromstring(path.read_bytes())
        return _chorale(path.name.rpartition(".")[0], root)


def _chorale(name: str, root: ElementTree.Element) -> Chorale:
    parts = _voices(root)
    read = [_read_part(part) for part in parts]
    if len({len(pitch) for pitch, *_ in read}) != 1 or len({tuple(bars) for *_, bars, _ in read}) != 1:
        raise Unsuitable("parts of unequal length")
    pitch, onset = (np.stack([part[i] for part in read], 1) for i in (0, 1))
    sounding = pitch[pitch >= 0]
    if not len(sounding) or sounding.min() < LOWEST or sounding.max() >= LOWEST + len(PITCHES):
        raise Unsuitable("pitches that no voice sings")
    means = [column[column >= 0].mean() if (column >= 0).any() else 0 for column in pitch.T]
    if sorted(means, reverse=True) != means:
        raise Unsuitable("parts that are not soprano, alto, tenor, bass")
    score = _trimmed(Score(pitch, onset, tuple(read[0][2]), tuple(read[0][3])))
    silent = (score.pitch < 0).all(1)
    if (np.convolve(silent, np.ones(SILENCE + 1)) > SILENCE).any():
        raise Unsuitable("interludes of instruments")
    key = parts[0].find(".//key")
    sharps, mode = (key.findtext("fifths"), key.findtext("mode")) if key is not None else (None, None)
    return Chorale(name, score, int(sharps or 0), mode or "")


def _voices(root: ElementTree.Element) -> list[ElementTree.Element]:
    """The four parts, or of more those that are named as voices."""
    parts = root.findall("part")
    if len(parts) > 4:
        names = {part.get("id"): (part.findtext("part-name") or "").lower() for part in root.iter("score-part")}
        parts = [part for part in parts if names.get(part.get("id")) in VOICES]
    if len(parts) != 4:
        raise Unsuitable("not four voices")
    return parts


def _trimmed(score: Score) -> Score:
    """Without the rests of all voices at the ends."""
    sounding = np.flatnonzero((score.pitch >= 0).any(1))
    first, end = int(sounding[0]), int(sounding[-1]) + 1
    bars, fermatas = (tuple(t - first for t in places if first < t < end) for places in (score.bars, score.fermatas))
    return Score(score.pitch[first:end], score.onset[first:end], bars, fermatas)


def _read_part(part: ElementTree.Element) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
    """Pitches int64 [T], onsets bool [T], first steps of bars but the first, steps of fermatas."""
    pitches: list[int] = []
    onsets: list[bool] = []
    bars: list[int] = []
    fermatas: list[int] = []
    divisions = 1
    for measure in part.findall("measure"):
        if pitches and (not bars or bars[-1] != len(pitches)):
            bars.append(len(pitches))
        for item in measure:
            if item.tag == "attributes":
                divisions = int(item.findtext("divisions") or divisions)
            elif item.tag == "backup":
                raise Unsuitable("a part of several voices")
            elif item.tag == "forward" or (item.tag == "note" and item.find("grace") is None):  # forward: silence
                if item.find("chord") is not None:
                    raise Unsuitable("a part with chords")
                steps, rest = divmod(int(item.findtext("duration") or 0) * STEPS, divisions)
                if rest or not steps:
                    raise Unsuitable("notes that are no multiple of a sixteenth")
                if item.find("notations/fermata") is not None:
                    fermatas.append(len(pitches))
                pitch = _pitch(item.find("pitch"))
                tied = any(tie.get("type") == "stop" for tie in item.findall("tie"))
                onsets += [pitch >= 0 and not (tied and pitches and pitches[-1] == pitch)] + [False] * (steps - 1)
                pitches += [pitch] * steps
    bars = [bar for bar in bars if bar < len(pitches)]
    return np.array(pitches, dtype=np.int64), np.array(onsets, dtype=bool), bars, fermatas


def _pitch(pitch: ElementTree.Element | None) -> int:
    """MIDI's number; -1 of a rest."""
    if pitch is None:
        return -1
    alter = int(float(pitch.findtext("alter") or 0))
    return 12 * (int(pitch.findtext("octave") or 0) + 1) + _STEPS[pitch.findtext("step") or "C"] + alter


def melodies(chorales: list[Chorale]) -> list[list[int]]:
    """Places of chorales in groups: two of one work number, or with the same soprano, in any key, at BEATS quarter
    notes on end, are of one group, and so are those that each is of one group with."""
    groups = list(range(len(chorales)))

    def root(i: int) -> int:
        while groups[i] != i:
            i = groups[i]
        return i

    first: dict[Any, int] = {}
    for i, chorale in enumerate(chorales):
        line = chorale.score.pitch[::STEPS, 0]
        runs = (line[t : t + BEATS] for t in range(max(1, len(line) - BEATS + 1)))
        keys: list[Any] = [tuple((run - run[0]).tolist()) for run in runs]
        work = re.match(r"bwv\d+(\.\d+)?", chorale.name)
        keys.append(work[0] if work else chorale.name)
        for key in keys:
            groups[root(i)] = root(first.setdefault(key, i))
    found = defaultdict(list)
    for i in range(len(chorales)):
        found[root(i)].append(i)
    return list(found.values())


def music21_chorales(unpacked: Path, target: Path) -> None:
    """A prepared folder of music21's corpus/bach: {text, source, key, mode, transposed} a line.

    A tenth of the melodies each, drawn by the sha256 of a name, is val and test, in their own keys; chorales of train
    stand there in each key, of those six semitones down to five up, in which no voice leaves the range that it has in
    train. Of chorales that are equal, in any keys, the first is kept.
    """
    read, dropped = [], Counter[str]()
    for path in sorted(unpacked.rglob("*.mxl")):
        try:
            read.append(read_chorale(path))
        except Unsuitable as reason:
            dropped[str(reason)] += 1
    splits: dict[str, list[Chorale]] = {split: [] for split in SPLITS}
    for group in melodies(read):
        name = min(read[i].name for i in group)
        part = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10
        shapes = {(read[i].score.pitch - read[i].score.pitch[0, 0]).tobytes(): i for i in reversed(group)}
        dropped["equal to another"] += len(group) - len(shapes)
        splits[HELD_OUT.get(part, "train")] += [read[i] for i in shapes.values()]
    kept = {}
    for split, chorales in splits.items():
        records = list(_records(sorted(chorales, key=lambda chorale: chorale.name), every_key=split == "train"))
        write_lines(target / f"{split}.jsonl", iter(records))
        characters = sum(len(record["text"]) for record in records)
        facts = {"documents": len(records), "characters": characters, "from": f"{len(chorales)} chorales"}
        kept[split] = {**facts, "sha256": sha256_of(target / f"{split}.jsonl")}
    report = {
        "version": 1,
        "options": {"beats": BEATS},
        "facts": {"steps_a_quarter": STEPS},
        "read": {"files": len(read) + sum(dropped.values()) - dropped["equal to another"]},
        "dropped": {cause: {"documents": n} for cause, n in sorted(dropped.items())},
        "kept": kept,
    }
    write_json(target / REPORT, report)


def _records(chorales: list[Chorale], every_key: bool) -> Iterator[dict[str, Any]]:
    high = np.max([chorale.score.pitch.max(0) for chorale in chorales], 0)
    low = np.min([_lowest(chorale.score) for chorale in chorales], 0)
    for chorale in chorales:
        least, most = _lowest(chorale.score), chorale.score.pitch.max(0)
        for shift in range(-6, 6) if every_key else (0,):
            if (least + shift >= low).all() and (most + shift <= high).all():
                text = write_text(transpose(chorale.score, shift))
                facts = {"source": chorale.name, "key": chorale.key, "mode": chorale.mode, "transposed": shift}
                yield {"text": text, **facts}


def _lowest(score: Score) -> np.ndarray:
    """The lowest pitch of each voice, int64 [4]."""
    return np.where(score.pitch < 0, 127, score.pitch).min(0)
