"""Texts against references: BLEU and chrF by sacrebleu, ROUGE by rouge-score, as metrics of torchmetrics.

What they count are integer states that add up over calls and processes, so a value is that of all texts, whatever their
order and their shares. Each is made as any torchmetrics.Metric is: keyword arguments such as sync_on_compute go there.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from itertools import zip_longest
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from genlab.data.documents import SCRIPTS

HAN = "\u3007" + "".join(f"{chr(first)}-{chr(last)}" for first, last in SCRIPTS["han"])  # a class of characters
# What is a token of the lower-cased text for ROUGE. rouge-score's own rule reads ASCII only: it cuts words at umlauts
# and finds nothing in Chinese, hence the others.
ROUGE_TOKENS = {
    "13a": ("rouge-score", re.compile(r"[a-z0-9]+")),
    "intl": ("words", re.compile(r"[^\W_]+")),
    "zh": ("han+words", re.compile(rf"[{HAN}]|[a-z0-9]+")),
    "char": ("letters", re.compile(r"[^\W_]")),
    "none": ("rouge-score", re.compile(r"[a-z0-9]+")),
}
TOKENIZERS = tuple(ROUGE_TOKENS)  # those of sacrebleu that need no download; "none" splits at white space
SENTENCES = ("newline", "punctuation")
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
UNIT = 2**40  # ROUGE's scores are added up as integers in parts of this, as sums of floats depend on their order
# A full stop needs white space after it (3.14), a Chinese one does not; closing quotes belong to the sentence.
_END = re.compile(r"""([.!?…]["'”’)\]]*)\s+|([。！？]["”’」』）]*)\s*""")


class Overlap(torchmetrics.Metric):
    """Base class of metrics of texts against their references.

    Args:
        counts: numbers in the state of this name, int64.
        kwargs: see torchmetrics.Metric.
    """

    is_differentiable, higher_is_better, full_state_update = False, True, False
    counts: Tensor
    fewest: Tensor
    most: Tensor

    def __init__(self, counts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(counts, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("fewest", torch.tensor(2**62), dist_reduce_fx="min")  # references of a text
        self.add_state("most", torch.tensor(0), dist_reduce_fx="max")

    def update(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> None:
        """Counts texts.

        Args:
            preds: N texts, N at least 1.
            target: of each text its references, at least one; in any order.

        Raises:
            ValueError: there are none; not one list of references a text; a string or nothing in the place of a list.
        """
        if not preds:
            raise ValueError("there are no texts to judge")
        if len(preds) != len(target):
            raise ValueError(f"{len(preds)} texts, but references of {len(target)}: give each text a list of them")
        for i, several in enumerate(target):
            if isinstance(several, str):
                raise ValueError(f"the references of text {i} are a string: give a list of strings")
            if not several:
                raise ValueError(f"text {i} has no reference")
        sizes = [len(several) for several in target]
        self.fewest, self.most = self.fewest.clamp(max=min(sizes)), self.most.clamp(min=max(sizes))
        self.counts += torch.tensor(self.count(preds, target), device=self.counts.device).sum(0)

    @abstractmethod
    def count(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> list[list[int]]:
        """A row of `counts` numbers for each text."""

    @property
    def nrefs(self) -> int | str:
        """References of a text, as in sacreBLEU's signatures: their number, or "var"."""
        return int(self.most) if self.fewest == self.most else "var"


class SacreMetric(Overlap):
    """A metric of sacrebleu over all texts, in 0..100.

    Args:
        scorer: one of sacrebleu.metrics; what `corpus_score` does in one call is done here in two.
        counts: numbers that it counts of a text.
        kwargs: see torchmetrics.Metric.
    """

    def __init__(self, scorer: Any, counts: int, **kwargs: Any) -> None:
        super().__init__(counts, **kwargs)
        self.scorer = scorer

    def count(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> list[list[int]]:
        # all first references, all second ones, ...; None where a text has no more
        return self.scorer._extract_corpus_statistics(preds, list(zip_longest(*target)))

    def compute(self) -> Tensor:
        """float64 scalar."""
        score = self.scorer._compute_score_from_stats(self.counts.tolist()).score
        return torch.tensor(score, dtype=torch.float64, device=self.counts.device)

    def signature(self) -> str:
        """sacrebleu's own: what decides the value, with its version."""
        self.scorer.num_refs = self.nrefs
        return self.scorer.get_signature().format()


class BLEU(SacreMetric):
    """BLEU-4 (Papineni et al. 2002) as sacreBLEU defines it (Post 2018), of text that is not tokenised.

    0 if nothing matches at all, or if no text has four tokens. White space at the end of a line does not count; of two
    closest lengths of references the shorter is taken.

    Args:
        tokenize: one of TOKENIZERS.
        smooth_method: for an order without a match: "exp" counts 2^-k matches for the k-th of them (Chen and Cherry
            2014, method 3); "floor" (0.1) and "add-k" (1) are methods 1 and 2; "none" makes the value 0.
        lowercase: whether case counts for nothing.
        kwargs: see torchmetrics.Metric.

    Raises:
        ValueError: an unknown tokenize.
    """

    def __init__(
        self, tokenize: str = "13a", smooth_method: str = "exp", lowercase: bool = False, **kwargs: Any
    ) -> None:
        from sacrebleu.metrics import BLEU as Scorer

        choose("tokenize", tokenize, TOKENIZERS)
        # force: no advice in the log where many texts end in " ."
        scorer = Scorer(tokenize=tokenize, smooth_method=smooth_method, lowercase=lowercase, force=True)
        super().__init__(scorer, 10, **kwargs)

    @property
    def length_ratio(self) -> float:
        """Tokens of the texts over those of the references that are closest in length; nan where these have none."""
        tokens, reference_tokens = self.counts[:2].tolist()
        return tokens / reference_tokens if reference_tokens else math.nan


class CHRF(SacreMetric):
    """chrF (Popovic 2015), or chrF++ (Popovic 2017) with word_order=2: F-measure, beta 2, of n-grams of characters.

    Precision and recall are averaged over the orders that occur both in texts and references; of several references
    the one that is best by itself counts.

    Args:
        word_order: word n-grams up to this order, beside character n-grams up to 6.
        kwargs: see torchmetrics.Metric.
    """

    def __init__(self, word_order: int = 0, **kwargs: Any) -> None:
        from sacrebleu.metrics import CHRF as Scorer

        super().__init__(Scorer(word_order=word_order), 3 * (6 + word_order), **kwargs)


class ROUGE(Overlap):
    """ROUGE-1, 2, L and Lsum (Lin 2004) of rouge-score, the mean over texts; no stemming.

    Of several references the one with the best F-measure counts, for each of the four by itself. A text or reference
    without tokens scores 0, even against another without.

    Args:
        tokenize: a key of ROUGE_TOKENS. "13a" or "none": rouge-score's own, runs of a-z and 0-9; "intl": runs of
            letters and digits of any script; "zh": each Chinese character, and runs of a-z and 0-9; "char": each letter
            or digit.
        sentences: what ends a sentence for Lsum, see split_sentences.
        kwargs: see torchmetrics.Metric.

    Raises:
        ValueError: an unknown tokenize or sentences.
    """

    def __init__(self, tokenize: str = "13a", sentences: str = "newline", **kwargs: Any) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        super().__init__(1 + 3 * len(KINDS), **kwargs)
        self.tokenize = choose("tokenize", tokenize, TOKENIZERS)
        self.sentences = choose("sentences", sentences, SENTENCES)
        self.scorer = RougeScorer(KINDS, tokenizer=RougeTokenizer(tokenize))

    def count(self, preds: Sequence[str], target: Sequence[Sequence[str]]) -> list[list[int]]:
        """Each text as 1, then its scores in parts of UNIT."""
        rows = []
        for row in zip(preds, target, strict=True):
            text, *several = ("\n".join(split_sentences(one, self.sentences)) for one in (row[0], *row[1]))
            scores = self.scorer.score_multi(several, text)  # of each kind: precision, recall, F-measure
            rows.append([1, *(round(scores[kind][i] * UNIT) for kind in KINDS for i in (2, 0, 1))])
        return rows

    def compute(self) -> dict[str, Tensor]:
        """F-measures in 0..1 as `rouge1`, `rouge2`, `rougeL`, `rougeLsum`; each also with `_precision` and `_recall`.

        float64 scalars; nan without texts.
        """
        means = self.counts[1:].double() / UNIT / self.counts[0]
        names = [kind + suffix for kind in KINDS for suffix in ("", "_precision", "_recall")]
        return dict(zip(names, means, strict=True))

    def signature(self, kind: str = "rougeLsum") -> str:
        """What decides the values of one of KINDS, as sacreBLEU's signatures do; sentences those of Lsum only."""
        fields = f"nrefs:{self.nrefs}|acc:best|case:lc|stem:no|tok:{ROUGE_TOKENS[self.tokenize][0]}"
        fields += f"|sent:{self.sentences}" if kind == "rougeLsum" else ""
        return f"{fields}|version:rouge-score-{version('rouge-score')}"


class RougeTokenizer:
    """A tokenizer as rouge-score wants it, by a key of ROUGE_TOKENS."""

    def __init__(self, tokenize: str) -> None:
        self.token = ROUGE_TOKENS[tokenize][1]

    def tokenize(self, text: str) -> list[str]:
        """Tokens of the lower-cased text; none of them is punctuation."""
        return self.token.findall(text.lower())


def split_sentences(text: str, sentences: str = "newline") -> list[str]:
    """Sentences of a text, for ROUGE-Lsum; empty ones are left out.

    Args:
        sentences: "newline": each line is one, rouge-score's default; "punctuation": a line also ends after . ! ? …
            before white space, and after 。！？. Abbreviations are not known: "Mr. Smith" is cut.

    Raises:
        ValueError: an unknown one.
    """
    if choose("sentences", sentences, SENTENCES) == "punctuation":
        text = _END.sub(lambda match: f"{match[1] or match[2]}\n", text)
    return [line for line in text.split("\n") if line]


def choose(name: str, value: str, choices: Sequence[str]) -> str:
    """The value.

    Raises:
        ValueError: it is none of the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(choices)}")
    return value
