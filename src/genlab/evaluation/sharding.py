"""Items 0 .. n-1 shared over the ranks: each exactly once, results in order on every rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from genlab.samples import Samples

Rows = dict[str, Any]  # tensors of as many rows as items, or lists of as many strings

on_wait: Callable[[], None] | None = None  # called before a rank waits for the others; set by who watches the ranks


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def lost_rank(error: BaseException) -> bool:
    """Whether a collective failed, as it does where another rank has left: no fault of what was computed."""
    said = any(word in str(error) for word in ("gloo/transport", "ncclRemoteError"))
    return isinstance(error, RuntimeError) and (said or isinstance(error, dist.DistError))


def bounds(n: int, unit: int, ranks: int) -> list[int]:
    """ranks + 1 borders: rank r has items b[r] .. b[r+1] - 1. Borders are multiples of `unit`; shares differ by one."""
    units = -(-n // unit)
    return [min(n, unit * (r * units // ranks)) for r in range(ranks + 1)]


def sharded(
    n: int,
    unit: int,
    group: int,
    work: Callable[[int, int], Mapping[str, Any]],
    done: Callable[[int], Any] = lambda count: None,
) -> Rows:
    """Runs `work(start, stop)` over this rank's share and gathers the rows of all ranks.

    Every rank must call it. No item is padded or repeated. A rank that has failed says so in the exchange, so that none
    waits for it.

    Args:
        n: number of items, at least 1.
        unit: items that must stay together (the model's chunk).
        group: items handed to `work` at a time, a multiple of `unit`.
        work: (start, stop) -> tensors of stop - start rows on the CPU, or lists of as many strings; the same keys
            everywhere.
        done: told the number of items after each call of `work`.

    Returns:
        Tensors of n rows, lists of n strings, in order, on the CPU, the same on every rank.

    Raises:
        Exception: what `work` raised, on the rank where it did; on the others a RuntimeError that names it.
    """
    assert group % unit == 0
    rank, ranks = world()
    borders = bounds(n, unit, ranks)
    parts: list[Mapping[str, Any]] = []
    failure: BaseException | None = None
    try:
        for start in range(borders[rank], borders[rank + 1], group):
            stop = min(start + group, borders[rank + 1])
            parts.append(work(start, stop))
            assert all(len(rows) == stop - start for rows in parts[-1].values())
            done(stop - start)
    except Exception as error:
        failure = error
    mine = None if failure else {key: _joined([part[key] for part in parts]) for key in (parts[0] if parts else {})}
    shares: list[Any] = [mine] * ranks
    if ranks > 1:
        if on_wait is not None:
            on_wait()
        dist.all_gather_object(shares, mine)
    if failure is not None:
        raise failure
    if None in shares:
        raise RuntimeError(f"rank {shares.index(None)} failed")
    if ranks == 1:
        return shares[0]
    # A rank may be without items; the last one never is.
    return {key: _joined([share[key] for share in shares if share]) for key in shares[-1]}


def generate(
    model: Any,
    seeds: Tensor,
    condition: dict[str, Tensor] | None = None,
    sampler: Any = None,
    done: Callable[[int], Any] = lambda count: None,
    group: int | None = None,
) -> Samples:
    """model.sample, its chunks shared over the ranks: the same items whatever their number, on every rank.

    Args:
        model: a GenerativeModel with the same weights on every rank.
        seeds: see GenerativeModel.sample.
        condition: see GenerativeModel.sample.
        sampler: see GenerativeModel.sample.
        done: told the number of items as they come.
        group: items between two calls of `done`, rounded up to whole chunks; None: one chunk.
    """
    unit, whole = int(model.chunk_size), model.complete(seeds, condition)

    def work(start: int, stop: int) -> dict[str, Any]:
        part = {name: rows[start:stop] for name, rows in whole.items()}
        return {"data": model.sample(seeds[start:stop], part, sampler).data}

    rows = sharded(len(seeds), unit, unit * -(-(group or unit) // unit), work, done)
    return Samples(model.modality, rows["data"], whole, seeds.cpu())


def bar(progress: bool, words: str, total: int) -> Any:
    """A tqdm over `total` items on rank 0; on other ranks, and without `progress`, a hidden one."""
    pause = 0.2 if sys.stderr.isatty() else 20.0  # where the output is no terminal each state is a line
    hidden = not progress or world()[0] != 0
    return tqdm(total=total, desc=words, unit="", leave=False, mininterval=pause, maxinterval=60, disable=hidden)


def _joined(parts: list[Any]) -> Tensor | list[str]:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [item for part in parts for item in part]


def from_first_rank(compute: Callable[[], Any]) -> Any:
    """The value that rank 0 computes, on every rank; if it raises, every rank raises.

    `compute` must not use collectives; the value must pickle.
    """
    rank, ranks = world()
    if ranks == 1:
        return compute()
    if on_wait is not None:
        on_wait()
    box: list[Any] = [None, None]
    if rank == 0:
        try:
            box[0] = compute()
        except Exception as error:  # the others wait in the broadcast below; tell them, then raise
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]
