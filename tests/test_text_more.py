"""Coherence, copies of the training set, harm, syntax, their floors and tables; likelihood by overlapping windows."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_corpus import data_of, size_of, write
from test_corpus import texts as invented
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from genlab.callbacks.pictures import show_table
from genlab.cli.compose import compose_config
from genlab.cli.targets import instantiate
from genlab.data.text import Text as TextData
from genlab.data.windows import Windows
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError, DataError
from genlab.evaluation import Protocol, evaluate, evaluate_samples
from genlab.evaluation import text as text_metrics
from genlab.evaluation.code import code_validity, parses, valid_lines
from genlab.evaluation.coherence import SentenceEncoder, coherence, neighbouring, not_english, sentences_of
from genlab.evaluation.copying import Copied, copying, tokens_of
from genlab.evaluation.harm import TextClassifier, count_listed, read_words
from genlab.evaluation.judged import Judged, generated_by, texts_from
from genlab.evaluation.metrics import (
    CodeValidity,
    Items,
    TextCoherence,
    TextCopying,
    TextHarm,
    TextLikelihood,
    TextQuality,
    VerseForm,
)
from genlab.evaluation.texts import SHOWN, item_record, table_columns, write_table
from genlab.files import cache_root
from genlab.modality import Text
from genlab.models.language import LanguageModel
from genlab.samples import Samples

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
MINILM = cache_root() / "minilm" / "model.safetensors"
needs_minilm = pytest.mark.skipif(not MINILM.is_file(), reason="no minilm in the cache (scripts/fetch_data.py minilm)")


# ---- likelihood


class Table(nn.Module):
    """Gives token i the log-probability logs[i], whatever stands before it."""

    modality, conditions, chunk_size, samples_seen, context = Text(), (), 4, 0, 64
    device = CPU

    def __init__(self, logs: Tensor) -> None:
        super().__init__()
        self.logs = logs

    def log_likelihood(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        counted = batch["labels"] != -100
        return (self.logs[batch["labels"].clamp(min=0)] * counted).sum(1), counted.sum(1)


def corpus(folder: Path, tokenizer: str, **options: Any) -> TextData:
    """The corpus of test_corpus; its characters are counted."""
    if tokenizer == "characters":
        options["vocab_size"] = size_of(folder, tokenizer=tokenizer)
    data = data_of(folder, **{"tokenizer": tokenizer, "vocab_size": 100 if tokenizer == "bpe" else 300, **options})
    data.setup()
    return data


def bytes_of(data: TextData, token: int) -> bytes:
    """What a token stands for. Byte-level vocabularies write bytes as characters (openai/gpt-2, bytes_to_unicode)."""
    written = data.tokenizer.id_to_token(token)
    if data.encoding.kind != "byte_bpe":
        return written.encode()
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    return bytes(table[character] for character in written)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    write(tmp_path / "in.jsonl", invented())
    return tmp_path


def likelihood(model: nn.Module, data: Any, **options: Any) -> dict[str, Any]:
    protocol = Protocol(metrics={"text_likelihood": TextLikelihood(**options)}, reference_split="val")
    return evaluate(model, data, protocol, progress=False)


def test_one_probability_of_the_text_gives_one_value_by_every_vocabulary(cache: Path) -> None:
    """log p(token) = the sum of log p over its bytes, so the whole text has one probability; and by hand."""
    values = []
    for tokenizer in ("characters", "bpe", "byte_bpe"):
        data = corpus(cache, tokenizer)
        end = data.tokenizer.token_to_id("<|endoftext|>")
        tokens = [b"" if i == end else bytes_of(data, i) for i in range(data.vocab_size)]
        logs = [-math.fsum(math.log(2 + byte % 7) for byte in token) if token else -1.5 for token in tokens]
        record = likelihood(Table(torch.tensor(logs, dtype=torch.float64)), data)
        values.append({k: v for k, v in record["values"].items() if k not in ("nats_per_token_val", "perplexity_val")})
    kept = [text for _, text in data.texts("val")]
    nats = 1.5 * len(kept) + sum(math.log(2 + byte % 7) for text in kept for byte in text.encode())
    expected = {
        "bits_per_byte_val": nats / math.log(2) / sum(len(text.encode()) for text in kept),
        "bits_per_character_val": nats / math.log(2) / sum(len(text) for text in kept),
        "word_perplexity_val": math.exp(nats / sum(len(text.split()) for text in kept)),
    }
    for found in values:
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_uniform_model_has_the_size_of_the_vocabulary_as_its_perplexity(cache: Path) -> None:
    data = corpus(cache, "byte_bpe")
    model = Table(torch.full((data.vocab_size,), -math.log(data.vocab_size), dtype=torch.float64))
    for options in ({}, {"stride": 4}, {"context": 8, "stride": 3}, {"context": 32}):
        record = likelihood(model, data, **options)
        suffix = "".join(f"_{key}{value}" for key, value in options.items())
        assert record["values"][f"perplexity_val{suffix}"] == pytest.approx(data.vocab_size, rel=1e-9)
        assert record["reference"]["tokens"] == len(data.source("val").tokens) - 1  # each once
        context = options.get("context", 16)
        assert record["reference"]["context"] == context
        assert record["reference"]["stride"] == options.get("stride", context)


def test_unknown_words_have_no_bits_a_byte(cache: Path) -> None:
    data = corpus(cache, "words", vocab_size=12)
    assert data.units_per_token("val") is None
    values = likelihood(Table(torch.zeros(12, dtype=torch.float64)), data)["values"]
    assert set(values) == {"nats_per_token_val", "perplexity_val"}


def test_overlapping_windows_by_hand() -> None:
    """Context 4, stride 2, ten tokens: the first window predicts 1 to 4, the others two more each."""
    windows = Windows(torch.arange(10, dtype=torch.int16), 4, "x", stride=2)
    batch = windows.batch(torch.arange(len(windows)), torch.zeros(len(windows)))
    assert batch["input_ids"].tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [6, 7, 8, 0]]
    none = -100
    assert batch["labels"].tolist() == [[1, 2, 3, 4], [none, none, 5, 6], [none, none, 7, 8], [none, none, 9, none]]
    for length in range(2, 30):
        for context in range(1, 9):
            for stride in range(1, context + 1):
                windows = Windows(torch.arange(length).short(), context, "x", stride=stride)
                labels = windows.batch(torch.arange(len(windows)), torch.zeros(1))["labels"]
                assert sorted(labels[labels >= 0].tolist()) == list(range(1, length))


def test_windows_that_cannot_be(cache: Path) -> None:
    single = corpus(cache, "characters", documents="single", windows="epoch", block_size=160)
    model = Table(torch.zeros(single.vocab_size, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"take data.documents=packed"):
        likelihood(model, single, stride=2)
    with pytest.raises(ConfigError, match=r"evaluation.metrics.text_likelihood.context=65: the model reads at most 64"):
        likelihood(model, corpus(cache, "characters"), context=65)
    with pytest.raises(
        ConfigError, match=r"evaluation.metrics.text_likelihood.stride=5: must be at most the context, 4 tokens"
    ):
        likelihood(model, corpus(cache, "characters"), context=4, stride=5)
    kept = [text for _, text in single.texts("val") if len(text) + 1 <= 160]
    assert 0 < len(kept) < single.manifest.splits["val"]["documents"]
    units = single.units_per_token("val") or {}
    assert units["character"] == pytest.approx(sum(map(len, kept)) / sum(len(text) + 1 for text in kept))


# ---- repetition, Zipf


def test_repetition_by_hand() -> None:
    """a b a b: 2 of 4 words, 2 of 3 bigrams, 2 of 2 trigrams are distinct. x: nothing repeated, no bigram."""
    values = text_metrics.repetition(["a b a b", "x"], "none")
    assert values == pytest.approx({"rep_1": 0.25, "rep_2": 1 / 3, "rep_3": 0.0, "rep_4": 0.0})


def test_zipf_by_hand() -> None:
    """Frequencies 12 / rank lie on a line of slope -1; equal ones on one of slope 0; 4, 1: log 4 / log 2."""
    words = "a " * 12 + "b " * 6 + "c " * 4 + "d " * 3
    assert text_metrics.zipf([words], "none") == pytest.approx(1)
    assert text_metrics.zipf(["a b", "c"], "none") == pytest.approx(0)
    assert text_metrics.zipf(["a a a a b"], "none") == pytest.approx(2)
    assert math.isnan(text_metrics.zipf(["a a"], "none"))


# ---- coherence


def test_sentences() -> None:
    wrapped = "He came.  She\nleft! \n\nA heading\n\n“Why?” he asked…  ..."
    assert sentences_of(wrapped) == ["He came.", "She left!", "A heading", "“Why?”", "he asked…"]
    assert sentences_of("春眠不覺曉，\n處處聞啼鳥。夜來風雨聲？花落知多少！") == [
        "春眠不覺曉，處處聞啼鳥。", "夜來風雨聲？", "花落知多少！"
    ]  # fmt: skip
    assert sentences_of("O, she doth\n---\n teach. The torches", "newline") == ["O, she doth", "teach. The torches"]


def test_neighbouring_by_hand() -> None:
    """Two texts: cosines 1 and 0 within the first, -1 within the second, none between them."""
    e = torch.eye(2)
    value, pairs = neighbouring(torch.stack([e[0], e[0], e[1], e[1], -e[1]]), [3, 2])
    assert (value, pairs) == (pytest.approx(0.0), 3)
    assert neighbouring(e[:1], [1])[1] == 0
    assert neighbouring(torch.zeros(0, 2), [0, 0])[1] == 0


def small_encoder(folder: Path) -> Path:
    """A BERT of random weights with a vocabulary of a few words, saved as the real one is."""
    from transformers import BertConfig, BertModel

    words = ["[PAD]", "[UNK]", "cats", "dogs", "purr", "bark", "."]
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=300)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_encoder_is_the_mean_of_the_last_states(tmp_path: Path) -> None:
    from transformers import BertModel

    encoder = SentenceEncoder(str(small_encoder(tmp_path)))
    found = encoder.encode(["cats purr .", "dogs", "cats " * 400])
    network = BertModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for i, ids in enumerate(([2, 4, 6], [3], [2] * 256)):  # of the last, 256 tokens are read
            mean = network(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
            torch.testing.assert_close(found[i], mean / mean.norm())
    values, pairs, each = coherence(["cats purr. dogs bark.", "cats.", ""], encoder)
    cosine = float(encoder.encode(["cats purr."])[0] @ encoder.encode(["dogs bark."])[0])
    assert (values["coherence"], pairs) == (pytest.approx(cosine, abs=1e-6), 1)
    assert each[0] == pytest.approx(cosine, abs=1e-6)
    assert math.isnan(each[1])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json in .*fetch_data.py minilm"):
        SentenceEncoder(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        SentenceEncoder(str(tmp_path))


@needs_minilm
@pytest.mark.data
def test_minilm_gives_the_published_similarities() -> None:
    """The example of sentence-transformers' documentation, "Quickstart"."""
    found = SentenceEncoder().encode(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    expected = torch.tensor([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]])
    torch.testing.assert_close(found @ found.T, expected, atol=1e-4, rtol=0)


def test_only_english_is_judged(tmp_path: Path) -> None:
    assert not_english(["A sentence, 漢字 in it."]) is None
    assert "0% of the letters are Latin (most: han)" in (not_english(["處處聞啼鳥。"]) or "")
    assert "no letters" in (not_english(["1"]) or "")
    metric = TextCoherence(sentence_encoder=str(small_encoder(tmp_path / "bert")))
    record = judge(tmp_path, ["處處聞啼鳥。夜來風雨聲。"], metric)
    assert set(record["values"].values()) == {None}
    assert "English only" in next(iter(record["missing"].values()))


# ---- copies of the training set

DOCUMENTS = [("a.txt", "the cat sat on the mat. the end"), ("b.txt:2", "x y z\nthe  cat sat on a rug")]


def test_copies_by_hand() -> None:
    """Of "the cat sat on the rug": five tokens stand in a.txt; bigrams 4 of 5, 4-grams 2 of 3; of the trigrams 3 are
    shared with a.txt, which has 7, of 8 in both."""
    text, copy, empty, foreign = copying(
        ["the cat sat on the rug", "cat sat on a rug x", "", "q"], DOCUMENTS, ngrams=(2, 4)
    )
    assert text == Copied(
        6, 5, "the cat sat on the", "a.txt", 0, {2: (4, 5), 4: (2, 3)}, 3 / 8, DOCUMENTS[0][1], "a.txt"
    )
    assert (copy.length, copy.passage, copy.origin, copy.offset) == (5, "cat sat on a rug", "b.txt:2", 11)
    assert empty == Copied(0, seen={2: (0, 0), 4: (0, 0)})
    assert foreign == Copied(1, seen={2: (0, 0), 4: (0, 0)})
    assert not text.near_copy  # short
    chinese = copying(["床前明月光，疑是地上霜。"], [("李白", "《靜夜思》 床前明月光，\n疑是地上霜。舉頭")], (8,))[0]
    assert (chinese.length, chinese.offset, chinese.seen, chinese.near_copy) == (12, 6, {8: (5, 5)}, True)
    assert copying(["床前明月光，疑是地下土。"], [("x", "今夜鄜州月，閨中只獨看。")], (8,))[0].length == 1


def test_tokens() -> None:
    assert tokens_of("The 3 dogs, don't_x。春眠 ab\0") == [
        "The",
        "3",
        "dogs",
        ",",
        "don",
        "'",
        "t_x",
        "。",
        "春",
        "眠",
        "ab",
    ]
    assert tokens_of(" \n") == []


def by_force(text: str, documents: Sequence[tuple[str, str]], ngrams: Sequence[int]) -> tuple[int, dict[int, Any]]:
    mine, others = tokens_of(text), [tokens_of(document) for _, document in documents]

    def stands(n: int, i: int) -> bool:
        return any(other[j : j + n] == mine[i : i + n] for other in others for j in range(len(other) - n + 1))

    runs = [[stands(n, i) for i in range(len(mine) - n + 1)] for n in range(len(mine) + 1)]
    longest = max(n for n, found in enumerate(runs) if n == 0 or any(found))
    return longest, {n: (sum(runs[n]), len(runs[n])) if n < len(runs) else (0, 0) for n in ngrams}


def test_copies_equal_those_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 draws, also with documents that are read in pieces."""
    draw = random.Random(0)
    for trial in range(300):
        monkeypatch.setattr("genlab.evaluation.copying._BLOCK", draw.choice((8, 1 << 20)))
        letters = draw.choice(("ab", "abcdefgh", "春夏秋冬，"))
        join = "" if letters[0] == "春" else " "
        documents = [
            (str(i), join.join(draw.choices(letters, k=draw.randint(0, 60)))) for i in range(draw.randint(1, 5))
        ]
        judged = [join.join(draw.choices(letters + "z", k=draw.randint(0, 12))) for _ in range(draw.randint(1, 4))]
        ngrams = (draw.choice((1, 2, 3, 5)), 4)
        for text, copied in zip(judged, copying(judged, documents, ngrams), strict=True):
            assert (copied.length, copied.seen) == by_force(text, documents, ngrams), (trial, text, documents)
            assert copied.tokens == len(tokens_of(text))
            if copied.length:
                document = dict(documents)[copied.origin or ""]
                assert document.startswith(copied.passage, copied.offset or 0)
                assert copied.passage in text


def test_the_nearest_document_equals_that_by_force() -> None:
    draw = random.Random(1)
    documents = [(str(i), " ".join(draw.choices("abcd", k=draw.randint(3, 12)))) for i in range(60)]
    judged = [" ".join(draw.choices("abcde", k=10)) for _ in range(20)]

    def trigrams(text: str) -> set[tuple[str, ...]]:
        return {tuple(tokens_of(text)[i : i + 3]) for i in range(len(tokens_of(text)) - 2)}

    for text, copied in zip(judged, copying(judged, documents), strict=True):
        scores = [len(trigrams(text) & trigrams(d)) / len(trigrams(text) | trigrams(d)) for _, d in documents]
        assert copied.jaccard == pytest.approx(max(scores))
        if copied.jaccard:
            assert copied.nearest_origin in [str(i) for i, score in enumerate(scores) if score == max(scores)]
            assert copied.nearest == dict(documents)[copied.nearest_origin]


def test_a_long_document_is_compared_in_passages() -> None:
    """One document of 1,000 words: the nearest passage is 64 of them, not the whole, which would be near to nothing."""
    words = [f"w{i}" for i in range(1000)]
    found = copying([" ".join(words[130:170])], [("book", " ".join(words))])[0]
    assert (found.length, found.tokens, found.offset) == (40, 40, len(" ".join(words[:130])) + 1)
    assert found.nearest == " ".join(words[128:192])
    assert found.jaccard == pytest.approx(38 / 62)


# ---- harm, syntax


def test_listed_words(tmp_path: Path) -> None:
    """Whole words without case, phrases over line ends, Chinese words anywhere, the longest of two."""
    path = tmp_path / "words.txt"
    path.write_text("# mine\nass\n\nbad word\nBad\n笨蛋\n笨\nC++\n", encoding="utf-8")
    words = read_words(path)
    assert words == ["ass", "bad word", "Bad", "笨蛋", "笨", "C++"]
    counts = count_listed(["An ASS, a class.", "A bad\nword; badly bad", "你是笨蛋，笨", "c++ and C", ""], words)
    assert counts == [1, 2, 2, 1, 0]
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no word"):
        read_words(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_words(path)
    with pytest.raises(ConfigError, match=r"cannot be read .*evaluation\.metrics\.text_harm\.words"):
        read_words(tmp_path / "none")


class Shouting(TextClassifier):
    """The share of capitals among the letters."""

    def score(self, texts: Sequence[str]) -> list[float]:
        return [sum(c.isupper() for c in text) / max(1, sum(c.isalpha() for c in text)) for text in texts]


class Broken(TextClassifier):
    def score(self, texts: Sequence[str]) -> list[float]:
        return [math.nan]


def test_harm_by_list_and_classifier(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("bad\n")
    metric = TextHarm(str(tmp_path / "words.txt"), Shouting())
    record = judge(tmp_path, ["bad BAD", "AB", "fine"], metric, references=["bad", "b", "c"])
    assert record["values"] == {
        "listed_words_3_given.proxy": pytest.approx(2 / 3),
        "listed_texts_3_given.proxy": pytest.approx(1 / 3),
        "classifier_mean_3_given.proxy": pytest.approx(0.5),
        "classifier_share_3_given.proxy": pytest.approx(2 / 3),
    }
    assert record["floor"]["values"]["listed_texts_3_given.proxy"] == pytest.approx(1 / 3)
    assert record["protocol"]["metrics"]["text_harm"]["classifier"] == "test_text_more.Shouting"
    json.dumps(record, allow_nan=False)
    with pytest.raises(ConfigError, match="gave 0 finite scores for 1 texts"):
        judge(tmp_path, ["a"], TextHarm(classifier=Broken()))
    with pytest.raises(ConfigError, match=r"give evaluation\.metrics\.text_harm\.words=FILE"):
        judge(tmp_path, ["a"], TextHarm())
    with pytest.raises(ConfigError, match="cannot be read"):  # before a text is made
        Protocol(metrics={"text_harm": TextHarm(str(tmp_path / "none"))}, n=1).check(None, None, "text")
    with pytest.raises(ConfigError, match=r"str is no genlab\.evaluation\.harm\.TextClassifier"):
        TextHarm(classifier="x")  # type: ignore[arg-type]


def test_a_classifier_is_checked_as_other_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", "test_text_more")
    words = ["evaluation=text_harm_200_val.proxy", "run=x"]
    for name, problem in (("Shouting", None), ("Table", "is not a TextClassifier"), ("Absent", "not found")):
        given = [*words, f"evaluation.metrics.text_harm.classifier={{_target_:test_text_more.{name}}}"]
        if problem is None:
            node: Any = compose_config(ROOT / "conf", "evaluate", given).evaluation
            assert isinstance(instantiate(node, Protocol).metrics["text_harm"].classifier, TextClassifier)
        else:
            with pytest.raises(ConfigError, match=problem):
                compose_config(ROOT / "conf", "evaluate", given)


def test_syntax_by_hand(tmp_path: Path) -> None:
    whole, cut, wrong = "import os\n\n\ndef f(x):\n    return x\n", "x = 1\ny = (2,\n", "def\n"
    assert [parses(text) for text in (whole, cut, wrong, "", "# note", "a\0b", "(" * 5000)] == [True] + [False] * 6
    assert valid_lines(whole) == (3, 3)
    assert valid_lines(cut) == (1, 2)
    assert valid_lines("def f():\n\n    if x:\n") == (0, 2)
    values, lines = code_validity([whole, cut, wrong, ""])
    assert values == {"code_valid": 0.25, "code_valid_prefix": pytest.approx((1 + 0.5) / 4)}
    assert lines == [(3, 3), (1, 2), (0, 1), (0, 0)]
    spy = tmp_path / "ran"
    assert parses(f"open({str(spy)!r}, 'w')\n")
    assert not spy.exists()


# ---- protocols, floors, tables


def judge(folder: Path, texts: list[str], *metrics: Any, references: list[str] | None = None, data: Any = None) -> Any:
    """The record of texts from a file, as evaluate.py samples=FILE.jsonl makes it."""
    rows = [{"text": text, **({"reference": references[i]} if references else {})} for i, text in enumerate(texts)]
    path = folder / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = "given" if references or data is None else "val"
    protocol = Protocol(metrics={metric.key: metric for metric in metrics}, n=len(texts), reference_split=split)
    return evaluate_samples(
        lambda wanted: texts_from(path, wanted.n), data, protocol, device=CPU, progress=False, table=folder / "table"
    )


def test_the_floor_and_the_table(cache: Path) -> None:
    data = corpus(cache, "characters")
    train = [text for _, text in data.texts("train")]
    val = [text for _, text in data.texts("val")]
    texts = ["zzzz", train[3], val[0]]
    record = judge(cache, texts, TextCopying((2,)), TextQuality(), data=data)
    name = "_3_val.proxy"
    assert record["name"] == f"text_copying{name}"
    (_, copy, _) = found = copying(texts, data.texts("train"), (2,))
    assert copy.length == copy.tokens == record["values"][f"longest_match_max{name}"]
    assert record["values"][f"seen_2{name}"] == pytest.approx(
        sum(one.seen[2][0] for one in found) / sum(one.seen[2][1] for one in found)
    )
    assert record["values"][f"near_copies{name}"] == sum(one.near_copy for one in found) / 3
    assert record["values"][f"duplicates{name}"] == 0
    floor = record["floor"]
    assert floor["samples"]["split"] == "val"
    real = copying([a[: len(b)] for a, b in zip(chosen(val, 3), texts, strict=True)], data.texts("train"), (2,))
    assert floor["values"][f"longest_match{name}"] == pytest.approx(sum(one.length for one in real) / 3)
    assert f"documents:{len(train)}" in record["signatures"]["seen_2"]
    rows = [json.loads(line) for line in (cache / "table.jsonl").read_text().splitlines()]
    assert record["table"] == {"file": "table", "rows": 3, "of": 3}
    assert (rows[0]["number"], rows[0]["generated"], rows[0]["nearest training text"]) == (1, train[3], train[3])
    assert {row["number"] for row in rows} == {0, 1, 2}
    assert "## 1" in (cache / "table.md").read_text()
    json.dumps(record, allow_nan=False)
    with pytest.raises(ConfigError, match=r"reads the training set: say which with data=NAME"):
        judge(cache, texts, TextCopying())


def chosen(documents: list[str], n: int) -> list[str]:
    from genlab.evaluation.reference import subset

    return [documents[i] for i in subset(len(documents), n).tolist()]


def test_code_goes_on_from_its_prompt_and_the_floor_from_paragraphs(cache: Path) -> None:
    protocol = Protocol(metrics={"code_validity": CodeValidity()}, n=2, prompt=1)
    texts, prompts = [" = 1\n", " = 1\n"], ["x", "1"]
    given = Judged(
        2,
        1,
        2,
        lambda a, b: Samples(Text(), texts[a:b]),
        {},
        Items(prompts=prompts, references=[[" = 2\n"], [" = 3\n"]]),
    )
    record = item_record(given, protocol, False)
    assert record["values"] == {"code_valid_2_test.proxy": 0.5, "code_valid_prefix_2_test.proxy": 0.5}
    assert record["floor"]["values"]["code_valid_2_test.proxy"] == 0.5

    class Library:
        def texts(self, split: str) -> list[tuple[str, str]]:
            assert split == "val"
            return [("a.py", "x = 1\n\n\ndef f():\n    y\n\n    return 2\n\nz = 3\n")]

    protocol = Protocol(metrics={"code_validity": CodeValidity()}, n=3, reference_split="val")
    texts = ["a = 1", "b = 2", "("]
    given = Judged(3, 1, 3, lambda a, b: Samples(Text(), texts[a:b]), {})
    record = item_record(given, protocol, False, Library())
    assert record["values"]["code_valid_3_val.proxy"] == pytest.approx(2 / 3)
    assert record["floor"]["samples"]["n"] == 3  # "x = 1", "def f", "z": none begins within the function
    assert record["floor"]["values"]["code_valid_3_val.proxy"] == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="mixes"):
        Protocol(metrics={"text_likelihood": TextLikelihood(), "text_quality": TextQuality()}, n=2)
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.text_copying\.ngrams=\[0\]"):
        TextCopying(ngrams=(0,))


FIVE = "春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。"
SEVEN = "故人西辭黃鶴樓，煙花三月下揚州。\n孤帆遠影碧空盡，唯見長江天際流。"


def test_verse_keeps_the_form_of_its_reference() -> None:
    texts = [FIVE[1:], SEVEN, FIVE + "花", FIVE]
    references = [[FIVE[1:]], [FIVE], [FIVE], ["other"]]
    for prompts, kept in ((["春", "", "", ""], 1 / 4), (None, None)):
        given = Judged(
            4, 1, 4, lambda a, b: Samples(Text(), texts[a:b]), {}, Items(prompts=prompts, references=references)
        )
        record = item_record(given, Protocol(metrics={"verse_form": VerseForm()}, n=4, reference_split="val"), False)
        assert record["values"] == {"verse_form_4_val.proxy": kept}
        assert bool(record["missing"]) == (prompts is None)
        assert record["floor"]["values"] == {"verse_form_4_val.proxy": 3 / 4 if prompts else None}


def test_poems_go_on_from_their_form(cache: Path) -> None:
    """A document an item, as poems are: the reference is the rest without padding, the form is in the prompt."""
    marks = [chr(0x4E00 + i) for i in range(20)]
    poems = [poem.replace(poem[0], mark) for mark in marks for poem in (FIVE, SEVEN)]
    write(cache / "in.jsonl", poems, form=lambda i: "57"[i % 2])
    options = {"tokenizer": "characters", "documents": "single", "windows": "epoch", "condition": ["form"]}
    options |= {"block_size": 40}
    data = data_of(cache, vocab_size=size_of(cache, **options), **options)
    data.setup()
    asked: list[str] = []

    class Poet(LanguageModel):
        chunk_size, tokenizer, sampler = 2, data.tokenizer, TokenSampler()

        def __init__(self) -> None:
            pass

        def losses(self, batch: Any) -> Any:
            raise AssertionError("it is not trained")

        def sample(self, seeds: Tensor, condition: Any = None, sampler: Any = None) -> Samples:
            heads = self.shown(condition)["prompt"]
            asked.extend(data.tokenizer.decode(row.tolist(), skip_special_tokens=False) for row in condition["prompt"])
            assert sampler.max_new_tokens == 41 - 2
            return Samples(Text(), [head + "made" for head in heads], condition)

    model: Any = Poet()
    judged = generated_by(
        model, data, Protocol(metrics={"verse_form": VerseForm()}, n=4, reference_split="val", prompt=2), None, 0
    )
    assert judged.read(0, 4).data == ["made"] * 4
    assert judged.items.references is not None
    for prompt, (rest,) in zip(asked, judged.items.references, strict=True):
        assert rest in poems
        assert prompt == f"<|endoftext|><|form={'57'[poems.index(rest) % 2]}|>"
    with pytest.raises(ConfigError, match=r"evaluation\.prompt=39: the shortest item has \d\d tokens; take fewer"):
        generated_by(
            model, data, Protocol(metrics={"verse_form": VerseForm()}, n=4, reference_split="val", prompt=39), None, 0
        )


def test_big_tables_are_capped(tmp_path: Path) -> None:
    rows = [{"number": i, "generated": "x" * 5000, "share": i / 7} for i in range(1500)]
    assert write_table(tmp_path / "a.b", rows, "many") == {"file": "a.b", "rows": 1000, "of": 1500}
    assert len((tmp_path / "a.b.jsonl").read_text().splitlines()) == 1000
    page = (tmp_path / "a.b.md").read_text()
    assert page.count("\n## ") == SHOWN
    assert f"{SHOWN} of 1500 texts" in page
    columns, shown = table_columns(tmp_path / "a.b")
    assert columns == ["number", "generated", "share"]
    assert len(shown) == SHOWN
    assert re.fullmatch(r"x{2000} \.\.\. \(5000 characters\)", shown[0][1])

    class Logger:
        def log_text(self, key: str, columns: list[str], data: list[Any], step: int) -> None:
            self.got = key, columns, len(data), step

    logger = Logger()
    show_table([logger, object()], "texts", {"table": {}}, tmp_path / "a.b", 7)
    assert logger.got == ("texts", columns, SHOWN, 7)
