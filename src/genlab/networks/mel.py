"""Mel spectrograms of sounds, and sounds from them by Griffin-Lim: no weights, no randomness that is not keyed."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.vocoder import Vocoder
from genlab.noise import Stream, fold_in, uniform

Positive = Annotated[int, "gt 0"]
PHASES = 0x6D656C  # folded into a seed: start phases are no function of what else is drawn by it


def slaney_mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear below 1,000 Hz, 15 mels there; then log, 27 mels to 6,400."""
    high = 15 + torch.log(hertz.clamp(min=1000.0) / 1000) * (27 / math.log(6.4))
    return torch.where(hertz < 1000, hertz * 3 / 200, high)


def slaney_hertz(mel: Tensor) -> Tensor:
    """The inverse of `slaney_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15).clamp(min=0) * (math.log(6.4) / 27)))


def mel_filters(sample_rate: int, n_fft: int, bands: int, low: float, high: float) -> Tensor:
    """Triangular filters of equal area, librosa's default: float32 [bands, n_fft // 2 + 1].

    Args:
        low: where the lowest begins, in Hz. high: where the highest ends.
    """
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (sample_rate / n_fft)
    edges = slaney_mel(torch.tensor([low, high], dtype=torch.float64))
    points = slaney_hertz(torch.linspace(edges[0], edges[1], bands + 2, dtype=torch.float64))
    width, ramps = points.diff(), points[:, None] - bins
    rising, falling = -ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]
    weights = torch.minimum(rising, falling).clamp(min=0)
    return (weights * (2 / (points[2:] - points[:-2]))[:, None]).float()


class LogMel(nn.Module):
    """Logarithm of a mel spectrogram of magnitudes. The defaults are HiFi-GAN's (arXiv 2010.05646, section 3.1, and its
    code), which FastSpeech 2 and others have as well.

    The ends are reflected by (n_fft - hop) / 2 samples, so T samples are T // hop frames; windows are Hann's. Numbers
    are librosa's of the same sound so padded: `melspectrogram(center=False, power=1)`.

    Args:
        sample_rate: in Hz.
        n_fft: samples of a window. hop: from one to the next.
        bands: number of mel filters.
        low: where they begin, in Hz. high: where they end.
        floor: smaller magnitudes are taken for this before the logarithm.

    Raises:
        ConfigError: bands above half of the sample rate, or a hop longer than the window.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self,
        sample_rate: Positive = 22050,
        n_fft: Positive = 1024,
        hop: Positive = 256,
        bands: Positive = 80,
        low: float = 0.0,
        high: float = 8000.0,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= low < high <= sample_rate / 2:
            raise ConfigError(f"mel: low={low:g}, high={high:g} Hz: expected 0 <= low < high <= {sample_rate / 2:g}")
        if hop > n_fft or (n_fft - hop) % 2:
            raise ConfigError(f"mel: hop={hop}, n_fft={n_fft}: expected a hop up to n_fft, an even number below it")
        self.sample_rate, self.n_fft, self.hop, self.bands, self.floor = sample_rate, n_fft, hop, bands, floor
        self.pad = (n_fft - hop) // 2
        window = torch.hann_window(n_fft, dtype=torch.float64)  # in float32 its own rounding is heard in silence
        self.register_buffer("window", window.float(), persistent=False)
        self.register_buffer("filters", mel_filters(sample_rate, n_fft, bands, low, high), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """float [..., T] -> [..., bands, T // hop], differentiable.

        Raises:
            ConfigError: fewer samples than the ends are reflected by.
        """
        return (self.filters @ self.spectrum(sound).abs()).clamp(min=self.floor).log()

    def spectrum(self, sound: Tensor) -> Tensor:
        """Short-time Fourier transform: float [..., T] -> complex [..., n_fft // 2 + 1, T // hop]."""
        if sound.shape[-1] <= self.pad:
            raise ConfigError(f"mel: {sound.shape[-1]} samples, expected more than {self.pad}")
        flat = F.pad(sound.reshape(-1, 1, sound.shape[-1]), (self.pad, self.pad), mode="reflect")[:, 0]
        out = torch.stft(flat, self.n_fft, self.hop, window=self.window, center=False, return_complex=True)
        return out.reshape(*sound.shape[:-1], *out.shape[1:])

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Complex [B, n_fft // 2 + 1, frames] -> the sound [B, frames hop] whose transform is nearest to it
        (Griffin and Lim 1984, equation 6)."""
        parts = torch.fft.irfft(spectrum, self.n_fft, dim=1) * self.window[:, None]
        size = (1, (spectrum.shape[2] - 1) * self.hop + self.n_fft)
        fold = {"output_size": size, "kernel_size": (1, self.n_fft), "stride": (1, self.hop)}
        weight = self.window.square()[None, :, None].expand(1, -1, spectrum.shape[2])
        sound = F.fold(parts, **fold)[:, 0, 0] / F.fold(weight, **fold)[:, 0, 0].clamp(min=1e-8)
        return sound[:, self.pad : size[1] - self.pad]


class GriffinLim(Vocoder):
    """Sound from a log-mel by the fast Griffin-Lim algorithm: Griffin and Lim 1984, "Signal estimation from modified
    short-time Fourier transform"; momentum: Perraudin, Balazs and Sondergaard 2013, "A fast Griffin-Lim algorithm",
    algorithm 2. It knows nothing of speech: intelligible, with a metallic ring.

    Magnitudes of the bins come from those of the bands by non-negative least squares (Lee and Seung 2001, "Algorithms
    for non-negative matrix factorization", theorem 1, with the filters fixed). Start phases are a function of the seed.

    Args:
        iterations: of Griffin-Lim.
        momentum: 0: the algorithm of 1984; 0.99 as librosa has it.
        mel: of the log-mels; None: `LogMel`'s defaults.
    """

    def __init__(
        self, iterations: Positive = 32, momentum: Annotated[float, "ge 0, lt 1"] = 0.99, mel: LogMel | None = None
    ) -> None:
        self.mel, self.iterations, self.momentum = mel or LogMel(), iterations, momentum
        self.sample_rate, self.hop, self.bands = self.mel.sample_rate, self.mel.hop, self.mel.bands

    @property
    def name(self) -> str:
        return f"Griffin-Lim, {self.iterations} iterations, momentum {self.momentum:g}"

    def magnitudes(self, log_mel: Tensor, updates: int = 30) -> Tensor:
        """[B, bands, frames] -> non-negative [B, n_fft // 2 + 1, frames] whose mel bands are nearly those."""
        filters, target = self.mel.filters, log_mel.exp()
        start = (torch.linalg.pinv(filters) @ target).clamp(min=0)
        out = start + 1e-3 * start.mean((1, 2), keepdim=True) + 1e-9  # what is 0 would stay 0
        aim = filters.T @ target
        for _ in range(updates):
            out = out * aim / (filters.T @ (filters @ out) + 1e-9)
        return out

    def sound(self, log_mel: Tensor, seeds: Tensor) -> Tensor:
        self.mel.to(log_mel.device)
        magnitude = self.magnitudes(log_mel)
        phase = uniform(fold_in(seeds, PHASES), Stream.INITIAL, magnitude.shape[1:]) * (2 * math.pi)
        spectrum = torch.polar(magnitude, phase.to(magnitude))
        before = torch.zeros_like(spectrum)
        for _ in range(self.iterations):
            rebuilt = self.mel.spectrum(self.mel.inverse(spectrum))
            ahead = rebuilt + self.momentum / (1 + self.momentum) * (rebuilt - before)
            spectrum, before = magnitude * ahead / ahead.abs().clamp(min=1e-12), rebuilt
        return self.mel.inverse(spectrum)
