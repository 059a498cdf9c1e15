"""The protocol: all that decides the value of a metric, under a name that says the most important of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from genlab.errors import ConfigError
from genlab.evaluation.extractors import Extractor
from genlab.evaluation.fidelity import METRICS, Settings
from genlab.evaluation.harm import TextClassifier

# Of texts that are generated; the others read given ones.
GENERATED_METRICS = ("text_quality", "text_coherence", "text_copying", "text_harm", "code_validity", "verse_form")
LIKELIHOODS = ("text_likelihood", "text_bound", "text_pseudo_likelihood")
TEXT_METRICS = (*LIKELIHOODS, *GENERATED_METRICS)
GIVEN_METRICS = ("variational_bound", "importance_nll", "reconstruction")  # of images that are given, not generated

FULL_COUNT = 10_000  # values from fewer generated samples are called proxies


@dataclass(kw_only=True)
class Protocol:
    """How samples are made and what they are compared with.

    Names follow a rule. A value is called METRIC_COUNT_SPLIT, e.g. `fid_50k_train`: 50,000 samples against the train
    split; `fid_50k_train5k` if only 5,000 of its items are the reference; the split is left out where no reference is
    used; `.proxy` is added below 10,000 samples or reference items, because such values compare only with each other.
    The protocol is named as its first metric: `precision_recall_10k_test`
    gives `precision_10k_test` and `recall_10k_test`.

    Args:
        metrics: of images: keys of fidelity.METRICS (fid, kid, precision_recall, density_coverage, intra_fid,
            nearest_neighbours, inception_score, label_accuracy, confident_09); of generated text: text_quality,
            text_coherence, text_copying, text_harm, code_validity, verse_form; of given text, alone: text_likelihood,
            text_bound, text_pseudo_likelihood; of given images, alone: variational_bound, importance_nll,
            reconstruction. Empty: nothing is evaluated.
        n: how many samples are generated; for likelihoods, how many items are read (null: all of the split).
        reference_split: of the data set, against which samples are compared; for text, the one that is read.
        reference_n: real items in the reference, a fixed random choice; null takes the whole split.
        extractor: name of a feature extractor, or an Extractor; null takes the data set's own.
        extractor_path: its file of weights, instead of the shipped or cached one; of dinov2 and clip the folder.
        labels: condition of item i: "balanced" (i % classes) or "train" (as frequent as in the train split).
        weights: which weights the caller is to load into the model.
        resize: height and width to which all images are resized before the extractor (bicubic, antialiased); null: not.
        batch: images in one call of the extractor, or items in one of a model that judges given ones; null: the
            extractor's own, or 100.
        chunk: images that are kept in memory at a time, rounded up to whole chunks of the model.
        floor: also measure real data of another split against the reference, which says what the best value is.
        kid_subsets: see fidelity.Settings.
        kid_subset_size: see fidelity.Settings.
        neighbours: see fidelity.Settings.
        density_neighbours: see fidelity.Settings.
        splits: see fidelity.Settings.
        judged: what metrics of images judge: samples, or reconstructions of the reference split's own images, whose
            values are called rfid and so on.
        draws: of importance_nll: importance samples an image.
        terms: of variational_bound: how many of the L_{t-1} are computed an item, at random times; of text_bound: how
            many numbers of masked tokens, at random; null: all.
        prompt: of generated text: tokens of a real window that the model goes on from, its rest the reference; 0: none.
        tokenize: of text_quality, as sacreBLEU's: "13a" (European languages), "intl", "zh", "char", "none" (at spaces).
        sentences: what ends a sentence for rougeLsum and text_coherence: "newline" (verse) or "punctuation".
        context: of text_likelihood: inputs a window; null: those of the data's own windows.
        stride: of text_likelihood: tokens that are new in each window, see windows.SlidingWindows; null: no overlap.
        ngrams: of text_copying: lengths in tokens (see copying.tokens_of) of the n-grams looked for in the train split.
        sentence_encoder: of text_coherence: folder of a BERT that encodes sentences; null: MiniLM in the cache.
        words: of text_harm: a file with one word or phrase a line.
        classifier: of text_harm: a `_target_` of a harm.TextClassifier.
        threshold: of text_harm: score from which a text counts as harmful.
        lowered_from: the n that was asked for, where time allowed fewer; the values are then proxies.
        name: null, or the name that the rule gives; anything else is refused.

    Raises:
        ConfigError: a name that does not follow the rule, an unknown metric, an impossible number.
    """

    metrics: list[str]
    n: Annotated[int, "ge 1"] | None = None
    reference_split: Literal["train", "val", "test", "folder", "given"] = "test"
    reference_n: Annotated[int, "ge 2"] | None = None
    extractor: str | Extractor | None = None
    extractor_path: str | None = None
    labels: Literal["balanced", "train"] = "balanced"
    weights: Literal["ema", "raw"] = "ema"
    resize: Annotated[int, "ge 1"] | None = None
    batch: Annotated[int, "ge 1"] | None = None
    chunk: Annotated[int, "ge 1"] = 500
    floor: bool = True
    kid_subsets: Annotated[int, "ge 1"] = 100
    kid_subset_size: Annotated[int, "ge 2"] = 1000
    neighbours: Annotated[int, "ge 1"] = 3
    density_neighbours: Annotated[int, "ge 1"] = 5
    splits: Annotated[int, "ge 1"] = 10
    judged: Literal["samples", "reconstructions"] = "samples"
    draws: Annotated[int, "ge 1"] = 200
    terms: Annotated[int, "ge 1"] | None = None
    prompt: Annotated[int, "ge 0"] = 0
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    sentences: Literal["newline", "punctuation"] = "newline"
    context: Annotated[int, "ge 1"] | None = None
    stride: Annotated[int, "ge 1"] | None = None
    ngrams: tuple[int, ...] = (4, 8)
    sentence_encoder: str | None = None
    words: str | None = None
    classifier: TextClassifier | None = None
    threshold: float = 0.5
    lowered_from: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        self.metrics = list(self.metrics)  # Hydra gives a ListConfig
        known = [*METRICS, *TEXT_METRICS, *GIVEN_METRICS]
        for metric in self.metrics:
            if metric not in known:
                raise ConfigError(f"evaluation.metrics: no metric {metric!r} (there are: {', '.join(known)})")
        if self.modality == "mixed" or (any(m in LIKELIHOODS for m in self.metrics) and len(self.metrics) > 1):
            raise ConfigError(
                f"evaluation.metrics: {self.metrics} mixes metrics of samples, likelihood and text: use a protocol each"
            )
        if self.modality == "image" and not self.given and self.n is None:
            raise ConfigError("evaluation.n: say how many samples are generated")
        self.ngrams = tuple(self.ngrams)
        if not self.ngrams or not all(isinstance(n, int) and n > 0 for n in self.ngrams):
            raise ConfigError(f"evaluation.ngrams={list(self.ngrams)}: give lengths of at least 1, such as [4, 8]")
        if self.classifier is not None and not isinstance(self.classifier, TextClassifier):
            raise ConfigError(
                f"evaluation.classifier: {type(self.classifier).__name__} is no "
                f"{TextClassifier.__module__}.TextClassifier; derive it from that"
            )
        counts = ("n", "reference_n", "resize", "batch", "chunk", "kid_subsets", "neighbours", "density_neighbours")
        for key in (*counts, "splits", "context", "stride"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"evaluation.{key} is {value}: must be at least 1")
        for key, choices in (
            ("reference_split", ("train", "val", "test", "folder", "given")),
            ("labels", ("balanced", "train")),
            ("weights", ("ema", "raw")),
            ("judged", ("samples", "reconstructions")),
        ):
            if getattr(self, key) not in choices:
                raise ConfigError(f"evaluation.{key}={getattr(self, key)}: choose one of {', '.join(choices)}")
        ruled = self.key(self.metrics[0]) if self.metrics else "none"
        if self.name is not None and self.name != ruled:
            raise ConfigError(
                f"evaluation.name={self.name} does not say what it is: {self.n or 'all'} samples against the "
                f"{self.reference_split} split are called {ruled}; leave evaluation.name out"
            )
        self.name = ruled

    @property
    def modality(self) -> Literal["image", "text", "none", "mixed"]:
        """What the metrics read."""
        groups = (METRICS, GIVEN_METRICS, TEXT_METRICS)
        samples, given, text = (any(m in group for m in self.metrics) for group in groups)
        if samples + given + text > 1:
            return "mixed"
        return "image" if samples or given else "text" if text else "none"

    @property
    def given(self) -> bool:
        """Whether given images are read instead of generated ones."""
        return any(metric in GIVEN_METRICS for metric in self.metrics)

    @property
    def settings(self) -> Settings:
        names = ("kid_subsets", "kid_subset_size", "neighbours", "density_neighbours", "splits")
        return Settings(**{name: getattr(self, name) for name in names})

    def key(self, output: str) -> str:
        """The full name of a value or metric: `fid` -> `fid_50k_train`, `fid_1k_test.proxy`; `perplexity_val`."""
        parts = [("r" if self.judged == "reconstructions" else "") + output]
        counts = [self.n]
        if self.n is not None:
            parts.append(_count(self.n))
        if not any(output in (name, *m.outputs) for name, m in METRICS.items() if not m.uses_reference):
            parts.append(self.reference_split + ("" if self.reference_n is None else _count(self.reference_n)))
            counts.append(self.reference_n)
        parts += [f"{key}{value}" for key in ("context", "stride") if (value := getattr(self, key)) is not None]
        proxy = self.lowered_from is not None or any(count is not None and count < FULL_COUNT for count in counts)
        return "_".join(parts) + (".proxy" if proxy else "")

    def record(self) -> dict[str, Any]:
        """All fields as primitives."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.extractor, str | None):
            values["extractor"] = self.extractor.name
        values["ngrams"] = list(self.ngrams)
        if self.classifier is not None:
            values["classifier"] = self.classifier.name
        return values


def _count(n: int) -> str:
    """50000 -> '50k', 500 -> '500'."""
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
