"""A trial of a search that falls behind the others ends early (conf/hparams_search, `hydra.sweeper.pruner`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl

from genlab.callbacks.recorder import Recorder
from genlab.errors import GenlabError
from genlab.models.trained import TrainedModel
from genlab.runs.metrics import read_rows

TRIAL = (
    "GENLAB_TRIAL"  # environment variable by which genlab.cli.search names the trial: JSON of storage, study, number
)


class Pruned(GenlabError):
    """The study's pruner has ended the run; no fault."""

    exit_code = 0


class Pruning(pl.Callback):
    """Reports the monitored value to an Optuna study at each validation, against samples, and asks whether to go on.

    A trial that was cut short and is given again has a new number: the values that its run already has are reported
    first.

    Args:
        recorder: has the rows.
        monitor: name of the value.
        trial: {"storage": SQLite file, "study": name, "number": of the trial, "pruner": median or halving}.

    Raises:
        Pruned: from on_validation_end, on all ranks.
    """

    def __init__(self, recorder: Recorder, monitor: str, trial: Mapping[str, Any]) -> None:
        self.recorder, self.monitor, self.settings = recorder, monitor, trial
        self.told = -1  # samples of the last value reported

    @staticmethod
    def of_environment() -> dict[str, Any] | None:
        """The trial that this process belongs to, or None."""
        return json.loads(os.environ[TRIAL]) if TRIAL in os.environ else None

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        if trainer.is_global_zero:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.load_study(
                storage=f"sqlite:///{self.settings['storage']}",
                study_name=self.settings["study"],
                pruner=make_pruner(self.settings["pruner"]),
            )
            (identifier,) = [t._trial_id for t in study.trials if t.number == self.settings["number"]]
            self.trial = optuna.trial.Trial(study, identifier)
            self._report()

    def _report(self) -> None:
        for row in read_rows(self.recorder.file.path):
            if row["samples"] > self.told and row.get(self.monitor) is not None:
                self.trial.report(row[self.monitor], step=row["samples"])
                self.told = row["samples"]

    def on_validation_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        behind = False
        if trainer.is_global_zero:
            self._report()
            behind = self.trial.should_prune()
        if trainer.world_size > 1:
            behind = trainer.strategy.reduce_boolean_decision(behind, all=False)
        if behind and model.samples_seen < model.max_samples:
            raise Pruned(f"pruned at {model.samples_seen:,} samples")


def make_pruner(name: str) -> Any:
    """Optuna's pruner of a name.

    Raises:
        KeyError: unknown; genlab.cli.search has checked it.
    """
    from optuna import pruners

    known: dict[str, Callable[[], Any]] = {
        # Golovin et al. 2017: worse than the median of the others at as many samples, after four whole trials
        "median": lambda: pruners.MedianPruner(n_startup_trials=4),
        # Li et al. 2018, arXiv 1810.05934
        "halving": pruners.SuccessiveHalvingPruner,
    }
    return known[name]()
