"""The order of the training data as a pure function: nothing to save, nothing to restore.

Position p counts the real samples drawn since the start of the run, over all ranks. Position p is item
permutation(N, seed, p // N)[p % N], so that every item comes once an epoch whatever the batch size, the number of ranks
or of resumes; a batch may straddle two epochs. Where items have lengths, an epoch's permutation is put into batches of
like length, and is a function of the batch size as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from genlab.errors import ConfigError

POOL = 100  # batches among which items of like length are sought
SUBSET_SEED = 2020  # of the permutation whose first items are "n of a split"


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(n), int64 [n], as a function of (seed, epoch).

    Sorts the raw words of Philox keyed by (seed, epoch): NumPy promises that bit generators' streams never change
    (NEP 19), but does not promise it of `Generator.permutation`.
    """
    key = np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(n), kind="stable")


def subset(size: int, n: int | None) -> np.ndarray:
    """Ids of `n` of `size` items, int64, ascending: a fixed random choice, so that sorted data sets are well mixed."""
    if n is None or n >= size:
        return np.arange(size)
    order = np.random.Generator(np.random.Philox(key=SUBSET_SEED)).permutation(size)
    return np.sort(order[:n])


class Order:
    """Position -> item for one split of n items. Keeps the last two permutations.

    With `shuffled=False` item p % N stands at position p. With `lengths`, int64 [n], the batches of `batch_size` that
    begin at its multiples have items of like length, but for the one batch that straddles two epochs.
    """

    def __init__(
        self, n: int, seed: int, shuffled: bool = True, lengths: Tensor | None = None, batch_size: int = 1
    ) -> None:
        self.n, self.seed, self.shuffled, self.batch_size = n, seed, shuffled, batch_size
        self.lengths = None if lengths is None else lengths.numpy()
        self._kept: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._kept:
            self._kept = {old: ids for old, ids in self._kept.items() if old == epoch - 1}
            ids = permutation(self.n, self.seed, epoch)
            self._kept[epoch] = ids if self.lengths is None else self._by_length(ids, epoch, self.lengths)
        return self._kept[epoch]

    def _by_length(self, ids: np.ndarray, epoch: int, lengths: np.ndarray) -> np.ndarray:
        """Sorts each pool of a permutation by length, cuts it into batches, and shuffles these over the epoch."""
        first = -epoch * self.n % self.batch_size  # where the epoch's first whole batch begins
        count = (self.n - first) // self.batch_size
        end, pool = first + count * self.batch_size, POOL * self.batch_size
        pools = [ids[at : min(at + pool, end)] for at in range(first, end, pool)]
        batches = [part[np.argsort(lengths[part], kind="stable")].reshape(-1, self.batch_size) for part in pools]
        shuffled = np.concatenate(batches)[permutation(count, self.seed, epoch + 2**63)] if batches else ids[:0]
        return np.concatenate([ids[:first], shuffled.ravel(), ids[end:]])

    def ids(self, start: int, count: int) -> Tensor:
        """Item of each position in [start, start + count): int64 [count]."""
        if not self.shuffled:
            return torch.arange(start, start + count) % self.n
        parts = []
        while count > 0:
            epoch, first = divmod(start, self.n)
            part = self._epoch(epoch)[first : first + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return torch.from_numpy(np.concatenate(parts))


def share(batch_size: int, accumulation: int, world_size: int) -> int:
    """Items a rank takes in one micro-batch; ConfigError if that is not whole."""
    count, rest = divmod(batch_size, accumulation * world_size)
    if rest or count == 0:
        raise ConfigError(
            f"data.batch_size={batch_size} is not divisible by trainer.devices x trainer.accumulate_grad_batches = "
            f"{world_size} x {accumulation} (nodes included); choose a multiple of {accumulation * world_size}"
        )
    return count


def micro_batches(
    start: int, stop: int, batch_size: int, accumulation: int = 1, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[int, int]]:
    """(first position, count) of each micro-batch of a rank: whole batches from `start` until `stop` is reached."""
    count = share(batch_size, accumulation, world_size)
    for position in range(start, stop, batch_size):
        for micro in range(accumulation):
            yield position + (micro * world_size + rank) * count, count


def shards(n: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    """(first id, end id) of a rank's batches over range(n) in order, each id once over all ranks, nothing padded.

    All ranks have the same number of batches and none is empty (needs n >= world_size).
    """
    assert n >= world_size, f"{n} items for {world_size} ranks"
    count = max(1, min(-(-n // batch_size), n // world_size))
    edges = [n * k // count for k in range(count + 1)]
    return [
        (lo + (hi - lo) * rank // world_size, lo + (hi - lo) * (rank + 1) // world_size)
        for lo, hi in itertools.pairwise(edges)
    ]
