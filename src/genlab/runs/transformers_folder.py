"""A language model as a folder that transformers reads without GenLab.

FOLDER/model.safetensors, config.json   the network, by its own `save_pretrained`
FOLDER/generation_config.json           how the run is sampled
FOLDER/tokenizer.json, tokenizer_config.json
FOLDER/README.md, genlab.json           the model card; the record of the run, with the weights' sha256
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.errors import ConfigError
from genlab.files import read_json, sha256_of, write_bytes, write_json
from genlab.runs.export import RECORD, TOKENIZER, WEIGHTS, is_pretrained


def write_transformers(
    folder: Path,
    network: Any,
    tokenizer: Path,
    generation: Mapping[str, Any],
    end: str | None,
    context: int | None,
    facts: Mapping[str, Any],
    card: str,
) -> None:
    """Writes the folder; genlab.json comes last.

    Args:
        folder: new, or an earlier one, which is replaced.
        network: a causal model or an encoder-decoder of transformers, with the weights that are wanted.
        tokenizer: tokenizer.json, copied byte for byte; of an encoder-decoder with the end of a text after each, where
            it puts nothing there.
        generation: for generation_config.json.
        end: the token that ends a text, if there is one; of a causal model it also begins one.
        context: most tokens.
        facts: for genlab.json; "weights" gets the file's sha256.
        card: README.md.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: it cannot be written.
    """
    ours = is_pretrained(folder) and read_json(folder / RECORD) is not None
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out={folder} holds something else; name a new folder.")
    (folder / RECORD).unlink(missing_ok=True)
    network.save_pretrained(folder, safe_serialization=True, max_shard_size="100GB")
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)
    special: dict[str, Any] = {} if end is None else {f"{part}_token": end for part in ("bos", "eos", "unk")}
    shutil.copyfile(tokenizer, folder / TOKENIZER)
    if config.get("is_encoder_decoder"):
        names = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
        ids = {name: getattr(network.config, name) for name in names}
        generation = {**generation, **ids, "forced_eos_token_id": ids["eos_token_id"]}
        special = _ended(folder / TOKENIZER, ids["eos_token_id"], ids["pad_token_id"])
        config |= {**ids, "prefix": facts["config"]["model"].get("prefix", "")}
    elif end is not None:
        number = _id_of(tokenizer, end)
        config |= {"bos_token_id": number, "eos_token_id": number}
        generation = {**generation, "bos_token_id": number, "eos_token_id": number}
    template = (((facts.get("data") or {}).get("manifest") or {}).get("facts") or {}).get("template")
    if template is not None:  # of a run that was trained on conversations: its answers end with a token of their own
        ends = [generation.get("eos_token_id"), _id_of(tokenizer, template["end"])]
        generation = {**generation, "eos_token_id": [end for end in dict.fromkeys(ends) if end is not None]}
        special = {**special, "chat_template": template["text"]}
        special |= {key: token for key, token in template["tokens"].items() if token}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", dict(generation))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **({} if context is None else {"model_max_length": context}),
            **special,
        },
    )
    write_bytes(folder / "README.md", card.encode())
    weights = {"file": WEIGHTS, "sha256": sha256_of(folder / WEIGHTS), **facts["weights"]}
    write_json(folder / RECORD, {**facts, "weights": weights})


def _ended(path: Path, eos: int, pad: int) -> dict[str, Any]:
    """For tokenizer_config.json, of a tokenizer.json that from now on ends a text, as the encoder reads it."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(path))
    end = tokenizer.id_to_token(eos)
    if not tokenizer.encode("").ids:
        tokenizer.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, eos)])
        write_bytes(path, tokenizer.to_str(pretty=True).encode())
    names = ["input_ids", "attention_mask"]
    return {"eos_token": end, "pad_token": tokenizer.id_to_token(pad), "model_input_names": names}


def _id_of(tokenizer: Path, token: str) -> int | None:
    added = (read_json(tokenizer) or {}).get("added_tokens", [])
    return next((int(entry["id"]) for entry in added if entry["content"] == token), None)


def generation_of(sampler: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """generation_config.json of what a token sampler or a beam search says of itself; left out are stop strings, which
    transformers takes as an argument only, and the offset of a length penalty, which it has not.

    Args:
        limit: most new tokens; None: as many as the sampler says.
    """
    new = int(sampler.get("max_new_tokens", 256))
    made: dict[str, Any] = {"max_new_tokens": new if limit is None else max(1, min(new, limit))}
    if "beams" in sampler:
        beams = {"num_beams": sampler["beams"], "length_penalty": sampler["alpha"], "early_stopping": "never"}
        return {**made, "do_sample": False, **beams}
    if sampler.get("temperature", 1.0) == 0:
        return {**made, "do_sample": False}
    names = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "typical": "typical_p",
             "repetition_penalty": "repetition_penalty"}  # fmt: skip
    made |= {"do_sample": True} | {theirs: sampler[ours] for ours, theirs in names.items() if ours in sampler}
    return made | ({"min_p": sampler["min_p"]} if sampler.get("min_p") else {})
