"""A frozen first stage as latent models see it: pictures to latents and back, whatever library it is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.models.autoencoder import Autoencoder
from genlab.networks.frozen import Frozen


class LatentCoder:
    """Encodes and decodes by a first stage: a run of `Autoencoder`, or a folder of diffusers' AutoencoderKL or VQModel.

    The latent of a Gaussian bottleneck is its mode; codes are taken at the decoder, so that any latent can be decoded
    (Rombach et al. 2022, arXiv 2112.10752, section 3.1).

    Args:
        frozen: the first stage.
        shape: [C, H, W] of the pictures.

    Attributes:
        latent_shape: [c, h, w].

    Raises:
        ConfigError: it is none, or does not take such pictures.
    """

    def __init__(self, frozen: Frozen, shape: Sequence[int]) -> None:
        self.frozen = frozen
        network: Any = frozen.on("cpu")
        self.own = isinstance(network, Autoencoder)
        if not self.own and type(network).__name__ not in ("AutoencoderKL", "VQModel"):
            raise ConfigError(
                f"model.first_stage: {frozen.source} is a {type(network).__name__}; expected a run of "
                "model=autoencoder, or a folder of diffusers' AutoencoderKL or VQModel"
            )
        try:
            with torch.no_grad():
                self.latent_shape = tuple(self.encode(torch.zeros(1, *shape)).shape[1:])
        except RuntimeError as error:
            raise ConfigError(f"model.first_stage: {frozen.source} takes no pictures {list(shape)} ({error})") from None

    def encode(self, image: Tensor) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, *latent_shape]."""
        network = self.frozen.on(image.device)
        if self.own:
            return network.features(image)
        code = network.encode(image)
        return code.latent_dist.mode() if hasattr(code, "latent_dist") else code.latents

    def decode(self, z: Tensor) -> Tensor:
        """[B, *latent_shape] -> [B, C, H, W] in about [-1, 1]."""
        network = self.frozen.on(z.device)
        return network.decode(network.bottleneck.snap(z)) if self.own else network.decode(z).sample
