"""Diffusion and flow matching in the latent space of a first stage, on words, on labels, or on nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from genlab.data.computed import computed_rows
from genlab.diffusion.parameterisation import Prediction, Weighting
from genlab.diffusion.processes import Process
from genlab.errors import ConfigError
from genlab.models.captioned_diffusion import CaptionedDiffusion
from genlab.models.latent_coder import LatentCoder
from genlab.networks.frozen import Frozen
from genlab.networks.text_encoder import TextEncoder


class LatentDiffusion(CaptionedDiffusion):
    """A diffusion model of latents (Rombach et al. 2022, arXiv 2112.10752): the first stage is a frozen part, and each
    channel of its latents is brought to mean 0 and deviation 1 over the training set (section 4.3.2 and appendix D.1
    bring all of them to one deviation). With a text encoder it is told captions: see CaptionedDiffusion.

    What frozen parts make of the items is computed once before training and kept in the cache under their hashes, if
    the data shows each item in one form; else at each step.

    Args:
        network: on latents, called as network(sample, timestep, class_labels), or with the arguments above: diffusers'
            UNet2DModel or UNet2DConditionModel.
        process: VP or Flow.
        shape: [C, H, W] of the pictures.
        first_stage: a frozen part, see LatentCoder.
        latent_shape: of its latents, for those who build networks by it; asserted.
        text: TextEncoder; or null.
        latent_mean: of each channel of the latents, or one number; null: measured.
        latent_std: likewise.
        prediction: see DiffusionModel, as the next three.
        caption_drop: share of training items whose caption or label is dropped, which guidance needs.
        compute_once: whether latents and states of texts are computed before training.

    Attributes:
        latent_mean, latent_std: float32 [c, 1, 1], part of the state.

    Raises:
        ConfigError: a combination without meaning.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        shape: Sequence[int],
        first_stage: Frozen,
        latent_shape: Sequence[int],
        text: TextEncoder | None = None,
        latent_mean: float | None = None,
        latent_std: float | None = None,
        prediction: Prediction = "v",
        weighting: Weighting = "own",
        num_classes: int | None = None,
        caption_drop: Annotated[float, "ge 0, lt 1"] = 0.1,
        channels_last: bool = False,
        compute_once: bool = True,
        chunk_size: int = 16,
    ) -> None:
        super().__init__(
            network, process, latent_shape, text, prediction, weighting, num_classes, caption_drop, channels_last,
            chunk_size,
        )  # fmt: skip
        self.first_stage, self.coder = first_stage, LatentCoder(first_stage, shape)
        self.compute_once = compute_once
        if self.coder.latent_shape != self.shape:
            raise ConfigError(
                f"model.latent_shape={list(self.shape)}: latents of {first_stage.source} are "
                f"{list(self.coder.latent_shape)}"
            )
        self.conditions = (*self.conditions[:-2], *self.edits(shape))
        channels = (self.shape[0], 1, 1)
        self.stated = latent_mean is not None and latent_std is not None
        self.register_buffer("latent_mean", torch.full(channels, latent_mean or 0.0))
        self.register_buffer("latent_std", torch.full(channels, latent_std or 1.0))

    @property
    def measured(self) -> bool:
        """Whether the scale of the latents is known: from the configuration, or from the weights that training begins
        with."""
        return self.stated or bool((self.latent_std != 1).any())

    # ---- latents

    def from_picture(self, image: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in [-1, 1] -> latents [B, *shape], of mean 0 and deviation 1."""
        with torch.no_grad():
            return (self.coder.encode(image) - self.latent_mean) / self.latent_std

    def to_picture(self, x_0: Tensor) -> Tensor:
        return self.coder.decode(x_0 * self.latent_std + self.latent_mean).float()  # under autocast, too

    def reconstruct(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The pictures, and what the first stage makes of them: no sample can be better."""
        return batch["image"], self.to_picture(self.from_picture(batch["image"]))

    def clean(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "latent" in batch:
            return (batch["latent"] - self.latent_mean) / self.latent_std
        return self.from_picture(batch["image"])

    # ---- before training

    def prepare(self, data: Any, device: torch.device) -> None:
        measured, varies = self.measured, getattr(data, "random_flip", False) or not self.compute_once
        for split in ("train", "val"):
            rows: dict[str, Tensor] = {}
            if not varies or (split == "train" and not measured):
                key = self.first_stage.sha256
                rows = computed_rows(data, split, "latents", key, self._latent_rows, device)
            if split == "train" and not measured:
                values = rows["latent"].transpose(0, 1).flatten(1).double()
                self.latent_mean.copy_(values.mean(1)[:, None, None])
                self.latent_std.copy_(values.std(1)[:, None, None])
            rows = {} if varies else rows
            if self.compute_once:
                rows = rows | self.computed_texts(data, split, device)
            for name, values in rows.items():
                data.attach(split, name, values)

    def _latent_rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"latent": self.coder.encode(batch["image"])}
