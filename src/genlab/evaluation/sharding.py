"""Items 0 .. n-1 shared over the ranks: each exactly once, results in order on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without torch.distributed."""
    ready = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if ready else (0, 1)


def bounds(n: int, unit: int, ranks: int) -> list[int]:
    """ranks + 1 borders: rank r has items b[r] .. b[r+1] - 1. Borders are multiples of `unit`; shares differ by one."""
    units = -(-n // unit)
    return [min(n, unit * (r * units // ranks)) for r in range(ranks + 1)]


def sharded(
    n: int,
    unit: int,
    group: int,
    work: Callable[[int, int], dict[str, Tensor]],
    done: Callable[[int], Any] = lambda count: None,
) -> dict[str, Tensor]:
    """Runs `work(start, stop)` over this rank's share and gathers the rows of all ranks.

    Every rank must call it. Nothing is padded or repeated but the buffers of the exchange.

    Args:
        n: number of items, at least 1.
        unit: items that must stay together (the model's chunk).
        group: items handed to `work` at a time, a multiple of `unit`.
        work: (start, stop) -> tensors of stop - start rows, on the CPU, the same keys everywhere.
        done: told the number of items after each call of `work`.

    Returns:
        Tensors of n rows in order, on the CPU, the same on every rank.
    """
    assert group % unit == 0
    rank, ranks = world()
    borders = bounds(n, unit, ranks)
    parts: list[dict[str, Tensor]] = []
    for start in range(borders[rank], borders[rank + 1], group):
        stop = min(start + group, borders[rank + 1])
        parts.append(work(start, stop))
        assert all(len(rows) == stop - start for rows in parts[-1].values())
        done(stop - start)
    mine = {key: torch.cat([part[key] for part in parts]) for key in (parts[0] if parts else {})}
    if ranks == 1:
        return mine
    # A rank without items learns the shapes from one that has some; the last rank always has.
    specs: list[Any] = [{key: (rows.shape[1:], rows.dtype) for key, rows in mine.items()}]
    dist.broadcast_object_list(specs, src=ranks - 1)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    sizes = [borders[r + 1] - borders[r] for r in range(ranks)]
    result = {}
    for key, (shape, dtype) in specs[0].items():
        buffer = torch.zeros(max(sizes), *shape, dtype=dtype, device=device)
        if sizes[rank]:
            buffer[: sizes[rank]] = mine[key].to(device)
        gathered = [torch.empty_like(buffer) for _ in range(ranks)]
        dist.all_gather(gathered, buffer)
        result[key] = torch.cat([rows[:size].cpu() for rows, size in zip(gathered, sizes, strict=True)])
    return result


def from_first_rank(compute: Callable[[], Any]) -> Any:
    """The value that rank 0 computes, on every rank; if it raises, every rank raises.

    `compute` must not use collectives; the value must pickle.
    """
    rank, ranks = world()
    if ranks == 1:
        return compute()
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
