"""What a metric is: a torchmetrics.Metric with settings of its own, which says what it needs."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torchmetrics
from torch import Tensor

from genlab.errors import ConfigError, GenlabError
from genlab.evaluation.sharding import from_first_rank, lost_rank
from genlab.modality import Modality
from genlab.settings import check_settings


class NotApplicable(ValueError):
    """A metric that these items or this extractor cannot have: stated in the record, but nothing went wrong."""


@dataclass
class Items:
    """N items that are measured together, in the order of their seeds; None: not there, or no metric needs it.

    Attributes:
        data: uint8 images [N, C, H, W], N texts, or what else their modality has; of given items, rows of numbers.
        features: float32 [N, D] of the protocol's extractor.
        logits: float32 [N, K], likewise.
        condition: what generated items were asked to be, or real ones are, N rows by the names of conditions.
        modality: of the items; None: not known.
        labelled: whether the classes of the logits are the labels.
        prompts: the text that each was made from.
        prompt_name: the condition that they are: "prompt" where texts go on from them, "source" where they answer them.
        references: the right answers of each text.
    """

    data: Any = None
    features: Tensor | None = None
    logits: Tensor | None = None
    labelled: bool = True
    prompts: list[str] | None = None
    prompt_name: str = "prompt"
    references: list[list[str]] | None = None
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    modality: Modality | None = None

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], or None."""
        return self.condition.get("label")


class Metric(torchmetrics.Metric):
    """Base class: `compute` gives values by name. Its constructor's arguments are its settings, see `keep`.

    `update` gets all items at once, on the first process only, so nothing is synchronised. Real items are measured by
    the same object afterwards, for the floor. `compute` may leave `signatures` (what decides a value), `missing` (why
    a value has none) and `columns` (of the table of texts, a value an item).

    Attributes:
        key: its name in a protocol, with which messages name its settings.
        modality: of the items; None: any.
        needs: of "features" (and logits) of the protocol's extractor, "reference" (real items of the reference split),
            "samples" (the images themselves), "pairs" (references of texts), "training_texts".
        capability: of the model (see evaluation.likelihood), for a metric of given items; None: of generated ones.
        outputs: names of the values, as far as they are known beforehand.
        split_in_name: whether values are named after the reference split.
        extractor_in_name: whether also after the extractor, which the protocol must name then.
        all_ranks: whether `compute` shares its work over the processes, so that all must call it.
        reads_data: whether it needs a data set.
        closest_pairs: whether the samples nearest to real images are drawn.
    """

    key: str = ""
    modality: str | None = None
    needs: frozenset[str] = frozenset()
    capability: ClassVar[type | None] = None
    outputs: tuple[str, ...] = ()
    split_in_name: bool = True
    extractor_in_name: ClassVar[bool] = False
    all_ranks: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    closest_pairs: ClassVar[bool] = False
    full_state_update = False
    if typing.TYPE_CHECKING:  # the settings

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.key = self.key or type(self).__name__.lower()
        self.reset()

    def reset(self) -> None:
        """Forgets the items."""
        super().reset()
        self.judged: Any = None
        self.reference: Any = None
        self.signatures: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self.columns: dict[str, list[Any]] = {}

    def update(self, judged: Items, reference: Items | None = None) -> None:
        """Keeps all items until `compute`."""
        self.judged, self.reference = judged, reference

    def compute(self) -> Any:
        """Values by name, or in the order of `outputs`."""
        raise NotImplementedError

    def check_model(self, model: Any, protocol: Any) -> None:
        """The part of `check` that needs no data."""

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        """Refuses before anything is generated, or trained, what could only fail. `model` is None for items in files.

        Raises:
            ConfigError: says what would give what it needs.
        """
        if "training_texts" in self.needs and not hasattr(data, "texts"):
            raise ConfigError(f"evaluation={protocol.name} reads the training set: say which with data=NAME")
        if self.needs & {"features", "reference"} and protocol.reference_split not in data.manifest.splits:
            raise no_split(data, protocol.reference_split)
        if model is not None and protocol.needs_pairs:
            remedies = [
                known.references_from(data, protocol) for known in getattr(model, "conditions", ()) if known.drawn
            ]
            if None not in remedies:
                remedy = next(filter(None, remedies), f"{type(model).__name__} makes none that has; take another")
                raise ConfigError(f"evaluation.metrics.{self.key} compares texts with references: {remedy}")

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """What is shared by the items and the real ones of the floor, once before both; on every process."""

    def judges(self, modality: str) -> bool:
        """Whether it can judge items of a modality."""
        return self.modality in (None, modality)

    def name_parts(self) -> list[str]:
        """Settings that are part of the names of values."""
        return []

    def notes(self, n: int, dimensions: int | None) -> list[str]:
        """What to know of values of `n` items and features of so many dimensions."""
        return []

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as primitives."""
        return {name: plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    def record(self) -> dict[str, Any]:
        """What a config would name, with all settings."""
        return {"_target_": target_of(type(self)), **self.settings()}

    def keep(self, **settings: Any) -> None:
        """Keeps arguments of the constructor under their names.

        Raises:
            ConfigError: see check_settings.
        """
        check_settings(type(self).__init__, settings, f"evaluation.metrics.{self.key}.")
        for name, value in settings.items():
            setattr(self, name, value)

    def at_least(self, setting: str, least: int, **items: Tensor) -> None:
        """Refuses fewer items of a kind than a setting needs.

        Raises:
            ValueError: says how many there are.
        """
        if min(map(len, items.values())) < least:
            counts = " and ".join(f"{len(rows)} {kind}" for kind, rows in items.items())
            value = getattr(self, setting)
            raise ValueError(f"evaluation.metrics.{self.key}.{setting} is {value}, there are {counts} samples")


@dataclass
class Measured:
    """What metrics gave: values by name (None: none), why not, and by value also which metric it is of."""

    values: dict[str, float | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    metric: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)


def measure(
    metrics: Mapping[str, Metric], judged: Items, reference: Items | None = None, alone: bool = False
) -> Measured:
    """All metrics of the items. Every rank must call it, and all get the same; `alone`: this one works for itself.

    A metric that fails has no value, with the reason, and costs a warning: it must not end a training run.

    Raises:
        GenlabError: what the user has to put right.
    """
    whole = Measured()
    for name, metric in metrics.items():
        one = functools.partial(_one, metric, name, judged, reference)
        values, missing, signatures, columns = one() if alone or metric.all_ranks else from_first_rank(one)
        names = {output: f"{name}_{output}" if output in whole.values else output for output in values}
        whole.values |= {names[output]: value for output, value in values.items()}
        whole.missing |= {names[output]: reason for output, reason in missing.items()}
        whole.metric |= dict.fromkeys(names.values(), name)
        whole.signatures |= {names[output]: words for output, words in signatures.items()}
        whole.columns |= columns
    return whole


def _one(metric: Metric, name: str, judged: Items, reference: Items | None) -> tuple[Any, ...]:
    """Values, reasons, signatures and columns of one metric."""
    metric.reset()
    try:
        metric.update(judged, reference)
        found = metric.compute()
        if not isinstance(found, Mapping):
            found = dict(zip(metric.outputs, found if isinstance(found, tuple) else (found,), strict=True))
    except Exception as error:
        if isinstance(error, GenlabError) or lost_rank(error):
            raise
        known = isinstance(error, NotApplicable)
        reason = " ".join((f"{error}" if known else f"{type(error).__name__}: {error}").split())
        if not known:
            warnings.warn(f"metric {name} has no value: {reason}")
        outputs = metric.outputs or (name,)
        return dict.fromkeys(outputs), dict.fromkeys(outputs, reason), {}, {}
    missing = {key: "not finite" for key, value in found.items() if not math.isfinite(value)} | metric.missing
    values = {key: None if key in missing else float(value) for key, value in found.items()}
    extra = metric.signatures, metric.columns
    metric.reset()  # the items may be large
    return values, missing, *extra


def no_split(data: Any, split: str, key: str = "evaluation.reference_split") -> ConfigError:
    """That a data set has no such split, and which it has."""
    return ConfigError(f"{key}={split}: {data.manifest.name} has only {', '.join(data.manifest.splits)}")


def target_of(kind: type) -> str:
    """The name by which a config would name a class: that of its package, where it is exported there."""
    package = kind.__module__.rpartition(".")[0]
    exported = getattr(sys.modules.get(package), kind.__name__, None) is kind
    return f"{package if exported else kind.__module__}.{kind.__qualname__}"


def name_of(value: Any) -> str:
    """An object's own name, else that of its class."""
    return getattr(value, "name", None) or target_of(value if isinstance(value, type) else type(value))


def plain(value: Any, leaf: Callable[[Any], Any] = name_of) -> Any:
    """As primitives; `leaf` says what an object becomes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, leaf) for item in value]
    return {str(key): plain(item, leaf) for key, item in value.items()} if isinstance(value, Mapping) else leaf(value)
