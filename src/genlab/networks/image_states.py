"""Images as sequences of states, for decoders that attend to places of them."""

from __future__ import annotations

import functools
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError
from genlab.networks.image_encoder import Components

Positive = Annotated[int, "gt 0"]


class ImageStates(nn.Module):
    """A ConvNet whose last map is read as a sequence, row by row: images [B, C, H, W] -> states [B, S, width].

    Patches are folded into channels, so that nothing is computed at full resolution; then the residual blocks of a
    first stage (diffusers' Encoder), which halve height and width between two of `widths`; then a learned vector of
    each place is added.

    Args:
        shape: C, H, W.
        width: of a state.
        widths: channels of each resolution, from the image down; multiples of `groups`.
        patch: height and width of a patch.
        layers: residual blocks a resolution, besides two at the lowest.
        groups: of the group norms.
        attention: whether there is self-attention at the lowest resolution.

    Attributes:
        grid: rows and columns of the states.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        shape: list[int],
        width: Positive,
        widths: list[int],
        patch: Positive = 4,
        layers: Positive = 1,
        groups: Positive = 8,
        attention: bool = False,
    ) -> None:
        super().__init__()
        from diffusers.models.autoencoders.vae import Encoder  # slow to import

        factor = patch * 2 ** (len(widths) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ConfigError(
                f"model.encoder: {shape[1]}x{shape[2]} images do not divide by {factor}, which is patch={patch} times "
                f"2 for each of {len(widths) - 1} halvings"
            )
        if any(channels % groups for channels in widths):
            raise ConfigError(f"model.encoder.groups={groups} does not divide the widths {list(widths)}")
        self.patch, self.grid = patch, (shape[1] // factor, shape[2] // factor)
        self.body = Encoder(
            shape[0] * patch**2, width, ("DownEncoderBlock2D",) * len(widths), tuple(widths), layers, groups,
            double_z=False, mid_block_add_attention=attention,
        )  # fmt: skip
        self.place = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], width))

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, C, H, W] in [-1, 1], of the shape."""
        return self.body(F.pixel_unshuffle(images, self.patch)).flatten(2).transpose(1, 2) + self.place


class GridStates(nn.Module):
    """What a frozen network sees in a picture and in the cells of a grid: images [B, C, H, W] in [-1, 1] -> states
    [B, whole + rows * columns, width].

    The first are linear maps of the principal components, which tell drawings of one thing in two styles best; then a
    state a cell, with a learned vector of its place, which tells compositions best.

    Args:
        seen: components of a frozen network, measured before training (`fit`).
        width: of a state.
        whole: states of the whole picture.
        dropout: share of the components, and of the numbers of a cell, that are left out in training.
        hidden: share of the pictures whose cells are left out in training.

    Attributes:
        grid: rows and columns of the cells.
    """

    def __init__(
        self,
        seen: Components,
        width: Positive,
        whole: Positive = 4,
        dropout: Annotated[float, "ge 0, lt 1"] = 0.5,
        hidden: Annotated[float, "ge 0, lt 1"] = 0.5,
    ) -> None:
        super().__init__()
        self.seen, self.grid, self.hidden = seen, seen.network.grid, hidden
        plain = functools.partial(nn.LayerNorm, elementwise_affine=False)
        self.picture = nn.Sequential(
            plain(seen.width),
            nn.Dropout(dropout),
            nn.Linear(seen.width, whole * width),
            nn.Unflatten(1, (whole, width)),
        )
        cell = seen.network.width
        self.cells = nn.Sequential(
            nn.Unflatten(1, (-1, cell)), plain(cell), nn.Dropout(dropout), nn.Linear(cell, width)
        )
        self.place = nn.Parameter(0.1 * torch.randn(self.grid[0] * self.grid[1], width))
        self.norm = nn.LayerNorm(width)

    def states(self, features: Tensor) -> Tensor:
        """From `seen.features`, float [B, N]."""
        features = features.to(self.place)
        whole, cells = (
            self.norm(self.picture(self.seen.project(features))),
            self.norm(self.cells(features) + self.place),
        )
        if self.training:  # of torch's generator, as dropout
            cells = cells * (torch.rand(len(cells), 1, 1, device=cells.device) >= self.hidden)
        return torch.cat([whole, cells], 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.states(self.seen.features(images))
