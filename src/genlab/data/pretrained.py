"""Pretrained language models of other programs made into folders of transformers: once, in bytes that a sha256 pins.

FOLDER/config.json, generation_config.json   the network, the token that ends an answer
FOLDER/model.safetensors                     float32
FOLDER/tokenizer.json, tokenizer_config.json the vocabulary, special tokens, the template of a chat

Imports no torch, but where it reads a network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data.convert import write_safetensors
from genlab.errors import ConfigError, DataError, unreadable
from genlab.files import write_json

CONTROL = 3  # a token's type in GGUF: no text is made of it
ENDS = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}  # special tokens: GGUF's name, transformers'
CONFIG = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings", "hidden_act", "rms_norm_eps", "rope_parameters",
          "attention_bias", "mlp_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
          "dtype")  # fmt: skip


def bpe_tokenizer(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[int], single_digits: bool = False
) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE vocabulary, GPT-2's kind.

    Args:
        tokens: by id.
        merges: "a b", in order.
        special: ids that no text is made of.
        single_digits: a number is cut into its digits before merges (SmolLM's vocabulary).
    """
    pieces: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, pieces]} if single_digits else pieces,
        "post_processor": None,
        "decoder": pieces,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def llama_from_gguf(unpacked: Path, target: Path) -> None:
    """Makes a folder of transformers of a package's one GGUF file, a Llama with a vocabulary of GPT-2's kind.

    transformers reads the weights and the network's sizes. It believes what the file says, so a file that is not
    pinned by a sha256 should not come here.

    Raises:
        ConfigError: gguf or accelerate, which transformers needs for this, is not installed.
        DataError: the file is broken, or not of this kind.
    """
    try:
        import accelerate  # noqa: F401
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(f'a GGUF file needs {error.name}: pip install "genlab[gguf]"') from None
    import torch
    from transformers import AutoModelForCausalLM

    source = next(unpacked.rglob("*.gguf"))
    with unreadable(source):
        facts = {key: field.contents() for key, field in GGUFReader(source).fields.items()}
        for key, known in (
            ("general.architecture", ("llama",)),
            ("tokenizer.ggml.model", ("gpt2",)),
            ("tokenizer.ggml.pre", ("smollm", "gpt-2")),
        ):
            if facts[key] not in known:
                raise DataError(f"{source.name}: {key} is {facts[key]!r}; expected {' or '.join(known)}")
        network, report = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if lacking := sorted(report["missing_keys"]):
            raise DataError(f"{source.name}: it has no {lacking[0]}")
        tokens, merges = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.merges"]
        special = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == CONTROL]
        tokenizer = bpe_tokenizer(tokens, merges, special, single_digits=facts["tokenizer.ggml.pre"] == "smollm")
        said = network.config.to_dict()
        config = {"architectures": [type(network).__name__], **{key: said[key] for key in CONFIG}}
    ends = {name: facts.get(f"tokenizer.ggml.{part}_token_id") for part, name in ENDS.items()}
    special_ids = {f"{name}_token_id": ends[name] for name in ("bos", "eos", "pad")}
    config |= special_ids  # None, where Llama has a default
    config["rms_norm_eps"] = _short(config["rms_norm_eps"])
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": _short(said["rope_parameters"]["rope_theta"])}
    state = network.state_dict()
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    write_safetensors(target / "model.safetensors", {name: t.numpy() for name, t in state.items()}, {"format": "pt"})
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", special_ids)
    write_json(target / "tokenizer.json", tokenizer)
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": tokens[i] for name, i in ends.items() if i is not None},
            **({"chat_template": facts["tokenizer.chat_template"]} if "tokenizer.chat_template" in facts else {}),
        },
    )


def _short(number: float) -> float:
    """The shortest decimal that is this number in single precision: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def gpt2_tokenizer(unpacked: Path, target: Path) -> None:
    """tokenizer.json of GPT-2's encoder.json and vocab.bpe.

    Raises:
        DataError: they are not what openai/gpt-2 has published.
    """
    encoder, merges = (next(unpacked.rglob(name)) for name in ("encoder.json", "vocab.bpe"))
    try:
        ids: dict[str, int] = json.loads(encoder.read_text(encoding="utf-8"))
        tokens = sorted(ids, key=ids.__getitem__)
        pairs = merges.read_text(encoding="utf-8").splitlines()[1:]  # the first line is a version
        if [ids[token] for token in tokens] != list(range(len(tokens))) or not all(p.count(" ") == 1 for p in pairs):
            raise ValueError("ids or merges with gaps")
        write_json(target / "tokenizer.json", bpe_tokenizer(tokens, pairs, [ids["<|endoftext|>"]]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{encoder.name}, {merges.name}: not GPT-2's vocabulary ({error})") from None
