"""How a causal network of transformers reads a batch, and its logits where they are wanted, nowhere else.

Attention without a mask as a tensor, which would keep torch from its fused kernels; rows that hold several documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from genlab.errors import ConfigError

FULLY_CAUSAL = ("gpt2", "llama")  # kinds of transformers whose layers all see all tokens before, and nothing else
NAME = "sdpa_causal"
# Kinds whose attention is cut where positions begin again at 0; a test holds each of them to it.
PACKED = (*FULLY_CAUSAL, "gpt_neox", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
CHANGED = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # what some do to the logits of their head


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


def attend_by_products(model: nn.Module) -> None:
    """Networks of transformers within a model attend by plain matrix products where they would by torch's SDPA, whose
    backward pass on a CPU is many times slower in bfloat16 than those are."""
    network: Any
    for network in model.modules():
        if hasattr(network, "set_attn_implementation") and network.config._attn_implementation == "sdpa":
            network.set_attn_implementation("eager")


def logits_at(network: Any, chosen: Tensor, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """The logits of some places of a batch, float [N, V] in the order of `chosen.nonzero()`: a head over many tokens is
    computed at these alone.

    Args:
        network: a causal one of transformers, with `base_model` and `get_output_embeddings()`.
        chosen: bool [B, T].
        input_ids: int64 [B, T]. What is behind a row's end is to the right, so no mask is needed.
        position_ids: int64 [B, T], of rows of several documents, each of which begins at 0 and sees no other; None:
            a row is one.

    Raises:
        ConfigError: a network of another library; of a kind that is not known to keep documents apart.
    """
    kind = getattr(getattr(network, "config", None), "model_type", None)
    if not hasattr(network, "get_output_embeddings"):
        raise ConfigError(
            f"{type(network).__name__} reads no answers: take a network of transformers (model=pretrained_lm)"
        )
    changed = any(getattr(network.config, name, None) not in (None, 1.0) for name in CHANGED)
    read = network if changed else network.base_model
    if position_ids is None:
        with whole_sequences(network):
            states = read(input_ids=input_ids, use_cache=False)[0]
    else:
        if kind not in PACKED:
            raise ConfigError(
                f"no network of the kind {kind} is known to keep packed documents apart, only {', '.join(PACKED)}"
            )
        states = read(input_ids=input_ids, position_ids=position_ids, use_cache=False)[0]
    return states[chosen] if changed else network.get_output_embeddings()(states[chosen])
