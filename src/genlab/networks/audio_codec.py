"""The encoder and decoder of a neural audio codec: one-dimensional convolutions of waveforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError

Positive = Annotated[int, "gt 0"]


def keep_scale(layer: nn.Conv1d | nn.ConvTranspose1d, inputs: int) -> None:
    """First weights that keep the deviation of what comes in, `inputs` numbers for each that goes out, and no biases:
    by torch's own a sound would be lost in the biases of a dozen layers."""
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class Conv(nn.Conv1d):
    """A convolution of T samples to T / stride, padded with zeros on both sides, or before the sound if causal."""

    def __init__(self, a: int, b: int, kernel: int, stride: int = 1, dilation: int = 1, causal: bool = False) -> None:
        super().__init__(a, b, kernel, stride, dilation=dilation)
        keep_scale(self, a * kernel)
        ends = (kernel - 1) * dilation + 1 - stride
        self.ends = (ends, 0) if causal else (ends // 2, ends - ends // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.ends))


class TransposedConv(nn.ConvTranspose1d):
    """A transposed convolution of n samples to n stride; what it gives beyond is cut at both ends, or at the last."""

    def __init__(self, a: int, b: int, stride: int, causal: bool = False) -> None:
        super().__init__(a, b, 2 * stride, stride)
        keep_scale(self, 2 * a)
        self.before = 0 if causal else stride // 2

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        whole = super().forward(x, output_size)
        return whole[..., self.before : self.before + x.shape[-1] * self.stride[0]]


class ResidualUnit(nn.Module):
    """x + conv1(elu(conv3(elu(x)))), half as many channels inside (EnCodec, arXiv 2210.13438, section 3.1)."""

    def __init__(self, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ELU(), Conv(width, width // 2, 3, 1, dilation, causal), nn.ELU(), Conv(width // 2, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class WaveformStage(nn.Module):
    """Sounds <-> latents, one a frame: the convolutional network of SoundStream (Zeghidour et al. 2021, arXiv
    2107.03312, section III-A) and EnCodec (Defossez et al. 2022, arXiv 2210.13438, section 3.1), without the latter's
    LSTM.

    A latent is as a picture's of height 1, so bottlenecks are those of pictures.

    Args:
        shape: [C, T] of the sounds; T a multiple of the product of the strides.
        latent_channels: of z.
        width: channels at the sample rate; doubled by each stride.
        strides: of the encoder's blocks, from the sound down; a frame is as many samples as their product.
        layers: residual units a block, of dilations 1, 3, 9, ...; SoundStream has 3, EnCodec 1.
        causal: whether a frame depends on no sample after it, and a sample on no later frame.

    Attributes:
        hop: samples of a frame.
        latent_shape: [latent_channels, 1, T / hop].

    Raises:
        ConfigError: T is no multiple of the hop.
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_channels: Positive,
        width: Positive = 16,
        strides: Sequence[int] = (2, 4, 4, 4),
        layers: Positive = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        channels, samples = shape
        self.hop = math.prod(strides)
        if samples % self.hop:
            raise ConfigError(
                f"model.network.strides={list(strides)}: frames of {self.hop} samples do not divide sounds of "
                f"{samples}; set data.samples={-(-samples // self.hop) * self.hop}"
            )
        self.latent_shape = (latent_channels, 1, samples // self.hop)
        widths = [width * 2**i for i in range(len(strides) + 1)]
        down: list[nn.Module] = [Conv(channels, width, 7, causal=causal)]
        up: list[nn.Module] = [Conv(latent_channels, widths[-1], 7, causal=causal)]
        for stride, (a, b) in zip(strides, pairwise(widths), strict=True):
            down += [ResidualUnit(a, 3**i, causal) for i in range(layers)]
            down += [nn.ELU(), Conv(a, b, 2 * stride, stride, causal=causal)]
        for stride, (a, b) in zip(strides[::-1], pairwise(widths[::-1]), strict=True):
            up += [nn.ELU(), TransposedConv(a, b, stride, causal)]
            up += [ResidualUnit(b, 3**i, causal) for i in range(layers)]
        self.encoder = nn.Sequential(*down, nn.ELU(), Conv(widths[-1], latent_channels, 3, causal=causal))
        self.decoder = nn.Sequential(*up, nn.ELU(), Conv(width, channels, 7, causal=causal))

    def encode(self, x: Tensor) -> Tensor:
        """[B, C, T] in [-1, 1] -> [B, latent_channels, 1, T / hop].

        Raises:
            ConfigError: T is no multiple of the hop.
        """
        if x.shape[-1] % self.hop:
            raise ConfigError(f"a sound of {x.shape[-1]} samples is no multiple of {self.hop}: pad or cut it")
        return self.encoder(x)[:, :, None]

    def decode(self, z: Tensor) -> Tensor:
        """[B, latent_channels, 1, frames] -> [B, C, frames hop] in about [-1, 1]."""
        return self.decoder(z[:, :, 0])

    @property
    def last(self) -> Tensor:
        """The decoder's last weight, by which gradients of losses are compared."""
        return self.decoder[-1].weight  # type: ignore[return-value]
