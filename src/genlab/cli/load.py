"""A stored run as an object, for the entry points and for notebooks: `load_run("last").sample(64)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.cli.build import (
    build_model,
    build_sampler,
    check_frozen,
    choose_device,
    load_config,
    load_weights,
    read_checkpoint,
    ready_data,
)
from genlab.cli.check import check_ranges
from genlab.cli.condition_values import condition_rows
from genlab.cli.pretrained import check_unchanged, read_tokenizer
from genlab.data.module import DataModule
from genlab.errors import ConfigError, GenlabError
from genlab.models.base import GenerativeModel, Rows
from genlab.models.trained import TrainedModel
from genlab.runs.directory import RunDirectory, find_run
from genlab.samples import Samples


@dataclass
class LoadedRun:
    """A run's model with its weights, built from the run's own configuration.

    Attributes:
        directory: the run directory.
        config: RUN/config.yaml.
        model: in eval mode, on `device`.
        weights: "ema" or "raw".
        checkpoint: file that the weights came from.
    """

    directory: RunDirectory
    config: DictConfig
    model: TrainedModel
    weights: str
    checkpoint: Path

    def sample(self, n: int = 64, seed: int = 0, sampler: Any = None, **condition: Any) -> Samples:
        """n items; item i has seed + i.

        Args:
            sampler: an object of conf/sampler's classes; None for the run's own.
            condition: by name, one value for all or a list that is gone round: label=3, prompt=["a", "b"].

        Raises:
            ConfigError: a condition that the model does not know or a value that cannot be; a model that does not
                generate.
        """
        return self.generative.sample(torch.arange(n) + seed, self.condition(n, condition), sampler)

    def condition(self, n: int, wanted: Mapping[str, Any]) -> Rows:
        """Conditions as a user writes them -> tensors of n rows: see genlab.cli.condition_values.condition_rows."""
        return condition_rows(self.generative, wanted, n)

    @property
    def generative(self) -> GenerativeModel:
        """The model.

        Raises:
            ConfigError: it does not generate.
        """
        if not isinstance(self.model, GenerativeModel):
            raise ConfigError(f"{self.directory.path}: {type(self.model).__name__} is trained but does not generate.")
        return self.model

    def data(self) -> DataModule:
        """The run's data, ready to read.

        Raises:
            ConfigError: a pretrained folder has none.
        """
        if self.config.get("data") is None:
            raise ConfigError(f"{self.directory.path} has no data of its own; say which: data=NAME.")
        return ready_data(self.config)


def load_run(
    run: str | Path = "last",
    weights: str = "ema",
    checkpoint: str = "last",
    device: str = "auto",
    runs_dir: str | Path | None = None,
) -> LoadedRun:
    """Loads a run by path, folder name, or "last", for the newest; or what scripts/export.py or transformers'
    `save_pretrained` has written, by path (or by the name that scripts/fetch_data.py has).

    Args:
        weights: "ema" or "raw".
        checkpoint: "last", "best" or "previous".
        device: "auto", "cpu" or "cuda".
        runs_dir: where names are looked up; None: $GENLAB_RUNS, else ./runs.

    Raises:
        ConfigError: no such run, checkpoint, weights or device; a checkpoint of another architecture.
        CheckpointError: the checkpoint is damaged.
    """
    directory = find_run(str(run), Path(runs_dir or os.environ.get("GENLAB_RUNS", "runs")))
    directory.refuse_links()
    config = load_config(directory)
    check_ranges(config)
    try:
        model = build_model(config)
    except GenlabError:
        raise
    except Exception as error:  # a stored configuration was right once: it has been changed, or its library has
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(f"{directory.path}: its configuration makes no model ({reason})") from error
    state, path = read_checkpoint(directory, checkpoint)
    load_weights(model, state, weights, path)
    check_frozen(model, state, path)
    tokenizer = directory.path / "tokenizer.json"
    if tokenizer.exists():
        model.tokenizer = read_tokenizer(tokenizer)
        check_unchanged(model.tokenizer, directory.path)
    kind = state.get("kind", weights)  # a folder of transformers has one sort of weights, whatever was asked for
    return LoadedRun(directory, config, model.to(choose_device(device)).eval(), kind, path)


def set_chunk_size(loaded: LoadedRun, size: int | None) -> bool:
    """How many items are made together (None: as many as the model says). Whether that is another number.

    Raises:
        ConfigError: a model that does not generate.
    """
    if size is None or size == loaded.generative.chunk_size:
        return False
    loaded.generative.chunk_size = size
    return True


def choose_sampler(loaded: LoadedRun, wanted: DictConfig | None) -> Any:
    """The sampler of a command line: a whole one (`sampler=ddim_50`), changes of the run's own
    (`+sampler.guidance_scale=1`), or None for the run's own.

    Raises:
        ConfigError: it does not fit the model.
    """
    if wanted is None:
        return None
    node = wanted if "_target_" in wanted else OmegaConf.merge(loaded.config.sampler, wanted)
    sampler = build_sampler(node)
    loaded.generative.check_sampler(sampler)
    return sampler
