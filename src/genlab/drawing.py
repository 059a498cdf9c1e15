"""Pictures of uint8 tensors: grids, and PNG files that say what made them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from genlab.files import replacing

SMALL = 64  # images up to this size are enlarged in grids
GAP = 2  # pixels between the images of a grid, before enlarging
BACKGROUND = 255


def grid(images: Tensor, nrow: int = 8) -> Image.Image:
    """Images side by side, `nrow` in a row, white between them; small ones enlarged by whole factors, nearest.

    Args:
        images: uint8 [N, C, H, W], C 1 or 3, N at least 1.
    """
    items = to_pixels(images)
    n, height, width, channels = items.shape
    columns = min(nrow, n)
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), BACKGROUND, np.uint8)
    for i, image in enumerate(items):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    by = enlargement(height, width)
    return to_picture(sheet).resize((sheet.shape[1] * by, sheet.shape[0] * by), Image.Resampling.NEAREST)


def save_grid(path: str | Path, images: Tensor, nrow: int = 8, meta: Mapping[str, Any] | None = None) -> None:
    """Writes uint8 [N, C, H, W] as one PNG; `meta`: what made them."""
    write_png(path, grid(images, nrow), meta or {})


def save_png(path: str | Path, image: Tensor, meta: Mapping[str, Any] | None = None) -> None:
    """Writes one image at its own size. image: uint8 [C, H, W]; meta: what made it (model, run, seed, label, ...)."""
    write_png(path, to_picture(to_pixels(image[None])[0]), meta or {})


def read_meta(path: str | Path) -> dict[str, Any]:
    """What `save_grid` or `save_png` wrote along with a picture: text as it is, anything else as JSON."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    with Image.open(path) as image:
        return {key: value(text) for key, text in image.text.items()}  # type: ignore[attr-defined]


def enlargement(height: int, width: int) -> int:
    """How much small images are enlarged."""
    return 3 if max(height, width) <= SMALL // 2 else 2 if max(height, width) <= SMALL else 1


def to_pixels(images: Tensor) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 [N, H, W, C]."""
    assert images.dtype == torch.uint8, f"expected uint8 [N, C, H, W], got {images.dtype}"
    assert images.ndim == 4, f"expected uint8 [N, C, H, W], got {tuple(images.shape)}"
    assert images.shape[1] in (1, 3), f"expected uint8 [N, C, H, W] with 1 or 3 channels, got {tuple(images.shape)}"
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def to_picture(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] -> picture, grey or RGB."""
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_png(path: str | Path, image: Image.Image, meta: Mapping[str, Any]) -> None:
    """A PNG whose text chunks hold each value of `meta` as JSON."""
    info = PngInfo()
    for key, value in meta.items():
        info.add_itxt(str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    with replacing(Path(path)) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)
