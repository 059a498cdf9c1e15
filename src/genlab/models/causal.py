"""What language models over a causal network share: how they are read, and what feedback asks of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from genlab.models.language import LanguageModel
from genlab.networks.attention import logits_at


class CausalModel(LanguageModel):
    """p(x) = prod_t p(x_t | x_<t), by a network (input_ids [B, T], cache, use_cache) -> `.logits` [B, T, V] and
    `.cache`, which has `reorder_cache(rows)`, whatever it is trained on."""

    network: Any
    reading: Mapping[str, Any] = MappingProxyType({})  # further arguments of the network where it reads to write

    def token_log_p(self, rows: Tensor, counted: Tensor) -> Tensor:
        """log p of tokens given those before them in their rows, in nats, float32 [N], in the order of the rows.

        Args:
            rows: int64 [B, T], any number from 0 on after the end of a row: what stands there is not read before it.
            counted: bool [B, T], of which tokens; none of the first column. Logits are computed for them only.

        Raises:
            ConfigError: a network that is not of transformers.
        """
        logits = logits_at(self.network, counted[:, 1:], rows[:, :-1])
        return -F.cross_entropy(logits.float(), rows[counted], reduction="none")

    def text_log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of plain text, with nothing put around it.

        Args:
            batch: input_ids int64 [B, T]; labels int64 [B, T], the token that follows each, -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        labels = batch["labels"]
        logits = self.network(input_ids=batch["input_ids"], use_cache=False).logits
        nll = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
        return -nll.double().sum(1), (labels != -100).sum(1)

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See genlab.decoding.reading.Reader."""
        output = self.network(input_ids=tokens, cache=state, use_cache=True, **self.reading)
        return output.logits[:, -1], output.cache

    def select(self, state: Any, rows: Tensor) -> Any:
        """See genlab.decoding.reading.Reader."""
        state.reorder_cache(rows)  # in place
        return state
