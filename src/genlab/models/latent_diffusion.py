"""Diffusion and flow matching in the latent space of a first stage, on words, on labels, or on nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.conditions import Caption, Negative
from genlab.data.computed import computed_rows, text_key
from genlab.diffusion.guidance import Told
from genlab.diffusion.parameterisation import Prediction, Weighting
from genlab.diffusion.processes import Process
from genlab.errors import ConfigError
from genlab.models.diffusion import DiffusionModel
from genlab.models.latent_coder import LatentCoder
from genlab.networks.frozen import Frozen
from genlab.networks.text_encoder import TextEncoder, TextStates

TEXT = "text_"  # before the names of a text's states in a batch


class LatentDiffusion(DiffusionModel):
    """A diffusion model of latents (Rombach et al. 2022, arXiv 2112.10752): the first stage is a frozen part, and each
    channel of its latents is brought to mean 0 and deviation 1 over the training set (section 4.3.2 and appendix D.1
    bring all of them to one deviation).

    With a text encoder the network is told a caption: its tokens' states by cross-attention
    (`encoder_hidden_states`, `encoder_attention_mask`), and its pooled vector in the place of a label
    (`class_labels`), where the network has a projection for it. Nothing said is the empty caption.

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
        if text is not None and num_classes:
            raise ConfigError("model.text and model.num_classes: a model is told captions or labels; set one to null")
        super().__init__(
            network, process, latent_shape, prediction, weighting, num_classes, caption_drop, channels_last, chunk_size
        )
        self.first_stage, self.coder = first_stage, LatentCoder(first_stage, shape)
        self.text, self.compute_once = text, compute_once
        if self.coder.latent_shape != self.shape:
            raise ConfigError(
                f"model.latent_shape={list(self.shape)}: latents of {first_stage.source} are "
                f"{list(self.coder.latent_shape)}"
            )
        self.conditions = (*((Caption(), Negative()) if text else self.conditions[:-2]), *self.edits(shape))
        self.reads = ("image", "caption") if text else self.reads
        channels = (self.shape[0], 1, 1)
        self.stated = latent_mean is not None and latent_std is not None
        self.register_buffer("latent_mean", torch.full(channels, latent_mean or 0.0))
        self.register_buffer("latent_std", torch.full(channels, latent_std or 1.0))
        self._empty: tuple[Any, TextStates] | None = None
        config: Any = getattr(network, "config", {})
        self.tells_pooled = text is not None and config.get("class_embed_type") is not None

    @property
    def longest_caption(self) -> int | None:
        """Most tokens of a caption that the text encoder reads."""
        return None if self.text is None else self.text.room(self.tokenizer)

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

    # ---- captions

    def told(self, rows: Mapping[str, Tensor], count: int) -> tuple[Told, Told]:
        if self.text is None:
            return super().told(rows, count)
        null = self._states(rows["negative"]) if "negative" in rows else self._unsaid()
        if f"{TEXT}states" in rows:
            said = TextStates(*(rows[TEXT + name] for name in TextStates._fields))
        elif "caption" in rows:
            said = self._states(rows["caption"])
        else:
            said = null
        longest = max(said.states.shape[1], null.states.shape[1])
        told, nothing = (self._arguments(states, count, longest) for states in (said, null))
        return (nothing if said is null else told), nothing

    def _unsaid(self) -> TextStates:
        """States of the empty caption, [1, L, D]; of a frozen encoder read once."""
        if self._empty is None or self._empty[0] is not self.tokenizer or self._empty[1].states.device != self.device:
            states = self._states(torch.full((1, 1), -1, device=self.device))
            if self.text is None or not self.text.frozen:
                return states
            self._empty = self.tokenizer, states
        return self._empty[1]

    def _states(self, caption: Tensor) -> TextStates:
        assert self.text is not None
        return self.text(caption, self.tokenizer)

    def _arguments(self, text: TextStates, count: int, longest: int) -> Told:
        """Arguments of the network from states of B or 1 texts: B rows, `longest` tokens."""
        more = longest - text.states.shape[1]
        states = F.pad(text.states, (0, 0, 0, more)).expand(count, -1, -1)
        told = {"encoder_hidden_states": states}
        if self.text is not None and not self.text.fixed:
            told["encoder_attention_mask"] = F.pad(text.mask, (0, more)).expand(count, -1)
        return told | ({"class_labels": text.pooled.expand(count, -1)} if self.tells_pooled else {})

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
            if self.compute_once and self.text is not None and self.text.frozen and data.one_caption:
                key = text_key(self.text, self.tokenizer)
                rows = rows | computed_rows(data, split, "texts", key, self._text_rows, device)
            for name, values in rows.items():
                data.attach(split, name, values)

    def _latent_rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"latent": self.coder.encode(batch["image"])}

    def _text_rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States as wide as the longest caption of the data, which batches of captions have."""
        frame = self.text.longest - self.text.room(self.tokenizer)  # type: ignore[union-attr]
        text, width = self._states(batch["caption"]), batch["caption"].shape[1] + frame
        more = max(0, width - text.states.shape[1])
        states, mask = F.pad(text.states, (0, 0, 0, more)), F.pad(text.mask, (0, more))
        return {f"{TEXT}states": states, f"{TEXT}mask": mask, f"{TEXT}pooled": text.pooled}
