"""Callbacks that make faults at given moments, named by configs through GENLAB_ALLOW=fault_parts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from genlab import files


class Kill(pl.Callback):
    """SIGKILL to this process, once, at a moment of the run.

    Args:
        moment: "batch" (between a step and what follows), "validation" (in the midst), "validated" (its row is
            written), "save" (the new file lies beside the old one) or "saved" (it has taken its place, its hash
            stands beside the old one's).
        samples: the moment is the first of its kind at so many samples or more.
        folder: of the sign that it has happened, and of the ids that this rank has trained on.
    """

    def __init__(self, moment: str, samples: int, folder: str) -> None:
        self.moment, self.samples, self.folder = moment, samples, Path(folder)
        self.model: Any = None
        self.folder.mkdir(parents=True, exist_ok=True)

    def _at(self, moment: str) -> None:
        sign = self.folder / f"{self.moment}-{self.samples}"
        if moment == self.moment and self.model.samples_seen >= self.samples and not sign.exists():
            if multiprocessing.parent_process() is None:
                raise RuntimeError("this would kill the tests: give the run a process of its own")
            sign.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.model = pl_module
        replace = os.replace

        def watched(source: Any, target: Any) -> None:
            ours = Path(target).name == "last.ckpt"
            if ours:
                self._at("save")
            replace(source, target)
            if ours:
                self._at("saved")

        if self.moment in ("save", "saved"):
            files.os = type("os", (), {**vars(os), "replace": staticmethod(watched)})  # type: ignore[attr-defined]

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        files.os = os  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = {int(p): int(i) for p, i in zip(batch["position"], batch["id"], strict=True)}
        with open(self.folder / f"ids-{trainer.global_rank}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        self._at("batch")

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._at("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._at("validated")


class Signal(pl.Callback):
    """A signal to this process, once, in the step after so many samples."""

    def __init__(self, number: int, samples: int, folder: str) -> None:
        self.number, self.samples, self.folder = number, samples, Path(folder)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.samples_seen == self.samples and not (self.folder / "sent").exists():
            (self.folder / "sent").touch()
            os.kill(os.getpid(), self.number)


class LongStep(pl.Callback):
    """At so many samples a step takes some seconds, after a sign in FOLDER/long."""

    def __init__(self, samples: int, seconds: float, folder: str) -> None:
        self.samples, self.seconds, self.folder = samples, seconds, Path(folder)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.samples_seen == self.samples:
            (self.folder / "long").touch()
            time.sleep(self.seconds)
