"""Loggers that show media: W&B and TensorBoard under one interface, genlab.modality.Media."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genlab.modality import Media


class WandbMedia:
    """W&B, by the methods of Lightning's logger (those of RunWandbLogger send each thing once, however often a run is
    resumed)."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def image(self, name: str, path: Path, samples: int) -> None:
        self.logger.log_image(name, [str(path)], step=samples)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], samples: int) -> None:
        self.logger.log_text(name, columns=columns, data=rows, step=samples)

    def audio(self, name: str, sounds: Sequence[np.ndarray], rate: int, captions: list[str], samples: int) -> None:
        self.logger.log_audio(name, list(sounds), step=samples, sample_rate=[rate] * len(sounds), caption=captions)

    def video(self, name: str, path: Path, samples: int) -> None:
        self.logger.log_video(name, [str(path)], step=samples, format=[path.suffix[1:]])


class TensorBoardMedia:
    """TensorBoard. Moving pictures are GIFs; a table is Markdown."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def image(self, name: str, path: Path, samples: int) -> None:
        with Image.open(path) as picture:
            self.writer.add_image(name, np.array(picture.convert("RGB")), samples, dataformats="HWC")

    def table(self, name: str, columns: list[str], rows: list[list[Any]], samples: int) -> None:
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("|" + "|".join(_cell(value) for value in line) + "|" for line in lines)
        self.writer.add_text(name, text, samples)

    def audio(self, name: str, sounds: Sequence[np.ndarray], rate: int, captions: list[str], samples: int) -> None:
        for i, sound in enumerate(sounds):
            self.writer.add_audio(f"{name}/{i}", sound.mean(1), samples, sample_rate=rate)  # it takes one channel

    def video(self, name: str, path: Path, samples: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as picture:  # add_video would want moviepy
            image = Summary.Image(
                height=picture.height, width=picture.width, colorspace=3, encoded_image_string=path.read_bytes()
            )
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), samples)


def media_of(logger: Any) -> Media | None:
    """The interface of a logger; None where it shows no media (CSV)."""
    if hasattr(logger, "log_text"):
        return WandbMedia(logger)
    writer = getattr(logger, "experiment", None)
    return TensorBoardMedia(writer) if hasattr(writer, "add_image") else None


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
