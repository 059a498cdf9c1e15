"""Seeded images for tests of evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab import noise


def blobs(seeds: Tensor, shift: float = 0.0, channels: int = 1, size: int = 28) -> Tensor:
    """Smooth random images, one a seed, uint8 [N, channels, size, size]."""
    coarse = noise.uniform(seeds, 0, (channels, 7, 7)) ** (2 + shift)
    return F.interpolate(coarse * 255, (size, size), mode="bicubic").clamp(0, 255).round().to(torch.uint8)
