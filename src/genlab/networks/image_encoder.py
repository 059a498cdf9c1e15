"""Image encoders: an image -> one vector. A convolutional network of our own, a vision model of transformers, or the
principal components of what VGG16 sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.frozen import Frozen
from genlab.networks.vgg import VGG16Grid

Positive = Annotated[int, "gt 0"]


class PreNormBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3, all of `width` channels (He et al. 2016, arXiv 1603.05027, figure
    4e, with group norm, so that a row depends on no other)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.body = nn.Sequential(*layers)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ImageEncoder(nn.Module):
    """Two strided convolutions to a quarter of the height and width, then residual blocks at each width, halving
    between them, and the mean over positions: [B, C, H, W] in [-1, 1] -> [B, widths[-1]].

    Args:
        channels: C.
        widths: channels at a quarter, an eighth, ... of the height and width; multiples of `groups`.
        blocks: residual blocks of each width.
        groups: of the group norms.
        channels_last: memory layout: faster on a CPU.

    Attributes:
        width: of the result.

    Raises:
        ConfigError: groups that do not divide.
    """

    def __init__(
        self,
        channels: Positive,
        widths: Sequence[int] = (64, 128, 256),
        blocks: Positive = 1,
        groups: Positive = 8,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if any(width % groups for width in widths):
            raise ConfigError(f"model.image.groups={groups} does not divide the widths {list(widths)}")
        layers: list[nn.Module] = [
            nn.Conv2d(channels, widths[0] // 2, 3, 2, 1), nn.SiLU(), nn.Conv2d(widths[0] // 2, widths[0], 3, 2, 1)
        ]  # fmt: skip
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(widths[i - 1], width, 3, 2, 1)] if i else []
            layers += [PreNormBlock(width, groups) for _ in range(blocks)]
        self.width = widths[-1]
        self.body = nn.Sequential(*layers, nn.GroupNorm(groups, self.width), nn.SiLU())
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.body.to(memory_format=self.format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.contiguous(memory_format=self.format)).mean((2, 3))


class VisionModel(nn.Module):
    """A vision model of transformers, frozen or trained along: [B, C, H, W] in [-1, 1] -> its pooled output [B, width].

    Args:
        network: takes pixel_values, and gives pooler_output: ViT, DINOv2, the vision model of CLIP.
        width: of the result; asserted.
        size: height and width that it gets; images are resized (bicubic, antialiased).
        mean: of each channel of pixels in [0, 1], by which it wants them normalised.
        std: likewise.

    Raises:
        ConfigError: another width.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module | Frozen,
        width: Positive,
        size: Positive = 224,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.network, self.width, self.size = network, width, size
        own = self._on("cpu").config.hidden_size
        if own != width:
            raise ConfigError(f"the vision model's output has {own} numbers; set model.image.width={own}")
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values))[:, None, None], persistent=False)

    def _on(self, device: torch.device | str) -> Any:
        return self.network.on(device) if isinstance(self.network, Frozen) else self.network

    def forward(self, x: Tensor) -> Tensor:
        size = (self.size, self.size)
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        pixels = ((x + 1) / 2 - self.mean) / self.std  # grey becomes three channels
        return self._on(x.device)(pixel_values=pixels).pooler_output


class Components(nn.Module):
    """Principal components of what a frozen network sees in the images of training: [B, C, H, W] in [-1, 1] ->
    [B, width]. A locked tower (Zhai et al. 2022, "LiT", arXiv 2111.07991): nothing of it is trained, `fit` measures it.

    Args:
        network: a frozen one, whose numbers of an image are made one vector.
        width: components.
        evenness: how much is taken of what they differ in spread: 0 nothing, 1 all of it (whitening).

    Attributes:
        key: what decides `features`.

    Raises:
        ConfigError: at `fit`, fewer images than components.
    """

    mean: Tensor
    axes: Tensor
    ITEMS = 10_000  # about the most images that are measured, evenly spaced

    def __init__(self, network: VGG16Grid, width: Positive, evenness: Annotated[float, "ge 0, le 1"] = 0.5) -> None:
        super().__init__()
        self.network, self.width, self.evenness = network, width, evenness
        size = network.width * network.grid[0] * network.grid[1]
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.zeros(size, width))
        self.key = f"{network.sha256} {network.settings}"

    @property
    def fitted(self) -> bool:
        """Whether it has been measured, or read from a checkpoint."""
        return bool(self.axes.any())

    def features(self, x: Tensor) -> Tensor:
        """What the network sees, float32 [B, N]."""
        return self.network(x).flatten(1)

    def fit(self, rows: Tensor) -> None:
        """Measures the components of `features` of the images of training, float [I, N]."""
        rows = rows[:: -(-len(rows) // self.ITEMS)].float()
        if len(rows) < self.width:
            raise ConfigError(f"model.image.width={self.width} components of {len(rows)} images of training; lower it")
        self.mean.copy_(rows.mean(0))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # Halko et al. 2011 (arXiv 0909.4061) begin with a random matrix
            more = min(self.width + 20, *rows.shape)
            _, spread, axes = (
                part[..., : self.width] for part in torch.svd_lowrank(rows - rows.mean(0), more, niter=4)
            )
        self.axes.copy_(axes * (spread / spread[0]).pow(-self.evenness))

    def project(self, rows: Tensor) -> Tensor:
        """`features`, float [B, N] -> [B, width]."""
        return (rows.to(self.mean) - self.mean) @ self.axes

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.features(x))
