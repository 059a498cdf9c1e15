"""Critics of sounds that look at their complex spectrograms, one at each of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from genlab.errors import ConfigError

Positive = Annotated[int, "gt 0"]


class SpectrogramCritic(nn.Module):
    """Sounds [B, C, T] -> logits [B, 1, frames, bands] by two-dimensional convolutions of real and imaginary part:
    dilated in time by 1, 2, 4, strided by 2 over frequencies."""

    def __init__(self, channels: int, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("hann", torch.hann_window(window), persistent=False)
        layers = [nn.Conv2d(2 * channels, width, (3, 9), padding=(1, 4))]
        for dilation in (1, 2, 4):
            layers.append(nn.Conv2d(width, width, (3, 9), (1, 2), (dilation, 4), (dilation, 1)))
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)]
        for layer in layers:  # keeps the size of a spectrogram, which torch's own biases would drown
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        self.head = weight_norm(layers.pop())
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)

    hann: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        flat = x.float().flatten(0, 1)
        spectrum = torch.stft(
            flat, self.window, self.window // 4, window=self.hann, normalized=True, return_complex=True
        )
        h = torch.view_as_real(spectrum).view(*x.shape[:2], *spectrum.shape[1:], 2)
        h = h.permute(0, 1, 4, 3, 2).flatten(1, 2)  # [B, 2C, frames, bands]
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return self.head(h), features


class STFTCritic(nn.Module):
    """Sounds [B, C, T] in [-1, 1] -> a map of logits for each resolution: the multi-scale STFT discriminator of EnCodec
    (Defossez et al. 2022, arXiv 2210.13438, section 3.4).

    Args:
        channels: C.
        width: channels of the convolutions; the paper's is 32.
        windows: of the transforms, in samples; frames are a quarter of one apart.

    Raises:
        ConfigError: no windows.
    """

    def __init__(self, channels: Positive = 1, width: Positive = 32, windows: Sequence[int] = (1024, 512, 256)) -> None:
        super().__init__()
        if not windows:
            raise ConfigError("model.critic.windows=[]: name at least one, in samples")
        self.scales = nn.ModuleList(SpectrogramCritic(channels, width, window) for window in windows)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.features(x)[0]

    def features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of each resolution, and the features of all layers of all of them, [B, ...] each."""
        logits, features = [], []
        for scale in self.scales:
            out, seen = scale(x)
            logits.append(out)
            features += seen
        return logits, features
