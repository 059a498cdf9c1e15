"""What language models over a causal network of transformers' form share: how they are read, and what feedback asks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from genlab.models.language import LanguageModel
from genlab.networks.attention import whole_sequences


class CausalModel(LanguageModel):
    """p(x) = prod_t p(x_t | x_<t), by a network (input_ids [B, T], cache, use_cache) -> `.logits` [B, T, V] and
    `.cache`, which has `reorder_cache(rows)`."""

    network: Any
    reading: Mapping[str, Any] = MappingProxyType({})  # further arguments of the network where it reads to write

    def token_log_p(self, rows: Tensor, counted: Tensor, network: Any = None) -> Tensor:
        """log p of tokens given those before them in their rows, in nats, float32 [N], in the order of the rows.

        Args:
            rows: int64 [B, T], any number from 0 on after the end of a row: what stands there is not read before it.
            counted: bool [B, T], of which tokens; none of the first column. Logits are computed for them only.
            network: in the place of the model's own, as the reference of a policy.
        """
        network = self.network if network is None else network
        with whole_sequences(network):
            if getattr(network, "get_output_embeddings", None) is None:  # a network of our own
                logits = network(input_ids=rows[:, :-1], use_cache=False).logits[counted[:, 1:]]
            else:
                states = network.base_model(input_ids=rows[:, :-1], use_cache=False)[0]
                logits = network.get_output_embeddings()(states[counted[:, 1:]])
        return -F.cross_entropy(logits.float(), rows[counted], reduction="none")

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See genlab.decoding.reading.Reader."""
        output = self.network(input_ids=tokens, cache=state, use_cache=True, **self.reading)
        return output.logits[:, -1], output.cache

    def select(self, state: Any, rows: Tensor) -> Any:
        """See genlab.decoding.reading.Reader."""
        state.reorder_cache(rows)  # in place
        return state
