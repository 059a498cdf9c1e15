"""The protocol: all that decides the value of a metric, under a name that says the most important of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from genlab.conditions import PairCondition
from genlab.errors import ConfigError
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.likelihood import Reconstructs
from genlab.evaluation.metrics.base import Measured, Metric
from genlab.evaluation.metrics.foreign import adapted
from genlab.settings import check_settings

FULL_COUNT = 10_000  # values from fewer generated samples are called proxies


@dataclass
class ExtractorChoice:
    """The feature extractor that all metrics of a protocol share, and how images come to it.

    Args:
        name: of a feature extractor, or an Extractor; null takes the data set's own.
        path: its file of weights, instead of the shipped or cached one; of dinov2 and clip the folder.
        resize: height and width to which all images are resized before it (bicubic, antialiased); null: not.
        batch: images in one call; null: the extractor's own.
    """

    name: str | Extractor | None = None
    path: str | None = None
    resize: Annotated[int, "ge 1"] | None = None
    batch: Annotated[int, "ge 1"] | None = None

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "evaluation.extractor.")


@dataclass(kw_only=True)
class Protocol:
    """How samples are made and what they are compared with.

    Names follow a rule. A value is called METRIC_COUNT_SPLIT, e.g. `fid_50k_train`: 50,000 samples against the train
    split; `fid_50k_train5k` if only 5,000 of its items are the reference; the split is left out where no reference is
    used; `.proxy` is added below 10,000 samples or reference items, because such values compare only with each other.
    The protocol is named as its first metric: `precision_recall_10k_test`
    gives `precision_10k_test` and `recall_10k_test`.

    Args:
        metrics: by name, objects of genlab.evaluation.metrics, of torchmetrics, or of a class of your own that derives
            from torchmetrics.Metric, each with its own settings; a metric of given items alone. Empty: nothing is
            evaluated.
        n: how many samples are generated; of given items, how many are read (null: all of the split, of pairs too).
        reference_split: of the data set, against which samples are compared; of given items, the one that is read.
        reference_n: real items in the reference, a fixed random choice; null takes the whole split.
        extractor: an ExtractorChoice, its fields, or its name alone.
        labels: condition of item i: "balanced" (i % classes) or "train" (as frequent as in the train split).
        weights: which weights the caller is to load into the model.
        chunk: images that are kept in memory at a time, rounded up to whole chunks of the model.
        floor: also measure real data of another split against the reference, which says what the best value is.
        judged: what metrics of images and sounds judge: samples, or reconstructions of the reference split's own items,
            whose values are called rfid and so on.
        prompt: of generated text: tokens of a real window that the model goes on from, its rest the reference; 0: none.
        name: null, or the name that the rule gives; anything else is refused.

    Attributes:
        lowered_from: the n that was asked for, where time allowed fewer; the values are then proxies.

    Raises:
        ConfigError: a name that does not follow the rule, something that is no metric, an impossible number.
    """

    metrics: Mapping[str, Any]
    n: Annotated[int, "ge 1"] | None = None
    reference_split: Literal["train", "val", "test", "folder", "given"] = "test"
    reference_n: Annotated[int, "ge 2"] | None = None
    extractor: Any = None
    labels: Literal["balanced", "train"] = "balanced"
    weights: Literal["ema", "raw"] = "ema"
    chunk: Annotated[int, "ge 1"] = 500
    floor: bool = True
    judged: Literal["samples", "reconstructions"] = "samples"
    prompt: Annotated[int, "ge 0"] = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metrics, Mapping):
            raise ConfigError(
                f"evaluation.metrics: {self.metrics} is no mapping; write NAME: {{_target_: "
                "genlab.evaluation.metrics.CLASS}}, a line a metric"
            )
        self.metrics = {
            str(key): adapted(str(key), metric) for key, metric in self.metrics.items() if metric is not None
        }
        modalities = {metric.modality for metric in self.metrics.values()} - {None}
        if len(modalities) > 1 or (self.given is not None and len(self.metrics) > 1):
            raise ConfigError(
                f"evaluation.metrics: {list(self.metrics)} mixes metrics of samples, likelihood and text: use a "
                "protocol each"
            )
        if isinstance(self.extractor, Mapping):
            known = [field.name for field in fields(ExtractorChoice)]
            if wrong := [key for key in self.extractor if key not in known]:
                raise ConfigError(f"evaluation.extractor has no {wrong[0]} (it has {', '.join(known)})")
            self.extractor = ExtractorChoice(**self.extractor)
        elif isinstance(self.extractor, str | Extractor | None):
            self.extractor = ExtractorChoice(name=self.extractor)
        elif not isinstance(self.extractor, ExtractorChoice):
            raise ConfigError(f"evaluation.extractor={self.extractor}: give a name, or ExtractorChoice's fields")
        if self.extractor.name is None and any(metric.extractor_in_name for metric in self.metrics.values()):
            raise ConfigError(
                f"evaluation.extractor.name=null: {next(iter(self.metrics))} says by which features it is measured; "
                "name them, spoken-digits-cnn or clap"
            )
        if self.n is None and self.needs("features"):
            raise ConfigError("evaluation.n: say how many samples are generated")
        check_settings(type(self), vars(self), "evaluation.")
        self.lowered_from: int | None = None
        ruled = self._ruled()
        if self.name is not None and self.name != ruled:
            raise ConfigError(
                f"evaluation.name={self.name} does not say what it is: {self.n or 'all'} samples against the "
                f"{self.reference_split} split are called {ruled}; leave evaluation.name out"
            )
        self.name = ruled

    def _ruled(self) -> str:
        return self.key(next(iter(self.metrics))) if self.metrics else "none"

    def with_fewer_samples(self, n: int) -> Protocol:
        """The same with n samples, as time allows no more: its values are called proxies."""
        fewer = replace(self, n=n, name=None)
        fewer.lowered_from = self.n
        fewer.name = fewer._ruled()
        return fewer

    @property
    def given(self) -> Metric | None:
        """The metric of given items, where it is one of those."""
        return next((metric for metric in self.metrics.values() if metric.capability is not None), None)

    @property
    def reads_data(self) -> bool:
        """Whether a metric needs a data set, of the run or of the command line."""
        return any(metric.reads_data for metric in self.metrics.values())

    def needs(self, what: str) -> bool:
        """Whether a metric needs "features" or the like, see Metric.needs."""
        return any(what in metric.needs for metric in self.metrics.values())

    @property
    def needs_pairs(self) -> bool:
        """Whether all metrics compare with references; where only some do, those are not applicable without."""
        return bool(self.metrics) and all("pairs" in metric.needs for metric in self.metrics.values())

    @property
    def modality(self) -> str | None:
        """The name of the modality that its metrics judge; None: any."""
        return next((metric.modality for metric in self.metrics.values() if metric.modality), None)

    def check_model(self, model: Any, modality: str, maker: str = "the model makes") -> None:
        """The part of `check` that needs no data.

        Raises:
            ConfigError: what is judged has another modality, or the model lacks a capability.
        """
        for metric in self.metrics.values():
            if not metric.judges(modality):
                raise ConfigError(
                    f"evaluation={self.name} judges {metric.modality}, {maker} {modality}: choose another protocol"
                )
            if metric.capability is not None and model is None:
                raise ConfigError(f"evaluation={self.name} needs a model, not samples: choose another protocol")
            metric.check_model(model, self)

    def check(self, model: Any, data: Any, modality: str, maker: str = "the model makes") -> None:
        """Refuses, before anything is trained or generated, what the model, the data or the condition cannot give.

        Args:
            model: None for items in files.
            data: a DataModule that has been set up, a judged.Folder or None.
            modality: of what is judged; `maker` says of what.

        Raises:
            ConfigError: in one line, with what would give it.
        """
        self.check_model(model, modality, maker)
        for metric in self.metrics.values():
            metric.check(model, data, self)
        if model is None or not self.metrics:
            return
        paired = any(isinstance(known, PairCondition) and known.drawn for known in getattr(model, "conditions", ()))
        if self.n is None and self.given is None and not (paired and self.needs_pairs):
            raise ConfigError(
                "evaluation.n: say how many samples are generated; null, all of the split, is for metrics of pairs "
                "alone, of a model that is told their first halves"
            )
        if self.given is None and not hasattr(model, "sample"):
            raise ConfigError(
                f"evaluation={self.name} judges samples, {type(model).__name__} does not generate: take "
                "evaluation=none, or a protocol of given items"
            )
        if self.prompt and not any(known.name == "prompt" for known in getattr(model, "conditions", ())):
            raise ConfigError(f"evaluation.prompt={self.prompt}: {type(model).__name__} takes no prompt; take 0")
        if self.judged == "reconstructions" and not (model.modality.extractor and isinstance(model, Reconstructs)):
            raise ConfigError(
                f"evaluation.judged=reconstructions: {type(model).__name__} cannot reconstruct images or sounds; "
                "take samples"
            )

    def key(self, output: str, metric: str | None = None) -> str:
        """The full name of a value or metric: `fid` -> `fid_50k_train`, `fid_1k_test.proxy`; `perplexity_val`.

        Args:
            metric: whose value it is; None: the one that is called so or says that it gives it.
        """
        owner = self.metrics.get(metric or output)
        owner = owner or next((m for m in self.metrics.values() if output in m.outputs), None)
        back = self.judged == "reconstructions" and not output.startswith("real_")
        parts = [("r" if back else "") + output]
        counts = [self.n]
        if self.n is not None:
            parts.append(_count(self.n))
        if owner is None or owner.split_in_name:
            parts.append(self.reference_split + ("" if self.reference_n is None else _count(self.reference_n)))
            counts.append(self.reference_n)
        parts += [] if owner is None else owner.name_parts()
        if owner is not None and owner.extractor_in_name:
            parts.append(getattr(self.extractor.name, "name", self.extractor.name))
        proxy = self.lowered_from is not None or any(count is not None and count < FULL_COUNT for count in counts)
        return "_".join(parts) + (".proxy" if proxy else "")

    def named(self, measured: Measured) -> dict[str, dict[str, Any]]:
        """Values, reasons of missing ones, and the metric of each, under the full names of values."""
        names = {output: self.key(output, metric) for output, metric in measured.metric.items()}
        return {
            "values": {name: measured.values[output] for output, name in names.items()},
            "missing": {names[output]: reason for output, reason in measured.missing.items()},
            "metric_of": {name: measured.metric[output] for output, name in names.items()},
        }

    def record(self) -> dict[str, Any]:
        """All fields as primitives, each metric with its settings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["metrics"] = {key: metric.record() for key, metric in self.metrics.items()}
        values["extractor"] = dict(vars(self.extractor))
        if not isinstance(self.extractor.name, str | None):
            values["extractor"]["name"] = self.extractor.name.name
        return {**values, "lowered_from": self.lowered_from}


def _count(n: int) -> str:
    """50000 -> '50k', 500 -> '500'."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
