"""Encoders and decoders of variational autoencoders, of images of any size divisible by 4 (MLP: any).

Encoders give mu and logvar in one tensor [B, 2 latent_dim], decoders the parameters of a likelihood,
[B, C * outputs, H, W]. With num_classes labels go along: one-hot into an MLP, as embeddings added to the features of a
ConvNet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError

Positive = Annotated[int, "gt 0"]


def _hidden(sizes: Sequence[int]) -> list[nn.Module]:
    return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU(True))]


class MLPEncoder(nn.Module):
    """Images [B, C, H, W] in [-1, 1] (and labels int64 [B]) -> mu, logvar [B, 2 latent_dim].

    Args:
        shape: C, H, W.
        latent_dim: dimensions of z.
        widths: of the hidden layers, from the image to the latent.
        num_classes: of the condition; None or 0 for none.
    """

    def __init__(
        self, shape: list[int], latent_dim: Positive, widths: list[int], num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.classes = num_classes or 0
        sizes = [math.prod(shape) + self.classes, *widths]
        self.body = nn.Sequential(nn.Flatten(), *_hidden(sizes), nn.Linear(sizes[-1], 2 * latent_dim))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(_joined(x.flatten(1), labels, self.classes))


class MLPDecoder(nn.Module):
    """z [B, latent_dim] -> [B, C * outputs, H, W]; the encoder's arguments, widths from latent to image."""

    def __init__(
        self,
        shape: list[int],
        latent_dim: Positive,
        widths: list[int],
        outputs: Positive = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.latent_dim = num_classes or 0, latent_dim
        self.shape = (shape[0] * outputs, *shape[1:])
        sizes = [latent_dim + self.classes, *widths]
        self.body = nn.Sequential(*_hidden(sizes), nn.Linear(sizes[-1], math.prod(self.shape)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(_joined(z, labels, self.classes)).unflatten(1, self.shape)


def _joined(x: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    if not classes:
        return x
    assert labels is not None
    return torch.cat([x, F.one_hot(labels, classes).to(x.dtype)], 1)


def _quartered(shape: list[int], part: str) -> list[int]:
    """The shape, whose height and width two strided convolutions must divide; ConfigError where they cannot."""
    if shape[1] % 4 or shape[2] % 4:
        raise ConfigError(
            f"model.{part}: {shape[1]}x{shape[2]} images do not divide by 4; take model/encoder=mlp model/decoder=mlp, "
            "or data of another size"
        )
    return shape


class ConvEncoder(nn.Module):
    """Images [B, C, H, W] -> mu, logvar [B, 2 latent_dim]: two strided convolutions, then a linear layer.

    Args:
        shape: C, H, W; H and W divisible by 4.
        latent_dim: dimensions of z.
        width: channels at half resolution; twice as many at a quarter.
        num_classes: of the condition; None or 0 for none.

    Raises:
        ConfigError: H or W that is not divisible by 4.
    """

    def __init__(self, shape: list[int], latent_dim: Positive, width: Positive = 32, num_classes: int | None = None):
        super().__init__()
        channels, height, columns = _quartered(shape, "encoder")
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 4, 2, 1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.SiLU(),
            nn.Flatten(),
        )
        features = 2 * width * (height // 4) * (columns // 4)
        self.embedding = nn.Embedding(num_classes, 8 * width) if num_classes else None
        self.middle, self.head = nn.Linear(features, 8 * width), nn.Linear(8 * width, 2 * latent_dim)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.middle(self.body(x))
        return self.head(F.silu(h if self.embedding is None else h + self.embedding(labels)))


class ConvDecoder(nn.Module):
    """z [B, latent_dim] (and labels) -> [B, C * outputs, H, W]: the encoder's mirror image."""

    def __init__(
        self,
        shape: list[int],
        latent_dim: Positive,
        width: Positive = 32,
        outputs: Positive = 1,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, columns = _quartered(shape, "decoder")
        self.latent_dim, self.start = latent_dim, (2 * width, height // 4, columns // 4)
        self.embedding = nn.Embedding(num_classes, 8 * width) if num_classes else None
        self.first, self.middle = nn.Linear(latent_dim, 8 * width), nn.Linear(8 * width, math.prod(self.start))
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, channels * outputs, 4, 2, 1),
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.first(z)
        h = self.middle(F.silu(h if self.embedding is None else h + self.embedding(labels)))
        return self.body(h.unflatten(1, self.start))
