"""How a picture comes about: what the network expects as the end of the process, at each step of a sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.diffusion.samplers import Denoise, Noise


class Traced:
    """A sampler that keeps the predicted x_0 of each call of the denoiser, and then its own result.

    Args:
        sampler: whose options are read through this one.

    Attributes:
        chunks: of each call [B, T, ...], T the evaluations and one.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.chunks = sampler, list[Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def __call__(self, denoise: Denoise, x: Tensor, process: Any, noise: Noise) -> Tensor:
        steps = []

        def seen(x_t: Tensor, t: float) -> Any:
            at = denoise(x_t, t)
            steps.append(at.x_0)
            return at

        end = self.sampler(seen, x, process, noise)
        self.chunks.append(torch.stack([*steps, end], 1))
        return end

    def pictures(self, count: int, to_picture: Callable[[Tensor], Tensor]) -> Tensor:
        """Pictures [count, T, C, H, W] in about [-1, 1], of the first items; on the CPU."""
        with torch.no_grad():
            return torch.cat([to_picture(item).cpu()[None] for chunk in self.chunks for item in chunk][:count])
