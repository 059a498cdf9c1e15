"""Metrics of text: values that the packages give, closed forms, order, several processes, no network."""

from __future__ import annotations

import math
import random
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from processes import together

from genlab.evaluation import text
from genlab.evaluation.overlap import BLEU, CHRF, ROUGE, ROUGE_TOKENS, UNIT, RougeTokenizer, split_sentences

FIXTURES = Path(__file__).parent / "fixtures"
Pairs = tuple[list[str], list[list[str]]]


def damaged(line: str, draw: random.Random, separator: str = " ") -> str:
    """The line with some of its words (or characters) dropped, doubled or swapped with the next."""
    parts = line.split() if separator else list(line)
    for i in range(len(parts) - 1):
        if draw.random() < 0.15:
            parts[i], parts[i + 1] = parts[i + 1], parts[i]
    return separator.join(part for part in parts for _ in range(draw.choice((0, *(1,) * 12, 2))))


def pairs(lines: list[str], n: int, separator: str = " ") -> Pairs:
    """n hypotheses, one in seven of which is another line and two of which are empty, with two references each."""
    draw = random.Random(7)
    lines = [lines[i % len(lines)] for i in range(n)]
    texts = [draw.choice(lines) if i % 7 == 3 else damaged(line, draw, separator) for i, line in enumerate(lines)]
    texts[1] = texts[-1] = ""
    return texts, [[line, damaged(line, draw, separator)] for line in lines]


def fixture(language: str) -> list[str]:
    return (FIXTURES / f"sentences_{language}.txt").read_text(encoding="utf-8").splitlines()


def chinese_lines() -> list[str]:
    """100 lines of the fixture's clauses in new company."""
    draw = random.Random(3)
    clauses = [clause for line in fixture("zh") for clause in re.findall(r"[^，。]+[，。]?", line)]
    return ["".join(draw.sample(clauses, draw.choice((1, 2, 3)))) for _ in range(100)]


def english() -> Pairs:
    return pairs(fixture("en"), 100)


def chinese() -> Pairs:
    return pairs(chinese_lines(), 100, "")


REFERENCE_OUTPUTS = ("sacrebleu", "bleu_tokenized", "chrf", "chrfpp", "rouge1", "rouge2", "rougeL", "rougeLsum")


def single(references: list[list[str]]) -> list[list[str]]:
    return [several[:1] for several in references]


def varied(references: list[list[str]]) -> list[list[str]]:
    """One, two and three references, some of them empty or repeated."""
    return [[*several[: 1 + i % 2], *([""] if i % 5 == 0 else [])] for i, several in enumerate(references)]


def value(metric: Any, texts: list[str], references: list[list[str]]) -> Any:
    """What a metric gives, as floats."""
    metric.update(texts, references)
    found = metric.compute()
    return {name: part.item() for name, part in found.items()} if isinstance(found, dict) else found.item()


# By tokenize and shape of the references: BLEU, ROUGE-1, 2, L by sacrebleu 2.6.0 and rouge-score 0.1.2 themselves
# (Chinese spelt as ASCII words for the latter); by "intl" and "char" the same of our tokens.
GOLDEN: dict[tuple[Any, Any], dict[str, tuple[float, ...]]] = {
    (english, list): {
        "13a": (51.173326, 0.796027, 0.529285, 0.720753),
        "intl": (52.810394, 0.79634, 0.52745, 0.721622),
        "char": (73.293269, 0.874432, 0.757834, 0.78118),
        "none": (46.439915, 0.796027, 0.529285, 0.720753),
    },
    (english, single): {"13a": (47.801316, 0.79295, 0.515127, 0.715617)},
    (english, varied): {"13a": (49.538475, 0.7944, 0.524088, 0.719184)},
    (chinese, list): {
        "zh": (44.820316, 0.785384, 0.490929, 0.702267),
        "char": (46.063274, 0.795854, 0.503431, 0.710458),
        "13a": (2.194659, 0.070381, 0.020667, 0.070381),
    },
    (chinese, single): {"zh": (41.317158, 0.784474, 0.469713, 0.697459)},
    (chinese, varied): {"zh": (42.988841, 0.784624, 0.482052, 0.70021)},
}  # fmt: skip
# BLEU of tokens between spaces without smoothing, chrF and chrF++ of sacrebleu.
GOLDEN_PLAIN: dict[tuple[Any, Any], tuple[float, float, float]] = {
    (english, list): (46.439915, 65.719594, 65.860101),
    (english, single): (43.170422, 65.074499, 65.395348),
    (english, varied): (45.408661, 65.494868, 65.757213),
    (chinese, list): (0.0, 37.33424, 28.38842),
    (chinese, varied): (0.0, 37.0191, 28.152065),
}


@pytest.mark.parametrize(("corpus", "shape"), GOLDEN)
def test_values_are_those_of_the_packages(
    corpus: Callable[[], Pairs], shape: Callable[[list[list[str]]], list[list[str]]]
) -> None:
    texts, references = corpus()
    references = shape(references)
    for tokenize, (bleu, *rouge) in GOLDEN[corpus, shape].items():
        assert value(BLEU(tokenize), texts, references) == pytest.approx(bleu, abs=1e-6)
        scores = value(ROUGE(tokenize), texts, references)
        assert [scores[kind] for kind in ("rouge1", "rouge2", "rougeL")] == pytest.approx(rouge, abs=1e-6)
        assert scores["rougeLsum"] == pytest.approx(scores["rougeL"], abs=1e-6)  # of single lines


@pytest.mark.parametrize(("corpus", "shape"), GOLDEN_PLAIN)
def test_chrf_and_tokenized_bleu_are_those_of_sacrebleu(
    corpus: Callable[[], Pairs], shape: Callable[[list[list[str]]], list[list[str]]]
) -> None:
    texts, references = corpus()
    metrics = (BLEU("none", "none"), CHRF(), CHRF(word_order=2))
    values = [value(metric, texts, shape(references)) for metric in metrics]
    assert values == pytest.approx(GOLDEN_PLAIN[corpus, shape], abs=1e-6)


# Of each: BLEU by 13a and by zh, BLEU between spaces without smoothing, chrF and chrF++ of sacrebleu.
CASES: dict[str, tuple[list[str], list[list[str]], tuple[float, ...]]] = {
    "no 4-gram matches": (
        ["a b c x d e f", "g h"], [["a b c y d e f"], ["g h"]], (42.210681, 42.210681, 0, 33.386243, 45.079365)
    ),
    "no 2-gram matches": (["a x b y c"], [["a b c d e"]], (14.058533, 14.058533, 0, 12, 17.142857)),
    "nothing matches": (["a b c d e"], [["f g h i j"]], (0, 0, 0, 0, 0)),
    "no text of four tokens": (["a b", "c"], [["a b"], ["c"]], (0, 0, 0, 100, 100)),
    "no text": (["", ""], [["a b c d"], ["e f g h"]], (0, 0, 0, 0, 0)),
    "no reference text": (["a b c d", "e f g h"], [[""], [""]], (0, 0, 0, 0, 0)),
    "neither": ([""], [[""]], (0, 0, 0, 0, 0)),
    "an empty text and an empty reference": (
        ["", "a b c d e", "a b c d e"], [["a b c d"], [""], ["a b c d e"]], (50, 50, 50, 72.533587, 69.5041)
    ),
    "two closest lengths": (
        ["a b c d e"] * 2, [["a b c d e f", "a b c d"], ["a b c d", "a b c d e f"]],
        (100, 100, 100, 91.367713, 92.485549),
    ),
    "white space at the end": (
        ["it costs 5. \n", "well-\n"], [["it costs 5.\t"], ["well- \n"]], (100, 0, 0, 100, 100)
    ),
    "odd characters": (
        ["&quot;a&amp;b&quot;\u00a0 <skipped>c\u2028d-\ne"], [['"a&b" c d e f']],
        (60.802532, 5.751392, 0, 10.002037, 12.352589),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rare_cases_are_those_of_sacrebleu(case: str) -> None:
    texts, references, expected = CASES[case]
    metrics = (BLEU(), BLEU("zh"), BLEU("none", "none"), CHRF(), CHRF(word_order=2))
    assert [value(metric, texts, references) for metric in metrics] == pytest.approx(expected, abs=1e-6)


def test_torchmetrics_differs_where_the_docs_say() -> None:
    from torchmetrics.functional.text import bleu_score, rouge_score, sacre_bleu_score

    texts, references = english()
    one = single(references)
    assert value(BLEU(), texts, one) == pytest.approx(100 * sacre_bleu_score(texts, one).item(), rel=1e-5)
    assert value(BLEU("none", "none"), texts, one) == pytest.approx(100 * bleu_score(texts, one).item(), rel=1e-5)
    theirs = rouge_score(texts, references, rouge_keys=("rouge1", "rouge2", "rougeL"))
    ours = value(ROUGE(), texts, references)
    assert [ours[kind] for kind in ("rouge1", "rouge2", "rougeL")] == pytest.approx(
        [theirs[f"{kind}_fmeasure"].item() for kind in ("rouge1", "rouge2", "rougeL")], abs=1e-6
    )
    for text_, several, bleu in (
        ("a b c x d e f", ["a b c y d e f"], 0),  # an order without a match
        ("a b c d e", ["a b c d e f", "a b c d"], 100 * math.exp(-0.2)),  # two closest lengths: the first, not shorter
        ("a b c d well-\n", ["a b c d well-  "], 66.874030),  # white space at the end: 13a joins words cut by "-\n"
    ):
        assert 100 * sacre_bleu_score([text_], [several]).item() == pytest.approx(bleu, abs=1e-4)
        assert value(BLEU(), [text_], [several]) > bleu + 15


def test_bleu_smoothing_in_closed_form() -> None:
    # 6 of 7 unigrams, 4 of 6 bigrams, 2 of 5 trigrams, none of 4 4-grams: half of one is counted
    assert value(BLEU(), ["a b c x d e f"], [["a b c y d e f"]]) == pytest.approx(
        100 * (6 / 7 * 4 / 6 * 2 / 5 * 0.5 / 4) ** 0.25
    )
    assert value(BLEU("none", "none"), ["a b c x d e f"], [["a b c y d e f"]]) == 0
    # 1 of 2 unigrams; no text has a 4-gram
    assert value(BLEU(), ["a b"], [["a c"]]) == 0


def test_counts_stay_exact_beyond_float32() -> None:
    metric = BLEU("none")
    metric.update(["a"], [["a"]])
    metric.counts += 2**53
    metric.update(["a"], [["a"]])
    assert metric.counts[0].item() == 2**53 + 2
    rouge = ROUGE()
    rouge.update(["a b"], [["a c"]])
    assert rouge.counts.tolist()[:4] == [1, UNIT // 2, UNIT // 2, UNIT // 2]


def test_rouge_in_closed_form() -> None:
    # Lin 2004, section 3.2: w1 w2 w3 w4 w5 against w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5: the union has 4 tokens
    scores = value(ROUGE(), ["w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8"], [["w1 w2 w3 w4 w5"]])
    assert scores["rougeLsum_recall"] == pytest.approx(4 / 5)
    assert scores["rougeLsum_precision"] == pytest.approx(4 / 10)
    assert scores["rougeL_recall"] == pytest.approx(3 / 5)
    # of several references the best counts, for each kind by itself
    scores = value(ROUGE(), ["a b c d"], [["b a d c", "a b x y z"]])
    assert scores["rouge1"] == pytest.approx(1)
    assert scores["rouge2"] == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    for texts, references in ([""], [["a"]]), (["a"], [["", "?!"]]), (["."], [["."]]):
        assert set(value(ROUGE(), texts, references).values()) == {0.0}


def test_rouge_tokens_and_sentences() -> None:
    line = "Für 3.5 Euro: 我们用 GPU训练，好！"
    assert RougeTokenizer("13a").tokenize(line) == ["f", "r", "3", "5", "euro", "gpu"]
    assert RougeTokenizer("intl").tokenize(line)[:4] == ["für", "3", "5", "euro"]
    assert RougeTokenizer("zh").tokenize(line) == ["f", "r", "3", "5", "euro", *"我们用", "gpu", *"训练好"]
    assert RougeTokenizer("char").tokenize("Ab, 好") == ["a", "b", "好"]
    assert split_sentences("He said 3.14. \n\nShe left.") == ["He said 3.14. ", "She left."]
    assert split_sentences('It is 3.14. "Really?" he asked! Yes', "punctuation") == [
        "It is 3.14.",
        '"Really?"',
        "he asked!",
        "Yes",
    ]
    chinese_line = "他说：“好。”她走了！为什么？"
    assert split_sentences(chinese_line, "punctuation") == ["他说：“好。”", "她走了！", "为什么？"]


def test_rouge_of_several_lines_is_that_of_rouge_score() -> None:
    draw = random.Random(5)

    def lines() -> str:
        return "\n".join(" ".join(draw.choices("abcd", k=draw.randint(0, 6))) for _ in range(draw.randint(0, 4)))

    texts, references = [lines() for _ in range(200)], [[lines(), lines()] for _ in range(200)]
    scores = value(ROUGE(), texts, references)
    assert [scores[kind] for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")] == pytest.approx(
        [0.44104, 0.219756, 0.358914, 0.404374], abs=1e-6
    )


def test_own_sentence_split_gives_the_packages_number() -> None:
    texts = ["He left. It was late. Nobody saw him.", "Why? I do not know! We left. Late."]
    references = [["It was late. Nobody saw. He left."], ["We left late. Why? I know!"]]
    ours = value(ROUGE(sentences="punctuation"), texts, references)
    assert ours["rougeLsum"] == pytest.approx(0.895238, abs=1e-6)
    assert ours["rougeLsum"] > value(ROUGE(), texts, references)["rougeLsum"] + 0.05


def test_distinct_in_closed_form() -> None:
    # tokens: a b a b c / a b; 3 of 7; bigrams: ab ba ab bc / ab; 3 of 5; trigrams: aba bab abc; 3 of 3
    values = text.distinct(["a b a b c", "a b"], "none")
    assert values == {"distinct_1": 3 / 7, "distinct_2": 3 / 5, "distinct_3": 1.0, "distinct_4": 1.0}
    assert set(text.distinct(["", ""]).values()) == {0.0}
    assert text.distinct(["好好"], "char")["distinct_1"] == 0.5


def naive_self_bleu(tokens: list[list[str]]) -> float:
    """Zhu et al. 2018 as in Texygen: nltk's sentence BLEU, smoothing method 1, all other texts as references."""
    smooth = SmoothingFunction().method1
    scores = [
        sentence_bleu(tokens[:i] + tokens[i + 1 :], own, smoothing_function=smooth) for i, own in enumerate(tokens)
    ]
    return sum(map(float, scores)) / len(scores)


@pytest.mark.parametrize(("corpus", "tokenize"), [(english, "13a"), (chinese, "zh"), (chinese, "char")])
def test_self_bleu_is_the_naive_definition(corpus: Callable[[], Pairs], tokenize: str) -> None:
    texts, references = corpus()
    texts = (texts + [several[0] for several in references])[::3]
    score = text.self_bleu(texts, tokenize)
    assert score == pytest.approx(naive_self_bleu(text.tokenized(texts, tokenize)), abs=1e-9)
    assert 0.2 < score < 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=7), min_size=2, max_size=7))
def test_self_bleu_is_the_naive_definition_for_any_texts(tokens: list[list[str]]) -> None:
    assert text.self_bleu([" ".join(own) for own in tokens], "none") == pytest.approx(naive_self_bleu(tokens), abs=1e-9)


def test_self_bleu_in_closed_form() -> None:
    assert text.self_bleu(["a b c d e"] * 3) == pytest.approx(1)
    assert text.self_bleu(["a b c d", "e f g h", ""]) == 0
    assert text.self_bleu(["a b c d"]) == 0
    # each against the other: 4 of 5, 3 of 4, 2 of 3, 1 of 2
    assert text.self_bleu(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 / 2) ** 0.25)
    # the short one: no 4-gram counts 0.1 of 1, and exp(1 - 5/3) for brevity; the long one: 3 of 5, 2 of 4, 1 of 3, 0.1
    short, long = (1 * 1 * 1 * 0.1) ** 0.25 * math.exp(1 - 5 / 3), (3 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25
    assert text.self_bleu(["a b c", "a b c d e"]) == pytest.approx((short + long) / 2)


def test_length_and_duplicates() -> None:
    assert text.mean_length(["Hello, you.", "", "well"]) == pytest.approx((4 + 0 + 1) / 3)
    assert text.mean_length(["你好 GPU"], "zh") == 3
    assert text.duplicates(["a", "b", "a", "a "]) == 0.25
    assert text.duplicates(["a"] * 4) == 0.75


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.text("ab c.,好", max_size=12), st.lists(st.text("ab c.,好", max_size=12), min_size=1, max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(ROUGE_TOKENS)),
)
def test_values_do_not_depend_on_the_order_of_the_corpus(
    corpus: list[tuple[str, list[str]]], draw: random.Random, tokenize: str
) -> None:
    def values(rows: list[tuple[str, list[str]]]) -> dict[str, float]:
        return text.text_quality([own for own, _ in rows], [several for _, several in rows], tokenize)[0]

    expected = values(corpus)
    assert math.isnan(expected["zipf"]) is (
        len({token for row in text.tokenized([own for own, _ in corpus], tokenize) for token in row}) < 2
    )
    for name, number in expected.items():
        assert name == "zipf" or 0 <= number <= (
            100 + 1e-9 if name in REFERENCE_OUTPUTS[:4] else 12 if name == "mean_length" else 1
        )
    draw.shuffle(corpus)
    assert values(corpus) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_values_of_a_real_corpus_do_not_depend_on_its_order() -> None:
    texts, references = english()
    order = random.Random(0).sample(range(len(texts)), len(texts))
    shuffled = text.text_quality([texts[i] for i in order], [references[i] for i in order])
    assert shuffled == text.text_quality(texts, references)


def test_entry_point_names_what_it_gives() -> None:
    texts, references = english()
    values, signatures = text.text_quality(texts, references)
    assert tuple(values) == (*text.OUTPUTS, *REFERENCE_OUTPUTS)
    assert values.keys() == signatures.keys()
    alone, alone_signatures = text.text_quality(texts, None)
    assert tuple(alone) == text.OUTPUTS
    assert alone == {name: values[name] for name in text.OUTPUTS}
    assert alone_signatures == {name: signatures[name] for name in text.OUTPUTS}
    assert values["chrf"] == value(CHRF(), texts, references)
    assert values["rougeLsum"] == value(ROUGE(), texts, references)["rougeLsum"]
    assert re.fullmatch(r"nrefs:2\|case:mixed\|eff:no\|tok:13a\|smooth:exp\|version:2\.\S+", signatures["sacrebleu"])
    assert re.fullmatch(r"nrefs:2\|case:mixed\|eff:yes\|nc:6\|nw:2\|space:no\|version:2\.\S+", signatures["chrfpp"])
    assert "|sent:newline|" in signatures["rougeLsum"]
    changed = text.text_quality(texts, varied(references), "none", "punctuation")[1]
    assert changed["sacrebleu"].startswith("nrefs:var|case:mixed|eff:no|tok:none|")
    assert "|sent:punctuation|" in changed["rougeLsum"]


@pytest.mark.parametrize(
    ("texts", "references", "options", "message"),
    [
        (["a", "b"], [["a"]], {}, "2 texts, but references of 1"),
        ([], [], {}, "no texts to judge"),
        (["a", "b"], [["a"], []], {}, "text 1 has no reference"),
        (["a", "b"], ["a", "b"], {}, "the references of text 0 are a string"),
        (["a"], [["a"]], {"tokenize": "flores200"}, "tokenize='flores200': choose one of 13a, intl, zh, char, none"),
        (["a"], [["a"]], {"sentences": "nltk"}, "sentences='nltk': choose one of newline, punctuation"),
    ],
)
def test_mistakes_are_said_in_one_line(texts: Any, references: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        text.text_quality(texts, references, **options)
    assert "\n" not in str(caught.value)
    if not options:
        for metric in (BLEU(), CHRF(), ROUGE()):
            with pytest.raises(ValueError, match=message):
                metric.update(texts, references)


def test_no_network_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    with pytest.raises(AssertionError, match="network"):
        socket.create_connection(("localhost", 9))
    for tokenize in ROUGE_TOKENS:
        assert text.text_quality(["好 a b c d."], [["好 a b c d."]], tokenize, "punctuation")[0]["rouge1"] == 1


def test_one_rank_computes_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **options: Any) -> None:
        raise AssertionError("a collective: the other ranks would be waited for")

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for name in ("barrier", "all_gather", "all_reduce", "all_gather_object"):
            monkeypatch.setattr(torch.distributed, name, refused)
        from torchmetrics.text import BLEUScore

        metric = BLEUScore()
        metric.update(["a b c d"], [["a b c d"]])
        with pytest.raises(AssertionError, match="a collective"):
            metric.compute()
        assert text.text_quality(["a b c d"], [["a b c d"]])[0]["bleu_tokenized"] == pytest.approx(100)
    finally:
        torch.distributed.destroy_process_group()


def _shares(borders: list[int]) -> list[tuple[Any, str]]:
    """Each metric's value and signature over all ranks, of which each counts its share in two calls."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    texts, references = english()
    texts, references = texts[borders[rank] : borders[rank + 1]], varied(references)[borders[rank] : borders[rank + 1]]
    results = []
    for metric in (BLEU(), CHRF(word_order=2), ROUGE()):
        for half in (slice(0, 5), slice(5, None)):
            metric.update(texts[half], references[half])
        found = metric.compute()
        with metric.sync_context(distributed_available=torch.distributed.is_initialized):
            signature = metric.signature()
        results.append(
            ({k: v.item() for k, v in found.items()} if isinstance(found, dict) else found.item(), signature)
        )
    return results


def test_torchmetrics_synchronises_the_metrics() -> None:
    (alone,) = together(1, _shares, [0, 100])
    assert together(2, _shares, [0, 30, 100]) == [alone, alone]
    (other,) = together(1, _shares, [0, 30])
    assert other[0][0] != alone[0][0]
    assert alone[0][1].startswith("nrefs:var|")
