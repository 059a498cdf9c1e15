"""The contract of a family that generates, and what is written once for all of them: conditions and sampling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from genlab.conditions import Condition, Draw, condition_named
from genlab.kinds import check_kind
from genlab.modality import Image, Modality
from genlab.models.trained import TrainedModel
from genlab.samples import Samples

Rows = dict[str, Tensor]  # conditions by name, tensors of as many rows as items


class GenerativeModel(TrainedModel):
    """A family of generative models: defines `losses` and `generate`; the rest is here and in TrainedModel.

    Attributes:
        modality: of what `sample` returns.
        conditions: what `generate` understands, e.g. (Label(10),).
        chunk_size: C. Item i of a sample sits in slot i % C of chunk i // C; every chunk has C rows, so the result for
            an item does not depend on how many are asked for or on how many devices share the work.
        sampler: used where `sample` is not given one.
        sampled_by: the kind of sampler that `generate` takes, see genlab.kinds; None: any.
        subset: classes that the data was cut to, of which seeds get theirs; None: all.
        label_names: of the classes, as people know them; None: numbers.
    """

    modality: Modality = Image()
    conditions: tuple[Condition, ...] = ()
    chunk_size: int = 16
    sampled_by: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.sampler: Any = None
        self.subset: Sequence[int] | None = None
        self.label_names: Sequence[str] | None = None

    @abstractmethod
    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Any) -> Any:
        """Items as the family makes them, for `to_data`: floats in about [-1, 1], NCHW, for images; token ids for text.

        Args:
            seeds: int64 [B]; row i of the result is a function of seeds[i] and the condition's row i alone.
            condition: tensors of B rows by the names of `conditions`, or None.
            sampler: an object from conf/sampler.
        """

    def check_sampler(self, sampler: Any) -> None:
        """Refuses, before anything is trained or sampled, a sampler that can only fail.

        Raises:
            ConfigError: what does not fit, and what would.
        """
        check_kind(sampler, self)

    def to_data(self, raw: Any) -> Any:
        """Output of `generate` -> the data of `Samples`: images are rounded to uint8."""
        return self.modality.to_data(raw)

    def complete(self, seeds: Tensor, condition: Rows | None) -> Rows:
        """The condition with the defaults of each seed where nothing was said.

        Raises:
            ConfigError: the condition has a key that this model does not know.
            ValueError: a wrong number of rows.
        """
        rows = {name: value for name, value in (condition or {}).items() if value is not None}
        for name, value in rows.items():
            condition_named(self, name)
            if len(value) != len(seeds):
                raise ValueError(f"condition.{name}: {len(value)} rows for {len(seeds)} seeds")
        for known in self.conditions:
            if known.name not in rows and (default := known.default(seeds, self)) is not None:
                rows[known.name] = default
        return rows

    def draw(self, n: int, data: Any, protocol: Any) -> dict[str, Draw]:
        """What evaluation tells the model about n items, by the names of conditions."""
        return {known.name: known.draw(n, data, protocol, self) for known in self.conditions if known.drawn}

    def examples(self, n: int, data: Any) -> Rows:
        """What n items to look at are told where seeds have no defaults, by the names of conditions."""
        rows = {known.name: known.example(n, data) for known in self.conditions if known.drawn}
        return {name: value for name, value in rows.items() if value is not None}

    def shown(self, condition: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Conditions as a person reads them: N numbers or strings by name."""
        return {name: condition_named(self, name).shown(rows, self) for name, rows in condition.items()}

    def answers(self, samples: Samples) -> Samples:
        """What evaluation judges of what was generated: here all of it."""
        return samples

    def sample(self, seeds: Tensor, condition: Rows | None = None, sampler: Any = None) -> Samples:
        """Generates one item a seed, in fixed chunks of `chunk_size` rows; the last chunk is padded with seed 0.

        Args:
            seeds: int64 [N] on any device.
            condition: tensors of N rows, by the names of `conditions`; what is not there gets the seeds' defaults
                (labels go round the classes).
            sampler: an object from conf/sampler; None takes the run's own.

        Returns:
            Samples of N items on the CPU.

        Raises:
            ConfigError: the condition has a key that this model does not know.
            ValueError: a wrong number of rows.
        """
        sampler = self.sampler if sampler is None else sampler
        condition = self.complete(seeds, condition)
        count, size, device = len(seeds), self.chunk_size, self.device
        parts: list[Any] = []
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for start in range(0, count, size):
                    chunk_seeds = torch.zeros(size, dtype=torch.int64)
                    used = min(size, count - start)
                    chunk_seeds[:used] = seeds[start : start + used].cpu()
                    chunk = {name: _pad(rows[start : start + used], size) for name, rows in condition.items()}
                    on_device = {name: rows.to(device) for name, rows in chunk.items()} or None
                    data = self.to_data(self.generate(chunk_seeds.to(device), on_device, sampler)[:used])
                    parts.append(data.cpu() if isinstance(data, Tensor) else data)
        finally:
            self.train(was_training)
        return Samples(self.modality, self.modality.join(parts), condition, seeds.cpu())


def _pad(rows: Tensor, size: int) -> Tensor:
    """Rows repeated from the last one up to `size`."""
    return rows if len(rows) == size else torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
