"""Distances of sounds by their spectrograms, and of what a critic sees in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from genlab.errors import ConfigError

Weight = Annotated[float, "ge 0"]


def magnitudes(sound: Tensor, window: int, floor: float) -> Tensor:
    """|STFT| with Hann's window, frames a quarter of it apart: float [B, T] -> [B, window / 2 + 1, frames].

    Args:
        floor: of the squares, which have no gradient below it.
    """
    hann = torch.hann_window(window, device=sound.device)
    spectrum = torch.stft(sound, window, window // 4, window=hann, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=floor).sqrt()


class MultiScaleSTFT:
    """Spectral convergence and log magnitude at several resolutions: the multi-resolution STFT loss of Parallel WaveGAN
    (Yamamoto, Song and Kim 2020, arXiv 1910.11480, equations 4 to 6), a distance for each item.

    Args:
        windows: of the transforms, in samples; each must be shorter than twice a sound.
        convergence: weight of equation 4, ||S(x) - S(y)||_F / ||S(y)||_F.
        log_magnitude: weight of equation 5, mean |log S(x) - log S(y)|.
        floor: smallest square of a magnitude, as the authors' code.
    """

    def __init__(
        self,
        windows: Sequence[int] = (1024, 512, 256, 128),
        convergence: Weight = 1.0,
        log_magnitude: Weight = 1.0,
        floor: Annotated[float, "gt 0"] = 1e-7,
    ) -> None:
        self.windows, self.floor = tuple(windows), floor
        self.convergence, self.log_magnitude = convergence, log_magnitude

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Sounds and what they should be, float [B, C, T] -> float32 [B]; its gradient flows to x.

        Raises:
            ConfigError: sounds too short for the longest window.
        """
        if x.shape[-1] <= max(self.windows) // 2:
            raise ConfigError(f"sounds of {x.shape[-1]} samples: the longest window, {max(self.windows)}, needs more")
        rows, channels = x.shape[:2]
        x, y = x.float().flatten(0, 1), y.float().flatten(0, 1)
        each = torch.stack([self._at(x, y, window) for window in self.windows]).mean(0)
        return each.view(rows, channels).mean(1)

    def _at(self, x: Tensor, y: Tensor, window: int) -> Tensor:
        ours, aim = magnitudes(x, window, self.floor), magnitudes(y, window, self.floor)
        convergence = (aim - ours).flatten(1).norm(dim=1) / aim.flatten(1).norm(dim=1)
        log_magnitude = (aim.log() - ours.log()).abs().flatten(1).mean(1)
        return self.convergence * convergence + self.log_magnitude * log_magnitude


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Distance of a critic's features of reconstructions to those of the originals, relative to the size of these
    (EnCodec, arXiv 2210.13438, equation 2; item by item, so that it does not depend on what shares a batch).

    Args:
        fake: features [B, ...] of all layers and scales, with gradient. real: likewise, of the originals.

    Returns:
        Scalar.
    """
    ratios = [
        (a - b).abs().flatten(1).mean(1) / b.abs().flatten(1).mean(1).clamp(min=1e-8)
        for a, b in zip(fake, real, strict=True)
    ]
    return torch.stack(ratios).mean()
