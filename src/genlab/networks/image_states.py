"""Images as sequences of states, for decoders that attend to places of them."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError

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
