"""Conditions: what a model can be told about each item, one class each. Nothing else knows them by name."""

from __future__ import annotations

import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from genlab.data.order import SUBSET_SEED, subset
from genlab.data.vocabulary import encode
from genlab.decoding.reading import ENDED, padded
from genlab.errors import ConfigError, DataError

UNCONDITIONED = {"labels": "none: the model is not conditioned on labels"}  # in a metric record


@dataclass
class Draw:
    """What evaluation tells a model about its n items.

    Attributes:
        rows: tensor of n rows, or None: nothing.
        facts: where they come from, for the metric record.
        references: the right answers of each item, where there are some.
        shown: the condition of each item as a person reads it, for a table.
        sampler: fields of the sampler that follow from them.
    """

    rows: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    references: list[list[str]] | None = None
    shown: list[str] | None = None
    sampler: dict[str, Any] = field(default_factory=dict)


class Condition(ABC):
    """One thing that a model can be told about an item. A model lists those that it knows in `model.conditions`.

    `generate` is given the tensor of B rows under `name`. On a command line it is `condition.NAME=VALUE`, one value for
    all items or a list of them; in a file, a line an item, or a key of a .jsonl.

    Attributes:
        name: key of the condition.
        drawn: whether evaluation says it of its items; what only a user says (a picture to begin from) is not.
    """

    name: ClassVar[str]
    drawn: ClassVar[bool] = True

    @abstractmethod
    def rows(self, values: Sequence[Any], model: Any) -> Tensor:
        """Values as a user writes them -> a tensor of as many rows.

        Args:
            values: one an item.
            model: whose condition it is (its tokenizer, ...).

        Raises:
            ConfigError: a value that cannot be, as `condition.NAME=VALUE: expected ...`.
        """

    def parse(self, line: str) -> Any:
        """Text of a command line, or a line of a file -> a value."""
        return line

    def default(self, seeds: Tensor, model: Any) -> Tensor | None:
        """Rows for int64 [N] seeds where a user says nothing, each a function of its seed; None: it stays unsaid."""
        return None

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        """What evaluation gives n items: here the defaults of seeds 0 to n - 1.

        Args:
            data: a DataModule that has been set up.
            protocol: genlab.evaluation.Protocol, which says from where.

        Raises:
            ConfigError: the data or the protocol does not fit.
        """
        return Draw(self.default(torch.arange(n), model), {self.name: "defaults of seeds 0 to n - 1"})

    def references_from(self, data: Any, protocol: Any) -> str | None:
        """What gives items that are drawn for it references, for a message; None: they have them; "": nothing does."""
        return ""

    def example(self, n: int, data: Any) -> Tensor | None:
        """Rows of n items to look at while a model trains, where seeds have no default; None: there are none."""
        return None

    def shown(self, rows: Tensor, model: Any) -> list[Any]:
        """Rows -> what a person reads, one an item: numbers or strings."""
        return rows.tolist()


@dataclass(frozen=True)
class Label(Condition):
    """A class, int64. The defaults of seeds 0, 1, ... go round the classes (of the data's subset, where it is one).

    Attributes:
        classes: their number.
    """

    name = "label"
    classes: int

    def rows(self, values: Sequence[Any], model: Any) -> Tensor:
        names = self.names(model)
        values = [names.index(value) if isinstance(value, str) and value in names else value for value in values]
        wrong = next((value for value in values if not self._is_label(value)), None)
        if wrong is not None:
            known = f" or {', '.join(names[:20])}" if names else ""
            raise ConfigError(f"condition.{self.name}={wrong}: expected 0 to {self.classes - 1}{known}.")
        return torch.tensor([operator.index(value) for value in values])

    def names(self, model: Any) -> list[str]:
        """What the classes are called, in order; none where that is not known."""
        return list(getattr(model, f"{self.name}_names", None) or ())

    def shown(self, rows: Tensor, model: Any) -> list[Any]:
        names = self.names(model)
        return [names[i] if i < len(names) else i for i in rows.tolist()]

    def _is_label(self, value: Any) -> bool:
        try:
            return not isinstance(value, bool) and 0 <= operator.index(value) < self.classes
        except TypeError:
            return False

    def parse(self, line: str) -> Any:
        try:
            return int(line)
        except ValueError:
            return line

    def default(self, seeds: Tensor, model: Any) -> Tensor:
        known = torch.tensor(sorted({*(getattr(model, "subset", None) or range(self.classes))}), device=seeds.device)
        return known[seeds.remainder(len(known))]

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        """Balanced over the classes (of the data's subset, where it is one), or as frequent as in the train split."""
        if protocol.labels == "balanced":
            return self._balanced(n, data)
        source = data.source("train")
        order = np.random.Generator(np.random.Philox(key=SUBSET_SEED)).permutation(len(source))
        ids = torch.from_numpy(np.resize(order, n))
        parts = [source.batch(part, torch.zeros_like(part)) for part in ids.split(protocol.chunk)]
        if self.name not in parts[0]:
            raise ConfigError(
                f"evaluation.labels=train: {data.manifest.name} has no {self.name}s; take evaluation.labels=balanced"
            )
        rows = torch.cat([part[self.name] for part in parts]).cpu()
        return Draw(rows, {f"{self.name}s": "train: of real items, a fixed random choice"})

    def _balanced(self, n: int, data: Any) -> Draw:
        classes = data.manifest.filter.get("subset") or list(range(self.classes))
        return Draw(torch.tensor(classes)[torch.arange(n) % len(classes)], {"labels": f"balanced: i % {len(classes)}"})


@dataclass(frozen=True)
class Speaker(Label):
    """Who speaks, int64. Seed i's default is i // each modulo the number of speakers, so that with labels that go round
    `each` classes all pairs come in turn; likewise where evaluation draws balanced labels."""

    name = "speaker"
    each: int = 1

    def default(self, seeds: Tensor, model: Any) -> Tensor:
        return (seeds // self.each).remainder(self.classes)

    def _balanced(self, n: int, data: Any) -> Draw:
        return Draw(self.default(torch.arange(n), None), {"speakers": f"balanced: i // {self.each} % {self.classes}"})


def class_labels(classes: int | None) -> tuple[Label, ...]:
    """The conditions of a model that is told a class; none for 0 or None classes."""
    return (Label(classes),) if classes else ()


class TextCondition(Condition):
    """A text as token ids of the model's tokenizer, int64 [B, longest], -1 after the end of a shorter one."""

    special: ClassVar[bool] = True  # whether special tokens that are written in it are tokens, or text

    def rows(self, values: Sequence[Any], model: Any) -> Tensor:
        return padded([self._ids(str(value), model) for value in values])

    def _ids(self, text: str, model: Any) -> list[int]:
        try:
            ids = encode(model.tokenizer, text, self.special)
        except DataError as error:
            raise ConfigError(f"condition.{self.name}: {error}") from None
        if not ids:
            raise ConfigError(f"condition.{self.name} is empty.")
        return ids

    def shown(self, rows: Tensor, model: Any) -> list[str]:
        return [model.tokenizer.decode([token for token in row if token != ENDED]) for row in rows.tolist()]


@dataclass(frozen=True)
class Prompt(TextCondition):
    """A text that the item goes on from."""

    name = "prompt"

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        """The first `protocol.prompt` tokens of n windows or documents of the reference split (a fixed random choice);
        their rests are the references, and items are as long as the longest. None where `protocol.prompt` is 0."""
        length, split = protocol.prompt, protocol.reference_split
        if not length:
            return Draw()
        source, ids = items_of(data, split, n)
        batch = source.batch(ids, torch.zeros_like(ids))
        tokens = torch.cat([batch["input_ids"], batch["labels"][:, -1:]], 1).cpu()
        ends = [tokens.shape[1]] * n
        if "attention_mask" in batch:  # a document an item: its tokens, without the boundary after it
            ends = batch["attention_mask"].sum(1).tolist()
        elif (tokens < 0).any():
            raise ConfigError(
                f"evaluation.prompt={length}: windows of {split} end with tokens that are not predicted; take "
                "data.condition=[]"
            )
        if min(ends) <= length:
            raise ConfigError(f"evaluation.prompt={length}: the shortest item has {min(ends)} tokens; take fewer")
        rows = tokens[:, :length]
        rests = [row[length:end] for row, end in zip(tokens.tolist(), ends, strict=True)]
        return Draw(
            rows,
            {"data": data.manifest.name, "sha256": data.manifest.identity(split)},
            [[model.tokenizer.decode(rest)] for rest in rests],
            self.shown(rows, model),
            {"max_new_tokens": tokens.shape[1] - length},
        )

    def references_from(self, data: Any, protocol: Any) -> str | None:
        return None if protocol.prompt else (
            "set evaluation.prompt to the number of tokens of a real text that the model goes on from, whose rest is "
            "the reference"
        )  # fmt: skip


class PairCondition(Condition):
    """The first half of a pair: evaluation draws it from the reference split, whose batches have it under its name; the
    item's second half, if there is one, is of `source.references`.

    Attributes:
        paired_data: data that have both, for a message.
    """

    paired_data: ClassVar[str] = "captioned_folder"

    def read(self, source: Any, ids: Tensor) -> Tensor | None:
        """Rows of items of a split; None: they have none."""
        rows = source.batch(ids, torch.zeros_like(ids)).get(self.name)
        return None if rows is None else rows.cpu()

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        split = protocol.reference_split
        source, ids = items_of(data, split, n)
        if (rows := self.read(source, ids)) is None:
            raise ConfigError(f"evaluation: {data.manifest.name} has no {self.name}, which the model is told")
        facts = {"data": data.manifest.name, "sha256": data.manifest.identity(split), self.name: f"of {split}"}
        return Draw(rows, facts, source.references(ids), self.shown(rows, model))

    def references_from(self, data: Any, protocol: Any) -> str | None:
        source, _ = items_of(data, protocol.reference_split, 1)
        has = source.references(torch.zeros(1, dtype=torch.int64)) is not None
        return None if has else f"{data.manifest.name} has none; take data of pairs, such as data={self.paired_data}"

    def example(self, n: int, data: Any) -> Tensor | None:
        """The first of val."""
        source = data.source("val")
        return self.read(source, torch.arange(n) % len(source))


@dataclass(frozen=True)
class Caption(TextCondition, PairCondition):
    """A text that says what is to be seen or heard; in a batch int64 [B, L], -1 after the end. One of more tokens than
    the model reads (`model.longest_caption`) is cut, which is said."""

    name, special = "caption", False  # as the data are encoded

    def _ids(self, text: str, model: Any) -> list[int]:
        ids, longest = super()._ids(text, model), getattr(model, "longest_caption", None)
        if longest is not None and len(ids) > longest:
            rest = model.tokenizer.decode(ids[longest:])
            warnings.warn(f"condition.{self.name}: only {longest} of {len(ids)} tokens are read; cut: {rest!r}")
        return ids[:longest]


@dataclass(frozen=True)
class Negative(Caption):
    """What guidance leads away from, in the place of the empty caption."""

    name, drawn = "negative", False


@dataclass(frozen=True)
class Source(TextCondition, PairCondition):
    """A text that is to be translated, summarised or answered; in a batch as a caption."""

    name, paired_data, special = "source", "pairs", False


def items_of(data: Any, split: str, n: int) -> tuple[Any, Tensor]:
    """The source of a split, and the ids of n of its items, a fixed random choice.

    Raises:
        ConfigError: no such split, or fewer items.
    """
    if split not in data.manifest.splits:
        known = ", ".join(data.manifest.splits)
        raise ConfigError(f"evaluation.reference_split={split}: {data.manifest.name} has only {known}")
    source = data.source(split)
    if len(source) < n:
        raise ConfigError(f"evaluation.n={n}: {split} has {len(source)} items; lower it")
    return source, torch.from_numpy(subset(len(source), n))


def condition_named(model: Any, name: str) -> Condition:
    """The model's condition of that name.

    Raises:
        ConfigError: it has none; names those that it has.
    """
    for condition in model.conditions:
        if condition.name == name:
            return condition
    known = ", ".join(condition.name for condition in model.conditions) or "none"
    raise ConfigError(f"condition.{name}: this model knows no such condition (it knows: {known}).")
