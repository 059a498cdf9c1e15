"""The progress bar: samples, time left, loss, speed."""

from __future__ import annotations

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from genlab.callbacks.recorder import Recorder
from genlab.models.trained import TrainedModel


class SampleProgress(ProgressBar):
    """One bar over the whole run, in samples. Where the output is no terminal, one line now and then."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.enabled = True
        self._bar: Any = None
        self._shown = -1.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=model.max_samples,
            initial=model.samples_seen,
            unit=" samples",
            unit_scale=True,
            desc="train",
            disable=not self.enabled,  # Lightning's doing, on all ranks but the first
            dynamic_ncols=terminal,
            mininterval=0.3 if terminal else 20.0,
            maxinterval=1.0 if terminal else 60.0,
            smoothing=0.1,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, *_: Any) -> None:
        shown = {k: v for k, v in self.recorder.latest.items() if k in ("train/loss", "val/loss")}
        if not shown:  # a model of several players has no single training loss
            shown = {k: v for k, v in self.recorder.latest.items() if k.endswith("_loss")}
        if shown and sum(shown.values()) != self._shown:
            self._bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            self._shown = sum(shown.values())
        self._bar.update(min(model.samples_seen, model.max_samples) - self._bar.n)

    def on_train_end(self, trainer: pl.Trainer, model: TrainedModel) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, model: TrainedModel, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def print(self, *args: Any, **kwargs: Any) -> None:
        tqdm.write(" ".join(str(a) for a in args), file=sys.stderr)
