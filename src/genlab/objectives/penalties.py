"""Penalties of critics, in float32 under any autocast: gradient penalties are second-order and underflow else.

Called with the critic, real and fake items [B, ...], and int64 keys [B] of whatever is random in them. Of a critic that
returns several tensors or maps, the gradient is that of the sum over tensors of each item's mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab import noise
from genlab.objectives.adversarial import Output, gradient, total
from genlab.objectives.diffaugment import integers, translate

Critic = Callable[[Tensor], Output]


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


class R2(R1):
    """The same, gamma / 2 E |grad D(G(z))|^2, on fakes (Mescheder et al. 2018, arXiv 1801.04406, equation 10)."""

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
        return super().__call__(critic, fake, real, keys)


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


class Consistency:
    """weight * E |D(x) - D(T(x))|^2 on real images (Zhang et al. 2020, CR-GAN, arXiv 1910.12027, equation 3).

    T moves an image by up to `shift` pixels, zeros coming in, and mirrors it with probability 1/2. A map of logits is
    compared place by place, which T moves: for critics of one logit.

    Args:
        weight: lambda of the paper.
        shift: largest distance in pixels, down and across.
        flip: whether to mirror; false where left and right differ, as in digits.
    """

    def __init__(self, weight: float = 10.0, shift: int = 4, flip: bool = True) -> None:
        self.weight, self.shift, self.flip = weight, shift, flip

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
        with torch.autocast(real.device.type, enabled=False):
            x = real.detach().float()
            down, across, mirror = noise.uniform(keys, (noise.Stream.PENALTY, 1), (3,)).unbind(1)
            moved = translate(x, integers(down, -self.shift, self.shift), integers(across, -self.shift, self.shift))
            if self.flip:
                moved = torch.where((mirror < 0.5).view(-1, 1, 1, 1), moved.flip(3), moved)
            return self.weight * total(lambda a, b: (a - b).square().mean(), critic(x), critic(moved))


class Penalties:
    """A multiple of the sum of several penalties, for example R1 and R2 (arXiv 2501.05441, section 2.2).

    Args:
        parts: penalties.
        weight: factor of the sum.
    """

    def __init__(self, parts: list[Any], weight: float = 1.0) -> None:
        self.parts, self.weight = parts, weight

    def __call__(self, critic: Critic, real: Tensor, fake: Tensor, keys: Tensor) -> Tensor:
        return self.weight * torch.stack([part(critic, real, fake, keys) for part in self.parts]).sum()
