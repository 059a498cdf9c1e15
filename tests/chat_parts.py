"""A folder with a chat template, and conversations, for the tests of chat data and of chat in the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from genlab.data.vocabulary import END, train_tokenizer

V = 260  # bytes, "ab", and three special tokens
# ChatML with a default system turn, as SmolLM2's folder has it.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat_vocabulary() -> Any:
    """Bytes, <|endoftext|>, <|im_start|> and <|im_end|>."""
    tokenizer = train_tokenizer("byte_bpe", 258, ["ab"], [], [END])
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return tokenizer


def make_chat_folder(folder: Path, template: str | None = CHATML, kind: str = "llama") -> Path:
    """As transformers' save_pretrained leaves it, of a small network with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = chat_vocabulary()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "head_dim": 8,
             "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=tokenizer.get_vocab_size(), **small)
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    facts |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def talk(*said: str, system: str | None = None) -> dict[str, Any]:
    """A record: the user and the assistant in turn."""
    turns = [] if system is None else [{"role": "system", "content": system}]
    return {
        "messages": turns + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    }


def write_chats(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def some_chats(path: Path, count: int = 40) -> Path:
    """Of one to three exchanges, and pairs of prompt and answer."""
    records: list[Any] = []
    for i in range(count):
        said = [f"{'ab' * (1 + (i + k) % 9)} {i}{'?' if k % 2 == 0 else ''}" for k in range(2 + 2 * (i % 3))]
        pair = {"prompt": f"what is {i}", "answer": "one " * (1 + i % 4)}
        records.append(pair if i % 5 == 0 else talk(*said, system="you" if i % 7 == 0 else None))
    return write_chats(path, records)
