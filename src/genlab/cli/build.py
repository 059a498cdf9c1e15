"""From a run's configuration to its objects: the one way in, for training, sampling and evaluation alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from genlab.callbacks.conductor import seed_all
from genlab.cli.diffusers_folder import pipeline_checkpoint, pipeline_config
from genlab.cli.old_forms import modern, new_form
from genlab.cli.pretrained import pretrained_checkpoint, pretrained_config
from genlab.cli.stored import literal, load_yaml
from genlab.cli.targets import check_own, instantiate
from genlab.data.manifest import Manifest
from genlab.data.module import DataModule
from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation import Protocol
from genlab.evaluation.metrics.foreign import Foreign
from genlab.feedback import Feedback
from genlab.files import read_json
from genlab.models.base import GenerativeModel
from genlab.models.trained import TrainedModel
from genlab.networks.adapter import Adapter
from genlab.networks.frozen import frozen_parts
from genlab.postprocess import Step
from genlab.runs.checkpoint import load_checkpoint, load_last
from genlab.runs.directory import RunDirectory, find_run
from genlab.runs.export import WEIGHTS, is_export, is_pipeline, is_pretrained, read_export, read_facts


def load_config(run: RunDirectory) -> DictConfig:
    """RUN/config.yaml, or the part of an export's config.json that stands for it, or what a folder of transformers or
    diffusers is.

    Raises:
        ConfigError: it is not there, or not what GenLab leaves there.
    """
    if is_pretrained(run.path) or is_pipeline(run.path):
        config = pipeline_config if is_pipeline(run.path) else pretrained_config
        return OmegaConf.create(config(run.path))
    if is_export(run.path):
        return OmegaConf.create(literal(modern(read_facts(run.path)["config"])))
    return load_yaml(run.config)


def build_model(config: DictConfig) -> TrainedModel:
    """The model of a configuration, with its sampler; its initial weights are a function of `seed`."""
    seed_all(int(config.seed), 0, 0)
    model: TrainedModel = instantiate(config.model, TrainedModel)
    if (adapter := build_adapter(config.get("adapter"))) is not None:
        if adapter.base is not None:
            run = find_run(adapter.base, Path(os.environ.get("GENLAB_RUNS", "runs")))
            checkpoint, where = read_checkpoint(run, "last")
            load_weights(model, checkpoint, "ema" if checkpoint.get("ema") else "raw", where)
            model.samples_seen = model.updates = 0
        adapter.put_on(model)
    if isinstance(model, GenerativeModel):
        model.subset, model.label_names = (OmegaConf.select(config, f"data.{k}") for k in ("subset", "class_names"))
        model.sampler = build_sampler(config.get("sampler"))
    return model


def build_adapter(node: Any) -> Adapter | None:
    """The adapter of a configuration; None for none."""
    return None if node is None else instantiate(node, Adapter)


def build_feedback(node: Any) -> Feedback | None:
    """The feedback of a configuration; None for none."""
    return None if node is None else instantiate(node, Feedback)


def build_sampler(node: Any) -> Any:
    """The sampler of a node; None for none. Samplers share no base class, but each is GenLab's or the user's."""
    check_own(node, "sampler")
    return instantiate(node)


def build_steps(node: Any) -> dict[str, Step]:
    """The steps that a configuration's `postprocess` names, in order; none for None."""
    return {name: instantiate(step, Step) for name, step in (node or {}).items()}


def build_data(config: DictConfig) -> DataModule:
    """The data of a configuration; nothing is read or fetched before `prepare_data` and `setup`."""
    return instantiate(config.data, DataModule)


def ready_data(config: DictConfig) -> DataModule:
    """The data of a configuration, fetched where that is needed, for evaluation."""
    data = build_data(config)
    data.prepare_data()
    data.setup("test")
    return data


def build_protocol(node: Any) -> Protocol | None:
    """The protocol that a configuration's `evaluation` names, in the form of today or the one before; None: none."""
    if node is None:
        return None
    plain = new_form(OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node)
    protocol: Protocol = instantiate(OmegaConf.create({"evaluation": plain}).evaluation, Protocol)
    for name, metric in protocol.metrics.items():
        if isinstance(metric, Foreign):  # it does not keep its arguments: the record takes them from here
            metric.given = {key: value for key, value in plain["metrics"][name].items() if key != "_target_"}
    return protocol


def load_weights(model: TrainedModel, checkpoint: dict[str, Any], weights: str, where: Path) -> None:
    """Puts a checkpoint's weights into a model.

    Args:
        weights: "ema" or "raw"; what EMA does not track stays raw.

    Raises:
        ConfigError: no EMA in the checkpoint; unknown choice; another architecture: the first names and shapes that
            differ are named.
        CheckpointError: it is no checkpoint of GenLab.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights={weights}: expected ema or raw")
    only = checkpoint.get("only", weights)
    if only != weights:
        raise ConfigError(f"weights={weights}: {where} has {only} weights only; take weights={only}")
    state = dict(_tensors(checkpoint.get("state_dict"), where))
    if weights == "ema":
        if not checkpoint.get("ema"):
            raise ConfigError(f"weights=ema: {where} has none; take weights=raw")
        state.update(_ema(checkpoint, where))
    _compare(state, model.state_dict(), where)
    model.load_state_dict(state)
    model.samples_seen, model.updates = counters(checkpoint, where)


def check_resumable(model: TrainedModel, checkpoint: dict[str, Any], where: Path) -> None:
    """Before training goes on from a checkpoint: is it of this architecture, and with the average that is kept?

    Raises:
        ConfigError, CheckpointError: as `load_weights`.
    """
    own = model.state_dict()
    _compare(_tensors(checkpoint.get("state_dict"), where), own, where)
    check_frozen(model, checkpoint, where)
    counters(checkpoint, where)
    if not checkpoint.get("ema"):
        raise ConfigError(f"{where} has no EMA, which this run keeps: start anew with init_from=RUN weights=raw")
    tracked = {k: v for k, v in own.items() if k.startswith(model.sampled_parts())}
    _compare(_ema(checkpoint, where), tracked, where, "ema: ")
    for key in ("optimizer_states", "recorder", "metrics_offset", "global_step"):
        if key not in checkpoint:
            raise CheckpointError(f"checkpoint {where} lacks {key}: it was not written by a run of GenLab")


def check_frozen(model: TrainedModel, checkpoint: dict[str, Any], where: Path) -> None:
    """Whether a model's frozen parts are those that a checkpoint was trained with.

    Raises:
        ConfigError: one has other weights; with both hashes.
    """
    before = checkpoint.get("frozen") or {}
    for name, part in frozen_parts(model).items():
        if before.get(name, part.sha256) != part.sha256:
            raise ConfigError(
                f"{name}: the weights of {part.source} have sha256 {part.sha256[:12]}, {where} was trained with "
                f"{before[name][:12]}: put them back, or train anew with resume=never"
            )


def check_data(run: RunDirectory, manifest: Manifest) -> None:
    """Before training goes on: is the data what it was?

    Raises:
        ConfigError: it is not; with the first fact that differs.
    """
    before = read_json(run.path / "data.json")
    now = json.loads(json.dumps(manifest.to_dict()))
    if before is not None and before != now:
        raise ConfigError(
            f"run {run.path}: its data has changed since ({_difference(before, now)}). Put it back, or start anew with "
            "resume=never"
        )


def _difference(before: Any, now: Any, key: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _difference(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    return f"{key}: {str(before)[:80]} then, {str(now)[:80]} now"


def counters(checkpoint: dict[str, Any], where: Path) -> tuple[int, int]:
    """Samples seen and updates."""
    found = checkpoint.get("samples"), checkpoint.get("updates")
    if not all(isinstance(n, int) and n >= 0 for n in found):
        raise CheckpointError(f"checkpoint {where} lacks its counters: it was not written by a run of GenLab")
    return found  # type: ignore[return-value]


def _tensors(value: Any, where: Path) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise CheckpointError(f"checkpoint {where} holds no weights by name: it was not written by a run of GenLab")
    return value


def _ema(checkpoint: dict[str, Any], where: Path) -> dict[str, Tensor]:
    tracks = checkpoint["ema"]
    return _tensors(tracks.get("ema") if isinstance(tracks, dict) else None, where)


def _check_kind(name: str, weight: Tensor, own: Tensor, where: Path) -> None:
    """CheckpointError for a tensor that has the right shape and yet is no weight of the model."""

    def sort(tensor: Tensor) -> tuple[bool, bool, bool]:
        return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype is torch.bool

    odd = ""
    if weight.layout is not torch.strided or weight.is_quantized:
        odd = f"{weight.layout if weight.layout is not torch.strided else weight.dtype}".removeprefix("torch.")
    elif weight.is_meta:
        odd = "without values (meta)"
    elif sort(weight) != sort(own):
        odd = f"of {weight.dtype}, not {own.dtype}".replace("torch.", "")
    elif weight.is_floating_point() and not torch.isfinite(weight.float()).all():
        odd = "not finite"
    if odd:
        raise CheckpointError(f"{where}: {name} is {odd}: these are no weights to load")


def _compare(state: dict[str, Tensor], own: dict[str, Tensor], where: Path, what: str = "") -> None:
    """ConfigError with the first three of the names whose shapes differ; CheckpointError for odd kinds of weights."""
    has, wants = ({name: str(tuple(tensor.shape)) for name, tensor in of.items()} for of in (state, own))
    names = [name for name in own | state if has.get(name) != wants.get(name)]
    if not names:
        for name, weight in state.items():
            _check_kind(name, weight, own[name], where)
        return
    shown = "; ".join(
        f"{name} is {has.get(name, 'absent')} in the checkpoint and {wants.get(name, 'absent')} in the model"
        for name in names[:3]
    )
    more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
    raise ConfigError(
        f"{where} is of another architecture: {what}{shown}{more}. Take the configuration of its own run."
    )


def read_checkpoint(run: RunDirectory, name: str) -> tuple[dict[str, Any], Path]:
    """A run's checkpoint by name: last (or the one before where it is damaged), best, previous. An export has one, as
    has a folder of transformers or diffusers.

    Raises:
        ConfigError: the run has no such checkpoint.
        CheckpointError: it is damaged.
    """
    readers = ((is_pipeline, pipeline_checkpoint), (is_pretrained, pretrained_checkpoint), (is_export, read_export))
    if read := next((read for fits, read in readers if fits(run.path)), None):
        if name != "last":
            raise ConfigError(f"checkpoint={name}: {run.path} is an export, which holds one; leave it out")
        return read(run.path), run.path / WEIGHTS
    if name == "last":
        found = load_last(run.checkpoints)
        if found is None:
            raise ConfigError(f"{run.checkpoints} holds no checkpoint yet.")
        return found
    path = run.checkpoints / f"{name}.ckpt"
    return load_checkpoint(path), path


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: this machine has no CUDA device; take device=cpu")
    return torch.device(name)


def set_threads(threads: int | None, ranks: int = 1) -> None:
    """CPU threads of this process: as given, else OMP_NUM_THREADS, else this process's share of the cores."""
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    if threads is not None:
        torch.set_num_threads(threads)
