"""Metrics of torchmetrics, and any torchmetrics.Metric that is not written for GenLab: what `update` takes says how."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from genlab.errors import ConfigError
from genlab.evaluation.metrics.base import Items, Metric, NotApplicable, plain, target_of

PART = 100  # items in one call of `update`
LISTS = re.compile(r"(Sequence|[Ll]ist)\[[^\]]*(Sequence|[Ll]ist)\[")  # an annotation with lists of lists


class Foreign(Metric):
    """Any torchmetrics.Metric.

    `update(texts, references)`: texts, each with its reference, or with the list of its references where the annotation
    asks for lists of lists. `update(images, real=...)`: generated images, then those of the reference. `update(items)`:
    generated ones. Images are uint8 [B, C, H, W]; float32 in [0, 1] where the metric has `normalize=True`; of a class
    of torchmetrics that has no such argument the same numbers as float32, as it may subtract them.

    Args:
        metric: any; not synchronised, as one process has all items.

    Raises:
        ConfigError: its `update` takes something else.
    """

    def __init__(self, metric: torchmetrics.Metric, key: str = "") -> None:
        self.key = key
        super().__init__()
        for part in metric.modules():
            if isinstance(part, torchmetrics.Metric):
                part.sync_on_compute = part._to_sync = False
        self.metric = metric
        self.given: Mapping[str, Any] | None = None  # the arguments, where a config names them
        taken = inspect.signature(type(metric).update).parameters
        names = [n for n, p in list(taken.items())[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        needed = [n for n in names if taken[n].default is inspect.Parameter.empty and n != "real"]
        self._real, self._pairs = "real" in names, len(needed) == 2
        known = (c.__module__.split(".") for c in type(metric).__mro__ if c.__module__.startswith("torchmetrics."))
        self._own = type(metric).__module__.startswith("torchmetrics.")
        part_of = next((parts[1] for parts in known if parts[1] in ("text", "image", "audio", "video")), None)
        self.modality = part_of or ("text" if self._pairs else "image" if self._real else None)
        if len(needed) not in (1, 2) or (self._pairs and part_of not in (None, "text")):
            takes = ", ".join(names) or "nothing"
            raise ConfigError(
                f"evaluation.metrics.{self.key}: {type(metric).__name__}.update takes {takes}; it must take texts and "
                "references, or images (and real)"
            )
        self.needs = frozenset({"pairs"} if self._pairs else {"samples", "reference"} if self._real else {"samples"})
        self.split_in_name = self._pairs or self._real
        self._lists = bool(LISTS.search(str(taken[needed[-1]].annotation)))

    def compute(self) -> dict[str, float]:
        self.metric.reset()
        if self._pairs:
            self.metric.update(list(self.judged.data), self._references(self.judged))
        else:
            for part in self._parts(self.judged):
                self.metric.update(part, **({"real": False} if self._real else {}))
            for part in self._parts(self.reference) if self._real else ():
                self.metric.update(part, real=True)
        found = self.metric.compute()
        self.metric.reset()
        version = f"torchmetrics-{torchmetrics.__version__}" if self._own else target_of(type(self.metric))
        self.signatures = dict.fromkeys(values := dict(_numbers(found, self.key)), f"version:{version}")
        return values

    def _references(self, items: Items) -> list[Any]:
        if items.references is None:
            raise NotApplicable("the texts have no references")
        if self._lists:
            return [list(several) for several in items.references]
        if any(len(several) > 1 for several in items.references):
            raise NotApplicable("it takes one reference a text, and some texts have several")
        return [several[0] for several in items.references]

    def _parts(self, items: Items) -> Iterator[Any]:
        for start in range(0, len(items.data), PART):
            part = items.data[start : start + PART]
            if isinstance(part, Tensor):
                part = part.to(self.device)
                normalize = getattr(self.metric, "normalize", None)
                if part.dtype is torch.uint8 and (normalize or (normalize is None and self._own)):
                    part = part.float() / (255 if normalize else 1)
            yield part

    def record(self) -> dict[str, Any]:
        """The class, and the arguments that a config gave; built in Python: those that are kept under their names."""
        kind = type(self.metric)
        names = inspect.signature(kind).parameters
        kept = {name: getattr(self.metric, name) for name in names if hasattr(self.metric, name)}
        return {"_target_": target_of(kind), **plain(kept if self.given is None else dict(self.given))}


def adapted(name: str, metric: Any) -> Metric:
    """A metric of a protocol under its name there.

    Raises:
        ConfigError: it is no torchmetrics.Metric.
    """
    if not isinstance(metric, torchmetrics.Metric):
        raise ConfigError(
            f"evaluation.metrics.{name}: {metric!r} is no metric; name a class of genlab.evaluation.metrics or a "
            "torchmetrics.Metric by its _target_"
        )
    if not isinstance(metric, Metric):
        return Foreign(metric, name)
    metric.key = name
    return metric


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """What `compute` gave, as numbers: a dict's as NAME_KEY, several as NAME_0, NAME_1, ..."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}_{key}")
    elif isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.numel() > 1):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{name}_{i}")
    else:
        yield name, float(value)
