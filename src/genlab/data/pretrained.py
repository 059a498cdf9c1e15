"""Pretrained language models of other programs made into folders of transformers: once, in bytes that a sha256 pins.

FOLDER/config.json, generation_config.json   the network, the token that ends an answer
FOLDER/model.safetensors                     float32
FOLDER/tokenizer.json, tokenizer_config.json the vocabulary, special tokens, the template of a chat

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data.convert import write_safetensors
from genlab.data.gguf import GGUF
from genlab.errors import DataError

CONTROL = 3  # a token's type in GGUF: no text is made of it
LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


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


def _write(path: Path, value: Any) -> None:
    path.write_bytes((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query's or key's projection [heads * d, in] from llama.cpp's order to transformers': llama.cpp turns
    neighbouring pairs of a head, transformers its first half against the second."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def llama_folder(unpacked: Path, target: Path) -> None:
    """Makes a folder of transformers of the one GGUF file in a package."""
    llama_from_gguf(next(unpacked.rglob("*.gguf")), target)


def llama_from_gguf(source: Path, target: Path) -> None:
    """Makes the folder `target`, which is there, of a Llama in GGUF with a vocabulary of GPT-2's kind.

    Raises:
        DataError: the file is broken, or not of this kind.
    """
    file = GGUF(source)
    facts = file.metadata
    try:
        for key, known in (
            ("general.architecture", ("llama",)),
            ("tokenizer.ggml.model", ("gpt2",)),
            ("tokenizer.ggml.pre", ("smollm", "gpt-2")),
        ):
            if facts[key] not in known:
                raise DataError(f"{source.name}: {key} is {facts[key]!r}; expected {' or '.join(known)}")
        tokens = facts["tokenizer.ggml.tokens"]
        width, heads = facts["llama.embedding_length"], facts["llama.attention.head_count"]
        shared, layers = facts.get("llama.attention.head_count_kv", heads), facts["llama.block_count"]
        names = dict(OUTER)
        for i in range(layers):
            names |= {f"blk.{i}.{old}.weight": f"model.layers.{i}.{new}.weight" for old, new in LAYER.items()}
        if "output.weight" in file.tensors:
            names["output.weight"] = "lm_head.weight"
        if unknown := sorted(file.tensors.keys() - names.keys()):
            raise DataError(f"{source.name}: {unknown[0]} is no tensor of a Llama")
        arrays = {new: file.array(old) for old, new in names.items()}
        for name in arrays:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                arrays[name] = unpermuted(arrays[name], heads if "q_proj" in name else shared)
        ends = {part: facts.get(f"tokenizer.ggml.{part}_token_id") for part in ("bos", "eos", "padding", "unknown")}
        config: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(tokens),
            "hidden_size": width,
            "intermediate_size": facts["llama.feed_forward_length"],
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": shared,
            "head_dim": facts.get("llama.rope.dimension_count", width // heads),
            "max_position_embeddings": facts["llama.context_length"],
            "hidden_act": "silu",
            "rms_norm_eps": _short(facts["llama.attention.layer_norm_rms_epsilon"]),
            "rope_parameters": {"rope_type": "default", "rope_theta": _short(facts.get("llama.rope.freq_base", 1e4))},
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "bos_token_id": ends["bos"],
            "eos_token_id": ends["eos"],
            "pad_token_id": ends["padding"],
            "dtype": "float32",
        }
        special = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == CONTROL]
        single_digits = facts["tokenizer.ggml.pre"] == "smollm"
        tokenizer = bpe_tokenizer(tokens, facts["tokenizer.ggml.merges"], special, single_digits)
        said = _tokenizer_config(tokens, ends, facts)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{source.name}: not the expected model ({type(error).__name__}: {error})") from None
    write_safetensors(target / "model.safetensors", arrays, {"format": "pt"})
    _write(target / "config.json", config)
    _write(target / "generation_config.json", {f"{k}_token_id": config[f"{k}_token_id"] for k in ("bos", "eos", "pad")})
    _write(target / "tokenizer.json", tokenizer)
    _write(target / "tokenizer_config.json", said)


def _short(number: float) -> float:
    """The shortest decimal that is this number in single precision: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _tokenizer_config(
    tokens: Sequence[str], ends: Mapping[str, int | None], facts: Mapping[str, Any]
) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    found = {f"{names[part]}_token": tokens[i] for part, i in ends.items() if i is not None}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **found,
        **({"chat_template": facts["tokenizer.chat_template"]} if "tokenizer.chat_template" in facts else {}),
    }


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
        _write(target / "tokenizer.json", bpe_tokenizer(tokens, pairs, [ids["<|endoftext|>"]]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{encoder.name}, {merges.name}: not GPT-2's vocabulary ({error})") from None
