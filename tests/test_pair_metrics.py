"""Translations and summaries: values that the packages give, the table from which they are computed again, refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import command
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF as SacreCHRF
from torch import Tensor

from genlab.callbacks.evaluate import EvaluateWhileTraining
from genlab.cli.build import build_protocol
from genlab.cli.compose import compose_config
from genlab.conditions import Source as TextSource
from genlab.data.characters import Alphabet
from genlab.data.sources import Source
from genlab.decoding.reading import padded
from genlab.errors import ConfigError, DataError
from genlab.evaluation import Protocol, evaluate
from genlab.evaluation.judged import texts_from
from genlab.evaluation.metrics import CodeValidity, Items, Summarisation, TextQuality, Translation, measure
from genlab.evaluation.texts import table_columns
from genlab.models.language import LanguageModel
from genlab.runs.directory import RunDirectory
from genlab.samples import Samples

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [  # source, output, reference
    ("ein Hund läuft über die grüne Wiese .", "A dog runs over the green meadow.", "A dog runs over the green meadow."),
    ("zwei Männer sitzen auf einer Bank im Park .", "two men sit on a bench at the Park.",
     "Two men sit on a bench in the park."),
    ("eine Frau in einem roten Kleid tanzt mit ihrem Kind auf der Straße .", "A woman in red dances with her child.",
     "A woman in a red dress dances with her child in the street."),
    ("Kinder spielen .", "Children are playing a ball game.", "Children play."),
    ("der Junge . Er springt ins Wasser , um seinen Freund zu sehen .", "The boy jumps into water to see his friend.",
     "The boy jumps into the water to see his friend."),
]  # fmt: skip
SOURCES, TEXTS, RIGHT = (list(column) for column in zip(*PAIRS, strict=True))


class Pairs(Source):
    """The pairs as a split."""

    has_references = True

    def __len__(self) -> int:
        return len(PAIRS)

    def batch(self, ids: Tensor, epochs: Tensor) -> Any:
        ids_of = [TOKENIZER.encode(source).ids for source in SOURCES]
        return {"source": padded(ids_of)[ids], "labels": torch.zeros(len(ids), 1, dtype=torch.int64)}

    def references(self, ids: Tensor) -> list[list[str]] | None:
        return [[RIGHT[i]] for i in ids.tolist()] if self.has_references else None

    def select(self, ids: Any) -> Source:
        raise AssertionError("it is not cut")


class Untold(Pairs):
    has_references = False


class Translator(LanguageModel):
    """Knows the pairs by heart."""

    chunk_size = 2
    conditions = (TextSource(),)

    def losses(self, batch: Any) -> Any:
        raise AssertionError("it is not trained")

    def sample(self, seeds: Tensor, condition: Any = None, sampler: Any = None) -> Samples:
        sources = self.shown(condition)["source"]
        return Samples(self.modality, [TEXTS[SOURCES.index(source)] for source in sources], condition)


TOKENIZER = Alphabet(sorted({letter for source in SOURCES for letter in source})).tokenizer()


def data_of(source: Source) -> Any:
    manifest = SimpleNamespace(name="pairs", splits=("val", "test"), identity=lambda split: f"sha of {split}")
    return SimpleNamespace(source=lambda split: source, manifest=manifest)


def translator() -> Translator:
    model = Translator()
    model.tokenizer = TOKENIZER
    return model


def shipped(name: str, *changes: str) -> Protocol:
    protocol = build_protocol(compose_config(ROOT / "conf", "evaluate", [f"evaluation={name}", *changes]).evaluation)
    assert protocol is not None
    return protocol


def items(**changes: Any) -> Items:
    return Items(**{"data": TEXTS, "prompts": SOURCES, "references": [[one] for one in RIGHT], **changes})


def corpus(scorer: Any, rows: list[int]) -> float:
    return scorer.corpus_score([TEXTS[i] for i in rows], [[RIGHT[i] for i in rows]]).score


def test_translation_is_scored_as_by_sacrebleu() -> None:
    metric = Translation(source_words=[3, 8])
    measured = measure({"translation": metric}, items())
    assert tuple(measured.values) == metric.outputs
    every = list(range(len(PAIRS)))
    cased, lower, chrf = SacreBLEU(), SacreBLEU(lowercase=True), SacreCHRF()
    score = cased.corpus_score(TEXTS, [RIGHT])
    expected = {"bleu": score.score, "bleu_lower": corpus(lower, every), "chrf": corpus(chrf, every)}
    expected |= {"length_ratio": score.sys_len / score.ref_len, "bleu_source_to_3": corpus(cased, [3])}
    expected |= {"bleu_source_to_8": corpus(cased, [0]), "bleu_source_over_8": corpus(cased, [1, 2, 4])}
    assert measured.values == pytest.approx(expected, abs=1e-9)
    assert expected["bleu"] + 1 < expected["bleu_lower"]
    assert len({round(value, 3) for value in expected.values()}) == 7
    assert measured.signatures["bleu"] == cased.get_signature().format() == measured.signatures["bleu_source_to_3"]
    assert "case:lc" in measured.signatures["bleu_lower"] == lower.get_signature().format()
    assert measured.signatures["chrf"] == chrf.get_signature().format()


def test_what_is_missing_is_said() -> None:
    measured = measure({"translation": Translation(), "summarisation": Summarisation()}, items(prompts=None))
    absent = {name for name in measured.values if name.startswith(("bleu_source", "lead"))}
    assert len(absent) == 8
    assert measured.missing == dict.fromkeys(absent, "the texts have no sources")
    assert all(measured.values[name] is not None for name in set(measured.values) - absent)
    measured = measure({"translation": Translation()}, items())
    over = "no source of such a length"
    assert measured.missing == {"bleu_source_to_30": over, "bleu_source_over_30": over}
    measured = measure({"translation": Translation()}, items(references=None))
    assert set(measured.missing.values()) == {"the texts have no references"}
    for bounds in ([20, 10], [0, 5], [5, 5]):
        with pytest.raises(ConfigError, match=re.escape(f"source_words={bounds}: must ascend, from 1")):
            Translation(source_words=bounds)


def test_a_summary_is_scored_beside_the_first_sentence() -> None:
    sources = ["A dog runs. It is green.", "Two men sit. They talk.", " \n", "Children play!", "The boy jumps"]
    leads = ["A dog runs.", "Two men sit.", "", "Children play!", "The boy jumps"]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    measured = measure({"summarisation": Summarisation()}, items(prompts=sources))
    for prefix, texts in (("", TEXTS), ("lead_", leads)):
        scores = [scorer.score(right, text) for right, text in zip(RIGHT, texts, strict=True)]
        for kind in ("rouge1", "rouge2", "rougeL"):
            mean = sum(score[kind].fmeasure for score in scores) / len(scores)
            assert measured.values[prefix + kind] == pytest.approx(mean, abs=1e-9)
            assert 0 < mean < 1
        assert measured.values[f"{prefix}rougeLsum"] is not None
    ratio = SacreBLEU().corpus_score(TEXTS, [RIGHT])
    assert measured.values["length_ratio"] == pytest.approx(ratio.sys_len / ratio.ref_len)
    assert "sent:punctuation" in measured.signatures["lead_rougeLsum"]


def test_all_pairs_of_a_split_and_their_bleu_from_the_table(tmp_path: Path) -> None:
    protocol = shipped("translation_test")
    record = evaluate(translator(), data_of(Pairs()), protocol, table=tmp_path / "table", progress=False)
    assert record["name"] == "translation_test"
    assert record["generated"]["n"] == len(PAIRS)
    values = record["values"]
    assert {"bleu_test", "chrf_test", "length_ratio_test", "bleu_source_to_10_test"} <= values.keys()
    assert values["torchmetrics_sacrebleu_test"] == pytest.approx(values["bleu_test"] / 100, abs=1e-6)
    assert values["torchmetrics_chrf_test"] == pytest.approx(values["chrf_test"] / 100, abs=1e-4)
    assert 0 < values["torchmetrics_bleu_test"] < 1

    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(row) for row in rows] == [["number", "source", "generated", "reference"]] * len(PAIRS)
    assert [(row["source"], row["generated"], row["reference"]) for row in rows] == PAIRS
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert page.index("source:") < page.index("generated:") < page.index("reference:")
    assert table_columns(tmp_path / "table")[1][0] == [0, *PAIRS[0]]
    for key in ("generated", "reference"):
        lines = "".join(row[key] + "\n" for row in rows)
        (tmp_path / key).write_text(lines, encoding="utf-8")
    words = [sys.executable, "-m", "sacrebleu", "reference", "-i", "generated", "-b", "-w", "10"]
    printed = subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60).stdout
    assert float(printed) == pytest.approx(values["bleu_test"], abs=1e-9)


def test_some_pairs_and_several_references(tmp_path: Path) -> None:
    class Several(Pairs):
        def references(self, ids: Tensor) -> list[list[str]]:
            return [[RIGHT[i], SOURCES[i].partition(" . Er")[0]] for i in ids.tolist()]

    protocol = shipped("summarisation_test", "evaluation.n=3", "evaluation.reference_split=val")
    record = evaluate(translator(), data_of(Several()), protocol, table=tmp_path / "table", progress=False)
    assert record["name"] == "summarisation_3_val.proxy"
    assert record["values"]["lead_rougeL_3_val.proxy"] == 1, "the lead is one of the references"
    columns, rows = table_columns(tmp_path / "table")
    assert columns == ["number", "source", "generated", "references"]
    assert rows[0][1].startswith(rows[0][3].split("\n")[1])
    assert "nrefs:2" in record["signatures"]["rouge1"]


def test_what_cannot_be_is_refused_beforehand() -> None:
    model, protocol = translator(), shipped("translation_test")
    with pytest.raises(ConfigError, match="with references: pairs has none; take data of pairs, such as data=pairs"):
        protocol.check(model, data_of(Untold()), "text")
    with pytest.raises(ConfigError, match="reference_split=train: pairs has only val, test"):
        shipped("translation_test", "evaluation.reference_split=train").check(model, data_of(Pairs()), "text")
    with pytest.raises(ConfigError, match=r"evaluation\.n: say how many samples are generated; null, all of"):
        Protocol(metrics={"text_quality": TextQuality()}).check(model, data_of(Pairs()), "text")
    protocol.check(model, data_of(Pairs()), "text")


def test_the_proxy_of_a_small_split_takes_all_of_it() -> None:
    callback = EvaluateWhileTraining(None, shipped("translation_test"), RunDirectory(ROOT), 1, 500)  # type: ignore[arg-type]
    trainer: Any = SimpleNamespace(datamodule=data_of(Pairs()), callbacks=[callback])
    with pytest.raises(ValueError, match="EMA"):
        callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert callback.protocol is not None
    assert callback.protocol.name == "translation_5_test.proxy"


@pytest.mark.parametrize("name", ["translation", "summarisation"])
def test_pairs_in_a_file(name: str, tmp_path: Path) -> None:
    def write(*keys: str) -> str:
        rows = [dict(zip(("source", "text", "reference"), pair, strict=True)) for pair in PAIRS]
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
        (tmp_path / "pairs.jsonl").write_text("".join(lines))
        return "pairs.jsonl"

    words = ("evaluate.py", f"samples={write('text', 'reference', 'source')}", f"evaluation={name}_test", "out=r.json")
    done = command(*words, folder=tmp_path)
    assert done.code == 0, done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["name"] == f"{name}_given"
    values = {key.removesuffix("_given"): value for key, value in record["values"].items()}
    expected = measure({name: Translation() if name == "translation" else Summarisation()}, items())
    assert {key: values[key] for key in expected.values} == expected.values
    table = (tmp_path / f"pairs.jsonl-{name}_given-texts.jsonl").read_text().splitlines()
    assert list(json.loads(table[0])) == ["number", "source", "generated", "reference"]
    write("text", "source")
    command(*words, folder=tmp_path).line(2, "compares with references, and these have none")
    lines = '{"text": "a", "reference": "b", "source": "c"}\n{"text": "a", "reference": "b"}\n'
    (tmp_path / "pairs.jsonl").write_text(lines)
    with pytest.raises(DataError, match="line 2: all lines must have a source, or none"):
        texts_from(tmp_path / "pairs.jsonl", None)


def test_code_that_answers_a_source_is_judged_alone() -> None:
    answers = Items(["x = 1"], prompts=["add one ("], prompt_name="source", references=[["x = 1"]])
    assert measure({"code_validity": CodeValidity()}, answers).values["code_valid"] == 1
