"""A recurrent language model with transformers' calling convention."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Share = Annotated[float, "ge 0, lt 1"]
Positive = Annotated[int, "gt 0"]


@dataclass
class LSTMState:
    """(h, c) of each layer, [1, B, width] each: what transformers' Cache is to a transformer."""

    layers: list[tuple[Tensor, Tensor]]

    def reorder_cache(self, rows: Tensor) -> None:
        """Row i becomes row rows[i]; rows int64 [B]."""
        self.layers = [(h[:, rows], c[:, rows]) for h, c in self.layers]

    def rows(self, rows: Tensor) -> LSTMState:
        """A state whose row i is row rows[i]; rows int64 [n]."""
        return LSTMState([(h[:, rows], c[:, rows]) for h, c in self.layers])

    def where(self, kept: Tensor) -> LSTMState:
        """The same with zeros in the rows that are not `kept`, bool [B]."""
        zero = ~kept[None, :, None]
        return LSTMState([(h.masked_fill(zero, 0), c.masked_fill(zero, 0)) for h, c in self.layers])

    def detach(self) -> LSTMState:
        """The same without gradients, for the next segment of truncated back-propagation through time."""
        return LSTMState([(h.detach(), c.detach()) for h, c in self.layers])


@dataclass
class LSTMOutput:
    """Logits [B, T, V] and, with use_cache, the state after the last token; outputs of the last layer before and after
    dropout, [B, T, E], which activation regularisation is of."""

    logits: Tensor
    cache: LSTMState | None
    raw: Tensor
    dropped: Tensor


class AWDLSTM(nn.Module):
    """The LSTM language model of Merity et al. 2018, arXiv 1708.02182, without its optimizer (section 3).

    Dropout masks are of torch's global generator, as every library's. Activation regularisation (section 4.6) is a
    loss, of genlab.models.autoregressive.

    Args:
        vocab_size: V, distinct tokens.
        embedding: width of the embedding, and of the last layer where weights are tied.
        width: of the other layers.
        layers: LSTMs on top of one another.
        tied: the head's weight is the embedding's (section 4.5; Press and Wolf 2017, arXiv 1608.05859).
        weight_drop: share of hidden-to-hidden weights set to zero, the same through a whole window (section 2,
            DropConnect).
        embedding_drop: share of tokens whose embedding is zero throughout a batch (section 4.3).
        input_drop: dropout on embeddings; as all dropout here with one mask for all time steps of a row (section 4.2).
        hidden_drop: dropout between layers.
        output_drop: dropout after the last layer.
        embedding_range: embeddings begin uniform in +- this; the paper's code has 0.1, which short trainings by Adam
            with tied weights take long to leave.
    """

    recurrent = True  # its state can be carried from window to window

    def __init__(
        self,
        vocab_size: Positive,
        embedding: Positive = 400,
        width: Positive = 1150,
        layers: Positive = 3,
        tied: bool = True,
        weight_drop: Share = 0.0,
        embedding_drop: Share = 0.0,
        input_drop: Share = 0.0,
        hidden_drop: Share = 0.0,
        output_drop: Share = 0.0,
        embedding_range: Annotated[float, "gt 0"] = 0.1,
    ) -> None:
        super().__init__()
        self.weight_drop, self.embedding_drop = weight_drop, embedding_drop
        self.drops = [input_drop, *[hidden_drop] * (layers - 1), output_drop]  # before each layer, and after the last
        widths = [embedding, *[width] * (layers - 1), embedding if tied else width]
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], vocab_size)
        nn.init.uniform_(self.embedding.weight, -embedding_range, embedding_range)
        if tied:
            self.head.weight = self.embedding.weight
        nn.init.zeros_(self.head.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        cache: LSTMState | None = None,
        use_cache: bool = False,
        inputs_embeds: Tensor | None = None,
    ) -> LSTMOutput:
        """Tokens int64 [B, T] after a state (None: zeros) -> logits of the next token of each, [B, T, V].

        Args:
            inputs_embeds: float [B, T, E] in the place of tokens; `embedding_drop` is of tokens only.
        """
        if inputs_embeds is None:
            assert input_ids is not None, "tokens or embeddings"
            table = self.embedding.weight
            if self.training and self.embedding_drop:
                table = table * F.dropout(table.new_ones(len(table), 1), self.embedding_drop)
            inputs_embeds = F.embedding(input_ids, table)
        h = self._locked(inputs_embeds, self.drops[0])
        states, raw = [], h
        for i, layer in enumerate(self.layers):
            weights = {}
            if self.training and self.weight_drop:
                weights["weight_hh_l0"] = F.dropout(layer.weight_hh_l0, self.weight_drop)  # type: ignore[arg-type]
            before = cache.layers[i] if cache is not None else None
            raw, after = functional_call(layer, weights, (h, before)) if weights else layer(h, before)
            h = self._locked(raw, self.drops[i + 1])
            states.append(after)
        return LSTMOutput(self.head(h), LSTMState(states) if use_cache else None, raw, h)

    def _locked(self, h: Tensor, p: float) -> Tensor:
        """Variational dropout of [B, T, E]: one mask for all T."""
        if not (self.training and p):
            return h
        return h * F.dropout(torch.ones_like(h[:, :1]), p)
