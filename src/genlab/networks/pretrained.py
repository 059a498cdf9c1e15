"""Pretrained networks from a folder: nothing is fetched, no pickle is read, no code of the folder runs."""

from __future__ import annotations

from typing import Annotated, Any

from torch import nn

from genlab.errors import ConfigError
from genlab.files import folder_or_cached
from genlab.folders import load_folder


def causal_lm(path: str, vocab_size: Annotated[int, "gt 0"] | None = None) -> nn.Module:
    """A causal language model that transformers' `save_pretrained` has written: config.json and model.safetensors.

    A run that is trained from it keeps its own weights, but needs the folder again to be built.

    Args:
        path: of the folder; or a name that scripts/fetch_data.py knows, such as smollm2.
        vocab_size: of the tokenizer; None: not checked.

    Returns:
        transformers' network of that configuration with its weights, in float32, attention by SDPA where it has it.

    Raises:
        ConfigError: no such folder; weights as a pickle only; an adapter; a kind that transformers lacks; weights that
            are damaged or lack a part of the network; fewer tokens than `vocab_size`.
    """
    from transformers import AutoModelForCausalLM

    return _network(path, vocab_size, AutoModelForCausalLM)


def seq2seq_lm(path: str, vocab_size: Annotated[int, "gt 0"] | None = None) -> nn.Module:
    """An encoder-decoder, T5, BART or Marian, in the same form; see `causal_lm`.

    Raises:
        ConfigError: likewise; a folder that does not say with which token a target begins, ends or is padded.
    """
    from transformers import AutoModelForSeq2SeqLM

    network = _network(path, vocab_size, AutoModelForSeq2SeqLM)
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        known = [getattr(config, name, None) for config in (network.config, network.generation_config)]
        token = next((token for token in known if isinstance(token, int)), None)
        if token is None:
            raise ConfigError(f"model.network.path={path}: says no {name}; add it to generation_config.json there")
        setattr(network.config, name, token)
    return network


def _network(path: str, vocab_size: int | None, kind: Any) -> Any:
    folder = folder_or_cached(path)
    where = f"model.network.path={path}"
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{where}: no folder with a config.json; name what save_pretrained has written, or (a causal model) fetch "
            "one: python scripts/fetch_data.py smollm2"
        )
    network: Any = load_folder(folder, kind, where)
    rows = network.get_input_embeddings().weight.shape[0]
    if vocab_size is not None and rows < vocab_size:
        raise ConfigError(f"{where}: has {rows} tokens, the tokenizer {vocab_size}: take the folder's own tokenizer")
    return network.train()
