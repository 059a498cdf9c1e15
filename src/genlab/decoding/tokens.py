"""Choosing the next token from logits, with each item's own seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenSampler:
    """Ancestral sampling from a tempered, truncated distribution.

    Args:
        max_new_tokens: tokens to add to the prompt.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833); 0 keeps all.
        top_p: the smallest set of likeliest tokens whose mass reaches p (nucleus; Holtzman et al. 2020,
            arXiv 1904.09751); 1 keeps all.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def nfe(self) -> int:
        """Network evaluations an item: one a token, thanks to the key-value cache."""
        return self.max_new_tokens

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Next tokens by inversion of the cumulative distribution.

        Args:
            logits: float [B, V].
            uniform: float [B] in [0, 1), one number an item.

        Returns:
            int64 [B].
        """
        if self.temperature == 0:
            return logits.argmax(1)
        # In float64 and in order of likelihood: rounding then cannot move the borders between tokens by much.
        values, order = (logits.double() / self.temperature).sort(dim=1, descending=True, stable=True)
        probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # mass of the likelier tokens
        kept = before < self.top_p
        if self.top_k:
            kept[:, self.top_k :] = False
        kept[:, 0] = True
        probabilities = probabilities * kept
        cumulative = probabilities.cumsum(1)
        target = uniform.double()[:, None] * cumulative[:, -1:]
        rank = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[1] - 1)
        last = kept.sum(1, keepdim=True) - 1  # rounding of the last sum must not reach a dropped token
        return order.gather(1, torch.minimum(rank, last)).squeeze(1)
