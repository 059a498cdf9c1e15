"""How long, how often, and the learning rate: everything in samples, the one counter of a run. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["constant", "cosine", "linear", "inverse_sqrt"]


@dataclass(frozen=True)
class Schedule:
    """conf/schedule.

    Args:
        max_samples: training ends at the first whole batch that reaches it.
        eval_every: validation, sample grids and evaluation at the first batch past each multiple; 0 only at the end.
        save_every: checkpoint, likewise.
        log_every: row of training losses, likewise.
        warmup: samples over which the learning rate rises linearly from 0.
        decay: shape of the learning rate after the warm-up. inverse_sqrt is Vaswani et al. 2017 (arXiv 1706.03762),
            equation 3, as a multiple of its peak.
        final_lr: learning rate at the end as a share of its peak (cosine and linear).
    """

    max_samples: int
    eval_every: int = 0
    save_every: int = 0
    log_every: int = 0
    warmup: int = 0
    decay: Decay = "constant"
    final_lr: float = 0.0

    def lr_factor(self, samples: int) -> float:
        """Learning rate as a multiple of its peak for the batch drawn after `samples`."""
        if samples < self.warmup:
            return samples / self.warmup
        if self.decay == "inverse_sqrt":
            return math.sqrt(max(self.warmup, 1) / max(samples, 1))
        if self.decay == "constant":
            return 1.0
        share = min(1.0, (samples - self.warmup) / max(1, self.max_samples - self.warmup))
        shape = (1 - share) if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.final_lr + (1 - self.final_lr) * shape


def crossed(every: int, before: int, after: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]; never for 0."""
    return every > 0 and after // every > before // every
