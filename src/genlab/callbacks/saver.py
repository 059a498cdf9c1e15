"""Checkpoints by samples, and the end of a run on a signal: one place decides when the state goes to disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from genlab.callbacks.conductor import Events
from genlab.callbacks.recorder import Recorder
from genlab.errors import Interrupted, NumericError, Preempted, Stopped
from genlab.models.trained import TrainedModel
from genlab.runs.checkpoint import keep_as, stored_sha256
from genlab.runs.directory import RunDirectory
from genlab.signals import STOPPING, caught, leave_terminal, raise_in_handler

WORD_S = 3.0  # seconds that a rank waits for the signal which may be the cause of its failure


class Saver(Checkpoint):
    """Keeps last, previous and best in RUN/checkpoints. As a Lightning `Checkpoint` it stands last of the callbacks.

    Where a batch is both to be validated and saved, it is saved after the validation, whose row is then part of it. A
    signal (SIGTERM, SIGUSR1, SIGHUP: preempted; Ctrl-C: interrupted) sets a flag; at the end of the optimizer step all
    ranks agree on it, save and leave. In a validation, with its samples and evaluation, which can take minutes, it is
    obeyed at once: rank 0 saves the state before it, alone, for the ranks may be anywhere, and a resumed run begins
    with that validation. (Not in the last validation of a run: a loop without batches could not begin with it.) A
    second Ctrl-C leaves at once with the last checkpoint as it is.

    Args:
        events: shared with the conductor.
        run: where to save.
        recorder: holds the value that `monitor` names.
        monitor: row name whose best value names best.ckpt; None for no best.
        mode: "min" or "max".
    """

    def __init__(
        self, events: Events, run: RunDirectory, recorder: Recorder, monitor: str | None = "val/loss", mode: str = "min"
    ) -> None:
        self.events, self.run, self.recorder = events, run, recorder
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self.saved_at = -1
        self.signal: int | None = None
        self.validating = False  # and a signal is obeyed at once
        self.left = False  # a validation for a signal, with the state saved
        self._patience_s = WORD_S

    # ---- signals

    def install(self) -> None:
        """Takes the signals that end a session."""
        for number in caught(STOPPING):
            signal.signal(number, self._notice)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            os.write(2, b"\ngenlab: stopped at once; the last checkpoint is as it was.\n")
            os._exit(Interrupted.exit_code)
        if self.signal is None:
            os.write(2, b"\ngenlab: signal received, saving ...\n")
        self.signal = number
        if self.validating:
            raise_in_handler(self.stopped())

    def stopped(self) -> Stopped:
        """What a signal ends the run with, once the state is saved."""
        kind = Interrupted if self.signal == signal.SIGINT else Preempted
        return kind(f"saved at {self.model.samples_seen:,} samples; the same command goes on from there.")

    def _leave_if_asked(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        asked = self.signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.save(trainer, model)
            raise self.stopped()

    def _asked(self, trainer: pl.Trainer) -> bool:
        """Whether a signal has come, after a failure. A rank that has left on its signal breaks the others'
        collectives: those may hear of the signal a little later."""
        while self.signal is None and trainer.world_size > 1 and self._patience_s > 0:
            time.sleep(0.05)
            self._patience_s -= 0.05
        return self.signal is not None

    def on_exception(self, trainer: pl.Trainer, model: TrainedModel, exception: BaseException) -> None:
        """In a validation: saves where the cause is a signal. EMA, before this one, has put the raw weights back."""
        if not self.validating:
            return
        self.validating = False
        if not self._asked(trainer):
            return
        if trainer.is_global_zero:
            self._check_finite(self.model)
            self.events.pending = True
            self._write(trainer.strategy.save_checkpoint, trainer._checkpoint_connector.dump_checkpoint())
        self.left = True

    # ---- when to save

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.model = model
        self.install()  # Lightning has put its own in the place of ours; they hang in a collective under DDP
        if self.saved_at < 0:  # a new run; not asked of the disk, where another rank may just have written
            self.save(trainer, model)  # so that a run killed early has something valid, and a full disk shows now
        if self.events.pending:
            self._validate_first(trainer, model)

    def _validate_first(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        """The validation that the session before was not allowed to end, as Lightning's training loop calls it."""
        self.events.pending = False
        self.events.step = self.events.evaluate = self.events.save = True
        self.saved_at = -1  # what is on disk lacks this validation
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        if self.events.step and not self.events.evaluate:
            if self.events.save:
                self.save(trainer, model)
            self._leave_if_asked(trainer, model)

    def on_validation_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.validating = not self.events.last
        if self.validating and self.signal is not None:  # it came during the step
            raise self.stopped()

    def on_validation_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.validating = False
        value = self.recorder.latest.get(self.monitor) if self.monitor else None
        better = value is not None and (
            self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        )
        if better:
            self.best = value
        if self.events.save or better:
            self.save(trainer, model)
            if better and trainer.is_global_zero:
                keep_as(self.run.last, "best.ckpt")
        self._leave_if_asked(trainer, model)

    def save(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        """Writes last.ckpt; the one before becomes previous.ckpt.

        Raises:
            NumericError: a weight, or a value of an optimizer's state, is not finite; nothing is written.
            StorageError: from the checkpoint plugin; the old file stays.
        """
        if model.samples_seen == self.saved_at:
            return
        self._check_finite(model)
        self._write(trainer.save_checkpoint)

    def _check_finite(self, model: TrainedModel) -> None:
        states = [state.items() for o in model.all_optimizers() for state in o.state.values()]
        kept = [*model.state_dict().items(), *((f"the optimizer's {name}", value) for s in states for name, value in s)]
        for name, value in kept:
            tensor = isinstance(value, torch.Tensor) and value.is_floating_point()
            if tensor and not torch.isfinite(value).all():
                raise NumericError(
                    f"{name} is not finite at {model.samples_seen:,} samples; not saved, the last checkpoint is from "
                    "before. Lower optimizer.lr or trainer.gradient_clip_val."
                )

    def _write(self, write: Callable[..., None], *content: Any) -> None:
        write(*content, self.run.last)
        self.saved_at = self.model.samples_seen
        if self.model.trainer.is_global_zero:
            self.run.set_status(
                "running",
                samples=self.saved_at,
                checkpoint="checkpoints/last.ckpt",
                sha256=stored_sha256(self.run.last),
            )

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        checkpoint["validation_pending"] = self.events.pending

    def on_load_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        self.saved_at = int(checkpoint["samples"])
        self.events.pending = bool(checkpoint.get("validation_pending", False))
