"""A validation split from the train split, and aliases for the splits that a set does not have."""

from __future__ import annotations

import numpy as np

from genlab.data.manifest import digest
from genlab.data.module import Split
from genlab.data.order import permutation
from genlab.data.sources import Source
from genlab.errors import ConfigError

Items = dict[Split, tuple[Source, str, str]]  # split -> items, their sha256, where they come from


def with_held_out(name: str, items: Items, val_fraction: float) -> Items:
    """All three splits.

    Args:
        name: of the data set.
        items: train and, where the data set has them, val and test.
        val_fraction: this part of train, chosen once for all seeds, becomes val and leaves train. 0: val is the split
            that is there, and where there is but one held-out split the other is its alias.

    Raises:
        ConfigError: nothing is held out.
    """
    items = dict(items)
    if val_fraction:
        whole, sha256, _ = items["train"]
        count = round(len(whole) * val_fraction)
        order = permutation(len(whole), seed=0, epoch=0)  # the same for every seed of a run
        for split, note, ids in (
            ("val", f"{val_fraction} of train", order[:count]),
            ("train", f"train without {val_fraction}", order[count:]),
        ):
            items[split] = whole.select(np.sort(ids)), digest([sha256, note]), note  # type: ignore[index]
    if len(items) == 1:
        raise ConfigError(
            f"data {name!r}: validation has 0 items, train {len(items['train'][0])}; set data.val_fraction=0.1"
        )
    for split, other in (("val", "test"), ("test", "val")):
        if split not in items:
            items[split] = (*items[other][:2], f"alias of {other}")  # type: ignore[index]
    return items
