"""Sampling for families that make an item from one latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab import noise
from genlab.settings import check_settings


@dataclass(frozen=True)
class LatentSampler:
    """z ~ N(0, 1), perhaps truncated, which trades variety for fidelity.

    Args:
        truncation: factor of z; 1 samples the model's own distribution.
        threshold: z comes from the normal distribution between -threshold and threshold (Brock et al. 2019, arXiv
            1809.11096, section 3.1); null: from all of it.
    """

    truncation: float = 1.0
    threshold: Annotated[float, "gt 0"] | None = None
    nfe: int = 1

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "sampler.")

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """z, float32 [B, *shape]: row i a function of seeds[i] (int64 [B])."""
        if self.threshold is None:
            return self.truncation * noise.normal(seeds, noise.Stream.INITIAL, shape)
        # The inverse distribution function of uniforms between its values at the two ends, in float64.
        low = 0.5 * (1 + math.erf(-self.threshold / math.sqrt(2)))
        share = noise.uniform(seeds, noise.Stream.INITIAL, shape).double() + 2.0**-25
        return self.truncation * torch.special.ndtri(low + (1 - 2 * low) * share).float()
