"""Random changes of items in training: what two drawings of one thing may differ in; a part of a sound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab import noise
from genlab.errors import ConfigError
from genlab.noise import Stream
from genlab.settings import check_settings

Share = Annotated[float, "ge 0, le 1"]


@dataclass(frozen=True)
class Augment:
    """(images float [B, C, H, W] in [-1, 1], int64 keys [B]) -> the same, each changed at random.

    Row i of the result is a function of images[i] and keys[i] alone. All numbers are drawn evenly up to the bounds.

    Args:
        shift: to any side, as a share of height and width; what comes in repeats the border.
        scale: height and width, each for itself, times or by up to this factor.
        rotate: degrees to either side.
        brightness: what is added to all channels, to either side.
        tint: what is added to each channel for itself, to either side.
        contrast: distance of pixels from the mean of their image, times 1 - contrast to 1 + contrast.
        saturation: their distance from grey, likewise.
        blur: share of a mean over 5x5 pixels in the place of each.

    Raises:
        ConfigError: a number out of its bounds.
    """

    shift: Share = 0.1
    scale: Annotated[float, "ge 1"] = 1.25
    rotate: Annotated[float, "ge 0, le 180"] = 15.0
    brightness: Share = 0.1
    tint: Share = 0.05
    contrast: Share = 0.2
    saturation: Share = 0.2
    blur: Share = 0.8

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "model.augment.")

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        u = noise.uniform(keys, (noise.Stream.AUGMENT, 0), (12,)).to(images.dtype)
        signed = 2 * u - 1
        x = self._move(images, signed[:, :5])
        x = torch.lerp(x, F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1), _of(self.blur * u[:, 5]))
        x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, _of(1 + self.contrast * signed[:, 6]))
        x = torch.lerp(x.mean(1, keepdim=True), x, _of(1 + self.saturation * signed[:, 7]))
        tint = self.tint * signed[:, 9:12].repeat(1, -(-x.shape[1] // 3))[:, : x.shape[1], None, None]
        return (x + _of(self.brightness * signed[:, 8]) + tint).clamp(-1, 1)

    def _move(self, x: Tensor, u: Tensor) -> Tensor:
        """Pixels from where a rotation, a scale and a shift would have taken them, bilinear."""
        angle = u[:, 0] * math.radians(self.rotate)
        across, down = self.scale ** u[:, 1], self.scale ** u[:, 2]
        right, below = 2 * self.shift * u[:, 3], 2 * self.shift * u[:, 4]  # an image is 2 wide in these units
        rows = [angle.cos() * across, -angle.sin() * down, right, angle.sin() * across, angle.cos() * down, below]
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _of(values: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return values[:, None, None, None]


class CropSound:
    """A part of each sound, so that training spends no time on the silence that fills short clips up.

    Args:
        samples: of the part, which begins so that at least half of it lies before the clip's last sound.
    """

    def __init__(self, samples: Annotated[int, "gt 1"]) -> None:
        self.samples = samples

    def __call__(self, sound: Tensor, keys: Tensor) -> Tensor:
        """float [B, C, T], int64 [B] -> [B, C, samples], the place a function of the key.

        Raises:
            ConfigError: T is shorter.
        """
        t = sound.shape[-1]
        if t < self.samples:
            raise ConfigError(f"model.augment.samples={self.samples}: sounds have {t}; take fewer")
        places = torch.arange(1, t + 1, device=sound.device)
        length = ((sound != 0).any(1) * places).amax(1)
        starts = (length - self.samples // 2).clamp(0, t - self.samples) + 1
        start = (noise.uniform(keys, (Stream.AUGMENT, 0), ()) * starts).long()
        index = (start[:, None] + torch.arange(self.samples, device=sound.device))[:, None]
        return sound.gather(2, index.expand(-1, sound.shape[1], -1))
