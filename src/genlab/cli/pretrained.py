"""A folder of transformers as a run: what it is, its weights, the tokens that begin and end its texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genlab.data.vocabulary import folder_tokenizer, vocabulary_digest
from genlab.errors import CheckpointError, ConfigError
from genlab.files import read_json
from genlab.networks.pretrained import causal_lm, seq2seq_lm
from genlab.runs.export import CONFIG, RECORD, TOKENIZER

LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")  # names of the context in configurations


def pretrained_config(folder: Path) -> dict[str, Any]:
    """What would stand in a run's config.yaml: a model without data, and how it is sampled.

    Raises:
        ConfigError: the folder has no tokenizer.json, or one of more tokens than the network knows.
    """
    facts = read_json(folder / CONFIG)
    if not (folder / TOKENIZER).is_file():
        if any(folder.glob("*.spm")):
            raise ConfigError(
                f"{folder}: has *.spm of Marian in the place of a {TOKENIZER}, which transformers cannot convert; save "
                "a fast tokenizer there that has the ids of vocab.json, or take a folder of T5 or BART"
            )
        raise ConfigError(f"{folder}: has no {TOKENIZER}, which is the vocabulary; save the fast tokenizer there")
    tokens, known = read_tokenizer(folder / TOKENIZER).get_vocab_size(), facts.get("vocab_size")
    if isinstance(known, int) and tokens > known:
        raise ConfigError(f"{folder}: {TOKENIZER} has {tokens} tokens, the network {known}: no pair")
    model, sampler = (_seq2seq if facts.get("is_encoder_decoder") else _causal)(folder, facts)
    common = {"name": folder.resolve().name, "seed": 0, "data": None, "evaluation": None}
    return {**common, "model": {**model, "chunk_size": 4}, "sampler": sampler}


def _causal(folder: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An autoregressive model, sampled by the nucleus."""
    start, end = (token_of(folder, part) for part in ("bos", "eos"))
    model = {
        "_target_": "genlab.models.autoregressive.AutoregressiveModel",
        "block_size": next((facts[key] for key in LENGTHS if isinstance(facts.get(key), int)), None),
        "start": start or end or "\n",
        "network": {"_target_": "genlab.networks.pretrained.causal_lm", "path": str(folder)},
    }
    sampler = {"temperature": 0.8, "top_p": 0.95, "stop": [end] if end else []}
    return model, {"_target_": "genlab.decoding.tokens.TokenSampler", "max_new_tokens": 200, **sampler}


def _seq2seq(folder: Path, facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An encoder-decoder, decoded greedily or by the beams of its generation_config.json (of old folders config.json),
    with transformers' length penalty and its longest text."""
    stated = {**facts, **(read_json(folder / "generation_config.json") or {})}
    stated = {key: value for key, value in stated.items() if isinstance(value, int | float)}
    limit = stated.get("max_new_tokens") or (stated.get("max_length") or 201) - 1  # its max_length counts the first
    model = {
        "_target_": "genlab.models.seq2seq.Seq2Seq",
        "context": facts.get("max_position_embeddings"),
        "prefix": facts.get("prefix") or "",
        "length_ratio": 0.0,
        "length_extra": limit,
        "network": {"_target_": "genlab.networks.pretrained.seq2seq_lm", "path": str(folder)},
    }
    beams, penalty = stated.get("num_beams") or 1, stated.get("length_penalty")
    if beams == 1:
        return model, {"_target_": "genlab.decoding.tokens.TokenSampler", "max_new_tokens": limit, "temperature": 0.0}
    sampler = {"beams": beams, "alpha": 1.0 if penalty is None else max(0.0, penalty), "offset": 0.0}
    return model, {"_target_": "genlab.decoding.beam.BeamSearch", "max_new_tokens": limit, **sampler}


def token_of(folder: Path, part: str) -> str | None:
    """The text of the token that begins ("bos") or ends ("eos") a text; None where there is none."""
    for name in ("generation_config.json", CONFIG):
        found = (read_json(folder / name) or {}).get(f"{part}_token_id")
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            break
    else:
        return None
    tokens = (read_json(folder / TOKENIZER) or {}).get("added_tokens", [])
    return next((token["content"] for token in tokens if token.get("id") == found), None)


def check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Whether data that a model is to read has the vocabulary of the folder or run that the model comes from.

    Raises:
        ConfigError: the same id stands for different tokens.
    """
    places = (folder / TOKENIZER, folder / "tokenizer")  # the second of a pipeline of diffusers
    path = next((place for place in places if place.exists()), None)
    if tokenizer is None or path is None:
        return
    known = read_tokenizer(path) if path.is_file() else folder_tokenizer(path)[0]
    theirs, ours = known.get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        raise ConfigError(
            f"the data's vocabulary ({len(ours)} tokens) is not that of {path} ({len(theirs)}): its ids would mean "
            f"other tokens. Take data with data.vocabulary={path} data.vocab_size={len(theirs)}"
        )


def check_unchanged(tokenizer: Any, run: Path) -> None:
    """Whether a run's tokenizer.json is what it was trained with, by the sha256 in its data.json.

    Raises:
        CheckpointError: it is not.
    """
    facts = (read_json(run / "data.json") or {}).get("facts", {})
    if facts.get("vocabulary_sha256") not in (None, vocabulary_digest(tokenizer)):
        raise CheckpointError(
            f"{run / TOKENIZER} is not the vocabulary that the model was trained with: data.json beside it has the "
            "sha256 of another. Put the file back"
        )


def read_tokenizer(path: Path) -> Any:
    """A tokenizer.json.

    Raises:
        CheckpointError: it is broken.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{path} cannot be read: {str(error)[:200]}") from error


def pretrained_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder's weights in the form of a checkpoint. "kind" says which they are: of a foreign folder "raw".

    Raises:
        ConfigError: as `genlab.networks.pretrained.causal_lm`.
    """
    load = seq2seq_lm if (read_json(folder / CONFIG) or {}).get("is_encoder_decoder") else causal_lm
    return counted(folder, {f"network.{name}": value for name, value in load(str(folder)).state_dict().items()})


def counted(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Weights of a folder as a checkpoint, with what its genlab.json says of them, where it has one."""
    record = read_json(folder / RECORD)
    weights = record.get("weights") if isinstance(record, dict) else None
    weights = weights if isinstance(weights, dict) else {}
    counts = {key: weights.get(key) if isinstance(weights.get(key), int) else 0 for key in ("samples", "updates")}
    kind = "ema" if weights.get("kind") == "ema" else "raw"
    return {"state_dict": state, "ema": {"ema": {}}, "kind": kind, **counts}
