"""What evaluate.py calls."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from genlab.cli.build import build_protocol, choose_device, ready_data, set_threads
from genlab.cli.load import LoadedRun, choose_sampler, load_run, set_chunk_size
from genlab.cli.pretrained import check_vocabulary
from genlab.cli.ranks import place
from genlab.data.module import SPLITS
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate, evaluate_samples, write_record
from genlab.evaluation.evaluator import modality_of
from genlab.evaluation.judged import FOLDERS, Judged, items_from, texts_from
from genlab.modality import Image
from genlab.networks.adapter import without_adapter
from genlab.runs.directory import find_run


def lines_of(record: dict[str, Any]) -> list[str]:
    """The values of a record for a person, each with its floor or the reason why it is missing."""
    floor = (record.get("floor") or {}).get("values", {})
    width = max(map(len, record["values"]), default=0)
    lines = []
    for key, value in record["values"].items():
        shown = f"missing: {record['missing'][key]}" if value is None else f"{value:.6g}"
        beside = (
            f"   (real {record['floor']['samples']['split']}: {floor[key]:.6g})" if floor.get(key) is not None else ""
        )
        lines.append(f"{key:<{width}}  {shown}{beside}")
    return lines


def evaluate_run(config: DictConfig) -> float | None:
    """Evaluates a run, or what another program made, by one protocol; writes the records and prints their values.

    Returns:
        The first value.
    """
    here = place()
    set_threads(config.threads, here.local_world)
    if config.samples is not None:
        record = _samples(config)
        named = Path(config.samples).name
        path = Path(config.out or f"{named}-{record['name']}.json")
        return _show([(record, path)], here.rank)
    made: list[tuple[dict[str, Any], Path]] = []
    for checkpoint in _checkpoints(config):
        for weights in ("ema", "raw") if config.weights == "both" else (config.weights,):
            loaded = load_run(config.run, weights, checkpoint, config.device, config.runs_dir)
            made.append(_run(config, loaded, checkpoint, here.rank))
    return _show(made, here.rank)


def _checkpoints(config: DictConfig) -> list[str]:
    """Names of the checkpoints asked for; of "all", one name for each that differs."""
    if config.checkpoint != "all":
        return [config.checkpoint]
    folder = find_run(config.run, Path(config.runs_dir)).checkpoints
    paths = [folder / f"{name}.ckpt" for name in ("best", "previous", "last")]
    found = {path.stat().st_ino: path.stem for path in paths if path.is_file()}
    if not found:
        raise ConfigError(f"{folder} holds no checkpoint yet.")
    return list(found.values())


def _run(config: DictConfig, loaded: LoadedRun, checkpoint: str, rank: int) -> tuple[dict[str, Any], Path]:
    """The record of one checkpoint, and where it belongs."""
    protocol = _protocol(config, loaded.config.get("evaluation"))
    sampler = choose_sampler(loaded, config.get("sampler"))
    protocol.check_model(loaded.model, modality_of(loaded.model))
    other_chunks = set_chunk_size(loaded, config.chunk_size)
    data: Any = _data(config, loaded) if protocol.reads_data else None
    if config.reference is not None:
        data, protocol = _reference(config.reference, protocol, data)
    # Another sampler, checkpoint or seed is another number: it must not replace the run's own record.
    names = {
        "data": config.get("data") is not None and loaded.config.get("data") is not None,
        "sampler": sampler is not None,
        loaded.weights: loaded.weights != "ema",
        checkpoint: checkpoint != "last",
        f"seed{config.seed}": config.seed != loaded.config.seed,
        f"chunk{config.chunk_size}": other_chunks,
        Path(config.reference or "").name: config.reference is not None,
        "base": config.base,
    }
    changed = [name for name, other in names.items() if other]
    folder = loaded.directory.path / "evaluation"
    context = {"run": loaded.directory.path.name, "model": str(loaded.config.name)}
    context["checkpoint"] = loaded.checkpoint.name
    with without_adapter(loaded.model) if config.base else contextlib.nullcontext():
        record = evaluate(
            loaded.model,
            data,
            protocol,
            sampler=sampler,
            weights="base" if config.base else loaded.weights,
            seed=config.seed,
            context=context,
            picture=folder / f"{'-'.join(['closest', *changed])}.png",
            table=folder / "-".join([str(protocol.name), "texts", *changed]),
            max_minutes=config.max_minutes,
            say=print,
        )
    name = "-".join([record["name"], *changed, *([record["identity"][:8]] if changed else [])])
    return record, folder / f"{name}.json"


def _data(config: DictConfig, loaded: LoadedRun) -> Any:
    """The data of the command line, or the run's own.

    Raises:
        ConfigError: a pretrained folder has none; other data of another vocabulary.
    """
    if config.get("data") is None:
        return loaded.data()
    data = ready_data(config)
    check_vocabulary(data.tokenizer, loaded.directory.path)
    return data


def _samples(config: DictConfig) -> dict[str, Any]:
    """The record of samples in files, or of a split of the data in their place."""
    protocol, source = _protocol(config, None), Path(config.samples)
    context = {"samples": str(config.samples)}
    device = choose_device(config.device)
    data: Any = None if config.get("data") is None else ready_data(config)
    folder = FOLDERS.get(protocol.modality or Image.name)
    if source.suffix == ".jsonl" or folder is None:
        read = texts_from(source, protocol.n)
        split = "given" if data is None or read.items.references else protocol.reference_split
        n = None if protocol.n is None and protocol.needs_pairs else read.n
        protocol = replace(protocol, n=n, reference_split=split, prompt=0, name=None)
        table = Path(f"{source.name}-{protocol.name}-texts")
        return evaluate_samples(lambda _: read, data, protocol, device=device, context=context, table=table)
    if config.samples in SPLITS:
        if data is None:
            raise ConfigError(f"samples={config.samples} is a split of a data set: say which with data=NAME.")
        judged, split = data, config.samples
    else:
        judged, split = folder(source, data), "folder"
    if config.reference is not None:
        data, protocol = _reference(config.reference, protocol, judged)
    if data is None:
        raise ConfigError("samples are compared with something: say data=NAME, or reference=FOLDER.")

    def items(wanted: Protocol) -> Judged:
        return items_from(judged, split, wanted)

    return evaluate_samples(
        items, data, protocol, device=device, context=context, picture=Path(f"{source.name}-closest.png"),
        max_minutes=config.max_minutes, say=print,
    )  # fmt: skip


def _protocol(config: DictConfig, own: Any) -> Protocol:
    protocol = build_protocol(config.get("evaluation") or own)
    if protocol is None:
        raise ConfigError("evaluation: neither the command nor the run names a protocol; add evaluation=NAME.")
    return protocol


def _reference(path: str, protocol: Protocol, like: Any) -> tuple[Any, Protocol]:
    """A folder in the place of the data set, and the protocol under the name that says so. Sounds of it are cut and
    padded as those that are judged.

    Raises:
        ConfigError: what is judged is not read from folders.
    """
    folder = FOLDERS.get(protocol.modality or Image.name)
    if folder is None:
        raise ConfigError(
            f"reference={path}: {protocol.name} judges {protocol.modality}, which has no folders; leave it out"
        )
    return folder(Path(path), like), replace(protocol, reference_split="folder", floor=False, name=None)


def _show(made: list[tuple[dict[str, Any], Path]], rank: int) -> float | None:
    if rank == 0:
        for record, path in made:
            write_record(record, path)
            if len(made) > 1:
                print(f"\n{record['context']['checkpoint']}, {record['model']['weights']} weights, "
                      f"{record['model']['samples_seen']:,} samples")  # fmt: skip
            print("\n".join(lines_of(record)))
            print(f"record: {path}")
    return next((v for record, _ in made for v in record["values"].values() if v is not None), None)
