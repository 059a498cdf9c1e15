"""Files of moving pictures: animations by Pillow, video files by PyAV."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.errors import ConfigError, unreadable
from genlab.files import replacing

DESCRIPTION = 0x010E  # EXIF's ImageDescription
ANIMATIONS = (".webp", ".gif", ".png")


def write_animation(path: Path, frames: Sequence[Image.Image], frame_rate: float, meta: Mapping[str, Any]) -> None:
    """Writes frames of one size as an animation that repeats, WebP (without loss) or GIF by the path's suffix.

    Args:
        frame_rate: in frames a second; a frame's duration is rounded so that errors do not add up.
        meta: what made it: EXIF's description, as JSON (WebP).
    """
    ends = [round(1000 * (i + 1) / frame_rate) for i in range(len(frames))]  # ms
    exif = Image.Exif()
    exif[DESCRIPTION] = json.dumps(meta, default=str)
    with replacing(path) as temporary:
        frames[0].save(
            temporary, format=path.suffix[1:], save_all=True, append_images=frames[1:], lossless=True, loop=0,
            duration=[end - begin for begin, end in itertools.pairwise([0, *ends])], exif=exif,
        )  # fmt: skip


def read_video(path: Path, frame_rate: float) -> Tensor:
    """uint8 [T, C, H, W] at `frame_rate`, for which frames are repeated or left out.

    C is 1 where `write_animation` was told {"channels": 1}, else 3.

    Raises:
        DataError: not readable.
        ConfigError: a video file, and PyAV is not installed.
    """
    frames: list[np.ndarray] = []
    facts: dict[str, Any] = {}

    def until(seconds: float, frame: np.ndarray) -> None:  # a frame is shown up to this time
        frames.extend([frame] * max(0, round(seconds * frame_rate) - len(frames)))

    if path.suffix.lower() in ANIMATIONS:
        with unreadable(path), Image.open(path) as file:
            facts = json.loads(file.getexif().get(DESCRIPTION) or "{}")
            shown = 0.0
            for i in range(getattr(file, "n_frames", 1)):
                file.seek(i)
                frame = np.asarray(file.convert("RGB"))  # after it the duration is known
                shown += (file.info.get("duration") or 1000 / frame_rate) / 1000
                until(shown, frame)
    else:
        av = _av(f"{path}: reading it")
        with unreadable(path), av.open(str(path)) as file:
            rate = float(file.streams.video[0].average_rate)
            for frame in file.decode(video=0):
                until(frame.time + 1 / rate, frame.to_ndarray(format="rgb24"))
    with unreadable(path):
        video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return video[:, :1] if facts.get("channels") == 1 else video


def write_mp4(path: Path, frames: Sequence[Image.Image], frame_rate: float) -> None:
    """Writes H.264, which every browser plays; sides are padded to even numbers.

    Raises:
        ConfigError: PyAV is not installed.
    """
    av = _av(f"{path}: writing it")
    width, height = (side + side % 2 for side in frames[0].size)
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            padded = Image.new("RGB", (width, height))
            padded.paste(frame)
            file.mux(stream.encode(av.VideoFrame.from_image(padded)))
        file.mux(stream.encode())


def can_write_mp4() -> bool:
    """Whether PyAV is installed."""
    try:
        _av("")
    except ConfigError:
        return False
    return True


def _av(purpose: str) -> Any:
    try:
        import av
    except (ImportError, OSError):
        raise ConfigError(f'{purpose} needs PyAV: pip install "genlab[video]"') from None
    return av
