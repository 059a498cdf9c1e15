"""The encoder and decoder of a first stage: diffusers' own, under the names of its AutoencoderKL and VQModel."""

from __future__ import annotations

from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError

Positive = Annotated[int, "gt 0"]


class FirstStage(nn.Module):
    """Images <-> latents of 1 / (patch 2^(len(widths) - 1)) of their height and width (Rombach et al. 2022, arXiv
    2112.10752, section 3.1 and appendix G). Weights load from and into diffusers by name.

    Args:
        shape: [C, H, W] of the images; H and W divisible by that factor.
        latent_channels: of z.
        widths: channels of each resolution, from the image down; multiples of `groups`.
        layers: residual blocks a resolution (one more in the decoder).
        groups: of the group norms.
        attention: whether the middle, at the lowest resolution, has self-attention.
        double: whether the encoder gives mu and logvar (for a KL bottleneck), twice the channels.
        patch: side of the squares of pixels that are folded into channels first; above 1 it costs far less on a CPU,
            and is no network of diffusers.

    Attributes:
        latent_shape: [latent_channels, h, w].

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(
        self,
        shape: list[int],
        latent_channels: Positive,
        widths: list[int],
        layers: Positive = 1,
        groups: Positive = 8,
        attention: bool = False,
        double: bool = False,
        patch: Positive = 1,
    ) -> None:
        super().__init__()
        from diffusers.models.autoencoders.vae import Decoder, Encoder  # slow to import

        factor, channels, self.patch = patch * 2 ** (len(widths) - 1), shape[0] * patch**2, patch
        if shape[1] % factor or shape[2] % factor:
            raise ConfigError(f"model.network.widths: {shape[1]}x{shape[2]} images do not divide by {factor}")
        if any(width % groups for width in widths):
            raise ConfigError(f"model.network.groups={groups} does not divide the widths {list(widths)}")
        self.latent_shape = (latent_channels, shape[1] // factor, shape[2] // factor)
        sizes: dict[str, Any] = {
            "block_out_channels": tuple(widths),
            "layers_per_block": layers,
            "norm_num_groups": groups,
            "mid_block_add_attention": attention,
        }
        down, up = ("DownEncoderBlock2D",) * len(widths), ("UpDecoderBlock2D",) * len(widths)
        self.encoder = Encoder(channels, latent_channels, down, double_z=double, **sizes)
        self.decoder = Decoder(latent_channels, channels, up, **sizes)
        # What diffusers' AutoencoderKL and VQModel are called with.
        self.facts = {"in_channels": channels, "out_channels": channels, "latent_channels": latent_channels, **sizes}
        self.facts |= {"down_block_types": down, "up_block_types": up}
        encoded = latent_channels * (2 if double else 1)
        self.quant_conv = nn.Conv2d(encoded, encoded, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent_channels (twice that if `double`), h, w]."""
        return self.quant_conv(self.encoder(F.pixel_unshuffle(x, self.patch)))

    def decode(self, z: Tensor) -> Tensor:
        """[B, latent_channels, h, w] -> [B, C, H, W] in about [-1, 1]."""
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(z)), self.patch)

    @property
    def last(self) -> Tensor:
        """The decoder's last weight, by which gradients of losses are compared."""
        return self.decoder.conv_out.weight


class Residual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), all of `width` channels: the block of arXiv 1711.00937, section 4.1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, width, 1, 1, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class StridedStage(nn.Module):
    """The network of the VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937, section 4.1).

    Two strided 4x4 convolutions, residual blocks, and their mirror image; no norms, no work at full resolution.

    Args:
        shape: [C, H, W] of the images; H and W divisible by 4.
        latent_channels: of z.
        width: channels inside; the paper's is 256.
        layers: residual blocks on each side; the paper has 2.
        double: whether the encoder gives mu and logvar (for a KL bottleneck), twice the channels.
    """

    def __init__(
        self,
        shape: list[int],
        latent_channels: Positive,
        width: Positive = 256,
        layers: Positive = 2,
        double: bool = False,
    ) -> None:
        super().__init__()
        if shape[1] % 4 or shape[2] % 4:
            raise ConfigError(f"model.network: {shape[1]}x{shape[2]} images do not divide by 4")
        self.latent_shape = (latent_channels, shape[1] // 4, shape[2] // 4)
        self.encoder = nn.Sequential(
            nn.Conv2d(shape[0], width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, 2, 1),
            *(Residual(width) for _ in range(layers)),
            nn.Conv2d(width, latent_channels * (2 if double else 1), 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, 1, 1),
            *(Residual(width) for _ in range(layers)),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, shape[0], 4, 2, 1),
        )

    def encode(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, latent_channels (twice that if `double`), H / 4, W / 4]."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """[B, latent_channels, H / 4, W / 4] -> [B, C, H, W] in about [-1, 1]."""
        return self.decoder(z)

    @property
    def last(self) -> Tensor:
        """The decoder's last weight, by which gradients of losses are compared."""
        return self.decoder[-1].weight  # type: ignore[return-value]
