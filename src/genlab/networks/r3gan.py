"""R3GAN's generator and critic (Huang et al. 2025, arXiv 2501.05441, section 4), for sizes divisible by 4.

Its configuration E. No normalisation: initial weights as in fix-up (arXiv 1901.09321) keep the variance, a grouped
convolution sits inside an inverted bottleneck, LeakyReLU comes with a bias, resampling is bilinear, and where channels
change a 1 x 1 convolution stands at the smaller size. At 32 x 32 the authors' preset is 768 channels in groups of 16,
two blocks at each of 4 sizes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.conditioning import halvings, with_class
from genlab.networks.resnet_gan import upsampled

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear, nn.Embedding)
_GAIN = math.sqrt(2 / (1 + 0.2**2))  # of LeakyReLU with slope 0.2


class BiasedLeakyReLU(nn.Module):
    """LeakyReLU of slope 0.2 of x + a bias a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias[:, None, None], 0.2)


class Block(nn.Module):
    """x + W3 f(W2 f(W1 x)): 1 x 1 to `expansion` times the channels, grouped 3 x 3, 1 x 1 back, which begins at 0.

    Args:
        channels: of input and output.
        group: channels a group of the 3 x 3 convolution.
        expansion: of the bottleneck.
        blocks: residual blocks of the whole network, which initial weights depend on.
    """

    def __init__(self, channels: int, group: int, expansion: int, blocks: int) -> None:
        super().__init__()
        inner = channels * expansion
        if inner % group:
            raise ConfigError(f"group={group}: {channels} x {expansion} channels do not divide into groups of so many")
        gain = _GAIN * blocks ** (-1 / 4)  # fix-up: L^(-1 / (2m - 2)) for blocks of m = 3 layers
        self.enter = _scaled(nn.Conv2d(channels, inner, 1, bias=False), gain)
        self.mix = _scaled(nn.Conv2d(inner, inner, 3, 1, 1, groups=inner // group, bias=False), gain)
        self.leave = _scaled(nn.Conv2d(inner, channels, 1, bias=False), 0.0)
        self.first, self.second = BiasedLeakyReLU(inner), BiasedLeakyReLU(inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.second(self.mix(self.first(self.enter(x)))))


class Generator(nn.Module):
    """z [B, latent_dim] (and labels int64 [B]) -> images [B, C, H, W], about [-1, 1], not clipped.

    Args:
        shape: C, H, W; H and W divisible by 4.
        latent_dim: size of z, and of the class's embedding joined to it.
        width: channels at every size; or a list, from the smallest size to the largest.
        group: channels a group of the 3 x 3 convolutions.
        blocks: residual blocks a size.
        expansion: of the bottleneck.
        num_classes: classes of the condition; None or 0 for none.
    """

    def __init__(
        self,
        shape: list[int],
        latent_dim: int = 64,
        width: int | list[int] = 768,
        group: int = 16,
        blocks: int = 2,
        expansion: int = 2,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        count = halvings(shape)
        widths = _widths(width, count + 1)
        self.latent_dim = latent_dim
        self.embedding = _scaled(nn.Embedding(num_classes, latent_dim)) if num_classes else None
        self.basis = nn.Parameter(torch.randn(widths[0], shape[1] >> count, shape[2] >> count))
        self.project = _scaled(nn.Linear(latent_dim * (2 if num_classes else 1), widths[0], bias=False))
        self.stages, self.changes = _stages(widths, group, blocks, expansion)
        self.out = _scaled(nn.Conv2d(widths[-1], shape[0], 1, bias=False))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.stages[0](self.basis * self.project(with_class(z, self.embedding, labels))[:, :, None, None])
        for change, stage in zip(self.changes, self.stages[1:], strict=True):
            h = stage(upsampled(change(h)))
        return self.out(h)


class Critic(nn.Module):
    """Images [B, C, H, W] (and labels int64 [B]) -> logits [B]: the generator in reverse, a product with the class's
    embedding at its end. Arguments as the generator's."""

    def __init__(
        self,
        shape: list[int],
        width: int | list[int] = 768,
        group: int = 16,
        blocks: int = 2,
        expansion: int = 2,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        count = halvings(shape)
        smallest = (shape[1] >> count, shape[2] >> count)
        widths = _widths(width, count + 1)[::-1]
        last = widths[-1]
        self.enter = _scaled(nn.Conv2d(shape[0], widths[0], 1, bias=False))
        self.stages, self.changes = _stages(widths, group, blocks, expansion)
        self.basis = _scaled(nn.Conv2d(last, last, smallest, groups=last, bias=False))
        self.head = _scaled(nn.Linear(last, last if num_classes else 1, bias=False))
        self.embedding = _scaled(nn.Embedding(num_classes, last)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.stages[0](self.enter(x))
        for change, stage in zip(self.changes, self.stages[1:], strict=True):
            h = stage(change(F.avg_pool2d(h, 2)))  # averages of 2 x 2: bilinear at half the size
        h = self.head(self.basis(h).flatten(1))
        return h.squeeze(1) if self.embedding is None else (h * self.embedding(labels)).sum(1)


def _widths(width: int | list[int], count: int) -> list[int]:
    """Channels at each of `count` sizes.

    Raises:
        ConfigError: a list of another length.
    """
    widths = [width] * count if isinstance(width, int) else list(width)
    if len(widths) != count:
        raise ConfigError(f"width={widths}: these images have {count} sizes, from 4 to 7 positions up; give as many")
    return widths


def _stages(widths: list[int], group: int, blocks: int, expansion: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The blocks of each size, and the changes from each size's channels to the next one's."""
    depth = blocks * len(widths)
    stages = [nn.Sequential(*(Block(width, group, expansion, depth) for _ in range(blocks))) for width in widths]
    changes = [nn.Identity() if a == b else _scaled(nn.Conv2d(a, b, 1, bias=False)) for a, b in pairwise(widths)]
    return nn.ModuleList(stages), nn.ModuleList(changes)


def _scaled(layer: _Layer, gain: float = 1.0) -> _Layer:
    """Weights ~ N(0, gain^2 / inputs of an output); the inputs of an embedding are its classes."""
    weight = layer.weight.T if isinstance(layer, nn.Embedding) else layer.weight
    inputs = math.prod(weight.shape[1:])
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(inputs)) if gain else nn.init.zeros_(layer.weight)
    return layer
