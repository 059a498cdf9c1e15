"""Samples: what every family generates and every metric reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Modality = Literal["image", "video", "audio", "text"]


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


@dataclass
class Samples:
    """A batch of generated (or real) items in the form that a person or a metric reads.

    Attributes:
        modality: 'image', 'video', 'audio' or 'text'.
        data: image uint8 [N,C,H,W]; video uint8 [N,T,C,H,W]; audio float32 [N,C,T] in [-1,1]; text list[str] of N.
        labels: int64 [N] of the classes asked for, or None.
        seeds: int64 [N], the seed of each item, or None for real data.
        sample_rate: audio only, in Hz.
        meta: what made them (sampler, guidance, weights, ...); goes into the record and into PNG metadata.
    """

    modality: Modality
    data: Tensor | list[str]
    labels: Tensor | None = None
    seeds: Tensor | None = None
    sample_rate: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.modality == "text":
            assert isinstance(self.data, list)
            assert all(isinstance(s, str) for s in self.data)
            return
        assert isinstance(self.data, Tensor)
        dims, dtype = {"image": (4, torch.uint8), "video": (5, torch.uint8), "audio": (3, torch.float32)}[self.modality]
        assert self.data.ndim == dims, f"{self.modality}: expected {dims} dimensions, got {tuple(self.data.shape)}"
        assert self.data.dtype == dtype, f"{self.modality}: expected {dtype}, got {self.data.dtype}"

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: slice) -> Samples:
        """Items of a slice."""
        return Samples(
            self.modality,
            self.data[index],
            None if self.labels is None else self.labels[index],
            None if self.seeds is None else self.seeds[index],
            self.sample_rate,
            self.meta,
        )

    @staticmethod
    def cat(parts: Sequence[Samples]) -> Samples:
        """Parts of one modality, joined in order."""
        first = parts[0]

        def join(values: list[Tensor | None]) -> Tensor | None:
            return None if any(v is None for v in values) else torch.cat([v for v in values if v is not None])

        if first.modality == "text":
            data: Tensor | list[str] = [text for part in parts for text in part.data]
        else:
            data = torch.cat([part.data for part in parts])  # type: ignore[misc]
        return Samples(
            first.modality,
            data,
            join([part.labels for part in parts]),
            join([part.seeds for part in parts]),
            first.sample_rate,
            first.meta,
        )
