"""Diversity of generated texts, and with references their overlap with them.

Pure functions of lists of strings, for the texts of all ranks, gathered in order, on one rank. No value depends on the
order of the texts. BLEU and chrF are in 0..100 as the sacrebleu package prints them, all others in 0..1 (mean_length:
tokens). No network and no downloaded model is needed.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import genlab
from genlab.evaluation.overlap import BLEU, CHRF, KINDS, ROUGE, SENTENCES, TOKENIZERS, choose

OUTPUTS = (
    *(f"distinct_{n}" for n in range(1, 5)),
    "self_bleu",
    *(f"rep_{n}" for n in range(1, 5)),
    "zipf",
    "mean_length",
    "duplicates",
)
ZIPF_RANKS = 5000  # as in Holtzman et al.'s code
EPSILON = 0.1  # matches that self-BLEU counts for an order that has none


def text_quality(
    texts: Sequence[str],
    references: Sequence[Sequence[str]] | None,
    tokenize: str = "13a",
    sentences: str = "newline",
) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics of `texts`, by output name.

    Args:
        texts: N generated strings, N >= 1.
        references: of each text at least one; None where there are none.
        tokenize: one of TOKENIZERS, of sacrebleu, ROUGE (see overlap.ROUGE), distinct_n, self_bleu, mean_length.
        sentences: "newline" or "punctuation": what ends a sentence, for rougeLsum (see overlap.split_sentences).

    Returns:
        Values for OUTPUTS; with references also sacrebleu, bleu_tokenized (of tokens between white space, not smoothed:
        for text that comes tokenised), chrf, chrfpp, and the F-measures of ROUGE. For each a signature, in the form of
        sacreBLEU's, that says what decides it.

    Raises:
        ValueError: see overlap.Overlap.update; an unknown tokenize or sentences.
    """
    choose("sentences", sentences, SENTENCES)
    values = {
        **distinct(texts, tokenize),
        "self_bleu": self_bleu(texts, tokenize),
        **repetition(texts, tokenize),
        "zipf": zipf(texts, tokenize),
        "mean_length": mean_length(texts, tokenize),
        "duplicates": duplicates(texts),
    }
    signatures = {name: f"case:mixed|tok:{tokenize}|per:ngrams" for name in OUTPUTS if name[-1].isdigit()}
    signatures |= {
        "self_bleu": f"order:4|case:mixed|eff:no|tok:{tokenize}|smooth:add-eps[{EPSILON}]",
        "zipf": f"ranks:{ZIPF_RANKS}|case:mixed|tok:{tokenize}|fit:least-squares-log-log",
        "mean_length": f"tok:{tokenize}",
        "duplicates": "case:mixed",
    }
    signatures = {name: f"{words}|version:genlab-{genlab.__version__}" for name, words in signatures.items()}
    if references is None:
        return values, signatures
    metrics = {  # not synchronised: one rank computes, and the others would be waited for forever
        "sacrebleu": BLEU(tokenize, sync_on_compute=False),
        "bleu_tokenized": BLEU("none", "none", sync_on_compute=False),
        "chrf": CHRF(sync_on_compute=False),
        "chrfpp": CHRF(word_order=2, sync_on_compute=False),
    }
    rouge = ROUGE(tokenize, sentences, sync_on_compute=False)
    for metric in (*metrics.values(), rouge):
        metric.update(texts, references)
    values |= {name: metric.compute().item() for name, metric in metrics.items()}
    values |= {kind: value.item() for kind, value in rouge.compute().items() if kind in KINDS}
    signatures |= {name: metric.signature() for name, metric in metrics.items()}
    signatures |= {kind: rouge.signature(kind) for kind in KINDS}
    return values, signatures


def distinct(texts: Sequence[str], tokenize: str = "13a") -> dict[str, float]:
    """Distinct-1 to 4 (Li et al. 2016): distinct n-grams of all texts together, as a share of their n-grams.

    Li et al. divide by the tokens; divided by the n-grams, as is usual now, it is 1 where none occurs twice. 0 if there
    are none. Falls with the number of texts: compare only equal numbers.

    Returns:
        `distinct_1` .. `distinct_4`, in 0..1.
    """
    tokens = tokenized(texts, tokenize)
    values = {}
    for n in range(1, 5):
        total = sum(max(0, len(text) - n + 1) for text in tokens)
        values[f"distinct_{n}"] = len({gram for text in tokens for gram in _ngrams(text, n)}) / max(1, total)
    return values


def self_bleu(texts: Sequence[str], tokenize: str = "13a") -> float:
    """Mean BLEU-4 of each text against all others as its references (Zhu et al. 2018), in 0..1; 1: all are alike.

    Sentence BLEU as in the authors' Texygen: an order without a match counts 0.1 matches of at least one n-gram (Chen
    and Cherry 2014, method 1), so a text of less than four tokens never reaches 1; 0 if no token matches. The brevity
    penalty is against the closest length among the others, the shorter of two. 0 for a single text. Rises with the
    number of texts: compare only equal numbers. Unlike Texygen, which takes 500 references, all others count.

    The references of a text differ from those of the next in one text only. Their greatest count of an n-gram is the
    greatest of all, or, for the text that has it, the second greatest: linear in the number of tokens.
    """
    tokens = tokenized(texts, tokenize)
    if len(tokens) < 2:
        return 0.0
    logs = [0.0] * len(tokens)
    for n in range(1, 5):
        counts = [Counter(_ngrams(text, n)) for text in tokens]
        greatest: dict[tuple[str, ...], tuple[int, int]] = {}  # and second greatest count; the same where two have it
        for gram, count in (item for own in counts for item in own.items()):
            first, second = greatest.get(gram, (0, 0))
            greatest[gram] = max(first, count), max(second, min(first, count))
        for i, own in enumerate(counts):
            matches: float = sum(min(count, greatest[gram][count == greatest[gram][0]]) for gram, count in own.items())
            if matches == 0:
                matches = 0.0 if n == 1 else EPSILON
            logs[i] += math.log(matches / max(1, own.total())) if matches else -math.inf
    lengths = Counter(len(text) for text in tokens)
    closest = {
        own: min((n for n in lengths if n != own or lengths[own] > 1), key=lambda n: (abs(n - own), n))
        for own in lengths
    }
    scores = [
        math.exp(log / 4) * min(1.0, math.exp(1 - closest[len(text)] / len(text)))
        for text, log in zip(tokens, logs, strict=True)
        if text
    ]
    return math.fsum(scores) / len(tokens)


def repetition(texts: Sequence[str], tokenize: str = "13a") -> dict[str, float]:
    """seq-rep-1 to 4 (Welleck et al. 2019, arXiv 1908.04319): 1 - distinct n-grams / n-grams of a text, the
    mean over texts.

    Texts of less than n tokens have no n-gram and are left out; 0 if no other is there. Rises with the length of the
    texts: compare only equal lengths.

    Returns:
        `rep_1` .. `rep_4`, in 0..1; 0 where no n-gram occurs twice in a text.
    """
    tokens = tokenized(texts, tokenize)
    values = {}
    for n in range(1, 5):
        shares = [1 - len(set(_ngrams(text, n))) / (len(text) - n + 1) for text in tokens if len(text) >= n]
        values[f"rep_{n}"] = math.fsum(shares) / max(1, len(shares))
    return values


def zipf(texts: Sequence[str], tokenize: str = "13a") -> float:
    """Zipf coefficient (Holtzman et al. 2020, arXiv 1904.09751): minus the slope of log frequency over log rank.

    Least squares over the ZIPF_RANKS most frequent tokens of all texts together, as the authors' code does. Natural
    English is near 1; it depends on the number of tokens. Not a number where there are less than two kinds of token.
    """
    counts = sorted(Counter(token for text in tokenized(texts, tokenize) for token in text).values(), reverse=True)
    if len(counts) < 2:
        return math.nan
    ranks = [math.log(rank) for rank in range(1, min(len(counts), ZIPF_RANKS) + 1)]
    frequencies = [math.log(count) for count in counts[:ZIPF_RANKS]]
    return -statistics.linear_regression(ranks, frequencies).slope


def mean_length(texts: Sequence[str], tokenize: str = "13a") -> float:
    """Mean number of tokens of a text."""
    return sum(len(text) for text in tokenized(texts, tokenize)) / len(texts)


def duplicates(texts: Sequence[str]) -> float:
    """Share of texts, in 0..1, that repeat another exactly; the first of each kind does not count."""
    if not texts:
        raise ValueError("there are no texts to judge")
    return (len(texts) - len(set(texts))) / len(texts)


def tokenized(texts: Sequence[str], tokenize: str = "13a") -> list[list[str]]:
    """Tokens of each text; those of sacreBLEU, in case and with punctuation.

    Raises:
        ValueError: no texts, an unknown tokenize.
    """
    if not texts:
        raise ValueError("there are no texts to judge")
    from sacrebleu.metrics import BLEU as Scorer

    tokenizer = Scorer(tokenize=choose("tokenize", tokenize, TOKENIZERS)).tokenizer
    return [tokenizer(text.rstrip()).split() for text in texts]


def _ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)  # to the end of the last, which is the shortest
