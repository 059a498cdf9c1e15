"""A stored run as an object, for the entry points and for notebooks: `load_run("last").sample(64)`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from genlab.cli.build import build_data, build_model, choose_device, load_config, load_weights, read_checkpoint
from genlab.cli.pretrained import check_unchanged, read_tokenizer
from genlab.cli.targets import instantiate
from genlab.data.module import DataModule
from genlab.data.vocabulary import encode
from genlab.decoding.reading import padded
from genlab.errors import ConfigError, DataError, GenlabError
from genlab.models.base import Condition, GenerativeModel
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
    model: GenerativeModel
    weights: str
    checkpoint: Path

    def sample(self, n: int = 64, seed: int = 0, sampler: Any = None, **condition: Any) -> Samples:
        """n items; item i has seed + i.

        Args:
            sampler: an object of conf/sampler's classes; None for the run's own.
            condition: label=3 (one class for all, or a tensor of n), prompt="text" (or a list of n).
        """
        return self.model.sample(torch.arange(seed, seed + n), self.condition(n, condition), sampler)

    def condition(self, n: int, wanted: dict[str, Any]) -> Condition:
        """Conditions as a user writes them -> tensors of n rows.

        Raises:
            ConfigError: an unknown condition, a label out of range, a prompt with unknown characters.
        """
        made: dict[str, Tensor] = {}
        for key, value in wanted.items():
            if value is None:
                continue
            name = "prompt_ids" if key == "prompt" else key
            if name not in self.model.conditions:
                known = ", ".join(k.removesuffix("_ids") for k in self.model.conditions) or "none"
                raise ConfigError(f"condition.{key}: this model knows no such condition (it knows: {known}).")
            if key == "prompt":
                texts = value if isinstance(value, list) else [str(value)]
                rows = padded([self._encode(text) for text in texts])
                rows = rows.expand(n, -1) if len(rows) == 1 else rows
                if len(rows) != n:
                    raise ConfigError(f"condition.prompt: {len(rows)} prompts for {n} items.")
            else:
                rows = torch.as_tensor(value, dtype=torch.int64).expand(n)
                if key == "label" and not ((rows >= 0) & (rows < self.model.num_classes)).all():
                    raise ConfigError(f"condition.label={value}: expected 0 to {self.model.num_classes - 1}.")
            made[name] = rows
        return made

    def _encode(self, text: str) -> list[int]:
        """Token ids of a prompt."""
        try:
            ids = encode(self.model.tokenizer, text)
        except DataError as error:
            raise ConfigError(f"condition.prompt: {error}") from None
        if not ids:
            raise ConfigError("condition.prompt is empty.")
        return ids

    def data(self) -> DataModule:
        """The run's data, ready to read.

        Raises:
            ConfigError: a pretrained folder has none.
        """
        if self.config.get("data") is None:
            raise ConfigError(f"{self.directory.path} has no data of its own; say which: data=NAME.")
        data = build_data(self.config)
        data.prepare_data()
        data.setup("test")
        return data


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
    config = load_config(directory)
    try:
        model = build_model(config)
    except GenlabError:
        raise
    except Exception as error:  # a stored configuration was right once: it has been changed, or its library has
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(f"{directory.path}: its configuration makes no model ({reason})") from error
    state, path = read_checkpoint(directory, checkpoint)
    load_weights(model, state, weights, path)
    tokenizer = directory.path / "tokenizer.json"
    if tokenizer.exists():
        model.tokenizer = read_tokenizer(tokenizer)
        check_unchanged(model.tokenizer, directory.path)
    kind = state.get("kind", weights)  # a folder of transformers has one sort of weights, whatever was asked for
    return LoadedRun(directory, config, model.to(choose_device(device)).eval(), kind, path)


def choose_sampler(loaded: LoadedRun, wanted: DictConfig | None) -> Any:
    """The sampler of a command line: a whole one (`sampler=ddim_50`), changes of the run's own
    (`+sampler.guidance_scale=1`), or None for the run's own."""
    if wanted is None:
        return None
    node = wanted if "_target_" in wanted else OmegaConf.merge(loaded.config.sampler, wanted)
    return instantiate(node)
