"""Pictures that a model is told: to caption, to begin from, to fill in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.conditions import Draw, PairCondition, items_of
from genlab.errors import ConfigError
from genlab.modality import Image, to_float


@dataclass(frozen=True)
class Picture(PairCondition):
    """An image, float32 [B, C, H, W] in [-1, 1]: to caption, to begin from or to fill in. A value is a file.

    Attributes:
        shape: C, H, W, to which a file is converted (grey or colour) and resized (bicubic).
    """

    name = "image"
    shape: tuple[int, int, int]

    def rows(self, values: Sequence[Any], model: Any) -> Tensor:
        return torch.stack([self._pixels(value) for value in values])

    def _pixels(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            if tuple(value.shape) != tuple(self.shape) or not value.is_floating_point():
                expected = f"floats {list(self.shape)}"
                raise ConfigError(f"condition.{self.name}: expected {expected}, got {list(value.shape)}.")
            return value
        image = self._read(value)
        if image.shape[0] != self.shape[0]:
            image = image.mean(0, keepdim=True).expand(self.shape[0], -1, -1)
        if tuple(image.shape) != tuple(self.shape):
            image = torch.nn.functional.interpolate(
                image[None], self.shape[1:], mode="bicubic", antialias=True, align_corners=False
            )[0]
        return to_float(image.clamp(0, 255).round().to(torch.uint8))

    def _read(self, value: Any) -> Tensor:
        path = Path(str(value)).expanduser()
        if not path.is_file():
            raise ConfigError(f"condition.{self.name}={value}: no such file.")
        return Image().read(path).float()

    def read(self, source: Any, ids: Tensor) -> Tensor | None:
        rows = super().read(source, ids)
        return to_float(rows) if rows is not None and rows.dtype == torch.uint8 else rows

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        """Also its place in the split, for a table."""
        _, ids = items_of(data, protocol.reference_split, n)
        places = [f"{protocol.reference_split} {i}" for i in ids.tolist()]
        return replace(super().draw(n, data, protocol, model), shown=places)

    def shown(self, rows: Tensor, model: Any) -> list[Any]:
        return [f"{tuple(row.shape)}, mean {row.mean().item():.3f}" for row in rows]


@dataclass(frozen=True)
class Start(Picture):
    """A picture that the item is made from (`sampler.strength`), or whose masked part is filled in."""

    drawn = False


@dataclass(frozen=True)
class Mask(Picture):
    """Where a picture is filled in, float32 [B, 1, H, W]: 1 (white) is made anew, -1 (black) stays."""

    name = "mask"
    drawn = False

    def _pixels(self, value: Any) -> Tensor:
        size = tuple((value if isinstance(value, Tensor) else self._read(value)).shape[-2:])
        if size != tuple(self.shape[1:]):
            raise ConfigError(f"condition.mask={value}: {list(size)} pixels, the pictures have {list(self.shape[1:])}")
        mask = super()._pixels(value)
        if not bool((mask.abs() == 1).all()):
            raise ConfigError(f"condition.mask={value}: must be black (stays) and white (is made anew) only")
        return mask
