"""Music in four voices as text, and back: a grid of sixteenths, notes, MIDI bytes, sound, a piano roll.

The text is that of DeepBach (Hadjeres et al. 2017, arXiv 1612.01010, section 3.1), flattened: each sixteenth is four
characters, soprano, alto, tenor, bass, each the pitch that begins there, "." (rest), or that the note before is held,
which is another character in each voice, "-=_~": so a window that begins anywhere says which voice is whose.
A new line begins with each bar, and "^" stands before a sixteenth at which a note with a fermata begins. Pitches are
0-9, A-Z, a-z from C2 on, a semitone each: "0" is MIDI's 36, "O" is middle C.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

VOICES = ("soprano", "alto", "tenor", "bass")
RANGES = ((60, 79), (55, 74), (48, 67), (38, 62))  # MIDI, what choirs sing at ease: of Bach's notes there about 99 %
COLOURS = ("#c0392b", "#d68910", "#1e8449", "#1f4e9c")  # of the voices in pictures
LOWEST = 36  # MIDI's number of the first of PITCHES
PITCHES = string.digits + string.ascii_uppercase + string.ascii_lowercase
HOLDS, REST, BAR, FERMATA = "-=_~", ".", "\n", "^"  # a hold a voice
STEPS = 4  # of a quarter note
TEMPO = 76  # quarter notes a minute, in sound and MIDI
SAMPLE_RATE = 16000  # in Hz
Note = tuple[int, int, int, int]  # voice, MIDI pitch, first step, steps


@dataclass(frozen=True)
class Score:
    """Four voices on a grid of T sixteenths.

    Attributes:
        pitch: int64 [T, 4], MIDI's number of what sounds; -1: rest.
        onset: bool [T, 4], whether a note begins.
        bars: steps at which a bar begins, but for the first.
        fermatas: steps at which a note with a fermata begins.
        faults: characters of a text that do not fit: unknown, of a step without four voices, a hold of no
            note or of another voice.
    """

    pitch: np.ndarray
    onset: np.ndarray
    bars: tuple[int, ...] = ()
    fermatas: tuple[int, ...] = ()
    faults: int = 0

    def __len__(self) -> int:
        return len(self.pitch)


def write_text(score: Score) -> str:
    """The text of a score whose pitches are within PITCHES."""
    out, bars, fermatas = [], set(score.bars), set(score.fermatas)
    for t, (pitches, onsets) in enumerate(zip(score.pitch.tolist(), score.onset.tolist(), strict=True)):
        out.append(BAR * (t in bars) + FERMATA * (t in fermatas))
        for pitch, onset, hold in zip(pitches, onsets, HOLDS, strict=True):
            out.append(REST if pitch < 0 else PITCHES[pitch - LOWEST] if onset else hold)
    return "".join(out)


def read_text(text: str) -> Score:
    """The score of any text: what does not fit is left out, and counted."""
    steps: list[list[tuple[int, bool]]] = []
    bars: list[int] = []
    fermatas: list[int] = []
    step: list[tuple[int, bool]] = []
    last, faults = [-1] * 4, 0
    for character in text:
        if character in (BAR, FERMATA):
            faults += len(step)
            step = []
            (bars if character == BAR else fermatas).append(len(steps))
        elif character in HOLDS:
            faults += last[len(step)] < 0 or character != HOLDS[len(step)]
            step.append((last[len(step)], False))
        elif character == REST or character in PITCHES:
            step.append((-1 if character == REST else LOWEST + PITCHES.index(character), character in PITCHES))
        else:
            faults += 1
        if len(step) == 4:
            steps.append(step)
            last, step = [pitch for pitch, _ in step], []
    grid = np.array(steps, dtype=np.int64).reshape(-1, 4, 2)
    starts = tuple(sorted({t for t in bars if 0 < t < len(steps)}))
    ends = tuple(sorted({t for t in fermatas if t < len(steps)}))
    return Score(grid[..., 0], grid[..., 1].astype(bool), starts, ends, faults + len(step))


def transpose(score: Score, semitones: int) -> Score:
    """All voices so many semitones up."""
    return replace(score, pitch=np.where(score.pitch < 0, -1, score.pitch + semitones))


def notes_of(score: Score) -> list[Note]:
    """The notes, by voice and then by time."""
    notes: list[Note] = []
    for voice in range(4):
        pitches, onsets = score.pitch[:, voice], score.onset[:, voice]
        ends = onsets | (pitches < 0)
        for start in np.flatnonzero(onsets & (pitches >= 0)).tolist():
            later = np.flatnonzero(ends[start + 1 :])
            length = int(later[0]) + 1 if len(later) else len(score) - start
            notes.append((voice, int(pitches[start]), start, length))
    return notes


def midi(score: Score) -> bytes:
    """A Standard MIDI File of format 1: a track with the tempo, and one a voice, on a channel each."""
    ticks = 120  # of a sixteenth
    tempo = round(60_000_000 / TEMPO).to_bytes(3, "big")
    tracks = [b"\x00\xff\x51\x03" + tempo]
    for voice, name in enumerate(VOICES):
        events = [(start * ticks, 1, pitch) for v, pitch, start, _ in notes_of(score) if v == voice]
        events += [((start + n) * ticks, 0, pitch) for v, pitch, start, n in notes_of(score) if v == voice]
        track, now = b"\x00\xff\x03" + bytes([len(name)]) + name.encode() + b"\x00" + bytes([0xC0 | voice, 52]), 0
        for time, on, pitch in sorted(events):  # at one time notes end before others begin
            track += _variable(time - now) + bytes([(0x90 if on else 0x80) | voice, pitch, 80])
            now = time
        tracks.append(track)
    chunks = [track + b"\x00\xff\x2f\x00" for track in tracks]
    head = b"MThd" + b"".join(n.to_bytes(w, "big") for n, w in ((6, 4), (1, 2), (len(chunks), 2), (4 * ticks, 2)))
    return head + b"".join(b"MTrk" + len(chunk).to_bytes(4, "big") + chunk for chunk in chunks)


def _variable(number: int) -> bytes:
    """MIDI's number of 7 bits a byte, the last one without the high bit."""
    out = [number & 0x7F]
    while number := number >> 7:
        out.append(0x80 | number & 0x7F)
    return bytes(reversed(out))


def synthesise(score: Score) -> Tensor:
    """Sound of additive synthesis: six harmonics of 1 / k^1.5, a short attack, a slow decay, each voice as loud.

    Returns:
        float32 [1, T] in [-1, 1] of SAMPLE_RATE, and a second of silence at the end.
    """
    per_step = 60 * SAMPLE_RATE / TEMPO / STEPS
    sound = np.zeros(round(len(score) * per_step) + SAMPLE_RATE, dtype=np.float32)
    for _, pitch, start, length in notes_of(score):
        first, count = round(start * per_step), round(length * per_step)
        time = np.arange(count + SAMPLE_RATE // 20, dtype=np.float32) / SAMPLE_RATE  # rings for 50 ms more
        phase = 2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time.astype(np.float64)
        wave = sum(np.sin(k * phase) / k**1.5 for k in range(1, 7)).astype(np.float32)
        wave *= np.minimum(1, time / 0.02) * np.exp(-0.7 * time) * np.clip((time[-1] - time) / 0.05, 0, 1)
        sound[first : first + len(wave)] += wave[: len(sound) - first]
    return torch.from_numpy(sound / max(float(np.abs(sound).max()), 1e-6) * 0.8)[None]


def piano_roll(score: Score, step: int = 4, line: int = 4) -> Image.Image:
    """Notes as bars of the voices' colours, high ones above; lines where bars begin, a dot above each fermata.

    Args:
        score: of any length.
        step: pixels of a sixteenth.
        line: pixels of a semitone.
    """
    low, high = LOWEST - 2, 84
    picture = Image.new("RGB", (max(len(score), 16) * step + 1, (high - low) * line), "white")
    draw = ImageDraw.Draw(picture)
    for pitch in range(low, high):
        if pitch % 12 in (1, 3, 6, 8, 10):  # black keys
            draw.rectangle((0, (high - 1 - pitch) * line, picture.width, (high - pitch) * line - 1), "#f2f2f2")
    for t in score.bars:
        draw.line((t * step, 0, t * step, picture.height), "#bbbbbb")
    for t in score.fermatas:
        draw.ellipse((t * step, 1, t * step + 4, 5), "black")
    for voice, pitch, start, length in notes_of(score):
        top = (high - 1 - pitch) * line
        draw.rectangle((start * step, top, (start + length) * step - 2, top + line - 1), COLOURS[voice])
    return picture


def stack(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures below one another, on white."""
    height = sum(picture.height + gap for picture in pictures)
    page, top = Image.new("RGB", (max(picture.width for picture in pictures), height), "white"), 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height + gap
    return page
