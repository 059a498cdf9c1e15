"""The protocol of the run as a proxy while training goes on."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl

from genlab.callbacks.ema import EMA
from genlab.callbacks.pictures import show_table
from genlab.callbacks.recorder import Recorder
from genlab.errors import Stopped
from genlab.evaluation import Protocol, evaluate, sharding, write_record
from genlab.models.trained import TrainedModel
from genlab.runs.directory import RunDirectory


class EvaluateWhileTraining(pl.Callback):
    """Evaluates at every n-th validation, by the averaged weights; a metric that fails costs a warning, not the run.

    The share of the run's time that this took is in `share`.

    Args:
        recorder: gets the row.
        protocol: of the run, from conf/evaluation, or None; what is run here is the same with at most `n` samples and
            without a floor.
        run: where the record goes.
        every: validations between evaluations; 0 for never.
        n: samples.
    """

    def __init__(
        self, recorder: Recorder, protocol: Protocol | None, run: RunDirectory, every: int = 0, n: int = 500
    ) -> None:
        self.recorder, self.run, self.every = recorder, run, every
        self.protocol = self.final = protocol
        if protocol is not None and every:
            self.protocol = replace(protocol, n=min(protocol.n or n, n), floor=False, name=None)
        self.validations = 0
        self.seconds = self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._began = time.perf_counter()
        if self.every and self.protocol is not None and self.protocol.needs_pairs:
            pairs = len(trainer.datamodule.source(self.protocol.reference_split))  # type: ignore[attr-defined]
            self.protocol = replace(self.protocol, n=min(self.protocol.n or pairs, pairs), name=None)
        order = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        assert order.index(type(self)) < order.index(EMA), "EMA stands before: it would have swapped the raw weights in"

    @property
    def share(self) -> float:
        """Of the time since training began (in this process), what evaluation took."""
        return self.seconds / max(time.perf_counter() - self._began, 1e-9)

    def on_validation_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.validations += 1
        if self.protocol is None or self.final is None or not self.every or self.validations % self.every:
            return
        if model.samples_seen >= model.max_samples and self.protocol.n == self.final.n:
            return  # the final evaluation follows, which is the same
        ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        assert ema.raw is not None or not ema.average, "the averaged weights are not in place"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        began = time.perf_counter()
        table = self.run.path / "evaluation" / f"{self.protocol.name}-{model.samples_seen:09d}-texts"
        try:
            record = evaluate(model, data, self.protocol, weights="ema", seed=0, progress=False, table=table)
        except BaseException as error:  # whatever it is, it must not cost the run
            if isinstance(error, Stopped) or not isinstance(error, Exception) or sharding.lost_rank(error):
                self.validations -= 1  # the run ends, and a resumed one begins with this validation
                raise
            warnings.warn(f"evaluation {self.protocol.name} failed, its value is missing: {error}")
            return
        finally:
            self.seconds += time.perf_counter() - began
        values = {f"val/{key}": value for key, value in record["values"].items() if value is not None}
        self.recorder.write(trainer, model.samples_seen, values)
        if trainer.is_global_zero:
            name = f"{self.protocol.name}-{model.samples_seen:09d}.json"
            write_record(record, self.run.path / "evaluation" / name)
            show_table(trainer.loggers, "texts_judged", record, table, model.samples_seen)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]
