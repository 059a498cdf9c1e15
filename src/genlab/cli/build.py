"""From a run's configuration to its objects: the one way in, for training, sampling and evaluation alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.callbacks.conductor import seed_all
from genlab.cli.targets import instantiate
from genlab.data.module import DataModule
from genlab.errors import CheckpointError, ConfigError
from genlab.models.base import GenerativeModel
from genlab.runs.checkpoint import load_checkpoint, load_last
from genlab.runs.directory import RunDirectory


def load_config(run: RunDirectory) -> DictConfig:
    """RUN/config.yaml.

    Raises:
        ConfigError: it is not there or not YAML.
    """
    try:
        config = OmegaConf.load(run.config)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {run.config}: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{run.config} is not a configuration")
    return config


def build_model(config: DictConfig) -> GenerativeModel:
    """The model of a configuration, with its sampler; its initial weights are a function of `seed`."""
    seed_all(int(config.seed), 0, 0)
    model: GenerativeModel = instantiate(config.model, GenerativeModel)
    model.sampler = instantiate(config.get("sampler"))
    return model


def build_data(config: DictConfig) -> DataModule:
    """The data of a configuration; nothing is read or fetched before `prepare_data` and `setup`."""
    return instantiate(config.data, DataModule)


def load_weights(model: GenerativeModel, checkpoint: dict[str, Any], weights: str, where: Path) -> None:
    """Puts a checkpoint's weights into a model.

    Args:
        weights: "ema" or "raw"; what EMA does not track stays raw.

    Raises:
        ConfigError: no EMA in the checkpoint; unknown choice.
        CheckpointError: names or shapes differ; the first of them is named.
    """
    if weights not in ("ema", "raw"):
        raise ConfigError(f"weights={weights}: expected ema or raw")
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        if not checkpoint.get("ema"):
            raise ConfigError(f"weights=ema: {where} has none; take weights=raw")
        state.update(checkpoint["ema"]["ema"])
    own = model.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own or state[name].shape != own[name].shape:
            left = tuple(own[name].shape) if name in own else "absent"
            right = tuple(state[name].shape) if name in state else "absent"
            raise CheckpointError(f"{where}: {name} is {right} in the checkpoint and {left} in the model")
    model.load_state_dict(state)
    model.samples_seen, model.updates = int(checkpoint["samples"]), int(checkpoint["updates"])


def read_checkpoint(run: RunDirectory, name: str) -> tuple[dict[str, Any], Path]:
    """A run's checkpoint by name: last (or the one before where it is damaged), best, previous.

    Raises:
        ConfigError: the run has no such checkpoint.
        CheckpointError: it is damaged.
    """
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
