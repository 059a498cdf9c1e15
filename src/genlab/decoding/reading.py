"""What decoders share: prompts of unequal length, a causal network that reads growing rows, stop strings.

Rows of a batch stand left-aligned and are read position by position from the end of the shortest prompt on; a row whose
prompt is longer takes its own tokens until it ends. So there is no padding to mask, positions are those of the row
alone, and any causal network will do. (Meta's Llama generates in this way.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from genlab.errors import ConfigError

ENDED = -1  # in the place of a token: the row has ended


@runtime_checkable
class Reader(Protocol):
    """A model that goes from left to right, as decoders see it.

    It may also have `end`, the id of the token that ends a row, and `longest`, most new tokens of any row.

    Attributes:
        context: most tokens that it can read at a time; None: any number.
        tokenizer: of the library tokenizers; asked only where there are stop strings.
    """

    context: int | None
    tokenizer: Any

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Reads tokens, int64 [B, n], after those in `state` (None: none) -> logits [B, V] of the token after the last
        of them, and the state with them."""

    def select(self, state: Any, rows: Tensor) -> Any:
        """The state whose row i is row rows[i] of `state`, which is not used again; rows int64 [B]."""


@dataclass(frozen=True)
class Decoded:
    """What a decoder gives.

    Attributes:
        tokens: int64 [B, T], prompt and continuation; after the end of a row -1.
        log_p: float64 [B], the model's log-probability of the continuation in nats: neither tempered nor truncated.
        count: int64 [B], tokens of the continuation.
    """

    tokens: Tensor
    log_p: Tensor
    count: Tensor


class Reading:
    """A reader beside rows that grow: it reads only what is new, and begins anew where its context is full.

    Raises:
        ConfigError: a model that does not go from left to right.
    """

    def __init__(self, reader: Reader) -> None:
        if not isinstance(reader, Reader):
            raise ConfigError(f"sampler: {type(reader).__name__} has no next token; take sampler=unmasking")
        self.reader, self.state, self.seen, self.start = reader, None, 0, 0

    def logits(self, tokens: Tensor) -> Tensor:
        """[B, V] of the token after tokens, int64 [B, t], whose first columns were read before."""
        t = tokens.shape[1]
        start = window_start(t, self.reader.context)
        if start != self.start:
            self.state, self.seen, self.start = None, start, start
        logits, self.state = self.reader.next_logits(tokens[:, self.seen :].clamp(min=0), self.state)
        self.seen = t
        return logits

    def select(self, rows: Tensor) -> None:
        """Row i goes on from row rows[i]."""
        self.state = self.reader.select(self.state, rows)


def window_start(t: int, context: int | None) -> int:
    """The first of the t tokens in a row that the (t+1)-th is predicted from.

    With absolute positions a full context cannot slide: its later half is read again, which keeps the cost of a token
    constant on average. A function of t alone, so rows of a batch do it together and each as if it were alone.
    """
    if context is None or t <= context:
        return 0
    step = context + 1 - max(1, context // 2)
    return step * (1 + (t - context - 1) // step)


def most_steps(limit: int, reader: Reader) -> int:
    """New tokens of a row at most: the sampler's limit, or the reader's own."""
    return min(limit, getattr(reader, "longest", None) or limit)


def lengths_of(rows: Tensor) -> Tensor:
    """Tokens of each row, int64 [B], of rows that end with -1."""
    return (rows != ENDED).sum(1)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of unequal length as int64 [B, longest], with -1 after the end of each."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[ENDED] * (longest - len(row))] for row in rows], dtype=torch.int64)


class Stops:
    """Whether rows have come to a stop string, or to the reader's own end.

    Only new tokens are looked at, one more of them at each call. A token is at least one byte, so the last n tokens
    hold a string of n bytes that ends in the last of them.
    """

    def __init__(self, strings: Sequence[str], reader: Any) -> None:
        self.strings, self.tokenizer, self.end = strings, reader.tokenizer, getattr(reader, "end", None)
        self.span = max((len(s.encode()) for s in strings), default=0)

    def __bool__(self) -> bool:
        """Whether anything could end a row."""
        return bool(self.strings) or self.end is not None

    def met(self, tokens: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
        """Bool [B]: of `rows` (bool [B]), those that end with their newest token.

        Args:
            tokens: int64 [B, t].
            lengths: int64 [B], of the prompts.
        """
        ended = torch.zeros_like(rows) if self.end is None else rows & (tokens[:, -1] == self.end)
        if not self.strings:
            return ended
        first = lengths.clamp(min=tokens.shape[1] - self.span).tolist()
        for i in rows.nonzero().flatten().tolist():
            text = self._text(tokens[i].tolist(), first[i])
            ended[i] |= any(string in text for string in self.strings)
        return ended

    def _text(self, tokens: list[int], first: int) -> str:
        """Text of the tokens from `first` on, behind the token before: some decoders (sentencepiece's) drop the space
        with which a text begins."""
        text = self.tokenizer.decode(tokens[max(0, first - 1) :], skip_special_tokens=False)
        before = self.tokenizer.decode(tokens[max(0, first - 1) : first], skip_special_tokens=False)
        if text.startswith(before):
            return text[len(before) :]
        return self.tokenizer.decode(tokens[first:], skip_special_tokens=False)  # a character lies across the border
