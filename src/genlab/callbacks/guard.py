"""Steps whose gradient is not finite are left out, some in a row; then the run ends, with the batch kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from genlab.callbacks.conductor import Events
from genlab.errors import NumericError
from genlab.files import replacing
from genlab.models.trained import TrainedModel
from genlab.runs.directory import RunDirectory

SHOWN = 8  # ids in a message


class FiniteGuard(pl.Callback):
    """Counts the steps that `keep_finite` (genlab.models.gradients) has left out.

    Args:
        events: shared with the conductor.
        run: where the last batch is kept, in not_finite/RANK.pt.
        skips: steps in a row that may be left out.

    Raises:
        NumericError: from on_train_batch_end on all ranks, at one more.
    """

    def __init__(self, events: Events, run: RunDirectory, skips: int = 10) -> None:
        self.events, self.run, self.skips = events, run, skips
        self.row = self._before = 0
        self.batches: list[Any] = []  # of the step that is going on

    def on_train_batch_start(self, trainer: pl.Trainer, model: TrainedModel, batch: Any, *_: Any) -> None:
        if not self.batches:
            self._before = model.skipped
        self.batches.append(batch)

    def on_train_batch_end(self, trainer: pl.Trainer, model: TrainedModel, outputs: Any, *_: Any) -> None:
        if not self.events.step:
            return
        batches, self.batches = self.batches, []
        if model.skipped == self._before:
            self.row = 0
            return
        self.row += 1
        own = [int(i) for batch in batches for i in batch["id"]]
        bad = not isinstance(outputs, Mapping) or not all(map(_finite, outputs.values()))
        ids, blamed = own, ""
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, (bad, own))
            ranks = [rank for rank, (worst, _) in enumerate(found) if worst] or list(range(trainer.world_size))
            ids = [i for rank in ranks for i in found[rank][1]]
            blamed = f" of rank {', '.join(map(str, ranks))}" if len(ranks) < trainer.world_size else ""
        shown = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
        said = f"the gradient is not finite at {model.samples_seen:,} samples (ids {shown}{blamed})"
        if self.row <= self.skips:
            if trainer.is_global_zero:
                warnings.warn(f"{said}: this step is left out, the {self.row}. of at most {self.skips} in a row")
            return
        kept = self.run.path / "not_finite" / f"{trainer.global_rank}.pt"
        with replacing(kept) as temporary:
            torch.save([{k: v.cpu() for k, v in b.items() if isinstance(v, torch.Tensor)} for b in batches], temporary)
        raise NumericError(
            f"{said}, the {self.row}. step in a row; the batch is in {kept.parent}. The last checkpoint is from "
            "before: lower optimizer.lr or trainer.gradient_clip_val, or use trainer.precision=32-true."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.row = state_dict["row"]


def _finite(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())
