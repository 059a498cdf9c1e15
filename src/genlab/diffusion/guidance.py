"""Classifier-free guidance (Ho and Salimans, 2207.12598)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.errors import ConfigError


def with_null(num_classes: int | None) -> int | None:
    """Size of a label embedding with one more row, the null class (index num_classes); None without labels."""
    return num_classes + 1 if num_classes else None


def check_scale(scale: float, told: bool, dropped: bool) -> None:
    """ConfigError where guidance leads nowhere: a model is told nothing, or has not learned without what it is told."""
    if scale != 1 and not (told and dropped):
        why = "they were never dropped" if told else "this one has none"
        raise ConfigError(
            f"sampler.guidance_scale: {scale} needs a model with labels or captions that it has learned without, too; "
            f"{why}: take sampler.guidance_scale=1"
        )


Told = Any  # what a network is told of B items: a tensor of B rows, a dictionary of such, or None


def guided(
    network: Callable[[Tensor, Tensor, Told], Tensor], x: Tensor, t: Tensor, told: Told, null: Told, scale: float
) -> Tensor:
    """Output with a condition, pushed away from the output without it: u + scale (c - u).

    The paper combines eps. Every other prediction is affine in eps at fixed x_t, and the factors of c and u sum to one,
    so combining any of them is the same. (The paper's w is scale - 1.)

    Args:
        network: (x, t, told) -> output; called once, on 2B rows, or on B rows at scale 1 (the conditional model alone)
            and 0 (the unconditional one).
        x: [B, ...]; t: [B].
        told: labels int64 [B], or tensors of B rows by name.
        null: in its place where nothing is said, of the same form.
    """
    if scale == 1:
        return network(x, t, told)
    if scale == 0:
        return network(x, t, null)
    with_condition, without = network(torch.cat([x, x]), torch.cat([t, t]), both(told, null)).chunk(2)
    return without + scale * (with_condition - without)


def both(told: Told, null: Told) -> Told:
    """The rows of the one, then those of the other."""
    if isinstance(told, dict):
        return {name: both(rows, null[name]) for name, rows in told.items()}
    return torch.cat([told, null])


def where(dropped: Tensor, null: Told, told: Told) -> Told:
    """The null condition in the rows that are dropped, bool [B]."""
    if isinstance(told, dict):
        return {name: where(dropped, null[name], rows) for name, rows in told.items()}
    return torch.where(dropped.view(-1, *(1,) * (told.ndim - 1)), null, told)
