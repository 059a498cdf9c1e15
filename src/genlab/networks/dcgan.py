"""DCGAN generator and critic (Radford et al. 2016, arXiv 1511.06434, figure 1), for any size divisible by 4.

No library that GenLab depends on has them. Two departures, both usual since: the critic has no batch norm, so that
gradient penalties are per sample, and a class condition is an embedding (generator: joined to z; critic: projection,
Miyato & Koyama 2018, arXiv 1802.05637, equation 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """z [B, latent_dim] (and labels int64 [B]) -> images [B, C, H, W] in [-1, 1].

    Args:
        shape: C, H, W; H and W divisible by 4.
        latent_dim: size of z.
        width: channels at full resolution; twice and four times as many below.
        num_classes: classes of the condition; None or 0 for none.
    """

    def __init__(self, shape: list[int], latent_dim: int = 64, width: int = 32, num_classes: int | None = None) -> None:
        super().__init__()
        channels, height, rows = shape
        self.latent_dim = latent_dim
        self.start = (width * 4, height // 4, rows // 4)
        self.embedding = nn.Embedding(num_classes, latent_dim) if num_classes else None
        inputs = latent_dim * (2 if num_classes else 1)
        self.project = nn.Linear(inputs, self.start[0] * self.start[1] * self.start[2], bias=False)
        self.body = nn.Sequential(
            nn.BatchNorm2d(width * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(width * 2, width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(True),
            nn.Conv2d(width, channels, 3, 1, 1),
            nn.Tanh(),
        )
        self.apply(initialise)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            assert labels is not None
            z = torch.cat([z, self.embedding(labels)], 1)
        return self.body(self.project(z).unflatten(1, self.start))


class Critic(nn.Module):
    """Images [B, C, H, W] in [-1, 1] (and labels int64 [B]) -> logits [B]; arguments as the generator's."""

    def __init__(self, shape: list[int], width: int = 32, num_classes: int | None = None) -> None:
        super().__init__()
        channels, height, rows = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(width, width * 2, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(width * 2, width * 4, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Flatten(),
        )
        features = width * 4 * (height // 4) * (rows // 4)
        self.head = nn.Linear(features, 1)
        self.embedding = nn.Embedding(num_classes, features) if num_classes else None
        self.apply(initialise)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.body(x)
        logits = self.head(h).squeeze(1)
        if self.embedding is not None:
            assert labels is not None
            logits = logits + (self.embedding(labels) * h).sum(1)
        return logits


def initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02), batch norm scale ~ N(1, 0.02): section 4 of the paper."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
