"""What a person looks at while a model trains: the same seeds at every evaluation, as a grid or as text."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from genlab.callbacks.media import media_of
from genlab.drawing import guarded
from genlab.evaluation import generate
from genlab.evaluation.latents import Panels
from genlab.evaluation.texts import table_columns
from genlab.modality import Media, Modality
from genlab.models.base import GenerativeModel
from genlab.models.trained import TrainedModel
from genlab.samples import Samples


class SampleGrid(pl.Callback):
    """At each validation, samples of a fixed set of seeds, by the averaged weights (it stands before EMA).

    Args:
        folder: RUN/samples.
        count: items.
        columns: of the grid; for a class-conditional model columns = classes shows one class a column.
        sampler: None takes the run's own.
    """

    def __init__(self, folder: Path, count: int = 64, columns: int = 8, sampler: Any = None) -> None:
        self.folder, self.count, self.columns, self.sampler = folder, count, columns, sampler

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.count or not isinstance(pl_module, GenerativeModel):
            return
        told = pl_module.examples(self.count, trainer.datamodule)  # type: ignore[attr-defined]
        samples = generate(pl_module, torch.arange(self.count), told, self.sampler)
        if not trainer.is_global_zero:
            return
        seen, modality = pl_module.samples_seen, samples.modality
        with guarded(stem := self.folder / f"{seen:09d}"):
            columns = pl_module.shown(samples.condition)
            path = save_samples(stem, samples, columns, self.columns)
            show(trainer.loggers, path, lambda media: modality.log(media, samples.data, path, seen, columns))


class Reconstructions(pl.Callback):
    """At each validation, the same validation items and what comes back of them, where the model can reconstruct.

    By the averaged weights (it stands before EMA). At the end of a run `genlab.evaluation.latents.Panels` draws more.

    Args:
        folder: RUN/samples.
        count: items; 0: none.
    """

    def __init__(self, folder: Path, count: int = 16) -> None:
        self.folder, self.count = folder, count

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.count or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, TrainedModel)
        seen, panels = pl_module.samples_seen, Panels(pl_module, trainer.datamodule)  # type: ignore[attr-defined]
        with guarded(stem := self.folder / f"reconstructions-{seen:09d}"):
            if (path := panels.reconstructions(stem, self.count)) is not None:
                show_panels(trainer.loggers, panels.modality, {"reconstructions": path}, seen)


def save_samples(
    stem: Path,
    samples: Samples,
    known: Mapping[str, Sequence[Any]],
    columns: int,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what a person looks at, all samples together; returns the path.

    Args:
        stem: path without a suffix, which depends on the modality.
        known: what each sample was asked to be, by the names of conditions: `model.shown(samples.condition)`.
        columns: of a grid.
        meta: what made them.
    """
    captions = [", ".join(f"{name} {values[i]}" for name, values in known.items()) for i in range(len(samples))]
    seeds = {} if samples.seeds is None else {"seeds": samples.seeds.tolist()}
    facts = {**samples.meta, **seeds, **known, **(meta or {})}
    return samples.modality.show(stem, samples.data, columns, facts, captions if known else ())


def show(loggers: Iterable[Any], what: Path, hand_over: Callable[[Media], None]) -> None:
    """Calls `hand_over` with each logger that shows media. What goes wrong there must not cost the run.

    Args:
        what: the file that has it in any case, for the warning.
    """
    for logger in loggers:
        try:
            if (media := media_of(logger)) is not None:
                hand_over(media)
        except Exception as error:
            warnings.warn(f"{type(logger).__name__} could not show {what}: {error}")


def show_panels(loggers: Iterable[Any], modality: Modality, panels: Mapping[str, Path], seen: int) -> None:
    """Hands panels of a modality to the loggers that can show them."""
    for name, path in panels.items():
        show(loggers, path, lambda m, name=name, path=path: modality.log_panel(m, name, path, seen))  # type: ignore[misc]


def show_table(loggers: Iterable[Any], name: str, record: Mapping[str, Any], table: Path, seen: int) -> None:
    """Hands the table of an evaluation of texts, if the record has one, to the loggers that can show it."""
    if "table" in record:
        with guarded(table):
            columns, rows = table_columns(table)
            show(loggers, table, lambda media: media.table(name, columns, rows, seen))
