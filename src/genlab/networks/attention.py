"""Causal attention without a mask as a tensor, which would keep torch from its fused kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

FULLY_CAUSAL = ("gpt2", "llama")  # kinds of transformers whose layers all see all tokens before, and nothing else
NAME = "sdpa_causal"


@contextmanager
def whole_sequences(network: nn.Module) -> Iterator[None]:
    """Within it, networks of these kinds read batches without padding, packing or cache: attention is told that it is
    causal. Else transformers builds a mask [B, 1, T, T] under torch.compile (torch < 2.14), and asks the device for the
    end of each row without it. Other networks, and those with attention other than SDPA, are left as they are.
    """
    config: Any = getattr(network, "config", None)
    if getattr(config, "model_type", None) not in FULLY_CAUSAL or config._attn_implementation != "sdpa":
        yield
        return
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, sdpa_attention_forward)  # under a name for which no mask function is known
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
