"""Diffusion and flow matching on whatever a subclass makes x_0 of, told a caption by a text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.conditions import Caption, Negative
from genlab.data.computed import Rows, computed_rows, text_key
from genlab.diffusion.guidance import Told
from genlab.diffusion.parameterisation import Prediction, Weighting
from genlab.diffusion.processes import Process
from genlab.errors import ConfigError
from genlab.models.diffusion import DiffusionModel
from genlab.networks.text_encoder import TextEncoder, TextStates

TEXT = "text_"  # before the names of a text's states in a batch


class CaptionedDiffusion(DiffusionModel):
    """A diffusion model whose network is told a caption where there is a text encoder: its tokens' states by
    cross-attention (`encoder_hidden_states`, `encoder_attention_mask`), and its pooled vector in the place of a label
    (`class_labels`), where the network has a projection for it. Nothing said is the empty caption.

    Args:
        network: see DiffusionModel; with captions as diffusers' UNet2DConditionModel.
        process: VP or Flow.
        shape: of x_0, [C, H, W].
        text: TextEncoder; or null.
        prediction: see DiffusionModel, as the rest.
        caption_drop: share of training items whose caption or label is dropped, which guidance needs.

    Raises:
        ConfigError: captions and labels at once.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        shape: Sequence[int],
        text: TextEncoder | None,
        prediction: Prediction,
        weighting: Weighting,
        num_classes: int | None,
        caption_drop: float,
        channels_last: bool,
        chunk_size: int,
    ) -> None:
        if text is not None and num_classes:
            raise ConfigError("model.text and model.num_classes: a model is told captions or labels; set one to null")
        super().__init__(
            network, process, shape, prediction, weighting, num_classes, caption_drop, channels_last, chunk_size
        )
        self.text = text
        if text is not None:
            self.conditions, self.reads = (Caption(), Negative(), *self.conditions), ("image", "caption")
        self._empty: tuple[Any, TextStates] | None = None
        config: Any = getattr(network, "config", {})
        self.tells_pooled = text is not None and config.get("class_embed_type") is not None

    @property
    def longest_caption(self) -> int | None:
        """Most tokens of a caption that the text encoder reads."""
        return None if self.text is None else self.text.room(self.tokenizer)

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

    def computed_texts(self, data: Any, split: str, device: torch.device) -> Rows:
        """States of the captions of a split, computed once where they never change; else nothing."""
        if self.text is None or not self.text.frozen or not data.source("train").one_caption:
            return {}
        key = text_key(self.text, self.tokenizer)
        return computed_rows(data, split, "texts", key, self._text_rows, device)

    def _text_rows(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States as wide as the longest caption of the data, which batches of captions have."""
        frame = self.text.longest - self.text.room(self.tokenizer)  # type: ignore[union-attr]
        text, width = self._states(batch["caption"]), batch["caption"].shape[1] + frame
        more = max(0, width - text.states.shape[1])
        states, mask = F.pad(text.states, (0, 0, 0, more)), F.pad(text.mask, (0, more))
        return {f"{TEXT}states": states, f"{TEXT}mask": mask, f"{TEXT}pooled": text.pooled}
