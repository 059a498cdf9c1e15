"""Rewards of texts: the right answer, words of a list, likeness to a reference, and sums of rewards."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from genlab.errors import ConfigError
from genlab.judges import Judge
from genlab.samples import Samples

REFERENCE = "reference"  # what a judge is told of the right answer


def references(judge: Judge, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[str]:
    """The right answer to each item.

    Raises:
        ConfigError: there are none.
    """
    if REFERENCE not in condition:
        raise ConfigError(
            f"{judge.name} needs references, which the items lack; take data of pairs, such as data=pairs"
        )
    return [str(text) for text in condition[REFERENCE]]


class ExactAnswer(Judge):
    """1 where a text is its reference, white space at its ends left out; else 0."""

    modality = "text"

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        right = references(self, samples, condition)
        return [float(text.strip() == answer.strip()) for text, answer in zip(samples.data, right, strict=True)]


class Overlap(Judge):
    """F-measure of ROUGE-L of a text and its reference (Lin 2004), by rouge-score without stemming, in 0..1, times
    BLEU's brevity penalty exp(1 - length / reference length) for a text with more words than its reference.

    Args:
        brevity: whether long texts are penalised.
    """

    modality = "text"

    def __init__(self, brevity: bool = True) -> None:
        self.brevity, self._scorer = brevity, RougeScorer(["rougeL"])

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        return [self._score(*pair) for pair in zip(samples.data, references(self, samples, condition), strict=True)]

    def _score(self, text: str, reference: str) -> float:
        score = float(self._scorer.score(reference, text)["rougeL"].fmeasure)
        ratio = len(text.split()) / max(1, len(reference.split()))
        return score * math.exp(1 - ratio) if self.brevity and ratio > 1 else score


class ListedWords(Judge):
    """Words of a list in a text, as a share of its words: 1 where all of them are listed.

    Args:
        words: the list.
        wanted: false: the share is subtracted from 0.
    """

    modality = "text"

    def __init__(self, words: Sequence[str], wanted: bool = True) -> None:
        if isinstance(words, str) or not words or not all(isinstance(word, str) and word for word in words):
            raise ConfigError(f"feedback.reward.words={words!r}: expected a list of words")
        self.words, self.sign = frozenset(word.lower() for word in words), 1.0 if wanted else -1.0

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        each = [re.findall(r"\w+", text.lower()) for text in samples.data]
        return [self.sign * sum(word in self.words for word in words) / max(1, len(words)) for words in each]


class WeightedSum(Judge):
    """Sum of other judges' numbers, each times its weight.

    Args:
        judges: by names of one's own.
        weights: by the same names; what is not there has weight 1.
    """

    def __init__(self, judges: Mapping[str, Judge], weights: Mapping[str, float] | None = None) -> None:
        self.judges, self.weights = dict(judges), dict(weights or {})
        if not self.judges or (unknown := self.weights.keys() - self.judges.keys()):
            lacking = f"no judge is named {min(unknown)}" if self.judges else "there are none"
            raise ConfigError(f"feedback.reward.judges: {lacking}; there are: {', '.join(self.judges)}")

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor:
        parts = [self.weights.get(name, 1.0) * judge(samples, condition) for name, judge in self.judges.items()]
        return torch.stack(parts).sum(0)
