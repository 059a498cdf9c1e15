"""Editing: a process that begins from a picture (SDEdit), and one that fills in a part of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.diffusion.parameterisation import Denoised
from genlab.diffusion.processes import Process, Spacing
from genlab.diffusion.samplers import Denoise
from genlab.errors import ConfigError


class Remainder:
    """The end of a process: its grids keep the last `strength` of their steps (Meng et al. 2022, "SDEdit", arXiv
    2108.01073, algorithm 1; counted as diffusers' image-to-image pipelines do). All else is the process's own."""

    def __init__(self, process: Process, strength: float) -> None:
        self.process, self.strength = process, strength

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process, name)

    def grid(self, steps: int, spacing: Spacing) -> list[float]:
        """Raises:
        ConfigError: no step is left.
        """
        times, count = self.process.grid(steps, spacing), int(steps * self.strength)
        if not count:
            raise ConfigError(f"sampler.strength={self.strength} leaves none of {steps} steps; raise it")
        return times[-count - 1 :]


def made_anew(mask: Tensor, known: Tensor) -> Tensor:
    """Where x_0 [B, C, h, w] is made anew, bool [B, 1, h, w].

    Args:
        mask: [B, 1, H, W], above 0 where it is; of a higher resolution than x_0, a position is made anew if any of its
            pixels is.
    """
    return F.adaptive_max_pool2d(mask, known.shape[-2:]) > 0


def filled_in(denoise: Denoise, process: Any, known: Tensor, eps: Tensor, anew: Tensor) -> Denoise:
    """A denoiser whose items are known outside a mask: there x_t is the known picture with its own noise, at every time
    (Lugmayr et al. 2022, "RePaint", arXiv 2201.09865, equation 8, without resampling).

    Args:
        known: x_0, [B, C, h, w]; eps: its noise.
        anew: see `made_anew`.
    """

    def inside(x_t: Tensor, t: float) -> Denoised:
        alpha, sigma = process.at(t)
        x_0, noise = denoise(torch.where(anew, x_t, alpha * known + sigma * eps), t)
        return Denoised(torch.where(anew, x_0, known), torch.where(anew, noise, eps))

    return inside
