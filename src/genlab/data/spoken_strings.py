"""Strings of spoken digits with their words: recordings of one speaker, one after another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Unpack

import numpy as np
import torch
from torch import Tensor

from genlab.data.audio import AudioOptions, SpokenDigits, encode_captions
from genlab.data.captioned import Captioned
from genlab.data.clips import Clips
from genlab.data.held_out import Items
from genlab.data.manifest import digest
from genlab.data.module import Positive, Split
from genlab.data.sources import Batch, keyed
from genlab.data.vocabulary import Kind, vocabulary_digest
from genlab.errors import ConfigError
from genlab.noise import Stream, bits
from genlab.settings import check_settings

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHORTEST, LONGEST = 2, 4  # digits of a string
GAP = 0.02, 0.08  # seconds of silence before each digit but the first
INDICES = {"test": range(5), "val": range(5, 10)}  # of recordings; train has the others


class JoinedClips(Clips):
    """Clips made of recordings when they are read, one after another, with silence between.

    Args:
        recordings: whose samples these are.
        pieces: int64 [N, M], places in `recordings`; -1: none.
        begins: int64 [N, M], the sample of the item at which each piece begins.
        length: samples of an item; what is longer loses its end.
        facts: of each item.
    """

    def __init__(
        self, recordings: Clips, pieces: Tensor, begins: Tensor, length: int, facts: Sequence[dict[str, Any]]
    ) -> None:
        self.recordings, self.pieces, self.begins = recordings, pieces, begins
        counts = recordings.spans[1][pieces.clamp(min=0)] * (pieces >= 0)
        whole = (begins + counts).amax(1) if len(pieces) else begins.new_zeros(0)
        spans = torch.stack([torch.zeros_like(whole), whole])
        super().__init__(recordings.samples, spans, length, {}, facts, recordings.origin)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        audio = self.samples.new_zeros(len(ids), self.length, self.samples.shape[1])
        for piece, begin in zip(self.pieces[ids].T, self.begins[ids].T, strict=True):
            first, count = self.recordings.spans[:, piece.clamp(min=0)]
            at = torch.arange(self.length, device=ids.device) - begin[:, None]
            inside = (at >= 0) & (at < count[:, None]) & (piece >= 0)[:, None]
            audio += self.samples[torch.where(inside, first[:, None] + at, 0)] * inside[..., None]
        return {"audio": audio.transpose(1, 2).contiguous()}

    @property
    def nbytes(self) -> int:
        return self.recordings.nbytes + self.pieces.nbytes + self.begins.nbytes

    def to(self, device: torch.device) -> JoinedClips:
        if device == self.samples.device:
            return self
        pieces, begins = self.pieces.to(device), self.begins.to(device)
        return JoinedClips(self.recordings.to(device), pieces, begins, self.length, self.facts)  # type: ignore[arg-type]

    def select(self, ids: np.ndarray) -> JoinedClips:
        rows, facts = torch.from_numpy(ids), [dict(self.facts[i]) for i in ids]
        return JoinedClips(self.recordings, self.pieces[rows], self.begins[rows], self.length, facts)


def strings_of(recordings: Clips, count: int, length: int, rate: int, seed: int) -> Captioned:
    """Strings of two to four digits of one speaker each, and their words: "seven two nine". A string is a function of
    (seed, id): its number of digits, speaker, recordings, gaps. One that is longer than `length` loses its last digits.

    Args:
        recordings: with "label" and "speaker".
        count: of strings.
        length: samples of an item.
        rate: in Hz.
    """
    label, speaker = recordings.known["label"], recordings.known["speaker"]
    voices = [(speaker == voice).nonzero()[:, 0] for voice in speaker.unique()]
    draws = bits(keyed(torch.arange(count), seed), (Stream.WINDOW, 0), 2 + 2 * LONGEST)
    pieces = torch.full((count, LONGEST), -1)
    begins = torch.zeros(count, LONGEST, dtype=torch.int64)
    low, high = (round(seconds * rate) for seconds in GAP)
    captions, facts = [], []
    for row, drawn in enumerate(draws.tolist()):
        own = voices[drawn[1] % len(voices)]
        end = 0
        for k in range(SHORTEST + drawn[0] % (LONGEST - SHORTEST + 1)):
            place = int(own[drawn[2 + k] % len(own)])
            begin = end + (low + drawn[2 + LONGEST + k] % (high - low + 1) if k else 0)
            if k and begin + int(recordings.spans[1, place]) > length:
                break
            pieces[row, k], begins[row, k] = place, begin
            end = begin + int(recordings.spans[1, place])
        places = [place for place in pieces[row].tolist() if place >= 0]
        parts = [recordings.facts[place] for place in places]
        captions.append([" ".join(WORDS[int(label[place])] for place in places)])
        name = "+".join(re.sub(r".*/|\.wav$", "", part["file"]) for part in parts)
        sha = digest([[part["sha256"] for part in parts], begins[row].tolist()])
        facts.append({"file": name, "sha256": sha, "clipped": any(part["clipped"] for part in parts)})
    return Captioned(JoinedClips(recordings, pieces, begins, length, facts), captions, facts)


class SpokenStrings(SpokenDigits):
    """Spoken digits joined to strings with their words as captions, for speech from text. A batch has "caption" as
    `genlab.data.captioned.Captioned` says, no label and no speaker. Strings of test are made of the official test split
    (indices 0 to 4), those of val of the indices 5 to 9, those of train of the others.

    Args:
        strings: of train.
        held_out_strings: of val, and of test.
        vocabulary: see `genlab.data.captioned.CaptionedImages`, as the next three.
    """

    def __init__(
        self,
        name: str,
        *,
        vocab_size: Positive,
        strings: Positive = 8000,
        held_out_strings: Positive = 300,
        vocabulary: str | None = None,
        tokenizer: Kind = "characters",
        max_caption: Annotated[int, "ge 1"] = 64,
        path: str | None = None,
        num_speakers: Positive = 6,
        **options: Unpack[AudioOptions],
    ) -> None:
        check_settings(SpokenStrings.__init__, locals(), "data.")
        super().__init__(name, path=path, num_speakers=num_speakers, **options)
        if self.val_fraction:
            raise ConfigError(f"data.val_fraction={self.val_fraction}: val has recordings of its own; set it to 0")
        self.strings, self.held_out_strings = strings, held_out_strings
        self.vocabulary, self.kind, self.vocab_size, self.max_caption = vocabulary, tokenizer, vocab_size, max_caption

    def own_facts(self) -> dict[str, Any]:
        known = {"vocab_size": self.vocab_size, "vocabulary_sha256": vocabulary_digest(self.tokenizer)}
        return {**super().own_facts(), **known}

    def parts(self) -> Items:
        recordings: dict[Split, Clips] = {}
        base = super().parts()
        for split in ("train", "val", "test"):
            clips, _, _ = base["test" if split == "test" else "train"]
            assert isinstance(clips, Clips)
            indices = [int(fact["file"].removesuffix(".wav").split("_")[-1]) for fact in clips.facts]
            wanted = [
                i for i, index in enumerate(indices) if split == "test" or (index in INDICES["val"]) == (split == "val")
            ]
            if not wanted:
                raise ConfigError(f"{self.path}: no recording for {split} (indices 0 to 4 are test, 5 to 9 val)")
            recordings[split] = clips.select(np.array(wanted))
        items: Items = {}
        for seed, (split, clips) in enumerate(recordings.items()):
            count = self.strings if split == "train" else self.held_out_strings
            source = strings_of(clips, count, self.samples, self.decode.sample_rate, seed)
            note = (
                "of recordings "
                + {"train": "10 and above", "val": "5 to 9", "test": "0 to 4, the official test"}[split]
            )
            items[split] = source, digest([[fact["sha256"] for fact in source.facts], source.captions]), note
        return items

    def encode(self, items: Items) -> dict[Split, dict[str, Any]]:
        self.tokenizer, counts = encode_captions(
            self.name, items, self.kind, self.vocabulary, self.vocab_size, self.max_caption, self.seed
        )
        return counts
