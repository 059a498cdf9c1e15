"""Gradient penalties of critics, in float32 under any autocast: they are second-order and underflow else.

Called with the critic, real and fake items [B, ...], and int64 keys [B] of whatever is random in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genlab import noise
from genlab.objectives.adversarial import gradient

Critic = Callable[[Tensor], Tensor]


class R1:
    """gamma / 2 E |grad D(x)|^2 on real data (Mescheder et al. 2018, arXiv 1801.04406, equation 9).

    Args:
        gamma: weight.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = gamma

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(real.device.type, enabled=False):
            x = real.detach().float().requires_grad_(True)
            return self.gamma / 2 * gradient(critic(x), x).flatten(1).square().sum(1).mean()


class WGANGP:
    """weight * E (|grad D(x)| - 1)^2 between real and fake (Gulrajani et al. 2017, arXiv 1704.00028, equation 3).

    Args:
        weight: lambda of the paper.
    """

    def __init__(self, weight: float = 10.0) -> None:
        self.weight = weight

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(real.device.type, enabled=False):
            share = noise.uniform(keys, noise.Stream.PENALTY, [1] * (real.ndim - 1))
            x = torch.lerp(fake.detach().float(), real.detach().float(), share).requires_grad_(True)
            norm = gradient(critic(x), x).flatten(1).norm(dim=1)
            return self.weight * (norm - 1).square().mean()
