"""Single hits of drum kits, as Hydrogen keeps them: a folder a kit, sound files and a drumkit.xml that names them."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack
from xml.etree import ElementTree

import numpy as np
import torch

from genlab.data.audio import AudioData, AudioOptions, unpacked_recordings
from genlab.data.clips import EXTENSIONS, Clips, DecodeClip, FaultyClip
from genlab.data.held_out import Items
from genlab.data.manifest import digest
from genlab.errors import ConfigError, DataError
from genlab.settings import check_settings

KITS = "drum_hits"  # what scripts/fetch_data.py calls them
LIMIT = 1_000_000_000  # bytes that an archive of kits may unpack to
SOUNDS = EXTENSIONS | {".aiff"}
ONSET = 0.01  # of the peak, -40 dB: a hit begins where it is first so loud
LEAD, FADE = 0.002, 0.02  # seconds kept before the onset; of the fade at a cut end
SILENT = 1e-4  # a file whose peak is lower holds no hit

# A class is the first whose word is in a name. Their places are the labels.
CLASSES = {
    "kick": r"kick|bass ?drum|\bbd\b",
    "snare": r"snare",
    "hat": r"\bhat\b|hihat|\b[co]?hh\b",
    "tom": r"\btom",
    "cymbal": r"crash|\bride|splash|china|cymbal|paiste bell",
    "stick": r"stick|rim ?click",
    "other": r"clap|snap|agogo|bongo|cajon|clave|conga|cowbell|djembe|dununba|kenkeni|sangban|maraca|tambourine|"
    r"wood ?block|water ?glass",
}


def class_of(names: Sequence[str]) -> int | None:
    """The label that the first name with a word of `CLASSES` says; None: no name does.

    Args:
        names: of the instruments that play the file, in the order of the kit, and of the file itself.
    """
    for name in names:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", " ", name).lower()
        for label, word in enumerate(CLASSES.values()):
            if re.search(word, words):
                return label
    return None


def instruments(kit: Path) -> dict[str, list[str]]:
    """Names of the instruments that play each file of a kit, in the order of its drumkit.xml; none without one.

    Raises:
        DataError: it is no XML.
    """
    path, names = kit / "drumkit.xml", collections.defaultdict(list)
    if path.exists():
        try:
            root = ElementTree.fromstring(path.read_bytes())
        except ElementTree.ParseError as error:
            raise DataError(f"{path}: no XML ({error}); repair or remove it") from None
        for instrument in root.findall(".//{*}instrument"):
            for file in instrument.findall(".//{*}filename"):
                names[file.text or ""].append(instrument.findtext("{*}name") or "")
    return names


@dataclass(frozen=True)
class DecodeHit(DecodeClip):
    """File -> float32 [C, n] in [-1, 1], n at most `samples`: from 2 ms before the first sample that is at -40 dB of
    the peak; what is longer is cut, with a linear fade of 20 ms at its end.

    Args:
        samples: T.
    """

    samples: int

    def __call__(self, path: Path) -> np.ndarray:
        """Reads a file.

        Raises:
            FaultyClip: as DecodeClip; silent.
            ConfigError: as DecodeClip.
        """
        sound = super().__call__(path)
        loudness = np.abs(sound).max(0)
        if (peak := loudness.max()) < SILENT:
            raise FaultyClip("silent", f"{path}: no sample is above {SILENT:g}; remove it")
        onset = int((loudness >= ONSET * peak).argmax())
        sound = sound[:, max(0, onset - round(LEAD * self.sample_rate)) :]
        if sound.shape[1] <= self.samples:
            return sound
        sound = sound[:, : self.samples].copy()
        ramp = np.linspace(1, 0, min(round(FADE * self.sample_rate), self.samples), dtype=np.float32)
        sound[:, -len(ramp) :] *= ramp
        return sound

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "filter": "scipy.signal.resample_poly", "onset": ONSET, "lead": LEAD, "fade": FADE}


class DrumHits(AudioData):
    """Single hits of drum kits; the label is what is hit, as `CLASSES` reads it from the names of the instruments in
    the kit's drumkit.xml and, where they say nothing, from the file's. What no name tells is left out, and so is a hit
    whose samples are those of one before it (test, val, train). Whole kits are held out.

    Args:
        path: a folder of kits, or an archive of one; None: those of the Debian package hydrogen-drumkits are fetched.
        val_kits: names of the folders that are val.
        test_kits: likewise.
    """

    def __init__(
        self,
        name: str,
        *,
        val_kits: Sequence[str],
        test_kits: Sequence[str],
        path: str | None = None,
        **options: Unpack[AudioOptions],
    ) -> None:
        check_settings(DrumHits.__init__, locals(), "data.")
        super().__init__(name, **options)
        self.path = None if path is None else Path(path).expanduser()
        self.held_out = {"test": list(test_kits), "val": list(val_kits)}
        if both := {*test_kits} & {*val_kits}:
            raise ConfigError(f"data.val_kits and data.test_kits: {min(both)} is in both; take it out of one")
        if self.num_classes not in (None, len(CLASSES)):
            raise ConfigError(f"data.num_classes={self.num_classes}: there are {len(CLASSES)}, {', '.join(CLASSES)}")
        decode = self.decode
        self.decode = DecodeHit(decode.sample_rate, decode.channels, decode.resample, decode.shortest, self.samples)
        self.counts: dict[str, dict[str, int]] = {}
        self.cut = 0  # hits that went on after T

    def own_facts(self) -> dict[str, Any]:
        return {"classes": list(CLASSES), "hits": self.counts, "cut": self.cut}

    def parts(self) -> Items:
        root = unpacked_recordings(self.name, self.path, KITS, "kits.tar", LIMIT)
        kits = {path.parent.name: path.parent for path in sounds_below(root)}
        for split, names in self.held_out.items():
            for kit in names:
                if kit not in kits:
                    there = ", ".join(sorted(kits)) or "none"
                    raise ConfigError(f"data.{split}_kits: {root} has no kit {kit}; there are: {there}")
        paths, labels = self._named(root, kits)
        clips, decoded = self.clips(paths, root, {"label": torch.tensor(labels, dtype=torch.int64)})
        self.cut = int((clips.spans[1] == self.samples).sum())
        items: Items = {}
        for split, ids in self._places(clips).items():
            part = clips.select(np.array(ids, dtype=np.int64))
            files = [fact["file"] for fact in part.facts]
            if not files:
                raise ConfigError(f"data: no hit is left for {split}; set data.val_kits and data.test_kits")
            table = collections.Counter(list(CLASSES)[label] for label in part.known["label"].tolist())
            self.counts[split] = {name: table[name] for name in CLASSES}
            note = "all other kits" if split == "train" else f"kits {', '.join(self.held_out[split])}"
            items[split] = part, digest([decoded.sha256, files]), note  # type: ignore[index]
        return items

    def _named(self, root: Path, kits: dict[str, Path]) -> tuple[list[Path], list[int]]:
        """Files with their labels; those that no name tells are counted."""
        names = {kit: instruments(folder) for kit, folder in kits.items()}
        paths, labels, unnamed = [], [], []
        for path in sounds_below(root):
            label = class_of([*names[path.parent.name].get(path.name, ()), path.stem])
            if label is None:
                unnamed.append(path.relative_to(root).as_posix())
            else:
                paths.append(path)
                labels.append(label)
        self.dropped["unnamed"] = len(unnamed)
        self._say("left out, no name tells what is hit", unnamed)
        return paths, labels

    def _places(self, clips: Clips) -> dict[str, list[int]]:
        """Where the hits of each split are in `clips`, without what is equal to one before it."""
        split_of = {kit: split for split, kits in self.held_out.items() for kit in kits}
        places: dict[str, list[int]] = {"test": [], "val": [], "train": []}
        for place, fact in enumerate(clips.facts):
            places[split_of.get(fact["file"].split("/")[-2], "train")].append(place)
        seen: set[str] = set()
        twins: list[int] = []
        for split, ids in places.items():
            kept: list[int] = []
            for place in ids:
                fact = clips.facts[place]
                (twins if fact["sha256"] in seen else kept).append(place)
                seen.add(fact["sha256"])
            places[split] = kept
        self.dropped["duplicate"] = len(twins)
        self._say("left out, equal to one before them", [clips.facts[place]["file"] for place in twins])
        return {split: ids for split, ids in places.items() if split == "train" or self.held_out[split]}


def sounds_below(root: Path) -> Iterator[Path]:
    """Sound files in folders below `root`, in the order of their names."""
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SOUNDS and path.parent != root and path.name[0] != ".":
            yield path
