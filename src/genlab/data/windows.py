"""Windows of a stream of tokens: what a model of text reads, in training and in evaluation."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from genlab.data.sources import Batch, Source, keyed
from genlab.errors import ConfigError
from genlab.noise import Stream, bits

IGNORED = -100  # label of a position that no loss counts
WORD = 0xFFFF  # uint16 values lie in int16 tensors, because torch indexes those on every device


class Windows(Source):
    """Windows of T tokens for next-token prediction: labels[b, t] is the token after input_ids[b, t].

    A window is T + 1 tokens from its start; from its end on the input is `pad` and the label -100. Where it starts and
    ends is one of five rules:

    consecutive  one after another; the last may be partial, so every token but the first is predicted exactly once
    seed         at random offsets in [0, L - T), a function of (seed, epoch, id); an epoch is L // T windows (nanoGPT)
    stride       one begins every `stride` tokens and counts, but for the first window, only its last `stride` labels:
                 each token is predicted once, from at least T - stride + 1 tokens, the first T from what stands before
                 them (transformers' documentation, "Perplexity of fixed-length models")
    rows         the order of truncated back-propagation through time: row b of a batch goes on where row b of the one
                 before ended (Merity et al. 2018, arXiv 1708.02182; `batchify` of salesforce/awd-lstm-lm). The stream
                 is cut into R rows of (L - 1) // R predicted tokens; what is left over at its end is not read. Item i
                 is window i // R of row i % R
    documents    one document each: the boundary before it, what it is conditioned on, its text, the boundary

    A batch has "input_ids" and "labels", int64 [B, T]; by `rows` also "row" int64 [B] and "begins" bool [B], true for
    the first window of a row, into which no state is carried; by `documents` also "attention_mask", int64 [B, T], 1 on
    the document.

    Args:
        tokens: int16 [L] that holds uint16 values, or int32 [L]; in memory or memory-mapped.
        length: T.
        origin: the file.
        seed: of the run.
        stride: 1 .. T.
        rows: R, of all devices and micro-batches together.
        documents: int64 [N] each: the token after the boundary before each document, and the token after the boundary
            that ends it; at most T apart.
        by_length: batches of documents are of like length in training, and as wide as their longest: at most T.
        pad: id that stands in input_ids beyond the end.
        condition_ids: [first, end) of the ids that are never a label: what a document is conditioned on.

    Raises:
        ConfigError: too few tokens.
    """

    def __init__(
        self,
        tokens: Tensor,
        length: int,
        origin: str,
        *,
        seed: int | None = None,
        stride: int | None = None,
        rows: int | None = None,
        documents: tuple[Tensor, Tensor] | None = None,
        by_length: bool = False,
        pad: int = 0,
        condition_ids: tuple[int, int] | None = None,
    ) -> None:
        assert tokens.dtype in (torch.int16, torch.int32), f"expected int16 or int32 [L], got {tokens.dtype}"
        assert sum(rule is not None for rule in (seed, stride, rows, documents)) <= 1, "one rule"
        count = len(tokens)
        if rows is not None and count <= rows:
            raise ConfigError(f"{origin}: {count} tokens, too few for {rows} contiguous rows; lower the batch")
        if documents is None and count < (2 if seed is None else length + 1):
            raise ConfigError(
                f"{origin}: {count} tokens, too few for a window of data.block_size={length} and its next token"
            )
        self.tokens, self.length, self.origin, self.seed = tokens, length, origin, seed
        self.stride, self.rows, self.documents = stride or length, rows, documents
        self.pad, self.condition_ids = pad, condition_ids
        self.lengths = documents[1] - documents[0] if documents is not None and by_length else None
        self.row_length = (count - 1) // (rows or 1)  # tokens that are predicted

    def __len__(self) -> int:
        if self.documents is not None:
            return len(self.documents[0])
        if self.seed is not None:
            return len(self.tokens) // self.length
        return (self.rows or 1) * (1 + -(-max(0, self.row_length - self.length) // self.stride))

    def spans(self, ids: Tensor, epochs: Tensor) -> tuple[Tensor, Tensor]:
        """The first token of each window, and the token after its last; int64 [B]."""
        if self.documents is not None:
            return self.documents[0][ids] - 1, self.documents[1][ids]
        if self.seed is not None:
            high, low = bits(keyed(ids, self.seed), (Stream.WINDOW, epochs), 2).unbind(1)
            start = ((high << 31) | (low >> 1)) % (len(self.tokens) - self.length)  # 63 random bits
            return start, start + self.length + 1
        row, step = ids % (self.rows or 1), ids // (self.rows or 1)
        return row * self.row_length + step * self.stride, (row + 1) * self.row_length + 1

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        start, end = self.spans(ids, epochs)
        width = self.length if self.lengths is None else int((end - start).max()) - 1
        at = start[:, None] + torch.arange(width + 1, device=ids.device)
        window = widened(self.tokens[at.clamp(max=len(self.tokens) - 1)])
        inside = at[:, 1:] < end[:, None]  # inputs whose next token is of the window
        labels = window[:, 1:].masked_fill(~inside, IGNORED)
        if self.condition_ids is not None:
            labels = labels.masked_fill((labels >= self.condition_ids[0]) & (labels < self.condition_ids[1]), IGNORED)
        if self.stride < self.length:
            labels[:, : self.length - self.stride].masked_fill_((ids > 0)[:, None], IGNORED)
        batch = {"input_ids": window[:, :-1].masked_fill(~inside, self.pad), "labels": labels}
        if self.documents is not None:
            batch["attention_mask"] = inside.to(torch.int64)
        if self.rows is not None:
            batch |= {"row": ids % self.rows, "begins": ids < self.rows}
        return batch

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor | None:
        if self.rows is not None or (self.seed is not None and self.condition_ids is None):
            return None  # all of a batch are equally long
        if self.condition_ids is None and self.stride == self.length:
            start, end = self.spans(ids, epochs)
            return (end - start - 1).clamp(max=self.length)
        return (self.batch(ids, epochs)["labels"] != IGNORED).sum(1)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + sum(part.nbytes for part in self.documents or ())

    def to(self, device: torch.device) -> Windows:
        return self._with(self.tokens.to(device), [part.to(device) for part in self.documents or ()])

    def select(self, ids: np.ndarray) -> Windows:
        if self.documents is None:
            raise ConfigError(f"{self.origin}: text is split by fraction, not by item")
        return self._with(self.tokens, [part[torch.from_numpy(ids)] for part in self.documents])

    def _with(self, tokens: Tensor, documents: list[Tensor]) -> Windows:
        other = copy.copy(self)
        other.tokens = tokens
        other.documents = (documents[0], documents[1]) if documents else None
        other.lengths = None if self.lengths is None else documents[1] - documents[0]
        return other


def widened(tokens: Tensor) -> Tensor:
    """Ids, int64, of stored tokens."""
    return tokens.to(torch.int64) & WORD if tokens.dtype == torch.int16 else tokens.to(torch.int64)
