"""Text encoders: a transformers encoder as other networks read it, frozen or trained along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.frozen import Frozen

ENDED = -1  # in the place of a token, after the end of a text: as genlab.decoding.reading.ENDED


class TextStates(NamedTuple):
    """What an encoder gives for B texts.

    Attributes:
        states: of each token, [B, L, D].
        mask: which of them are of the text, bool [B, L].
        pooled: one vector a text, [B, D].
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """Token ids -> states, for conditions on texts: BERT, CLIP's text model, T5's encoder, or another of transformers.

    A text is read with what the tokenizer's own template puts around it ([CLS] and [SEP], CLIP's <|startoftext|> and
    <|endoftext|>, T5's </s>); where it has none, with its [PAD] after it.

    Args:
        network: of transformers; or a Frozen one, which has no parameters here and takes part in no step.
        width: D of its states, for those who build other networks by it; asserted.
        pool: 'mean' over the tokens (sentence encoders), 'first' ([CLS]), or 'end' (of the last token: CLIP).
        normalise: whether the pooled vector has length sqrt(D), so that its numbers are about 1, whatever the encoder.
        longest: most tokens that are read, those around the text included; a longer text is cut.
        fixed: whether all texts are padded to `longest`, and the padding is read as text (as Stable Diffusion does).
        pad: the token of the padding; None: the one that ends a text.

    Raises:
        ConfigError: another width.
    """

    def __init__(
        self,
        network: nn.Module | Frozen,
        width: Annotated[int, "gt 0"],
        pool: Literal["mean", "first", "end"] = "mean",
        normalise: bool = True,
        longest: Annotated[int, "gt 2"] = 77,
        fixed: bool = False,
        pad: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.width, self.pool, self.normalise = network, width, pool, normalise
        self.longest, self.fixed, self.pad = longest, fixed, pad
        config: Any = self._on("cpu").config
        if (own := getattr(config, "hidden_size", None) or getattr(config, "d_model", None)) != width:
            raise ConfigError(f"the text encoder's states have {own} numbers; set width={own}")
        self._frame: tuple[Any, list[int], list[int]] = (None, [], [])

    def _on(self, device: torch.device | str) -> Any:
        return self.network.on(device) if isinstance(self.network, Frozen) else self.network

    @property
    def frozen(self) -> bool:
        """Whether its states of a text never change."""
        return isinstance(self.network, Frozen)

    @property
    def settings(self) -> list[Any]:
        """What decides the states of a text beside the weights and the tokenizer."""
        return [self.pool, self.normalise, self.longest, self.fixed, self.pad]

    def room(self, tokenizer: Any) -> int:
        """Most tokens of a text itself."""
        before, after = self.frame(tokenizer)
        return self.longest - len(before) - len(after)

    def frame(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Ids before a text and after it."""
        if self._frame[0] is not tokenizer:  # once a vocabulary: each step asks for it
            template = tokenizer.encode("").ids
            if not template:
                pads = [tokenizer.token_to_id(token) for token in ("[PAD]", "<|endoftext|>", "</s>")]
                template = [next((pad for pad in pads if pad is not None), 0)]
            self._frame = tokenizer, template[:-1], template[-1:]
        return self._frame[1:]

    def forward(self, ids: Tensor, tokenizer: Any) -> TextStates:
        """ids: int64 [B, L'], -1 after the end of a row; a row may have none (the empty text)."""
        tokens, mask = self.framed(ids, tokenizer)
        options: Mapping[str, Any] = {} if self.fixed else {"attention_mask": mask.to(torch.int64)}
        states = self._on(ids.device)(input_ids=tokens, **options)[0]
        ends = mask.sum(1) - 1
        if self.pool == "first":
            pooled = states[:, 0]
        elif self.pool == "end":
            pooled = states[torch.arange(len(states), device=ids.device), ends]
        else:
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        if self.normalise:
            pooled = self.width**0.5 * nn.functional.normalize(pooled, dim=1)
        return TextStates(states, torch.ones_like(mask) if self.fixed else mask, pooled)

    def framed(self, ids: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
        """What the network reads, int64 [B, L], and which of it is text and frame, bool [B, L]."""
        before, after = self.frame(tokenizer)
        begin, room = len(before), self.room(tokenizer)
        lengths = (ids[:, :room] != ENDED).sum(1)
        ids = ids[:, : int(lengths.max())]
        width = self.longest if self.fixed else begin + len(after) + ids.shape[1]
        tokens = ids.new_full((len(ids), width), after[-1] if self.pad is None else self.pad)
        tokens[:, :begin] = ids.new_tensor(before)
        body = tokens[:, begin : begin + ids.shape[1]]
        body.copy_(torch.where(ids == ENDED, body, ids))
        end = (begin + lengths)[:, None]
        tokens.scatter_(1, end, after[-1])
        return tokens, torch.arange(width, device=ids.device) <= end
