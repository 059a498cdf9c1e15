"""Adversarial losses: functions of the critic's outputs (logits), means over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class NonSaturating:
    """Goodfellow et al. 2014 (arXiv 1406.2661), section 3: the critic's binary cross-entropy, and -log D(G(z))."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()


class Wasserstein:
    """Arjovsky et al. 2017 (arXiv 1701.07875), equation 2 (critic without a sigmoid; needs a gradient penalty)."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


class Hinge:
    """Lim & Ye 2017 (arXiv 1705.02894), Miyato et al. 2018 (arXiv 1802.05957), equations 16 and 17."""

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


def gradient(output: Tensor, x: Tensor) -> Tensor:
    """d(sum of output)/dx, differentiable once more: the gradient of each row's output by that row of x."""
    return torch.autograd.grad(output.sum(), x, create_graph=True)[0]
