"""The counter and everything that hangs on it: seeds of a batch, learning rate, when to validate, when to stop."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from genlab.models.gradients import average
from genlab.models.schedule import crossed
from genlab.models.trained import TrainedModel
from genlab.runs.pulse import Pulse


@dataclass
class Events:
    """What happened at the batch that has just ended: an optimizer step ended; log; evaluate; save; it was the last.

    Attributes:
        pending: what is saved now is the state before a validation that was cut short; a resumed run begins with it.
    """

    step: bool = False
    log: bool = False
    evaluate: bool = False
    save: bool = False
    last: bool = False
    pending: bool = False


class Conductor(pl.Callback):
    """First of the callbacks, so that the others find the counter up to date.

    The events of a batch (log, evaluate, save, last) are in `events`, which the others share. They fire only where an
    optimizer step ends, so no gradient is pending in a checkpoint.
    """

    def __init__(self, events: Events, pulse: Pulse | None = None) -> None:
        self.events, self.pulse = events, pulse
        self._statistics: list[Tensor] = []  # of batch norm

    def _mark(self, where: str, model: pl.LightningModule) -> None:
        if self.pulse is not None:
            self.pulse.mark(f"{where} at {model.samples_seen} samples")

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        trainer.val_check_batch = sys.maxsize
        if trainer.world_size > 1:
            norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
            self._statistics = [b for m in norms for b in m.buffers() if b.is_floating_point()]
        for optimizer in model.all_optimizers():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])  # restored from the checkpoint of a resumed run

    def on_train_batch_start(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        self._mark("had a batch to train on", model)
        plan = model._plan
        # Reseeding at every batch makes a resumed run draw what an uninterrupted one would: nothing is to be restored.
        seed_all(plan.seed, model.samples_seen, trainer.global_rank)
        factor = plan.schedule.lr_factor(model.samples_seen - model.samples_seen % plan.batch_size)
        for optimizer in model.all_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def on_before_backward(self, trainer: pl.Trainer, model: TrainedModel, loss: Tensor) -> None:
        self._mark("was to send gradients", model)

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        if self._statistics:
            average(self._statistics)
        self._mark("had trained on a batch", model)
        plan, events = model._plan, self.events
        model.samples_seen += plan.batch_size // plan.accumulation
        after = model.samples_seen
        before = after - plan.batch_size
        step_done = after % plan.batch_size == 0
        events.step = step_done
        events.last = step_done and after >= plan.schedule.max_samples
        events.log = step_done and (events.last or crossed(plan.schedule.log_every, before, after))
        events.evaluate = step_done and (events.last or crossed(plan.schedule.eval_every, before, after))
        events.save = step_done and (events.last or crossed(plan.schedule.save_every, before, after))
        # Lightning validates where its batch count is a multiple of this: now, or never.
        trainer.val_check_batch = 1 if events.evaluate else sys.maxsize

    def on_validation_batch_start(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        self._mark("was validating", model)

    def on_validation_epoch_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._mark("had validated", model)

    def on_load_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        # Lightning's step count, which its own callbacks put in file names; the loops' position is not restored.
        loop = trainer.fit_loop.epoch_loop
        if model.automatic_optimization:
            loop.automatic_optimization.optim_progress.optimizer.step.total.completed = checkpoint["global_step"]
        else:
            loop.manual_optimization.optim_step_progress.total.completed = checkpoint["global_step"]


def seed_all(seed: int, position: int, rank: int) -> None:
    """Seeds torch (all devices), numpy and random from (run seed, samples seen, rank)."""
    words = np.random.SeedSequence([seed, position, rank]).generate_state(3, np.uint64)
    word = int(words[0]) & (2**63 - 1)
    # What torch.manual_seed does, without the stack trace that it formats for each kind of device that is not there.
    torch.default_generator.manual_seed(word)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(word)
    elif torch.accelerator.is_available():
        torch.manual_seed(word)
    np.random.seed(int(words[1]) & 0xFFFFFFFF)
    random.seed(int(words[2]))
