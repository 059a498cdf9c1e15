"""Rows of the record: training losses averaged between log events, validation losses over the whole split."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from genlab.callbacks.conductor import Events
from genlab.errors import NumericError
from genlab.models.trained import TrainedModel
from genlab.runs.directory import RunDirectory
from genlab.runs.metrics import MetricsFile, read_rows


class Recorder(pl.Callback):
    """Writes metrics.jsonl and hands each row to the loggers. Sums stay on the device until a row is due.

    Args:
        events: shared with the conductor.
        run: whose metrics.jsonl it writes.
    """

    def __init__(self, events: Events, run: RunDirectory) -> None:
        self.events, self.run, self.file = events, run, MetricsFile(run.metrics)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.val_sums: dict[str, Tensor] = {}
        self.val_items = 0
        self.latest: dict[str, float] = {}
        self._clock = (0.0, 0)  # when the last row was due, and the samples seen by then
        self._step: list[tuple[str, Tensor]] = []  # losses of the step that is going on
        self._skipped = self._before = 0  # offset of the file before the validation
        self._paused = 0.0  # seconds spent in validation since the last row

    # ---- training

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._clock, self._skipped = (time.perf_counter(), model.samples_seen), model.skipped

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, outputs: Any, *_: Any) -> None:
        self._step += _losses(outputs).items()
        if self.events.step:
            if model.skipped == self._skipped:  # what is left out of training is left out of its losses
                for name, value in self._step:
                    self._add(name, value)
                if model.grad_norm is not None:
                    self._add("grad_norm", model.grad_norm)
            self._step, self._skipped = [], model.skipped
        if self.events.log:
            self._log_row(trainer, model)

    def _add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def _log_row(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        names = sorted(self.sums)
        means: list[float] = []
        if names:  # none where every step since the last row was left out
            stacked = torch.stack([self.sums[n] / self.counts[n] for n in names]).to(torch.float64)
            means = trainer.strategy.reduce(stacked, reduce_op="mean").tolist()
        self.sums, self.counts = {}, {}
        row = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        if model.skipped:
            row["train/skipped"] = float(model.skipped)
        row["train/lr"] = model.all_optimizers()[-1].param_groups[0]["lr"]
        now = time.perf_counter()
        seconds = now - self._clock[0] - self._paused
        row["train/samples_per_s"] = round((model.samples_seen - self._clock[1]) / max(seconds, 1e-9), 1)
        self._clock, self._paused = (now, model.samples_seen), 0.0
        row["train/memory_gib"] = round(memory_gib(model.device), 3)
        self.write(trainer, model.samples_seen, row)
        bad = [name for name in names if not name.endswith("norm") and not math.isfinite(row[f"train/{name}"])]
        if bad:
            raise NumericError(
                f"train/{bad[0]} is {row[f'train/{bad[0]}']} at {model.samples_seen:,} samples. The last checkpoint is "
                "from before; lower optimizer.lr or trainer.gradient_clip_val, or use trainer.precision=32-true."
            )

    # ---- validation

    def on_validation_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._validation_began, self._before = time.perf_counter(), self.file.offset()
        self.val_sums, self.val_items = {}, 0

    def on_validation_batch_end(
        self, trainer: pl.Trainer, model: TrainedModel, outputs: Any, batch: Any, *_: Any
    ) -> None:
        # A loss is a mean over what it predicts: tokens where there are labels to predict, items else.
        predicted = "labels" in batch and model.feedback is None
        items = int((batch["labels"] != -100).sum()) if predicted else len(batch["id"])
        for name, value in _losses(outputs).items():
            value = value.detach().double() * items
            self.val_sums[name] = self.val_sums[name] + value if name in self.val_sums else value
        self.val_items += items

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        names = sorted(self.val_sums)
        # Sums over items, so that ranks with unequal shares count right.
        sums = torch.stack([*(self.val_sums[n] for n in names), torch.tensor(self.val_items, device=model.device)])
        sums = trainer.strategy.reduce(sums.double(), reduce_op="sum")
        row = {f"val/{name}": float(total / sums[-1]) for name, total in zip(names, sums[:-1], strict=True)}
        self.write(trainer, model.samples_seen, row)
        for name, value in row.items():  # for Lightning's callbacks that monitor a value
            model.log(name, value, logger=False, sync_dist=trainer.world_size > 1, rank_zero_only=False)

    def on_validation_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._paused += time.perf_counter() - self._validation_began

    # ---- rows

    def write(self, trainer: pl.Trainer, samples: int, row: Mapping[str, float]) -> None:
        """One row to metrics.jsonl, then to the loggers."""
        self.latest.update(row)
        if trainer.is_global_zero:
            self.file.append(samples, row)
            for logger in trainer.loggers:
                try:
                    logger.log_metrics({"samples": samples, **row}, step=samples)
                except Exception as error:  # whatever a view raises, it must not cost the run: the row is in the file
                    warnings.warn(f"{type(logger).__name__} could not log: {error}", stacklevel=2)

    def on_save_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["metrics_offset"] = self._before if self.events.pending else self.file.offset()
        checkpoint["recorder"] = {"sums": dict(self.sums), "counts": dict(self.counts)}

    def on_load_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["recorder"]
        self.sums = dict(state["sums"])
        self.counts = dict(state["counts"])
        offset, status = int(checkpoint["metrics_offset"]), self.run.status()
        if status.get("finished_at") == checkpoint["samples"]:  # an extended run keeps the rows of its first end
            offset = max(offset, int(status["metrics_offset"]))
        if trainer.is_global_zero:
            self.file.truncate(offset)
        self.read_back()

    def read_back(self) -> None:
        """`latest` from the rows on disk."""
        for row in read_rows(self.file.path):
            self.latest.update({k: v for k, v in row.items() if k not in ("samples", "time") and v is not None})


def _losses(outputs: Any) -> dict[str, Tensor]:
    if isinstance(outputs, Tensor):
        return {"loss": outputs}
    return {k: v for k, v in (outputs or {}).items() if isinstance(v, Tensor)}


def memory_gib(device: torch.device) -> float:
    """Peak memory: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
