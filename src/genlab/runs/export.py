"""A trained model as a folder to hand on: safetensors and JSON, nothing that could run.

FOLDER/model.safetensors   weights by name, averaged or raw
FOLDER/config.json         what the model is, its data's facts, its metrics, versions; the weights' sha256
FOLDER/tokenizer.json      text only
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from genlab.errors import CheckpointError, ConfigError
from genlab.files import read_json, replacing, sha256_of, write_json
from genlab.runs.directory import PIPELINE

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
RECORD = "genlab.json"  # in a folder for transformers: what config.json is in one of GenLab's own
FORMAT = 1


def is_export(folder: Path) -> bool:
    """Whether `folder` is what `write_export` leaves."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and not is_pretrained(folder)


def is_pretrained(folder: Path) -> bool:
    """Whether `folder` is what transformers' `save_pretrained` leaves: its config.json says so."""
    facts = read_json(folder / CONFIG)
    return isinstance(facts, dict) and isinstance(facts.get("model_type"), str)


def is_pipeline(folder: Path) -> bool:
    """Whether `folder` is what `save_pretrained` of a pipeline of diffusers leaves."""
    return (folder / PIPELINE).is_file()


def write_export(
    folder: Path, state: dict[str, Tensor], kind: str, counters: tuple[int, int], facts: dict[str, Any],
    tokenizer: Path | None = None,
) -> None:  # fmt: skip
    """Writes the folder; config.json comes last, so a folder that has one is whole.

    Args:
        folder: new, or an earlier export, which is replaced.
        state: weights by name; stored one by one, also where two names share storage.
        kind: "ema" or "raw".
        counters: samples seen and updates.
        facts: the configuration under "config", and what else is to be said.
        tokenizer: file to be copied.

    Raises:
        ConfigError: the folder holds something else.
        StorageError: it cannot be written.
    """
    if folder.exists() and not is_export(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out={folder} holds something else; name a new folder.")
    (folder / CONFIG).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        whole = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        safetensors.torch.save_file(whole, temporary, metadata={"format": "pt"})
    if tokenizer is not None:
        with replacing(folder / TOKENIZER) as temporary:
            shutil.copyfile(tokenizer, temporary)
    weights = {"file": WEIGHTS, "sha256": sha256_of(folder / WEIGHTS), "kind": kind}
    counted = dict(zip(("samples", "updates"), counters, strict=True))
    write_json(folder / CONFIG, {"format": FORMAT, "weights": weights | counted, **facts})


def read_facts(folder: Path) -> dict[str, Any]:
    """config.json.

    Raises:
        ConfigError: it is not what `write_export` leaves.
    """
    facts = read_json(folder / CONFIG)
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise ConfigError(f"{folder / CONFIG} is no export of GenLab: it has no 'config'.")
    if facts.get("format") != FORMAT:
        raise ConfigError(f"{folder / CONFIG} has format {facts.get('format')!r}; this GenLab reads {FORMAT}.")
    return facts


def read_export(folder: Path) -> dict[str, Any]:
    """The weights in the form of a checkpoint, with "only": "ema" or "raw".

    Raises:
        ConfigError: config.json is not what `write_export` leaves.
        CheckpointError: the weights are not those that config.json describes, or damaged.
    """
    path, facts = folder / WEIGHTS, read_facts(folder)
    described = facts.get("weights")
    described = described if isinstance(described, dict) else {}
    if sha256_of(path) != described.get("sha256"):
        raise CheckpointError(f"{path}: sha256 mismatch, it is not the file that {CONFIG} describes.")
    try:
        state = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors raises its own kinds, which it does not promise
        raise CheckpointError(f"{path} cannot be loaded: {str(error)[:200]}") from error
    kind = described.get("kind")
    counters = {key: described.get(key) for key in ("samples", "updates")}
    weights = {"state_dict": {}, "ema": {"ema": state}} if kind == "ema" else {"state_dict": state}
    return {**weights, **counters, "only": kind, "frozen": facts.get("frozen")}
