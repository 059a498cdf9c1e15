"""Classifier-free guidance (Ho and Salimans, 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def with_null(num_classes: int | None) -> int | None:
    """Size of a label embedding with one more row, the null class (index num_classes); None without labels."""
    return num_classes + 1 if num_classes else None


def guided(
    network: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    t: Tensor,
    label: Tensor,
    null: int,
    scale: float,
) -> Tensor:
    """Output with label, pushed away from the output without it: u + scale (c - u).

    The paper combines eps. Every other prediction is affine in eps at fixed x_t, and the factors of c and u sum to one,
    so combining any of them is the same. (The paper's w is scale - 1.)

    Args:
        network: (x, t, label) -> output; called once, on 2B rows, or on B rows at scale 1 (the conditional model alone)
            and 0 (the unconditional one).
        x: [B, ...]; t: [B]; label: int64 [B].
        null: index of the null class.
    """
    if scale == 1:
        return network(x, t, label)
    nulls = torch.full_like(label, null)
    if scale == 0:
        return network(x, t, nulls)
    with_label, without = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, nulls])).chunk(2)
    return without + scale * (with_label - without)
