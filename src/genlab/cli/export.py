"""What scripts/export.py calls: a run's weights and configuration as a folder to hand on."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from genlab.cli.card import ADAPTER, GENERATION, TEXT2TEXT, Form, model_card, provenance
from genlab.cli.load import LoadedRun, load_run
from genlab.cli.problem import one_line
from genlab.cli.redact import redact
from genlab.data.vocabulary import END
from genlab.errors import ConfigError, expected
from genlab.files import read_json, sha256_of, write_bytes, write_json
from genlab.models.to_diffusers import write_parts
from genlab.networks.adapter import merged, write_adapter
from genlab.runs.environment import code_version, library_versions
from genlab.runs.export import CONFIG, FORMAT, PIPELINE, RECORD, TOKENIZER, write_export
from genlab.runs.keys import EXPORTED
from genlab.runs.transformers_folder import generation_of, write_transformers

KEYS = {
    "run": "last",
    "out": "",
    "format": "genlab",
    "weights": "ema",
    "checkpoint": "last",
    "runs_dir": os.environ.get("GENLAB_RUNS", "runs"),
}

PICTURES = (
    "It shows what its data show, and may repeat pictures of it; it was not made safe for any use, and nothing checks "
    "what it makes."
)


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    try:
        chosen = dict(KEYS)
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals or key not in KEYS:
                raise ConfigError(f"{argument!r}: expected {', '.join(f'{k}=...' for k in KEYS)}.")
            chosen[key] = value
        if not chosen["out"]:
            raise ConfigError("say where to: out=FOLDER.")
        export(**chosen)
    except Exception as error:
        known = expected(error)
        if known is None:
            raise
        print(f"genlab: error: {one_line(redact(str(known)))}", file=sys.stderr)
        return known.exit_code
    if any((Path(chosen["out"]) / name).is_file() for name in (CONFIG, PIPELINE)):
        print(f"{chosen['out']}: load_run({chosen['out']!r}), or sample.py run={chosen['out']}")
    if chosen["format"] != "genlab":
        print(f"without GenLab, by {chosen['format']} alone: as {chosen['out']}/README.md shows")
    return 0


def export(
    run: str, out: str | Path, weights: str = "ema", checkpoint: str = "last", runs_dir: str | Path | None = None,
    format: str = "genlab",
) -> None:  # fmt: skip
    """Writes a run's weights and configuration to the folder `out`; `load_run(out)` reads it.

    Args:
        run: path, folder name, or "last"; an export serves too.
        weights: "ema" or "raw".
        checkpoint: "last", "best" or "previous".
        format: "genlab"; or "transformers", a folder that transformers reads without GenLab: language models of its own
            (GPT-2, Llama, Marian, a pretrained folder) only; or "diffusers", a StableDiffusionPipeline, or its parts:
            latent models that are told captions only; or "peft", an adapter as PeftModel.from_pretrained reads it.

    Raises:
        GenlabError: as `load_run` and `genlab.runs.export.write_export`; ConfigError for a model that transformers
            or diffusers has not.
    """
    writers = {"transformers": for_transformers, "diffusers": for_diffusers, "peft": for_peft}
    if format not in ("genlab", *writers):
        raise ConfigError(f"format={format}: expected genlab, {', '.join(writers)}.")
    loaded = load_run(run, weights, checkpoint, "cpu", runs_dir)
    source = loaded.directory
    plain: Any = OmegaConf.to_container(loaded.config, resolve=True)
    data = {key: Path(value).name if _is_path(value) else value for key, value in (plain.get("data") or {}).items()}
    records = {path.stem: read_json(path) for path in sorted((source.path / "evaluation").glob("*.json"))}
    facts = {
        "config": {key: plain.get(key) for key in EXPORTED} | {"data": data},
        "metrics": {
            name: {key: value for key, value in record.items() if key != "context"}
            for name, record in records.items()
            if isinstance(record, dict)
        },
        "run": source.path.name,
        "versions": library_versions(),
        "code": code_version(),
    }
    if frozen := loaded.model.frozen():
        facts["frozen"] = frozen
    tokenizer = source.path / TOKENIZER
    if format != "genlab":
        writers[format](Path(out), loaded, redact(facts))
        return
    write_export(
        Path(out), loaded.model.state_dict(), weights, (loaded.model.samples_seen, loaded.model.updates),
        redact(facts), tokenizer if tokenizer.is_file() else None,
    )  # fmt: skip


def for_transformers(folder: Path, loaded: LoadedRun, facts: dict[str, Any]) -> None:
    """Writes a run's network, tokenizer, way of sampling and record as a folder of transformers.

    Raises:
        ConfigError: the model is no language model of transformers, or has no tokenizer.
    """
    from transformers import PreTrainedModel

    network: Any = getattr(loaded.model, "network", None)
    path = loaded.directory.path
    if not (isinstance(network, PreTrainedModel) and network.can_generate()):
        kind = type(network if network is not None else loaded.model).__name__
        raise ConfigError(f"format=transformers: {kind} is no language model of transformers; leave it out.")
    if beside := [name for name, _ in loaded.model.named_children() if name != "network"]:
        raise ConfigError(f"format=transformers: {path} also has {beside[0]}, which transformers lacks: leave it out.")
    if not (path / TOKENIZER).is_file():
        raise ConfigError(f"format=transformers: {path} has no {TOKENIZER}.")
    if hasattr(network, "adapter"):
        network = merged(network)
    context: int | None = getattr(loaded.model, "context", None)
    facts["config"]["model"] = _without_paths(facts["config"]["model"])
    facts |= recorded(loaded, facts)
    end = END if END in loaded.model.tokenizer.get_vocab() else None
    used = getattr(loaded.model, "sampler", None)
    sampler = used.record() if used is not None else {}
    pairs = bool(network.config.is_encoder_decoder)
    # A text may not grow beyond the context, where transformers has no answer: half of it is left for a prompt.
    limit = None if context is None else context - 1 if pairs else context // 2
    write_transformers(
        folder, network, path / TOKENIZER, generation_of(sampler, limit), end, context, facts,
        model_card(str(loaded.config.name), facts, TEXT2TEXT if pairs else GENERATION),
    )  # fmt: skip


def for_peft(folder: Path, loaded: LoadedRun, facts: dict[str, Any]) -> None:
    """Writes a run's adapter, and its record, as a folder that peft reads without GenLab.

    Raises:
        ConfigError: the run has none.
    """
    part = (facts["config"].get("adapter") or {}).get("part")
    if part is None:
        raise ConfigError(f"format=peft: {loaded.directory.path} has no adapter; leave it out.")
    facts["config"]["model"] = _without_paths(facts["config"]["model"])
    facts["config"]["adapter"] = _without_paths(facts["config"]["adapter"])
    facts |= recorded(loaded, facts)
    write_adapter(folder, loaded.model.get_submodule(part))
    write_bytes(folder / "README.md", model_card(str(loaded.config.name), facts, ADAPTER).encode())
    write_json(folder / RECORD, facts)


def recorded(loaded: LoadedRun, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What genlab.json says beside the configuration: of the weights, of training, of the data."""
    path, name = loaded.directory.path, (facts["config"].get("data") or {}).get("name")
    final = (read_json(path / "result.json") or {}).get("metrics") or {}
    return {
        "format": FORMAT,
        "weights": {"kind": loaded.weights, "samples": loaded.model.samples_seen, "updates": loaded.model.updates},
        "final": {key: value for key, value in final.items() if key.startswith("val/")},
        "data": {"name": name, **provenance(name), "manifest": read_json(path / "data.json")},
    }


def for_diffusers(folder: Path, loaded: LoadedRun, facts: dict[str, Any]) -> None:
    """Writes a run as a StableDiffusionPipeline, or as the parts that diffusers and transformers have, with how to put
    them together; README.md and genlab.json come before model_index.json.

    Raises:
        ConfigError: as `write_parts`; the folder holds something else.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and read_json(folder / RECORD) is None)):
        raise ConfigError(f"out={folder} holds something else; name a new folder.")
    (folder / PIPELINE).unlink(missing_ok=True)
    code, index = write_parts(folder, loaded.model)
    facts["config"]["model"] = _without_paths(facts["config"]["model"])
    facts |= recorded(loaded, facts)
    facts["weights"]["sha256"] = {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.glob("*/*.safetensors"))
    }
    form = Form("diffusers", "text-to-image", "A latent diffusion model", "pictures", code, PICTURES)
    write_bytes(folder / "README.md", model_card(str(loaded.config.name), facts, form).encode())
    write_json(folder / RECORD, facts)
    if index is not None:
        write_json(folder / PIPELINE, index)


def _is_path(value: Any) -> bool:
    """A path of this machine says nothing elsewhere: its last name is kept."""
    return isinstance(value, str) and Path(value).expanduser().is_absolute()


def _without_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_paths(value) for name, value in node.items()}
    return Path(node).name if _is_path(node) else node
