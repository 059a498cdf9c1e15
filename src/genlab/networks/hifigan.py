"""HiFi-GAN's generator, and a vocoder with its published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import CheckpointError, ConfigError, unreadable
from genlab.networks.frozen import Frozen, cached_weights
from genlab.networks.vocoder import Vocoder

# Of the files that `python scripts/fetch_data.py hifigan` makes.
SHA256 = {
    "universal": "fa6fdf80a8afe73740100124b086732819a31094bdbeeb70fce421bd9c762df7",
    "ljspeech": "b56b75704de33f28249db38c90bdaec66e430f9c256ba02d54b369f1ec63cf95",
}
SLOPE = 0.1  # of the leaky ReLUs; before the last convolution the authors' code has torch's default, 0.01
Positive = Annotated[int, "gt 0"]


class Residual(nn.Module):
    """A residual block of the multi-receptive field fusion (appendix A.1, table 5): for each dilation, a dilated and a
    plain convolution of one kernel, and their input added."""

    def __init__(self, channels: int, kernel: int, dilations: list[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, T] -> the same shape."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class HiFiGANGenerator(nn.Module):
    """Log-mels [B, bands, frames] -> waveforms [B, 1, frames prod(rates)] in [-1, 1]: Kong, Kim and Bae 2020,
    "HiFi-GAN", arXiv 2010.05646, section 2.2; the defaults are V1 (table 5). Its parts have the names of the authors'
    code; there is no weight norm, which inference does not need.

    Args:
        bands: of the log-mels.
        channels: after the first convolution (h_u); each upsampling halves them.
        rates: factor of each upsampling.
        kernels: of the upsamplings (k_u).
        residual_kernels: of the blocks whose mean is taken after each upsampling (k_r).
        dilations: of each block (D_r).
    """

    def __init__(
        self,
        bands: Positive = 80,
        channels: Positive = 512,
        rates: tuple[int, ...] = (8, 8, 2, 2),
        kernels: tuple[int, ...] = (16, 16, 4, 4),
        residual_kernels: tuple[int, ...] = (3, 7, 11),
        dilations: tuple[int, ...] = (1, 3, 5),
    ) -> None:
        super().__init__()
        self.blocks = len(residual_kernels)  # after each upsampling
        widths = [channels // 2**i for i in range(len(rates) + 1)]
        self.conv_pre = nn.Conv1d(bands, channels, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(widths[i], widths[i + 1], kernel, rate, padding=(kernel - rate) // 2)
            for i, (rate, kernel) in enumerate(zip(rates, kernels, strict=True))
        )
        self.resblocks = nn.ModuleList(
            Residual(width, kernel, list(dilations)) for width in widths[1:] for kernel in residual_kernels
        )
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = self.conv_pre(log_mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            own = self.resblocks[i * self.blocks : (i + 1) * self.blocks]
            x = sum((block(x) for block in own[1:]), own[0](x)) / self.blocks
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


class HiFiGAN(Frozen, Vocoder):
    """A vocoder of the authors' generator V1, for the log-mels that `genlab.networks.mel.LogMel` gives by default. It
    draws nothing: seeds change nothing. A sound whose log-mel has been cut out differs near the cuts.

    Args:
        weights: "universal" (many speakers) or "ljspeech" (one), which `python scripts/fetch_data.py hifigan` fetches;
            or a safetensors file of the same names.

    Raises:
        ConfigError: they are not there.
        DataError: the cached file is another one, or cannot be read.
        CheckpointError: the file is none of this generator.
    """

    sample_rate, hop, bands = 22050, 256, 80

    def __init__(self, weights: Literal["universal", "ljspeech"] | str = "universal") -> None:
        if weights in SHA256:
            state = cached_weights("hifigan", f"{weights}.safetensors", SHA256[weights])
        else:
            path = Path(weights).expanduser()
            if not path.is_file():
                known = " or ".join(SHA256)
                raise ConfigError(
                    f"model.vocoder.weights={weights}: no such file; name {known}, or a .safetensors file"
                )
            with unreadable(path):
                state = load_file(path)
        generator = HiFiGANGenerator()
        try:
            generator.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{weights}: not the weights of HiFi-GAN V1 ({reason})") from None
        super().__init__(generator, f"hifigan-{weights}" if weights in SHA256 else weights)

    def sound(self, log_mel: Tensor, seeds: Tensor) -> Tensor:
        # One at a time: which algorithm a convolution takes, and with it the last bits, depends on the batch.
        network = self.on(log_mel.device)
        return torch.cat([network(one)[:, 0] for one in log_mel.split(1)])
