"""The protocol of the run as a proxy while training goes on."""

from __future__ import annotations

import warnings
from typing import Any

import pytorch_lightning as pl

from genlab.callbacks.recorder import Recorder
from genlab.errors import GenlabError
from genlab.evaluation import evaluate, write_record
from genlab.models.base import GenerativeModel
from genlab.runs.directory import RunDirectory


class EvaluateWhileTraining(pl.Callback):
    """Evaluates at every n-th validation, by the averaged weights (it stands before EMA); a metric that fails is a
    warning and training goes on.

    Args:
        recorder: gets the row.
        protocol: from conf/evaluation, or None.
        run: where the record goes.
        every: validations between evaluations; 0 for never.
    """

    def __init__(self, recorder: Recorder, protocol: Any, run: RunDirectory, every: int = 0) -> None:
        self.recorder, self.protocol, self.run, self.every = recorder, protocol, run, every
        self.validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, GenerativeModel)
        self.validations += 1
        last = pl_module.samples_seen >= pl_module.max_samples  # the final evaluation follows
        if self.protocol is None or not self.every or self.validations % self.every or last:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        try:
            record = evaluate(pl_module, data, self.protocol, seed=0, progress=False)
        except (GenlabError, ValueError, ArithmeticError, OSError) as error:
            warnings.warn(f"evaluation {self.protocol.name} failed, its value is missing: {error}")
            return
        values = {f"val/{key}": value for key, value in record["values"].items() if value is not None}
        self.recorder.write(trainer, pl_module.samples_seen, values)
        if trainer.is_global_zero:
            name = f"{self.protocol.name}-{pl_module.samples_seen:09d}.json"
            write_record(record, self.run.path / "evaluation" / name)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]
