"""Neural audio codecs: the first stage of sounds, whose latents are a few integers a frame.

Zeghidour et al. 2021 (SoundStream, arXiv 2107.03312); Defossez et al. 2022 (EnCodec, arXiv 2210.13438).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.modality import Audio, Modality
from genlab.models.autoencoder import Autoencoder
from genlab.networks.audio_codec import WaveformStage
from genlab.networks.bottlenecks import ResidualQuantiser
from genlab.objectives.adversarial import total
from genlab.objectives.spectrograms import feature_matching


class AudioCodec(Autoencoder):
    """An autoencoder of sounds whose bottleneck is residual vector quantisation.

    A batch has "audio", float32 [B, C, T] in [-1, 1].

    Args:
        network: encoder and decoder of waveforms.
        bottleneck: of several levels of codes; each more is a higher bit rate.
        sample_rate: of the sounds, in Hz.
        matching_weight: weight of feature matching (arXiv 2210.13438, equation 2) beside the adversarial one, for which
            the critic needs `features`; 0 for none.
        options: those of Autoencoder; `perceptual` is a distance of spectrograms.

    Raises:
        ConfigError: another bottleneck; feature matching without a critic that has features.
    """

    item, reads = "audio", ("audio",)
    modality: Modality = Audio(8000)  # of `sample_rate`
    bottleneck: ResidualQuantiser

    def __init__(
        self,
        network: WaveformStage,
        bottleneck: ResidualQuantiser,
        sample_rate: Annotated[int, "gt 0"],
        matching_weight: Annotated[float, "ge 0"] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(network, bottleneck, **options)  # type: ignore[arg-type]
        if not isinstance(bottleneck, ResidualQuantiser):
            raise ConfigError(f"model.bottleneck: {type(bottleneck).__name__} has no levels; take residual_vq")
        if self.critic is not None and matching_weight and not hasattr(self.critic, "features"):
            raise ConfigError(
                f"model.matching_weight={matching_weight:g}: {type(self.critic).__name__} has no features; set it to 0"
            )
        self.modality, self.sample_rate, self.hop = Audio(sample_rate), sample_rate, network.hop
        self.matching_weight = matching_weight

    @property
    def levels(self) -> int:
        """Codebooks, one code of each a frame."""
        return self.bottleneck.levels

    def bitrate(self, levels: int | None = None) -> float:
        """Bits a second of codes of so many levels (None: all): log2(codes) levels sample_rate / hop."""
        return math.log2(self.bottleneck.size) * (levels or self.levels) * self.sample_rate / self.hop

    def check_items(self, data: Any) -> None:
        super().check_items(data)
        check_rate(data, self.sample_rate, "model.sample_rate")

    def game(self, back: Tensor, x: Tensor) -> dict[str, Tensor]:
        if not self.matching_weight:
            return super().game(back, x)
        critic: Any = self.critic
        fake, features = critic.features(back)
        with torch.no_grad():
            real, aims = critic.features(x)
        matching = feature_matching(features, aims)
        paired = real if getattr(self.objective, "paired", False) else None
        adversarial = total(self.objective.generator, fake, paired) + self.matching_weight * matching
        return {"adversarial": adversarial, "matching": matching}

    # ---- capabilities

    def to_codes(self, sound: Tensor) -> Tensor:
        """[B, C, T] in [-1, 1] -> int64 [B, levels, T / hop], places in the codebooks, the coarsest level first.

        Raises:
            ConfigError: T is no multiple of the hop.
        """
        return self.bottleneck.codes(self.network.encode(sound))[:, :, 0]

    def from_codes(self, codes: Tensor) -> Tensor:
        """int64 [B, n, frames] of the first n levels -> sounds [B, C, frames hop] in about [-1, 1].

        Raises:
            ConfigError: n is not between 1 and the number of levels, or a code is not in its codebook.
        """
        size = self.bottleneck.size
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
            raise ConfigError(f"codes from {int(codes.min())} to {int(codes.max())}: expected 0 to {size - 1}")
        return self.decode(self.bottleneck.vectors(codes[:, :, None]))

    def reconstruct(self, batch: Mapping[str, Tensor], levels: int | None = None) -> tuple[Tensor, Tensor]:
        """The sounds, and what comes back through so many levels (None: all)."""
        codes = self.to_codes(batch["audio"])
        return batch["audio"], self.from_codes(codes if levels is None else codes[:, :levels])


def check_rate(data: Any, sample_rate: int, key: str) -> None:
    """Refuses data of another sample rate.

    Raises:
        ConfigError: says both rates.
    """
    if data.sample_rate != sample_rate:
        raise ConfigError(
            f"data={data.name} is of {data.sample_rate} Hz, {key} of {sample_rate} Hz: "
            f"set data.sample_rate={sample_rate}"
        )
