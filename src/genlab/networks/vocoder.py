"""What makes sound of a log-mel."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from genlab.errors import ConfigError


class Vocoder(ABC):
    """Log-mel -> waveform, in inference only. See `genlab.networks.mel.LogMel` for the form of a log-mel.

    Attributes:
        sample_rate: of the sound, in Hz.
        hop: samples of a frame.
        bands: of the log-mels that it takes.
    """

    sample_rate: int
    hop: int
    bands: int

    @property
    @abstractmethod
    def name(self) -> str:
        """In records: what makes the sound, and by which weights."""

    @abstractmethod
    def sound(self, log_mel: Tensor, seeds: Tensor) -> Tensor:
        """float32 [B, bands, frames] -> [B, frames hop], in about [-1, 1].

        Args:
            seeds: int64 [B], for a vocoder that draws something.
        """

    @torch.no_grad()
    def __call__(self, log_mel: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Waveforms, float32 [B, 1, frames hop] in [-1, 1], on the device of the log-mels [B, bands, frames]. One that
        would be louder is scaled down as a whole, since cutting its peaks would be heard.

        Args:
            seeds: int64 [B]; None: 0 to B - 1. A sound depends on its own log-mel and seed alone.

        Raises:
            ConfigError: log-mels of another form.
        """
        if log_mel.ndim != 3 or log_mel.shape[1] != self.bands:
            raise ConfigError(f"vocoder: log-mels {list(log_mel.shape)}, expected [B, {self.bands}, frames]")
        rows = torch.arange(len(log_mel), device=log_mel.device) if seeds is None else seeds.to(log_mel.device)
        sound = self.sound(log_mel.float(), rows)
        return (sound / sound.abs().amax(1, keepdim=True).clamp(min=1))[:, None]
