"""Harmful text: a list of words that the user gives, and a classifier that the user gives.

No list and no classifier is shipped: what counts as harmful is the user's to say.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import ConfigError, DataError
from genlab.evaluation.overlap import HAN
from genlab.judges import Judge
from genlab.samples import Samples


class TextClassifier(Judge):
    """Base class of what `evaluation.metrics.text_harm.classifier._target_` names (its package in GENLAB_ALLOW)."""

    modality = "text"

    @abstractmethod
    def score(self, texts: Sequence[str]) -> Sequence[float]:
        """How harmful each text is, in 0..1, a finite number a text. Called on one process."""

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Sequence[float]:
        return self.score(samples.data)


def read_words(path: str | Path) -> list[str]:
    """Words or phrases of a UTF-8 file, one a line; blank lines and those that begin with # are left out.

    Raises:
        ConfigError: no such file, or no word in it.
        DataError: it is not UTF-8.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 (evaluation.metrics.text_harm.words); convert the file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}) (evaluation.metrics.text_harm.words)") from None
    words = [word for line in lines if (word := line.strip()) and not word.startswith("#")]
    if not words:
        raise ConfigError(f"{path}: has no word (evaluation.metrics.text_harm.words)")
    return words


def pattern_of(words: Sequence[str]) -> re.Pattern[str]:
    """Finds the words of a list without case: whole words, but Chinese ones anywhere, as nothing separates them. Of
    words that begin at one place the longest counts; a space in a phrase is any white space."""
    parts = []
    for word in sorted({word.casefold() for word in words}, key=lambda word: (-len(word), word)):
        inner = r"\s+".join(re.escape(part) for part in word.split())
        before = "" if re.match(rf"[{HAN}]|\W", word) else r"(?<!\w)"
        after = "" if re.search(rf"(?:[{HAN}]|\W)$", word) else r"(?!\w)"
        parts.append(before + inner + after)
    return re.compile("|".join(parts))


def count_listed(texts: Sequence[str], words: Sequence[str]) -> list[int]:
    """Occurrences of listed words in each text; see pattern_of."""
    pattern = pattern_of(words)
    return [sum(1 for _ in pattern.finditer(text.casefold())) for text in texts]
