"""Modalities: all that depends on whether an item is an image, a text, music, a sound or a video, in one class each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from genlab import animation, drawing, music, sound
from genlab.errors import unreadable
from genlab.files import write_bytes

Meta = Mapping[str, Any]  # what made an item, as primitives; written beside or into its file


class Media(Protocol):
    """A logger that shows media, against a number of samples: see genlab.callbacks.media."""

    def image(self, name: str, path: Path, samples: int) -> None: ...
    def table(self, name: str, columns: list[str], rows: list[list[Any]], samples: int) -> None: ...
    def audio(self, name: str, sounds: Sequence[np.ndarray], rate: int, captions: list[str], samples: int) -> None: ...
    def video(self, name: str, path: Path, samples: int) -> None: ...


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 in [0, 255], clamped and rounded to nearest: the one place where this happens.

    Args:
        x: float tensor of any shape; values outside [-1, 1] are clamped.

    Returns:
        uint8 tensor of the same shape.
    """
    assert x.is_floating_point(), f"expected floats in [-1, 1], got {x.dtype}"
    return x.float().clamp(-1, 1).add(1).mul(127.5).round_().to(torch.uint8)


def to_float(x: Tensor) -> Tensor:
    """uint8 in [0, 255] -> float32 in [-1, 1], the inverse of `to_uint8`."""
    assert x.dtype == torch.uint8, f"expected uint8, got {x.dtype}"
    return x.to(torch.float32).div_(127.5).sub_(1)


class Modality(ABC):
    """What an item is. Nothing else asks which modality it has: a new one is one subclass.

    `data` are N items: a tensor of N rows, or a list of N. An item is `data[i]`.

    Attributes:
        name: in messages, records and manifests.
        extractor: whether evaluation hands the items to a feature extractor, beside real ones.
        usual_extractor: the one it takes where neither the protocol nor the data have one; None: it must be named.
        abreast: items that a person looks at side by side, before what is compared with them.
    """

    name: ClassVar[str]
    extractor: ClassVar[bool] = False
    usual_extractor: ClassVar[str | None] = None
    abreast: ClassVar[int] = 8

    @abstractmethod
    def check(self, data: Any) -> None:
        """Refuses data of another form.

        Raises:
            ValueError: says what was expected and what came.
        """

    @abstractmethod
    def to_data(self, raw: Any) -> Any:
        """What a network gives (floats in about [-1, 1], or strings) -> data."""

    def cut(self, data: Any, index: slice) -> Any:
        """Items of a slice."""
        return data[index]

    def join(self, parts: Sequence[Any]) -> Any:
        """Data of several parts, in order."""
        return torch.cat(list(parts))

    @abstractmethod
    def save(self, stem: Path, item: Any, meta: Meta) -> Path:
        """Writes one item as STEM with this modality's suffix; returns the path."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """The item in a file that `save` wrote, or in another of a usual format.

        Raises:
            DataError: it cannot be read as that.
        """

    @abstractmethod
    def show(self, stem: Path, data: Any, columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        """Writes what a person looks at, all items together; returns the path of the first file.

        Args:
            stem: path without a suffix.
            columns: items in a row, where there are rows.
            captions: one an item, or none.
        """

    def panel(self, stem: Path, data: Any, columns: int, meta: Meta) -> Path:
        """As `show`, of items that are compared with each other, in rows of `columns`: here the same."""
        return self.show(stem, data, columns, meta)

    def log_panel(self, media: Media, name: str, path: Path, samples: int) -> None:
        """Hands to a logger what `panel` has written: here a picture."""
        media.image(name, path, samples)

    def text(self, data: Any) -> str | None:
        """What a terminal can print of the items; None: nothing."""
        return None

    @abstractmethod
    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Hands the items to a logger.

        Args:
            shown: what `show` has returned.
            samples: real samples that training has seen.
            columns: what is known of each item (its label, ...), N values by name.
        """


@dataclass(frozen=True)
class Image(Modality):
    """uint8 [N, C, H, W], C 1, 3 or 4 (RGBA). A file is a PNG."""

    name, extractor, usual_extractor = "image", True, "inception-v3-compat"

    def check(self, data: Any) -> None:
        _check(self, data, torch.uint8, "N, C, H, W")

    def to_data(self, raw: Tensor) -> Tensor:
        return to_uint8(raw)

    def save(self, stem: Path, item: Tensor, meta: Meta) -> Path:
        drawing.save_png(path := _with(stem, ".png"), item, meta)
        return path

    def read(self, path: Path) -> Tensor:
        with unreadable(path), Pillow.open(path) as picture:
            if picture.has_transparency_data:  # over white, as data are decoded
                over = Pillow.new("RGBA", picture.size, "white")
                over.alpha_composite(picture.convert("RGBA"))
                return torch.from_numpy(np.array(over.convert("RGB"))).permute(2, 0, 1)
            if picture.mode in ("1", "L"):
                return torch.from_numpy(np.array(picture.convert("L"), ndmin=3))
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)

    def show(self, stem: Path, data: Tensor, columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        # A label stands in the columns of a grid already; words are written under the picture.
        words = ["" if text.rpartition(" ")[2].isdigit() else text.partition(" ")[2] for text in captions]
        drawing.save_grid(path := _with(stem, ".png"), data, columns, meta, words)
        return path

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        media.image("grid", shown, samples)


@dataclass(frozen=True)
class Text(Modality):
    """A list of N strings. A file is UTF-8."""

    name, abreast = "text", 1
    rule: ClassVar[str] = "\n" + "-" * 80 + "\n"

    def check(self, data: Any) -> None:
        if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
            raise ValueError(f"text: expected a list of strings, got {_form(data)}")

    def to_data(self, raw: list[str]) -> list[str]:
        return raw

    def join(self, parts: Sequence[list[str]]) -> list[str]:
        return [text for part in parts for text in part]

    def save(self, stem: Path, item: str, meta: Meta) -> Path:
        write_bytes(path := _with(stem, ".txt"), item.encode())
        return path

    def read(self, path: Path) -> str:
        with unreadable(path):
            return path.read_bytes().decode()

    def show(self, stem: Path, data: list[str], columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        told = captions or [""] * len(data)
        # A prompt is part of its text, a source is not.
        whole = [b if b.startswith(a.partition(" ")[2]) else f"{a}\n{b}" for a, b in zip(told, data, strict=True)]
        write_bytes(path := _with(stem, ".txt"), f"{self.text(whole)}\n".encode())
        return path

    def panel(self, stem: Path, data: list[str], columns: int, meta: Meta) -> Path:
        """STEM.txt: a line an item, an empty line after each `columns` of them."""
        lines = [" ".join(text.split()) or "-" for text in data]
        rows = ["\n".join(lines[i : i + columns]) for i in range(0, len(lines), columns)]
        write_bytes(path := _with(stem, ".txt"), ("\n\n".join(rows) + "\n").encode())
        return path

    def log_panel(self, media: Media, name: str, path: Path, samples: int) -> None:
        if path.suffix != ".txt":  # a picture of attention
            return super().log_panel(media, name, path, samples)
        rows = [row.split("\n") for row in self.read(path).rstrip("\n").split("\n\n")]
        media.table(name, [str(i) for i in range(len(rows[0]))], rows, samples)

    def text(self, data: list[str]) -> str:
        return self.rule.join(data)

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        table = {"samples": [samples] * len(data), **columns, "text": data}
        media.table("texts", list(table), [list(row) for row in zip(*table.values(), strict=True)], samples)


@dataclass(frozen=True)
class Music(Text):
    """Texts of genlab.music. A file is that of Text; beside it are, where a sixteenth can be read, a piano roll (.png),
    a Standard MIDI File (.mid) and a sound (.wav). What cannot be read of a text is left out and counted."""

    played: ClassVar[int] = 4  # of the items that are shown together

    def save(self, stem: Path, item: str, meta: Meta) -> Path:
        score = music.read_text(item)
        if len(score):
            drawing.write_png(_with(stem, ".png"), music.piano_roll(score), {**meta, "faults": score.faults})
            write_bytes(_with(stem, ".mid"), music.midi(score))
            write_bytes(_with(stem, ".wav"), sound.wav(music.synthesise(score), music.SAMPLE_RATE, meta))
        return super().save(stem, item, meta)

    def show(self, stem: Path, data: list[str], columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        """STEM.txt; of the first `played` also STEM.png, piano rolls, and STEM.html, on which they can be played."""
        scores = [score for text in data[: self.played] if len(score := music.read_text(text))]
        if scores:
            rolls = [music.piano_roll(score) for score in scores]
            drawing.write_png(_with(stem, ".png"), music.stack(rolls), {**meta, "faults": [s.faults for s in scores]})
            files = [sound.wav(music.synthesise(score), music.SAMPLE_RATE) for score in scores]
            names = [f"{len(score)} sixteenths, {score.faults} faults" for score in scores]
            write_bytes(_with(stem, ".html"), sound.page(stem.name, rolls, files, names, 1).encode())
        return super().show(stem, data, columns, meta, captions)

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        super().log(media, data, shown, samples, columns)
        scores = [score for text in data[: self.played] if len(score := music.read_text(text))]
        if scores:
            sounds = [music.synthesise(score).T.numpy() for score in scores]
            names = [f"{len(score)} sixteenths, {score.faults} faults" for score in scores]
            media.audio("chorales", sounds, music.SAMPLE_RATE, names, samples)
            media.image("piano_rolls", shown.with_suffix(".png"), samples)


@dataclass(frozen=True)
class Audio(Modality):
    """float32 [N, C, T] in [-1, 1]. A file is a WAV of 16 bits; others are read where soundfile is installed.

    Attributes:
        sample_rate: in Hz.
    """

    name, extractor = "audio", True
    sample_rate: int

    def check(self, data: Any) -> None:
        _check(self, data, torch.float32, "N, C, T")
        if not bool((data.abs() <= 1).all()):  # false for NaN too
            raise ValueError("audio: expected floats in [-1, 1]")

    def to_data(self, raw: Tensor) -> Tensor:
        return raw.float().clamp(-1, 1)

    def save(self, stem: Path, item: Tensor, meta: Meta) -> Path:
        write_bytes(path := _with(stem, ".wav"), sound.wav(item, self.sample_rate, meta))
        return path

    def read(self, path: Path) -> Tensor:
        return sound.read_sound(path, self.sample_rate)

    def show(self, stem: Path, data: Tensor, columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        """STEM.png, the spectrograms; beside it STEM.html, on which the sounds can be played."""
        pictures = [sound.spectrogram(item, self.sample_rate) for item in data]
        names = list(captions) or [str(i) for i in range(len(data))]
        drawing.write_png(path := _with(stem, ".png"), sound.sheet(pictures, names, columns), meta)
        files = [sound.wav(item, self.sample_rate) for item in data]
        write_bytes(_with(stem, ".html"), sound.page(stem.name, pictures, files, names, columns).encode())
        return path

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        captions = [", ".join(f"{k} {v[i]}" for k, v in columns.items()) or str(i) for i in range(len(data))]
        media.audio("sounds", [item.T.numpy() for item in data], self.sample_rate, captions, samples)
        media.image("spectrograms", shown, samples)


@dataclass(frozen=True)
class Video(Modality):
    """uint8 [N, T, C, H, W], C 1 or 3. A file is a WebP animation without loss; video files are read with PyAV.

    Attributes:
        frame_rate: in frames a second.
    """

    name = "video"
    frame_rate: float

    def check(self, data: Any) -> None:
        _check(self, data, torch.uint8, "N, T, C, H, W")

    def to_data(self, raw: Tensor) -> Tensor:
        return to_uint8(raw)

    def save(self, stem: Path, item: Tensor, meta: Meta) -> Path:
        frames = [drawing.to_picture(frame) for frame in drawing.to_pixels(item)]
        facts = {**meta, "channels": item.shape[1]}
        animation.write_animation(path := _with(stem, ".webp"), frames, self.frame_rate, facts)
        return path

    def read(self, path: Path) -> Tensor:
        return animation.read_video(path, self.frame_rate)

    def show(self, stem: Path, data: Tensor, columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        """STEM.png, a strip of at most 16 frames an item; beside it all items moving, as STEM.webp and, where PyAV is
        installed, STEM.mp4."""
        strip = data[:, :: max(1, math.ceil(data.shape[1] / 16))]
        drawing.save_grid(path := _with(stem, ".png"), strip.flatten(0, 1), strip.shape[1], meta)
        frames = [drawing.grid(data[:, t], columns) for t in range(data.shape[1])]
        animation.write_animation(_with(stem, ".webp"), frames, self.frame_rate, meta)
        if animation.can_write_mp4():
            animation.write_mp4(_with(stem, ".mp4"), frames, self.frame_rate)
        return path

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        frames = [drawing.grid(data[:, t]) for t in range(data.shape[1])]
        animation.write_animation(path := shown.with_suffix(".gif"), frames, self.frame_rate, {})  # W&B takes no WebP
        media.video("videos", path, samples)
        media.image("strips", shown, samples)


def _check(modality: Modality, data: Any, dtype: torch.dtype, axes: str) -> None:
    dimensions = axes.count(",") + 1
    if not isinstance(data, Tensor) or data.ndim != dimensions or data.dtype != dtype:
        expected = f"{dtype} [{axes}]".removeprefix("torch.")
        raise ValueError(f"{modality.name}: expected {expected}, got {_form(data)}")


def _form(data: Any) -> str:
    if isinstance(data, Tensor):
        return f"{data.dtype} {list(data.shape)}".removeprefix("torch.")
    return f"a {type(data).__name__}"


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
