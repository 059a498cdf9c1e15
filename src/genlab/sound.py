"""Files and pictures of sounds: WAV bytes, reading, spectrograms, a page with players."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from genlab.errors import ConfigError, DataError, unreadable

FULL_SCALE = 32767  # of 16 bits: 1.0
STREAMED = 0xFFFFF000  # sizes from here on stand in the headers of streams, whose length was not known


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: its C library is not there
        return None
    return soundfile


def wav(sound: Tensor, sample_rate: int, meta: Mapping[str, Any] | None = None) -> bytes:
    """A WAV file's bytes: 16 bits a sample, rounded to nearest.

    Args:
        sound: float32 [C, T] in [-1, 1].
        sample_rate: in Hz.
        meta: what made it; with soundfile the file's comment, as JSON, else left out.
    """
    file, values = io.BytesIO(), (sound.T.cpu().numpy() * FULL_SCALE).round().astype("<i2")
    if (soundfile := _soundfile()) is None:
        from scipy.io import wavfile

        wavfile.write(file, sample_rate, values)
        return file.getvalue()
    with soundfile.SoundFile(file, "w", sample_rate, sound.shape[0], "PCM_16", format="WAV") as written:
        if meta:
            written.comment = json.dumps(meta, ensure_ascii=False, default=str)
        written.write(values)
    return file.getvalue()


def read_samples(path: Path) -> tuple[Tensor, int]:
    """A WAV file, or another that soundfile reads (FLAC, OGG, MP3), as it is.

    Returns:
        float32 [C, T], integers of the file scaled to [-1, 1), floats unchanged; and its rate in Hz.

    Raises:
        DataError: not readable, or cut short.
        ConfigError: no WAV, and soundfile is not installed.
    """
    is_wav = path.suffix.lower() == ".wav"
    if is_wav:
        with unreadable(path):
            _check_whole(path)
    if (soundfile := _soundfile()) is not None:
        with unreadable(path):
            values, rate = soundfile.read(path, dtype="float32", always_2d=True)
    elif not is_wav:
        raise ConfigError(f'{path}: reading it needs soundfile: pip install "genlab[audio]"')
    else:
        from scipy.io import wavfile

        with unreadable(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of chunks that are no sound
            rate, values = wavfile.read(path)
        kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
        values = np.asarray(values[:, None] if values.ndim == 1 else values, np.float32)
        values = values if kind == "f" else (values - 128) / 128 if kind == "u" else values / 2.0 ** (bits - 1)
    return torch.from_numpy(np.ascontiguousarray(values.T)), int(rate)


def _check_whole(path: Path) -> None:
    """Refuses a WAV whose header promises more bytes than there are: libraries read what is left in silence."""
    with open(path, "rb") as file:
        name, size = file.read(4), int.from_bytes(file.read(4), "little")
    there = path.stat().st_size
    if name == b"RIFF" and size + 8 > there and size < STREAMED:
        raise ValueError(f"cut short: {there} of {size + 8} bytes")


def to_full_scale(values: Tensor) -> Tensor:
    """Samples of a file -> [-1, 1], so that what `wav` has written from 1.0 is 1.0 again; clamped."""
    return (values * ((FULL_SCALE + 1) / FULL_SCALE)).clamp(-1, 1)


def read_sound(path: Path, sample_rate: int) -> Tensor:
    """What `read_samples` reads, as float32 [C, T] in [-1, 1].

    Raises:
        DataError: not readable, or not of `sample_rate`.
        ConfigError: no WAV, and soundfile is not installed.
    """
    values, rate = read_samples(path)
    if rate != sample_rate:
        raise DataError(f"{path}: {rate} Hz, expected {sample_rate} Hz; convert it")
    return to_full_scale(values)


def spectrogram(sound: Tensor, sample_rate: int, height: int = 128) -> Image.Image:
    """Power of a short-time Fourier transform, in decibels: the greatest white, 80 dB below it black, low frequencies
    at the bottom. Hann windows of about 32 ms, a quarter of a window apart; of several channels the mean.

    Args:
        sound: float32 [C, T].
        sample_rate: in Hz.
        height: in pixels.
    """
    window = max(16, 2 ** round(math.log2(0.032 * sample_rate)))
    mono = torch.nn.functional.pad(sound.mean(0).cpu(), (0, max(0, window - sound.shape[1])))
    frames = torch.stft(mono, window, window // 4, window=torch.hann_window(window), return_complex=True)
    power = 10 * torch.log10(frames.abs().square() + 1e-10)
    grey = ((power - power.max()) / 80 + 1).clamp(0, 1).flip(0)
    picture = Image.fromarray((grey * 255).round().to(torch.uint8).numpy())
    return picture.resize((max(height, picture.width), height), Image.Resampling.BILINEAR)


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures of one height, `columns` in a row, each above its caption."""
    width, height, line, gap = max(p.width for p in pictures), pictures[0].height, 14, 8
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("L", (columns * (width + gap), rows * (height + line + gap)), 255)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(line - 3)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = i % columns * (width + gap), i // columns * (height + line + gap)
        page.paste(picture, (left, top))
        draw.text((left, top + height + 1), caption[: width // 6], fill=0, font=font)
    return page


def page(title: str, pictures: Sequence[Image.Image], sounds: Sequence[bytes], captions: Sequence[str],
         columns: int) -> str:  # fmt: skip
    """HTML that needs no other file: each picture, a player below it, and its caption."""
    cells = []
    for picture, sound, caption in zip(pictures, sounds, captions, strict=True):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        cells.append(
            f'<figure><img src="{_uri("image/png", file.getvalue())}"><br>'
            f'<audio controls src="{_uri("audio/wav", sound)}"></audio>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    style = f"body{{display:grid;grid-template-columns:repeat({columns},max-content);font-family:sans-serif}}"
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{style}</style>"
    return "\n".join([head, *cells, ""])


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
