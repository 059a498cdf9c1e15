"""Overlapping windows of a token stream, in which each token is predicted once from a long context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.data.sources import IGNORED, Tokens, widened, without
from genlab.errors import ConfigError

WINDOWS = "evaluation.metrics.text_likelihood"


class SlidingWindows:
    """Windows of `context` inputs that begin every `stride` tokens (transformers' documentation, "Perplexity of
    fixed-length models"). The first one counts all its predictions, each later one the last `stride` only, so a token
    is predicted once, from at least context - stride + 1 tokens (the first `context` from what stands before them).

    Reads as a `genlab.data.sources.Source` does: `len`, and `batch` with "input_ids" and "labels", int64 [B, context],
    labels shifted, -100 where nothing is counted.

    Args:
        source: of the split, its tokens one stream.
        context: inputs a window.
        stride: 1 .. context; context: windows that do not overlap.
        at: key of the metric's settings, for messages.

    Raises:
        ConfigError: stride > context.
    """

    rows = None  # they may be read in any order

    def __init__(self, source: Tokens, context: int, stride: int, at: str = WINDOWS) -> None:
        if stride > context:
            raise ConfigError(f"{at}.stride={stride}: must be at most the context, {context} tokens")
        self.tokens, self.given, self.context, self.stride = source.tokens, source.given, context, stride
        self.predicted = len(source.tokens) - 1  # all tokens but the first

    def __len__(self) -> int:
        return 1 + -(-max(0, self.predicted - self.context) // self.stride)

    def batch(self, ids: Tensor, epochs: Tensor) -> dict[str, Tensor]:
        at = (ids * self.stride)[:, None] + torch.arange(self.context + 1)
        window = widened(self.tokens[at.clamp(max=self.predicted)])
        labels = without(window[:, 1:], self.given)
        old = (torch.arange(self.context) < self.context - self.stride)[None] & (ids > 0)[:, None]
        beyond = at[:, 1:] > self.predicted
        return {
            "input_ids": window[:, :-1].masked_fill(beyond, 0),
            "labels": labels.masked_fill(old | beyond, IGNORED),
        }


def windows_of(
    model: Any, data: Any, split: str, context: int | None, stride: int | None, at: str = WINDOWS
) -> SlidingWindows | Any:
    """What a likelihood reads: the data's own windows, or SlidingWindows where context or stride are stated.

    Args:
        context: tokens; None: as many as in the data's own windows.
        stride: None: windows of `context` without overlap.
        at: key of the metric's settings, for messages.

    Raises:
        ConfigError: the split is no stream of tokens, or the context is more than the model can read.
    """
    source = data.source(split)
    if context is None and stride is None:
        return source
    if source.rows is not None:
        raise ConfigError(f"{at}.stride: contiguous windows have a context of their own; leave stride and context out")
    if not isinstance(source, Tokens):
        raise ConfigError(
            f"{at}.stride: each item is a document of its own, which is read from its beginning; "
            "take data.documents=packed, or leave stride and context out"
        )
    context = context or source.length
    limit = getattr(model, "context", None)
    if limit is not None and context > limit:
        raise ConfigError(f"{at}.context={context}: the model reads at most {limit} tokens")
    return SlidingWindows(source, context, stride or context, at)
