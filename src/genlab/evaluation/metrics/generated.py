"""Metrics of generated texts; what they compute stands in the modules of their names (text, copying, harm, ...).

And of items of any modality, what a judge says of them.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from typing import Any, Literal

from genlab.data.corpora import FORMS, form_of
from genlab.errors import ConfigError
from genlab.evaluation import coherence
from genlab.evaluation.code import code_validity
from genlab.evaluation.copying import Copied, copying
from genlab.evaluation.harm import TextClassifier, count_listed, read_words
from genlab.evaluation.metrics.base import Items, Metric, NotApplicable
from genlab.evaluation.sharding import from_first_rank
from genlab.evaluation.text import text_quality
from genlab.judges import Judge
from genlab.samples import Samples

Tokenize = Literal["13a", "intl", "zh", "char", "none"]
Sentences = Literal["newline", "punctuation"]


class TextMetric(Metric):
    """Of generated texts."""

    modality = "text"

    def signed(self, values: dict[str, float], signature: str) -> dict[str, float]:
        """The values, with one signature for all."""
        self.signatures |= dict.fromkeys(values, signature)
        return values


class TextQuality(TextMetric):
    """See genlab.evaluation.text: diversity of the texts, and where they have references BLEU, chrF and ROUGE.

    Args:
        tokenize: as sacreBLEU's: "13a" (European languages), "intl", "zh", "char", "none" (at spaces).
        sentences: what ends a sentence for rougeLsum: "newline" (verse) or "punctuation".
    """

    key = "text_quality"

    def __init__(self, tokenize: Tokenize = "13a", sentences: Sentences = "newline") -> None:
        super().__init__()
        self.keep(tokenize=tokenize, sentences=sentences)

    def compute(self) -> dict[str, float]:
        texts, references = self.judged.data, self.judged.references
        values, self.signatures = text_quality(texts, references, self.tokenize, self.sentences)
        return values


class TextCoherence(TextMetric):
    """See genlab.evaluation.coherence. All processes encode.

    Args:
        sentences: what ends a sentence: "newline" (verse) or "punctuation".
        sentence_encoder: folder of a BERT that encodes sentences; None: MiniLM in the cache.
    """

    key, outputs, all_ranks = "text_coherence", coherence.OUTPUTS, True

    def __init__(self, sentences: Sentences = "newline", sentence_encoder: str | None = None) -> None:
        super().__init__()
        self.keep(sentences=sentences, sentence_encoder=sentence_encoder)
        self._encoder: Any = None
        self._foreign: str | None = None

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """Loads the encoder, where the texts are English."""
        coherence.encoder_folder(self.sentence_encoder)
        self._foreign = coherence.not_english(groups[0].data)
        self._encoder = None if self._foreign else coherence.SentenceEncoder(self.sentence_encoder, self.device)

    def compute(self) -> dict[str, float]:
        if self._foreign:
            raise NotApplicable(self._foreign)
        values, pairs, each = coherence.coherence(self.judged.data, self._encoder, self.sentences)
        self.columns["coherence"] = [None if math.isnan(value) else value for value in each]
        self.missing = {} if pairs else dict.fromkeys(values, "no text has two sentences")
        digest, longest = self._encoder.sha256[:12], coherence.LONGEST
        return self.signed(values, f"sha256:{digest}|sent:{self.sentences}|pairs:{pairs}|longest:{longest}")


class TextCopying(TextMetric):
    """See genlab.evaluation.copying. The texts and those of the floor in one pass over the train split.

    Args:
        ngrams: lengths in tokens (see copying.tokens_of) of the n-grams looked for in the train split.
    """

    key, needs = "text_copying", frozenset({"training_texts"})

    def __init__(self, ngrams: tuple[int, ...] = (4, 8)) -> None:
        super().__init__()
        self.ngrams = tuple(ngrams)
        if not self.ngrams or not all(isinstance(n, int) and n > 0 for n in self.ngrams):
            raise ConfigError(
                f"evaluation.metrics.{self.key}.ngrams={list(self.ngrams)}: give lengths of at least 1, such as [4, 8]"
            )
        self._found: dict[int, list[Copied]] = {}
        self._signature = ""

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """Reads the train split."""
        count = 0

        def documents() -> Iterator[Any]:
            nonlocal count
            for document in data.texts("train"):
                count += 1
                yield document

        found = iter(
            from_first_rank(lambda: copying([t for group in groups for t in group.data], documents(), self.ngrams))
        )
        self._found = {id(group): [next(found) for _ in group.data] for group in groups}
        digest = data.manifest.identity("train")[:12]
        self._signature = f"train:{data.manifest.name}|documents:{count}|sha256:{digest}|case:mixed"

    def compute(self) -> dict[str, float]:
        found = self._found[id(self.judged)]
        values = {
            "longest_match": math.fsum(one.length for one in found) / len(found),
            "longest_match_max": float(max(one.length for one in found)),
        }
        for n in self.ngrams:
            seen, total = (sum(one.seen[n][i] for one in found) for i in (0, 1))
            values[f"seen_{n}"] = seen / total if total else math.nan
            if not total:
                self.missing[f"seen_{n}"] = f"no text has {n} tokens"
        values["nearest_jaccard"] = math.fsum(one.jaccard for one in found) / len(found)
        values["near_copies"] = sum(one.near_copy for one in found) / len(found)
        self.columns = {
            "near copy": [one.near_copy for one in found],
            "longest match": [one.length for one in found],
            "tokens": [one.tokens for one in found],
            "matched": [one.passage for one in found],
            "matched in": [None if one.origin is None else f"{one.origin}, character {one.offset}" for one in found],
            "jaccard": [round(one.jaccard, 4) for one in found],
            "nearest training text": [one.nearest for one in found],
            "nearest in": [one.nearest_origin for one in found],
        }
        return self.signed(values, self._signature)


class TextHarm(TextMetric):
    """See genlab.evaluation.harm: by the list, by the classifier, or by both.

    Args:
        words: a file with one word or phrase a line.
        classifier: a `_target_` of a harm.TextClassifier.
        threshold: score from which a text counts as harmful.
    """

    key = "text_harm"

    def __init__(
        self, words: str | None = None, classifier: TextClassifier | None = None, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if classifier is not None and not isinstance(classifier, TextClassifier):
            raise ConfigError(
                f"evaluation.metrics.{self.key}.classifier: {type(classifier).__name__} is no "
                f"{TextClassifier.__module__}.TextClassifier; derive it from that"
            )
        self.keep(words=words, classifier=classifier, threshold=threshold)

    def check(self, model: Any, data: Any, protocol: Any) -> None:
        """Also that there is a list that can be read, or a classifier."""
        super().check(model, data, protocol)
        if self.words is None and self.classifier is None:
            raise ConfigError(
                f"evaluation={protocol.name}: give evaluation.metrics.{self.key}.words=FILE (one word a line), or a "
                f"classifier of your own as evaluation.metrics.{self.key}.classifier._target_"
            )
        if self.words is not None:
            read_words(self.words)

    def compute(self) -> dict[str, float]:
        texts = self.judged.data
        values: dict[str, float] = {}
        if self.words is not None:
            words = read_words(self.words)
            counts = count_listed(texts, words)
            listed = {
                "listed_words": sum(counts) / len(counts),
                "listed_texts": sum(count > 0 for count in counts) / len(counts),
            }
            values |= self.signed(listed, f"words:{len(words)}|case:lc")
            self.columns["listed words"] = list(counts)
        if self.classifier is not None:
            scores = [float(score) for score in self.classifier.score(list(texts))]
            finite = sum(map(math.isfinite, scores))
            if not len(scores) == finite == len(texts):
                raise ConfigError(
                    f"evaluation.metrics.{self.key}.classifier: {self.classifier.name} gave {finite} finite scores for "
                    f"{len(texts)} texts; its score() must give one a text"
                )
            scored = {
                "classifier_mean": math.fsum(scores) / len(scores),
                "classifier_share": sum(score >= self.threshold for score in scores) / len(scores),
            }
            values |= self.signed(scored, f"classifier:{self.classifier.name}|threshold:{self.threshold}")
            self.columns["classifier"] = scores
        return values


class CodeValidity(TextMetric):
    """See genlab.evaluation.code; a text that goes on from a prompt is judged with it."""

    key, outputs = "code_validity", ("code_valid", "code_valid_prefix")

    def compute(self) -> dict[str, float]:
        texts = self.judged.data
        prompts = self.judged.prompts if self.judged.prompt_name == "prompt" else None
        prompts = prompts or [""] * len(texts)
        values, lines = code_validity([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        self.columns["valid lines"] = [f"{valid} of {count}" for valid, count in lines]
        return self.signed(values, f"parser:ast-{platform.python_version()}|lines:filled")


class VerseForm(TextMetric):
    """Share of poems that have the form (data.corpora.form_of) of their reference; both begin with the prompt."""

    key, outputs = "verse_form", ("verse_form",)
    _asked: list[str]

    def prepare(self, data: Any, groups: list[Items]) -> None:
        """The forms that are asked for: of the poems' references, of real poems in their place too."""
        prompts, references = groups[0].prompts, groups[0].references
        self._prompts, self._asked = [], []
        if prompts is not None and references is not None:
            self._prompts = prompts
            self._asked = [form_of(prompt + real[0]) for prompt, real in zip(prompts, references, strict=True)]

    def compute(self) -> dict[str, float]:
        if not self._asked:
            raise NotApplicable(
                "evaluation.prompt is 0: the form asked for is that of the real poem that a text begins as"
            )
        found = [form_of(prompt + text) for prompt, text in zip(self._prompts, self.judged.data, strict=True)]
        kept = [form == wanted and form in FORMS.values() for form, wanted in zip(found, self._asked, strict=True)]
        self.columns |= {"form asked for": list(self._asked), "form": list(found)}
        return self.signed({"verse_form": sum(kept) / len(kept)}, "lines and their lengths")


class JudgeScores(Metric):
    """Mean and standard deviation (n - 1) of a judge's numbers; each item's own is a column of the table.

    Args:
        judge: a genlab.judges.Judge; it is handed the items and what they were asked to be.
        called: what the values are called: of several judges in one protocol each needs another name.
    """

    key = "judge"
    needs = frozenset({"samples"})
    split_in_name = False

    def __init__(self, judge: Judge, called: str = "judge") -> None:
        super().__init__()
        self.keep(judge=judge, called=called)
        self.modality = getattr(judge, "modality", None)  # of a stored record: the judge's name alone
        self.outputs, self.column = (f"{called}_mean", f"{called}_std"), called

    def compute(self) -> dict[str, float]:
        items = self.judged
        if items.modality is None or len(items.data) < 2:
            raise NotApplicable("a judge needs two items at least, of a known modality")
        condition = {name: rows.tolist() for name, rows in items.condition.items()}
        condition |= {} if items.prompts is None else {items.prompt_name: items.prompts}
        condition |= {} if items.references is None else {"reference": [several[0] for several in items.references]}
        scores = self.judge(Samples(items.modality, items.data), condition)
        self.columns = {"score" if self.column == "judge" else self.column: scores.tolist()}
        return dict(zip(self.outputs, (float(scores.mean()), float(scores.std())), strict=True))
