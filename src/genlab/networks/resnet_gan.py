"""The ResNet generator and critic of WGAN-GP, SNGAN and cGAN-PD, for any size divisible by 4.

Gulrajani et al. 2017 (arXiv 1704.00028, appendix F), Miyato et al. 2018 (arXiv 1802.05957, table 4), Miyato & Koyama
2018 (arXiv 1802.05637), with the sizes and initial weights of the mimicry library (arXiv 2005.02494): at 32 x 32 a
generator of 256 channels (4.28M parameters) and a critic of 128 (1.05M). Images start at the smallest size of at least
4 that halving leads to: 4 x 4 for 32 (3 blocks), 7 x 7 for 28 (2 blocks).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.networks.conditioning import ClassCritic, CriticCondition, halvings, with_class
from genlab.networks.spectral import normalise


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are those of the item's class (arXiv 1802.05637, section 4)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.embedding = nn.Embedding(num_classes, 2 * channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x [B, C, H, W], labels int64 [B] -> [B, C, H, W]."""
        scale, shift = self.embedding(labels)[:, :, None, None].chunk(2, 1)
        return scale * self.norm(x) + shift


class _Norm(nn.Module):
    """Batch norm, conditional where there are classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = ConditionalBatchNorm(channels, num_classes) if num_classes else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.norm(x, labels) if isinstance(self.norm, ConditionalBatchNorm) else self.norm(x)


class UpBlock(nn.Module):
    """Norm, ReLU, upsampling, convolution, twice over, beside a convolution of 1 x 1 of the upsampled input."""

    def __init__(self, inputs: int, outputs: int, num_classes: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(inputs, num_classes), _Norm(outputs, num_classes)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.conv1(upsampled(F.relu(self.norm1(x, labels))))
        # a convolution of 1 x 1 and interpolation commute; this order costs a quarter
        return self.conv2(F.relu(self.norm2(h, labels))) + upsampled(self.shortcut(x))


class CriticBlock(nn.Module):
    """Activation and convolution, twice over, then a change of resolution, beside a shortcut.

    Args:
        inputs: channels.
        outputs: channels.
        down: averages of 2 x 2 at the end.
        first: the input is an image: neither norm nor activation before the first convolution.
        norm: layer: group norm of one group, over each item alone, so that gradient penalties are per item; none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        down: bool = False,
        first: bool = False,
        norm: Literal["layer", "none"] = "none",
    ) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.norm1: nn.Module = nn.GroupNorm(1, inputs) if norm == "layer" and not first else nn.Identity()
        self.norm2: nn.Module = nn.GroupNorm(1, outputs) if norm == "layer" else nn.Identity()
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or down else None

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.first else F.relu(self.norm1(x))
        h = self.conv2(F.relu(self.norm2(self.conv1(h))))
        if self.down:  # averages and a convolution of 1 x 1 commute; this order costs a quarter
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.shortcut is None else self.shortcut(x))


class Generator(nn.Module):
    """z [B, latent_dim] (and labels int64 [B]) -> images [B, C, H, W] in [-1, 1].

    Args:
        shape: C, H, W; H and W divisible by 4.
        latent_dim: size of z.
        width: channels.
        num_classes: classes of the condition; None or 0 for none.
        condition: conditional_norm: by every batch norm; concatenation: an embedding joined to z; none.
        spectral_norm: see genlab.networks.spectral.
    """

    def __init__(
        self,
        shape: list[int],
        latent_dim: int = 128,
        width: int = 256,
        num_classes: int | None = None,
        condition: Literal["conditional_norm", "concatenation", "none"] = "conditional_norm",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        count, classes = halvings(shape), num_classes or 0
        self.latent_dim, self.condition = latent_dim, condition
        self.start = (width, shape[1] >> count, shape[2] >> count)
        joins = bool(classes) and condition == "concatenation"
        self.embedding = nn.Embedding(classes, latent_dim) if joins else None
        self.project = nn.Linear(latent_dim * (2 if joins else 1), math.prod(self.start))
        by_norm = classes if condition == "conditional_norm" else 0
        self.blocks = nn.ModuleList([UpBlock(width, width, by_norm) for _ in range(count)])
        self.norm, self.out = nn.BatchNorm2d(width), nn.Conv2d(width, shape[0], 3, 1, 1)
        self.apply(initialise)
        if spectral_norm:
            normalise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.project(with_class(z, self.embedding, labels)).unflatten(1, self.start)
        for block in self.blocks:
            h = block(h, labels)
        return torch.tanh(self.out(F.relu(self.norm(h))))


class Critic(ClassCritic):
    """Images [B, C, H, W] in [-1, 1] (and labels int64 [B]) -> logits [B].

    Args:
        shape: C, H, W; H and W divisible by 4.
        width: channels.
        blocks: residual blocks; the first two halve the image, three from 64 x 64 on.
        num_classes: classes of the condition; None or 0 for none.
        condition: how they enter: see genlab.networks.conditioning.
        norm: layer, as WGAN-GP proposes, or none.
        pooling: of the last features over positions: sum (SNGAN) or mean (WGAN-GP's own code).
        spectral_norm: see genlab.networks.spectral.
    """

    def __init__(
        self,
        shape: list[int],
        width: int = 128,
        blocks: int = 4,
        num_classes: int | None = None,
        condition: CriticCondition = "projection",
        norm: Literal["layer", "none"] = "none",
        pooling: Literal["sum", "mean"] = "sum",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(num_classes, condition)
        self.pooling = pooling
        self.embedding = self.class_embedding(width, shape)
        down = max(min(2, halvings(shape)), halvings(shape) - 1)
        first = CriticBlock(self.planes(shape[0]), width, True, True, norm)
        rest = [CriticBlock(width, width, i < down, False, norm) for i in range(1, blocks)]
        self.blocks = nn.Sequential(first, *rest)
        self.head = nn.Linear(width, 1)
        self.apply(initialise)
        if spectral_norm:
            normalise(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = F.relu(self.blocks(self.joined(x, labels)))
        return self.logits(h.sum((2, 3)) if self.pooling == "sum" else h.mean((2, 3)), labels)


def upsampled(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform weights, of gain sqrt(2) in a block's main path; biases 0; class scales 1, shifts 0."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    elif isinstance(module, UpBlock | CriticBlock):  # after its convolutions
        for conv in (module.conv1, module.conv2):
            nn.init.xavier_uniform_(conv.weight, math.sqrt(2))
    elif isinstance(module, ConditionalBatchNorm):
        nn.init.normal_(module.embedding.weight, 1.0, 0.02)
        with torch.no_grad():
            module.embedding.weight[:, module.norm.num_features :] = 0.0
