"""Parts for tests of several ranks, named by configs through GENLAB_ALLOW=ddp_parts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from genlab.judges import Judge
from genlab.networks import dcgan
from genlab.samples import Samples


class Generator(dcgan.Generator):
    """Without batch norm, whose statistics depend on how a batch is shared."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = nn.Sequential(*(nn.Identity() if isinstance(m, nn.BatchNorm2d) else m for m in self.body))


class Letters(Judge):
    """Share of the letters a to d in a text, and more for a longer one."""

    modality = "text"

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        return [sum(c in "abcd" for c in text) + 0.1 * len(text) for text in samples.data]


class Brightness(Judge):
    """Mean of the pixels."""

    modality = "image"

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> torch.Tensor:
        return samples.data.float().flatten(1).mean(1)


class Dump(pl.Callback):
    """Every rank's weights and buffers at the end of training, in FOLDER/RANK.pt."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}.pt")


class Sleep(pl.Callback):
    """One rank hangs at a batch."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        while trainer.global_rank == self.rank and batch_idx == self.batch:
            time.sleep(1)


class Fail(pl.Callback):
    """One rank raises at a batch."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx == self.batch:
            raise RuntimeError("this one has failed")


class Poison(pl.Callback):
    """On one rank the loss is not a number at the given batches."""

    def __init__(self, rank: int, batches: list[int]) -> None:
        self.rank, self.batches, self.active = rank, batches, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.global_rank == self.rank:
            losses = pl_module.losses

            def poisoned(*args: Any, **kwargs: Any) -> dict[str, Any]:
                factor = float("nan") if self.active else 1.0
                return {name: value * factor for name, value in losses(*args, **kwargs).items()}

            pl_module.losses = poisoned

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.active = pl_module.samples_seen // pl_module.plan.batch_size in self.batches


class Wait(pl.Callback):
    """At 40 samples, at a moment of the run, leaves a sign in FOLDER/RANK and waits for a signal, which it may send
    itself; not where FOLDER/go is there."""

    def __init__(self, moment: str, folder: str, number: int | None = None) -> None:
        self.moment, self.folder, self.number = moment, Path(folder), number

    def _at(self, trainer: pl.Trainer) -> None:
        (self.folder / str(trainer.global_rank)).touch()
        if self.number is not None:
            os.kill(os.getpid(), self.number)

    def _wait(self, trainer: pl.Trainer, model: Any, moment: str) -> None:
        if self.moment != moment or model.samples_seen != 40 or (self.folder / "go").exists():
            return
        self._at(trainer)
        for _ in range(6000):
            time.sleep(0.01)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.moment == "train" and pl_module.samples_seen == 40 and not (self.folder / "go").exists():
            self._at(trainer)
            time.sleep(0.0 if self.number else 1.0)  # a long step: the signal comes in its middle

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.moment in ("samples", "evaluation") and "generate" not in vars(pl_module):
            generate, count = pl_module.generate, {"samples": 0, "evaluation": 1}[self.moment]
            calls: list[int] = []

            def waiting(*args: Any) -> Any:
                calls.append(1)
                if len(calls) > count:
                    self._wait(trainer, pl_module, self.moment)
                return generate(*args)

            pl_module.generate = waiting

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._wait(trainer, pl_module, "validation" if batch_idx else "validation_start")


class BySeed(pl.Callback):
    """What a user's code does wrong: the run of seed 2 raises, that of seed 3 calls sys.exit(0)."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1 and pl_module.plan.seed == 2:
            raise RuntimeError("seed 2 has failed")
        if batch_idx == 1 and pl_module.plan.seed == 3:
            sys.exit(0)
