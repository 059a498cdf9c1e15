"""How likely a text is to n-grams of the train split: what a model of the same tokens must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.windows import IGNORED, Windows, widened
from genlab.errors import ConfigError
from genlab.evaluation.metrics.given import Count, Rows, TextLikelihood


class NGrams:
    """Probabilities of tokens given the n - 1 before them, by Witten and Bell 1991, method C, interpolated:

        p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))

    with c counts in the train split, t(h) distinct tokens after h, and h' without its first token; 1 / V below that.

    Args:
        tokens: int64 [L], ids from 0 to V - 1.
        order: n.
        vocab_size: V; V^n must be below 2^63.
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self.counts: list[tuple[np.ndarray, np.ndarray]] = []  # n-grams as numbers of base V, sorted; how often
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # likewise; c(h); t(h)
        for k in range(order):
            before = self.numbers(tokens, k)[k - 1 : -1] if k else np.zeros(len(tokens), np.int64)
            grams, counts = np.unique(before * vocab_size + tokens[k:], return_counts=True)
            contexts, first, distinct = np.unique(grams // vocab_size, return_index=True, return_counts=True)
            self.counts.append((grams, counts))
            self.contexts.append((contexts, np.add.reduceat(counts, first), distinct))

    def numbers(self, tokens: np.ndarray, k: int) -> np.ndarray:
        """The last k tokens at each place, as a number of base V, int64 of the shape of `tokens`; along the last axis.
        Of the first k - 1 places it is of no use."""
        out = np.zeros_like(tokens)
        for back in range(k):
            out[..., back:] += tokens[..., : tokens.shape[-1] - back] * self.vocab_size**back
        return out

    def probabilities(self, inputs: np.ndarray, labels: np.ndarray) -> Iterator[np.ndarray]:
        """p of each label given its input and those before it in the row, float64 [B, T], for n from 1 to the order.

        Args:
            inputs: int64 [B, T].
            labels: int64 [B, T], the token after each input.
        """
        p = np.full(labels.shape, 1 / self.vocab_size)
        for k, ((grams, counts), (contexts, totals, distinct)) in enumerate(
            zip(self.counts, self.contexts, strict=True)
        ):
            before = self.numbers(inputs, k)
            whole = np.broadcast_to(np.arange(1, labels.shape[1] + 1) >= k, labels.shape)
            seen = _look_up(contexts, totals, before) * whole
            kinds = _look_up(contexts, distinct, before) * whole
            count = _look_up(grams, counts, before * self.vocab_size + labels) * whole
            p = np.where(seen > 0, (count + kinds * p) / np.maximum(seen + kinds, 1), p)
            yield p


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each key that is wanted, 0 where it is not there."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


class TextNGrams(TextLikelihood):
    """As TextLikelihood, of n-grams counted in the train split (`NGrams`) in the place of the model: nats a token of
    each order, as ngram2_nats_per_token.

    Args:
        orders: n, 2 for bigrams.
        batch: windows at a time.
    """

    key = "text_ngrams"

    def __init__(self, orders: Sequence[int] = (2,), batch: Count = 100) -> None:
        super().__init__(batch=batch)
        self.orders = tuple(orders)
        if not self.orders or not all(isinstance(n, int) and n > 0 for n in self.orders):
            raise ConfigError(f"evaluation.metrics.{self.key}.orders={list(orders)}: give numbers from 1 on, as [2, 5]")
        self._grams: NGrams | None = None

    def settings(self) -> dict[str, Any]:
        """The orders and the batch; windows are the data's own."""
        return {"orders": list(self.orders), "batch": self.batch}

    def source(self, model: Any, data: Any, protocol: Any) -> Any:
        """The data's own windows; also counts, once.

        Raises:
            ConfigError: the data are no windows of a text; n-grams of so large a vocabulary have no room in 63 bits.
        """
        at, train = f"evaluation.metrics.{self.key}", data.source("train")
        if not isinstance(train, Windows):
            raise ConfigError(f"{at}: counts windows of a text, and data {data.manifest.name!r} has none")
        size = data.tokenizer.get_vocab_size()
        if size ** max(self.orders) >= 1 << 63:
            longest = next(n for n in range(63, 0, -1) if size**n < 1 << 63)
            raise ConfigError(f"{at}.orders={list(self.orders)}: at most {longest} with a vocabulary of {size} tokens")
        if self._grams is None:
            self._grams = NGrams(widened(train.tokens.cpu()).numpy(), max(self.orders), size)
        return super().source(model, data, protocol)

    def score(self, model: Any, batch: Mapping[str, Tensor]) -> Rows:
        assert self._grams is not None
        labels = batch["labels"].cpu()
        counted = labels != IGNORED
        context = torch.full((len(labels),), labels.shape[1])
        rows: Rows = {"sum": torch.zeros(len(labels)), "tokens": counted.sum(1), "context": context}
        told = batch["input_ids"].cpu().numpy(), labels.clamp(min=0).numpy()
        for order, p in enumerate(self._grams.probabilities(*told), 1):
            rows[f"sum{order}"] = (torch.from_numpy(p).log() * counted).sum(1)
        return rows

    def compute(self) -> dict[str, float]:
        rows = self.judged.data
        tokens = int(rows["tokens"].sum())
        return {f"ngram{n}_nats_per_token": float(-rows[f"sum{n}"].sum() / max(tokens, 1)) for n in self.orders}
