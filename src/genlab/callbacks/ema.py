"""Exponential moving average of the weights that are sampled from."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from genlab.models.trained import TrainedModel


class EMA(pl.Callback):
    """ema <- decay * ema + (1 - decay) * weights, once an optimizer step of the sampled player.

    Validation, sample grids and evaluation see the averaged weights: they are swapped in when validation starts and
    out when it ends, so callbacks that evaluate must stand before this one and those that save after it.

    Args:
        decay: per optimizer step.
        ramp: the decay in force is min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's
            ExponentialMovingAverage, so that short runs are not averages of their random start.
    """

    track = "ema"  # name of this average in the checkpoint

    def __init__(self, decay: float = 0.9999, ramp: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: expected 0 <= decay < 1")
        self.decay, self.ramp = decay, ramp
        self.average: dict[str, Tensor] = {}
        self.raw: dict[str, Tensor] | None = None  # the weights, while the average stands in their place
        self._own: dict[str, Tensor] = {}  # the model's tensors, looked up once: they change in place
        self._seen = 0

    def tracked(self, model: TrainedModel) -> dict[str, Tensor]:
        """The model's own tensors, by name, that are averaged."""
        return {k: v for k, v in model.state_dict().items() if k.startswith(model.sampled_parts())}

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        own = self._own = self.tracked(model)  # now, not earlier: the model has reached its device
        if self.average:  # from a checkpoint: to the model's device
            self.average = {k: self.average[k].to(v.device) for k, v in own.items()}
        else:
            self.average = {k: v.clone() for k, v in own.items()}
        self._seen = model.updates

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        if model.updates == self._seen:
            return
        self._seen = model.updates
        decay = min(self.decay, (1 + self._seen) / (10 + self._seen)) if self.ramp else self.decay
        own = self._own
        floats = [k for k, v in own.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floats], [own[k] for k in floats], 1 - decay)
        for name, value in own.items():
            if not value.is_floating_point():  # counters of batch norm and the like
                self.average[name].copy_(value)

    def on_validation_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.swap_in(model)

    def on_validation_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self.swap_out(model)

    def on_exception(self, trainer: pl.Trainer, model: TrainedModel, exception: BaseException) -> None:
        self.swap_out(model)

    def swap_in(self, model: TrainedModel) -> None:
        """Puts the average in the place of the weights."""
        if self.raw is None and self.average:
            own = self.tracked(model)
            self.raw = {name: value.clone() for name, value in own.items()}
            for name, value in own.items():
                value.copy_(self.average[name])

    def swap_out(self, model: TrainedModel) -> None:
        """Puts the weights back."""
        if self.raw is not None:
            for name, value in self.tracked(model).items():
                value.copy_(self.raw[name])
            self.raw = None

    def on_save_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        assert self.raw is None, "a checkpoint must hold the raw weights: EMA must stand before the callback that saves"
        checkpoint["ema"] = {self.track: {name: value.clone() for name, value in self.average.items()}}

    def on_load_checkpoint(self, trainer: pl.Trainer, model: TrainedModel, checkpoint: dict[str, Any]) -> None:
        self.average = dict(checkpoint.get("ema", {}).get(self.track, {}))
