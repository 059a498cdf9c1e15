"""Judges of answers, verse and pictures; the data that rewards and preferences need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log, new_run, small_run, work

from genlab.data.arithmetic import Arithmetic, sums
from genlab.data.preferences import LeadPreferences, Preferences
from genlab.errors import ConfigError, DataError
from genlab.modality import Image, Text
from genlab.rewards import (
    Confidence,
    ExactAnswer,
    JPEGSize,
    LearnedReward,
    ListedWords,
    Overlap,
    PythonFunction,
    Rhyme,
    TonalPattern,
    Verse,
    WeightedSum,
)
from genlab.rewards.poems import lines_of, reading, rhymes, tonal_rules
from genlab.samples import Samples

# Regulated verse that holds by today's readings too: Wang Zhihuan's tower, and lines that break one rule each.
TOWER = "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"


def texts(*values: str) -> Samples:
    return Samples(Text(), list(values))


def test_exact_answers_and_overlap() -> None:
    told = {"reference": ["12", "7", "a fast terminal"]}
    assert ExactAnswer()(texts("12 ", "17", "a fast terminal"), told).tolist() == [1, 0, 1]
    whole, half, long = Overlap()(texts("a fast terminal", "a terminal", "a fast terminal of many more words"),
                                  {"reference": ["a fast terminal"] * 3}).tolist()  # fmt: skip
    assert whole == 1
    assert half == pytest.approx(0.8)
    assert long == pytest.approx(0.6 * 2.718281828 ** (1 - 7 / 3))
    with pytest.raises(ConfigError, match="needs references, which the items lack"):
        ExactAnswer()(texts("1"))


def test_words_and_sums_of_judges() -> None:
    words = ListedWords(["sea", "wind"])
    assert words(texts("the sea, the WIND", "", "land")).tolist() == [0.5, 0, 0]
    both = WeightedSum({"words": words, "bad": ListedWords(["the"], wanted=False)}, {"bad": 2.0})
    assert both(texts("the sea")).tolist() == [0.5 - 2 * 0.5]
    with pytest.raises(ConfigError, match="no judge is named rhyme; there are: words"):
        WeightedSum({"words": words}, {"rhyme": 1.0})
    for wrong in ([], "sea", [""]):
        with pytest.raises(ConfigError, match="expected a list of words"):
            ListedWords(wrong)


def test_readings_and_rhymes() -> None:
    assert reading("流") == reading("楼") == (6, True)
    assert reading("尽") == (8, False)
    assert reading("支") != reading("衣")  # -i is no i
    assert reading("A") is None
    assert rhymes(lines_of(TOWER))
    assert not rhymes(lines_of(TOWER.replace("楼", "山")))
    assert not rhymes(lines_of(TOWER.replace("楼", "流")))  # the same character is no rhyme
    assert not rhymes(lines_of(TOWER.replace("楼", "漏")))  # an oblique tone


def test_tones_are_held_against_each_rule() -> None:
    held = tonal_rules(lines_of(TOWER))
    assert len(held) == 4 + 3 + 3  # within lines, between them, at their ends
    assert held == [True] * 10
    broken = tonal_rules(lines_of(TOWER.replace("河", "水")))  # the second place of the second line
    assert broken.count(False) == 3  # of the line, the couplet and the next couplet


def test_verse_of_another_form_is_worth_nothing() -> None:
    asked = {"prompt": ["<|endoftext|><|form=五言绝句|>"] * 3}
    short, long = TOWER[:12], "<|form=七言绝句|>"
    poems = texts(TOWER, short, "")
    assert Rhyme()(poems, asked).tolist() == [1, 0, 0]
    assert Rhyme()(texts(TOWER), {"prompt": [long]}).tolist() == [0]
    assert TonalPattern()(poems, asked).tolist() == [1, 0, 0]
    assert Verse(rhyme=0.5)(texts(TOWER.replace("楼", "流"))).tolist() == [0.5]
    assert Verse(both=True, share=0.9)(texts(TOWER, TOWER.replace("楼", "流"))).tolist() == [1, 0]


def test_confidence_and_size_of_pictures() -> None:
    from genlab.evaluation.extractors import load_extractor

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8, generator=generator)
    judge, label = Confidence(), torch.tensor([3, 1, 4, 1])
    wanted = load_extractor("mnist-cnn").features(images)["logits"].log_softmax(1)[torch.arange(4), label]
    assert judge(Samples(Image(), images), {"label": label.tolist()}).tolist() == pytest.approx(
        wanted.tolist(), rel=1e-4
    )
    pixels = (images.float() / 127.5 - 1).requires_grad_()
    judge.score(pixels, {"label": label}).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0
    flat = torch.full_like(images, 128)
    sizes = [JPEGSize()(Samples(Image(), pictures)) for pictures in (images, flat)]
    assert bool((sizes[0] < sizes[1]).all())
    assert bool((sizes[1] < 0).all())
    with pytest.raises(ConfigError, match="needs labels"):
        judge(Samples(Image(), images))
    with pytest.raises(ConfigError, match="no such extractor"):
        _ = Confidence("none")(Samples(Image(), images), {"label": [0] * 4})


def test_functions_that_parse_and_that_pass_their_examples() -> None:
    head = 'def double(x):\n    """Twice a number.\n\n    >>> double(4)\n    8\n    """'
    bodies = texts("return 2 * x", "return x", "return (", "return 2 * x\n\nprint(1)")
    told = {"source": [head] * 4}
    assert PythonFunction()(bodies, told).tolist() == [0.5, 0.5, 0, 0]
    assert PythonFunction(doctests=True)(bodies, told).tolist() == [1, 0.5, 0, 0]
    with pytest.raises(ConfigError, match="take data=python_functions"):
        PythonFunction()(bodies)


# ---- data


def test_all_sums_are_there_once_and_right() -> None:
    every = list(sums(1, 1000))
    assert sorted(every) == [(a, b) for a in range(10) for b in range(10)]
    some = list(sums(3, 50))
    assert len({*some}) == 50
    assert some == list(sums(3, 50))


def test_sums_as_data(tmp_path: Path) -> None:
    data = Arithmetic("arithmetic", digits=1, **{**SMALL, "tokenizer": "characters", "vocab_size": 14})
    data.prepare_data()
    data.setup("fit")
    source = data.source("train")
    batch = source.batch(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    for asked, answer in zip(batch["source"].tolist(), batch["labels"].tolist(), strict=True):
        question = data.tokenizer.decode([token for token in asked if token >= 0])
        a, b = question.removesuffix("=").split("+")
        assert int(data.tokenizer.decode([token for token in answer if token >= 0])) == int(a) + int(b)


def records(folder: Path, rows: list[dict[str, str]]) -> str:
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


ROWS = [{"source": f"question {i}", "chosen": f"good {i}", "rejected": f"bad answer {i}"} for i in range(30)]
SMALL: dict[str, Any] = {"tokenizer": "byte_bpe", "vocab_size": 270, "val_fraction": 0.2, "test_fraction": 0.2,
                         "batch_size": 4, "val_batch_size": 4}  # fmt: skip


def preferences(folder: Path, rows: list[dict[str, str]], **options: Any) -> Preferences:
    data = Preferences("answers", path=records(folder, rows), **{**SMALL, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_preferences_as_data(tmp_path: Path) -> None:
    data = preferences(tmp_path, ROWS)
    seen = set()
    for split in ("train", "val", "test"):
        source = data.source(split)  # type: ignore[arg-type]
        ids = torch.arange(len(source))
        batch = source.batch(ids, torch.zeros_like(ids))
        assert set(batch) == {"source", "chosen", "rejected"}
        for i in range(len(source)):
            words = {
                name: data.tokenizer.decode([t for t in rows[i].tolist() if t >= 0]) for name, rows in batch.items()
            }
            assert words in ROWS
            seen.add(words["source"])
    assert len(seen) == 30
    picked = data.source("train").select(torch.arange(2).numpy())
    told = picked.batch(torch.tensor([1]), torch.tensor([0]))["source"][0].tolist()
    place = data.tokenizer.decode([token for token in told if token >= 0]).split()[1]
    assert picked.references(torch.tensor([1])) == [[f"good {place}"]]


@pytest.mark.parametrize(("rows", "options", "words"), [
    ([*ROWS, {"source": "q", "chosen": "same", "rejected": "same"}], {}, "chosen and rejected are both 'same'"),
    (ROWS, {"rejected": "chosen"}, "data.rejected=chosen: that field is the source or the chosen answer"),
    ([{"source": "q", "chosen": "a"}], {}, "no field 'rejected', only 'source', 'chosen'"),
    (ROWS, {"max_target": 1}, "items are too long; raise data.max_source or data.max_target"),
    ([*ROWS, {"source": "q", "chosen": "a", "rejected": ""}], {}, "the rejected is empty; data.empty=drop"),
])  # fmt: skip
@pytest.mark.faults(19)
def test_bad_preferences_are_one_line(rows: Any, options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=words) as error:
        preferences(tmp_path, rows, **options)
    assert "\n" not in str(error.value)


def test_leads_as_preferences(tmp_path: Path) -> None:
    rows = [{"source": f"This is tool {i} for many things", "target": f"tool {i}", "group": str(i)} for i in range(29)]
    rows.append({"source": "tool x of old", "target": "tool x", "group": "x"})  # its lead is the target itself
    data = LeadPreferences("own", path=records(tmp_path, rows), group="group", **SMALL)
    data.prepare_data()
    data.setup("fit")
    assert sum(len(data.source(split)) for split in ("train", "val", "test")) == 29  # type: ignore[arg-type]
    batch = data.source("val").batch(torch.tensor([0]), torch.tensor([0]))
    assert data.tokenizer.decode([t for t in batch["rejected"][0].tolist() if t >= 0]) == "This is"
    with pytest.raises(ConfigError, match="no such file"):
        LeadPreferences("own", path=str(tmp_path / "none.jsonl"), **SMALL).setup("fit")


# ---- a reward model and what it rewards


def test_a_trained_reward_model_is_a_judge(tmp_path: Path) -> None:
    run = new_run(small_run("model=reward", tmp_path, "optimizer.lr=0.03", "callbacks.samples.count=0"))
    assert work(run) == 0, log(run)
    judge = LearnedReward(str(run.path), batch=3)
    scores = judge(texts("ABC", "abc", "ABC", "abc"), {"source": ["abc"] * 4})
    assert scores[0] == pytest.approx(float(scores[2]), rel=1e-5)
    assert scores[1] == pytest.approx(float(scores[3]), rel=1e-5)
    assert scores[0] > scores[1]  # sixteen pairs tell capitals from small letters
    assert "sha256" in judge.name
    with pytest.raises(ConfigError, match="judges answers to sources"):
        judge(texts("ABC"))


def test_no_reward_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        LearnedReward(str(tmp_path))(texts("a"), {"source": ["b"]})
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
