"""Samples: what every family generates and every metric reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from genlab.modality import Modality


@dataclass
class Samples:
    """A batch of generated (or real) items in the form that a person or a metric reads.

    Attributes:
        modality: of the items, e.g. `genlab.modality.Image()`.
        data: N items in the modality's form.
        condition: what each item was asked to be, by the names of conditions: N rows of a tensor, or N strings.
        seeds: int64 [N], the seed of each item, or None for real data.
        meta: what made them (sampler, guidance, weights, ...); goes into the record and into PNG metadata.

    Raises:
        ValueError: data of another form.
    """

    modality: Modality
    data: Any
    condition: dict[str, Any] = field(default_factory=dict)
    seeds: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modality.check(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: slice) -> Samples:
        """Items of a slice."""
        return Samples(
            self.modality,
            self.modality.cut(self.data, index),
            {name: rows[index] for name, rows in self.condition.items()},
            None if self.seeds is None else self.seeds[index],
            self.meta,
        )

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], the classes that were asked for; None where none were."""
        return self.condition.get("label")

    @staticmethod
    def cat(parts: Sequence[Samples]) -> Samples:
        """Parts of one modality, joined in order; what one of them lacks is left out."""
        first = parts[0]
        names = [name for name in first.condition if all(name in part.condition for part in parts)]
        seeds = [part.seeds for part in parts if part.seeds is not None]
        return Samples(
            first.modality,
            first.modality.join([part.data for part in parts]),
            {name: join_rows([part.condition[name] for part in parts]) for name in names},
            torch.cat(seeds) if len(seeds) == len(parts) else None,
            first.meta,
        )


def join_rows(parts: Sequence[Any]) -> Any:
    """Tensors, or lists, of rows, joined in order."""
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]
