"""Encoder-decoders beside their sources, as decoders see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genlab.models.base import Rows

if TYPE_CHECKING:
    from genlab.models.seq2seq import Seq2Seq

State = tuple[Any, Tensor, Any]  # the encoder's output, the mask of the source, transformers' cache


class SourceReader:
    """A model beside its sources, as decoders see it: genlab.decoding.reading.Reader.

    Args:
        model: Seq2Seq.
        rows: conditions by name, of B sources; rows that are read may be any multiple of B, those of one source side
            by side.
    """

    def __init__(self, model: Seq2Seq, rows: Rows) -> None:
        self.model, self.encoded, self.limits = model, model.encode_source(rows), model.limits(rows)
        self.context, self.tokenizer, self.end = model.context, model.tokenizer, model.end
        self.longest = int(self.limits.max())

    def next_logits(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """See Reader; a row that has as many tokens as it may have ends."""
        from transformers.modeling_outputs import BaseModelOutput

        times = len(tokens) // len(self.limits)
        if state is None:
            hidden, mask = (part.repeat_interleave(times, 0) for part in self.encoded)
            cache = None
        else:
            hidden, mask, cache = state
        output = self.model.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, decoder_input_ids=tokens,
            cache=cache, use_cache=True,
        )  # fmt: skip
        logits, cache = output.logits[:, -1].float(), output.cache
        last = (cache.get_seq_length() >= self.limits).repeat_interleave(times)  # the first token is no text
        forced = torch.full_like(logits[:1], -torch.inf)
        forced[:, self.end] = 0
        return torch.where(last[:, None], forced, logits), (hidden, mask, cache)

    def select(self, state: State, rows: Tensor) -> State:
        """See Reader. Rows change places within those of one source, whose encoding stays."""
        state[2].self_attention_cache.reorder_cache(rows)  # in place
        return state

    def to_data(self, raw: Tensor) -> list[str]:
        return self.model.to_data(raw)
