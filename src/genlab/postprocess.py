"""Post-processing: what is done to pictures after a model has made them, for people who look at them.

The group `postprocess` of sample.py names steps, which are applied in order and recorded in the metadata of each file.
Metrics judge what a model has made: evaluate.py has no such key.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from PIL import ImageFilter
from torch import Tensor

from genlab.data.folder import list_images
from genlab.drawing import read_meta, to_picture, to_pixels
from genlab.errors import ConfigError, unreadable
from genlab.modality import Image
from genlab.networks.esrgan import RDN, SHA256, esrgan_slim
from genlab.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One step: uint8 [N,C,H,W] -> uint8 [N,C,H',W'], C 1 (grey) or 3 (RGB). A step of one's own is a subclass.

    Each picture is worked on alone, so its pixels do not depend on what else is in a batch.

    Raises:
        ConfigError: a setting out of its bounds; when called, what is no such batch of pictures.
    """

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), f"{type(self).__name__}.")

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise ConfigError(
                f"postprocess: {type(self).__name__} takes pictures only, uint8 [N, C, H, W] with C 1 or 3, N at least "
                f"1; this is {str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
            )
        return torch.stack([self.process(image) for image in images])

    @abstractmethod
    def process(self, image: Tensor) -> Tensor:
        """One picture, uint8 [C,H,W] -> uint8 [C,H',W']; the new size depends on the old one alone."""

    def record(self) -> dict[str, Any]:
        """Name and settings, for metadata."""
        return {"step": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Enlarge(Step):
    """Enlarges by a network: see `genlab.networks.esrgan`. A grey picture goes in as three equal channels, whose mean
    comes out. With border=0 and back_projections=0 this is the published network alone.

    Attributes:
        scale: factor of both sides.
        border: pixels that are repeated around the picture while the network works; without them it takes what is
            outside for black.
        back_projections: times that what is lost is added, enlarged: the picture less the large one made small again
            (both bicubic; Irani and Peleg 1991, "Improving resolution by image registration").

    Raises:
        ConfigError: the weights are not in the cache.
        DataError: they are not the expected ones.
    """

    scale: Literal[2, 3, 4] = 2
    border: Annotated[int, "ge 0, le 16"] = 4
    back_projections: Annotated[int, "ge 0, le 20"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._network  # before anything is sampled

    @cached_property
    def _network(self) -> RDN:
        return esrgan_slim(self.scale)

    def process(self, image: Tensor) -> Tensor:
        small, edge = image[None].float() / 255, self.scale * self.border
        wide = F.pad(small.expand(-1, 3, -1, -1), (self.border,) * 4, mode="replicate")
        height, width = (self.scale * side for side in small.shape[2:])
        large = self._network.to(image.device)(wide)[..., edge : edge + height, edge : edge + width].clamp(0, 1)
        large = large.mean(1, keepdim=True) if len(image) == 1 else large
        for _ in range(self.back_projections):
            lost = small - F.interpolate(large, small.shape[2:], mode="bicubic", antialias=True)
            large = large + F.interpolate(lost, large.shape[2:], mode="bicubic")
        return (255 * large[0]).clamp(0, 255).round().to(torch.uint8)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "weights": "esrgan_slim", "sha256": SHA256[self.scale]}


@dataclass(frozen=True, kw_only=True)
class Lanczos(Step):
    """Resizes with Lanczos's windowed sinc of three lobes (Duchon 1979), as Pillow has it: down with antialiasing.

    Attributes:
        scale: factor of both sides; or else
        size: height and width.
    """

    scale: Annotated[float, "gt 0, le 16"] | None = None
    size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.scale is None) == (self.size is None):
            raise ConfigError("Lanczos.scale, Lanczos.size: give one of them")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ConfigError(f"Lanczos.size is {list(self.size)}: expected height and width, each at least 1")

    def process(self, image: Tensor) -> Tensor:
        height, width = self.size or [max(1, round((self.scale or 1) * side)) for side in image.shape[1:]]
        return _by_pillow(image, lambda picture: picture.resize((width, height), Pillow.Resampling.LANCZOS))


@dataclass(frozen=True, kw_only=True)
class UnsharpMask(Step):
    """x + amount (x - G x), where |x - G x| is above the threshold: sharpens by what a Gaussian blur G would take away.
    Pillow's, whose blur is three box blurs.

    Attributes:
        radius: standard deviation of G, in pixels.
        amount: weight of the difference.
        threshold: grey levels; smaller differences (noise) stay as they are.
    """

    radius: Annotated[float, "gt 0, le 100"] = 1.0
    amount: Annotated[float, "gt 0, le 10"] = 0.5
    threshold: Annotated[int, "ge 0, le 255"] = 0

    def process(self, image: Tensor) -> Tensor:
        mask = ImageFilter.UnsharpMask(self.radius, round(100 * self.amount), self.threshold)
        return _by_pillow(image, lambda picture: picture.filter(mask))


@dataclass(frozen=True, kw_only=True)
class Deblock(Step):
    """Smooths the edges of square blocks, which JPEG and decoders by patches leave: the filter of ITU-T H.263, annex J.
    It changes two pixels on either side of an edge, and leaves steep edges, those of the picture, as they are.

    Attributes:
        strength: S; a step between blocks of 2 S or more (of their extrapolated values) is left alone. H.263 takes 1 to
            12 with the coarseness of quantisation.
        block: side of a block, in pixels.
    """

    strength: Annotated[int, "ge 1, le 12"] = 8
    block: Annotated[int, "ge 4"] = 8

    def process(self, image: Tensor) -> Tensor:
        rows = self._between_rows(image.to(torch.int32))  # the horizontal edges first, as in H.263
        return self._between_rows(rows.mT).mT.to(torch.uint8)

    def _between_rows(self, x: Tensor) -> Tensor:
        """Edges between rows A B | C D of int32 [C,H,W]; divisions go towards zero."""
        x, first = x.clone(), torch.arange(self.block, x.shape[1] - 1, self.block, device=x.device)
        a, b, c, d = (x[:, first + i] for i in (-2, -1, 0, 1))
        step = torch.div(a - 4 * b + 4 * c - d, 8, rounding_mode="trunc")
        size = step.abs()
        step = step.sign() * (size - 2 * (size - self.strength).clamp(min=0)).clamp(min=0)  # UpDownRamp(step, S)
        half = step.abs() // 2
        outer = torch.div(a - d, 4, rounding_mode="trunc").clamp(-half, half)
        x[:, first - 2], x[:, first + 1] = a - outer, d + outer
        x[:, first - 1], x[:, first] = (b + step).clamp(0, 255), (c - step).clamp(0, 255)
        return x


def apply_steps(steps: Iterable[Step], images: Tensor) -> Tensor:
    """uint8 [N,C,H,W] through all steps, in order."""
    for step in steps:
        images = step(images)
    return images


def recorded(steps: Iterable[Step], before: Any = None) -> dict[str, Any]:
    """What metadata say of steps, after those that they named `before`."""
    return {"postprocess": [*(before if isinstance(before, list) else []), *(step.record() for step in steps)]}


def process_folder(images: Path, out: Path, steps: Sequence[Step]) -> int:
    """Takes each picture of a folder and of the folders in it through the steps, to a PNG of the same name in `out`,
    which keeps the metadata of a PNG and names the steps (`a.jpg` becomes `a.jpg.png`).

    Returns:
        Number of pictures.

    Raises:
        ConfigError: no pictures there, or `out` is the same folder.
        DataError: one that cannot be read.
    """
    paths, _ = list_images(images, [])
    if not paths:
        raise ConfigError(f"images={images}: holds no images")
    if out.resolve() == images.resolve():
        raise ConfigError(f"out={out}: the images would be written over; choose another folder")
    for path in paths:
        png = path.suffix.lower() == ".png"
        with unreadable(path):
            meta = read_meta(path) if png else {}
        image = apply_steps(steps, Image().read(path)[None])[0]
        name = path.relative_to(images)
        meta |= recorded(steps, meta.get("postprocess"))
        Image().save(out / (name.with_suffix("") if png else name), image, meta)
    return len(paths)


def _by_pillow(image: Tensor, change: Callable[[Pillow.Image], Pillow.Image]) -> Tensor:
    pixels = torch.from_numpy(np.array(change(to_picture(to_pixels(image[None])[0])), ndmin=3)).to(image.device)
    return pixels if len(image) == 1 else pixels.permute(2, 0, 1)
