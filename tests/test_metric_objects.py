"""Metrics by `_target_`: of torchmetrics, and of classes that stand here only; and protocols of the form before."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
import yaml
from commands import command
from test_evaluation import Painter, make_data, paint, small
from torch import Tensor, nn
from torchmetrics.image import FrechetInceptionDistance, TotalVariation
from torchmetrics.text import BLEUScore, CharErrorRate, WordErrorRate

from genlab.cli.build import build_protocol
from genlab.cli.compose import compose_config
from genlab.cli.old_forms import METRICS, new_form, new_keys, record_in_new_form
from genlab.conditions import Prompt
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate, evaluate_samples
from genlab.evaluation.judged import items_from, texts_from
from genlab.evaluation.metrics import FID, KID, Items, Metric, TextCopying, TextQuality
from genlab.evaluation.metrics.foreign import Foreign
from genlab.modality import Audio, Text
from genlab.samples import Samples

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
RESULTS = ROOT / "docs" / "results"
PAIRS = [("the cat sat", "the cat sat"), ("a dog ran by", "the dog ran")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path


def pairs(folder: Path, references: bool = True) -> Path:
    rows = [{"text": text, **({"reference": reference} if references else {})} for text, reference in PAIRS]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(path: Path, metrics: dict[str, Any], **options: Any) -> dict[str, Any]:
    protocol = Protocol(**{"metrics": metrics, "n": 2, "reference_split": "given", **options})
    return evaluate_samples(lambda wanted: texts_from(path, wanted.n), None, protocol, device=CPU, progress=False)


# ---- metrics that only these tests know


class Brightness(Metric):
    """Mean of the images' pixels above a level, and how far real ones are from it."""

    modality = "image"
    needs = frozenset({"samples", "reference"})
    outputs = ("brightness", "brightness_gap")

    def __init__(self, level: int = 0) -> None:
        super().__init__()
        self.keep(level=level)

    def compute(self) -> dict[str, float]:
        mean, real = (items.data[items.data >= self.level].double().mean() for items in (self.judged, self.reference))
        return {"brightness": float(mean), "brightness_gap": float(abs(mean - real))}


class Vowels(torchmetrics.Metric):
    """Share of vowels; knows nothing of GenLab."""

    def __init__(self, letters: str = "aeiou") -> None:
        super().__init__()
        self.letters = letters
        self.add_state("counts", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, texts: list[str]) -> None:
        for text in texts:
            self.counts += torch.tensor([sum(c in self.letters for c in text), len(text)])

    def compute(self) -> Tensor:
        return self.counts[0] / self.counts[1]


class Odd(torchmetrics.Metric):
    """Takes what no evaluation has."""

    def update(self, a: Tensor, b: Tensor, c: Tensor) -> None: ...

    def compute(self) -> float:
        return 0.0


class Pixels(nn.Module):
    """Features for torchmetrics' FID."""

    num_features = 4

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype is torch.uint8
        return images.double().mean((1, 3))[:, ::7].contiguous()


def test_a_metric_of_ones_own_is_a_class_and_a_yaml(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No edit of GenLab: composed, checked, evaluated with its floor, recorded with its setting."""
    monkeypatch.setenv("GENLAB_ALLOW", "test_metric_objects")
    (cache / "conf" / "evaluation").mkdir(parents=True)
    (cache / "conf" / "evaluation" / "bright.yaml").write_text(
        "defaults: [images, _self_]\nn: 40\n"
        "metrics: {brightness: {_target_: test_metric_objects.Brightness, level: 20}}\n"
    )
    words = ["run=x", f"hydra.searchpath=[file://{cache / 'conf'}]", "evaluation=bright"]
    protocol = build_protocol(compose_config(ROOT / "conf", "evaluate", words).evaluation)
    assert protocol is not None
    data = make_data(cache / "data")
    record = evaluate(Painter(), data, protocol, progress=False)
    images = paint(torch.arange(40), torch.arange(40) % 10)
    mean = images[images >= 20].double().mean().item()
    assert record["values"]["brightness_40_test.proxy"] == pytest.approx(mean)
    assert record["protocol"]["metrics"]["brightness"] == {
        "_target_": "test_metric_objects.Brightness",
        "level": 20,
    }
    assert set(record["floor"]["values"]) == set(record["values"])
    assert record["floor"]["values"]["brightness_40_test.proxy"] != record["values"]["brightness_40_test.proxy"]
    assert "extractor" not in record
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.brightness\.level must be an integer"):
        compose_config(ROOT / "conf", "evaluate", [*words, "evaluation.metrics.brightness.level=x"])
    with pytest.raises(ConfigError, match=r"Did you mean evaluation\.metrics\.brightness\.level"):
        compose_config(ROOT / "conf", "evaluate", [*words, "+evaluation.metrics.brightness.levle=3"])


def test_the_metric_that_contributing_adds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its diff, with the class in a package of one's own, as nothing is written under src here."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a metric")[2]
    _, module, protocol = re.split(r"^\+\+\+ b/.*\n", re.findall(r"```diff\n(.*?)```", text, re.S)[0], flags=re.M)
    assert all(line.startswith("+") for line in (module + protocol).splitlines())
    (cache / "conf" / "evaluation").mkdir(parents=True)
    (cache / "added_metric.py").write_text(re.sub(r"^\+", "", module, flags=re.M))
    node = re.sub(r"^\+", "", protocol, flags=re.M).replace("genlab.evaluation.metrics.brightness", "added_metric")
    (cache / "conf" / "evaluation" / "added.yaml").write_text(node)
    monkeypatch.syspath_prepend(cache)
    monkeypatch.setenv("GENLAB_ALLOW", "added_metric")
    words = ["run=x", f"hydra.searchpath=[file://{cache / 'conf'}]", "evaluation=added", "evaluation.n=40"]
    made = build_protocol(compose_config(ROOT / "conf", "evaluate", words).evaluation)
    assert made is not None
    record = evaluate(Painter(), make_data(cache / "data"), made, progress=False)
    assert list(record["values"]) == ["brightness_40_test.proxy", "brightness_gap_40_test.proxy"]
    images = paint(torch.arange(40), torch.arange(40) % 10)
    assert record["values"]["brightness_40_test.proxy"] == pytest.approx(images.double().mean().item())
    assert record["protocol"]["metrics"]["brightness"] == {"_target_": "added_metric.Brightness", "least": 0}
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.brightness\.least must be an integer >= 0, is -1"):
        compose_config(ROOT / "conf", "evaluate", [*words, "evaluation.metrics.brightness.least=-1"])


def test_word_error_rate_of_a_file_of_pairs(cache: Path) -> None:
    """From the command line: one substitution, one deletion, one insertion of 6 words."""
    pairs(cache)
    done = command(
        "evaluate.py", "samples=pairs.jsonl", "evaluation=texts", "evaluation.floor=false",
        "+evaluation.metrics.wer._target_=torchmetrics.text.WordErrorRate", folder=cache,
    )  # fmt: skip
    assert done.code == 0, done.output
    record = json.loads((cache / "pairs.jsonl-wer_2_given.proxy.json").read_text())
    assert record["values"] == {"wer_2_given.proxy": pytest.approx(2 / 6)}
    assert record["protocol"]["metrics"] == {"wer": {"_target_": "torchmetrics.text.WordErrorRate"}}


def test_any_text_metric_of_torchmetrics(tmp_path: Path) -> None:
    """Strings or lists of them, as the annotation of `update` has it; beside our own."""
    path = pairs(tmp_path)
    texts, right = (list(side) for side in zip(*PAIRS, strict=True))
    metrics = {
        "wer": WordErrorRate(),
        "cer": CharErrorRate(),
        "bleu": BLEUScore(n_gram=2),
        "text_quality": TextQuality(),
    }
    record = judge(path, metrics)
    values = {name.removesuffix("_2_given.proxy"): value for name, value in record["values"].items()}
    expected = BLEUScore(n_gram=2)(texts, [[one] for one in right]).item()
    assert values["bleu"] == pytest.approx(expected)
    assert 0 < expected < 1
    assert values["wer"] == pytest.approx(WordErrorRate()(texts, right).item())
    assert values["cer"] == pytest.approx(CharErrorRate()(texts, right).item())
    assert values["duplicates"] == 0
    assert record["floor"]["values"]["duplicates_2_given.proxy"] == 0  # of the references, which have none themselves
    assert record["protocol"]["metrics"]["bleu"]["n_gram"] == 2
    path.write_text(json.dumps({"text": "a", "references": ["a", "b"]}) + "\n")
    record = judge(path, {"wer": WordErrorRate(), "bleu": BLEUScore(1)}, n=1)
    assert record["values"] == {"wer_1_given.proxy": None, "bleu_1_given.proxy": 1.0}
    assert "takes one reference a text" in next(iter(record["missing"].values()))
    with pytest.raises(ConfigError, match="compares with references, and these have none: give each line"):
        judge(pairs(tmp_path, references=False), {"wer": WordErrorRate()})


def test_torchmetrics_stands_beside_our_metrics_of_text(tmp_path: Path) -> None:
    """In the shipped protocol, under names of its own; not applicable without references."""
    words = ["samples=x", "evaluation=text_quality_200_val.proxy", "evaluation.n=2", "evaluation.reference_split=given"]
    words.append("+evaluation.metrics.ours._target_=genlab.evaluation.overlap.BLEU")  # as any torchmetrics.Metric
    protocol = build_protocol(compose_config(ROOT / "conf", "evaluate", words).evaluation)
    assert protocol is not None

    def values(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        record = evaluate_samples(lambda wanted: texts_from(path, wanted.n), None, protocol, device=CPU, progress=False)
        assert record["protocol"]["metrics"]["torchmetrics_rouge"]["rouge_keys"] == ["rouge1", "rouge2", "rougeL"]
        return ({key.removesuffix("_2_given.proxy"): value for key, value in record[part].items()}
                for part in ("values", "missing"))  # fmt: skip

    found, missing = values(pairs(tmp_path))
    assert not missing
    assert found["torchmetrics_bleu"] == found["torchmetrics_sacrebleu"] == 0  # no common 4-gram
    assert found["sacrebleu"] == found["ours"] > 20
    assert found["torchmetrics_rouge_rougeL_fmeasure"] == pytest.approx(found["rougeL"], abs=1e-6)
    assert found["torchmetrics_rouge_rouge1_recall"] == pytest.approx(5 / 6, abs=1e-6)
    found, missing = values(pairs(tmp_path, references=False))
    theirs = {"torchmetrics_bleu", "torchmetrics_sacrebleu", "torchmetrics_rouge", "ours"}
    assert missing == dict.fromkeys(theirs, "the texts have no references")
    assert found["duplicates"] == 0
    protocol.prompt = 0
    protocol.check(type("Model", (), {"sample": None})(), None, "text")  # refused only where nothing would be left


def test_a_torchmetrics_class_of_ones_own(tmp_path: Path, cache: Path) -> None:
    node = {"_target_": "genlab.evaluation.protocol.Protocol", "n": 2, "reference_split": "given"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENLAB_ALLOW", "test_metric_objects")
        metrics = {"vowels": {"_target_": "test_metric_objects.Vowels", "letters": "a"}}
        protocol = build_protocol({**node, "metrics": metrics})
    assert protocol is not None
    path = pairs(tmp_path)
    record = evaluate_samples(lambda wanted: texts_from(path, wanted.n), None, protocol, device=CPU, progress=False)
    text = "".join(text for text, _ in PAIRS)
    assert record["values"] == {"vowels_2.proxy": pytest.approx(text.count("a") / len(text))}  # no reference in it
    assert record["protocol"]["metrics"]["vowels"] == metrics["vowels"]
    with pytest.raises(
        ConfigError, match=r"evaluation\.metrics\.odd: Odd\.update takes a, b, c; it must take texts and"
    ):
        Protocol(metrics={"odd": Odd()}, n=2)


def test_image_metrics_of_torchmetrics(cache: Path) -> None:
    """update(images) and update(images, real): with the reference's images, in the dtype that they take."""
    data = make_data(cache / "data")
    metrics = {
        "tv": TotalVariation("mean"),
        "their_fid": FrechetInceptionDistance(Pixels(), input_img_size=(1, 28, 28)),
    }
    record = evaluate(Painter(), data, small(metrics={**metrics, "fid": FID()}), progress=False)
    images = paint(torch.arange(40), torch.arange(40) % 10)
    ids = torch.arange(120)
    real = data.source("test").batch(ids, ids)["image"]
    fresh = FrechetInceptionDistance(Pixels(), input_img_size=(1, 28, 28))
    fresh.update(images, real=False)
    fresh.update(real, real=True)
    values = record["values"]
    assert values["their_fid_40_test.proxy"] == pytest.approx(fresh.compute().item(), rel=1e-4)
    assert values["their_fid_40_test.proxy"] > 0
    assert values["tv_40.proxy"] == pytest.approx(TotalVariation("mean")(images.float()).item(), rel=1e-5)
    assert values["fid_40_test.proxy"] > 0
    assert record["floor"]["values"]["tv_40.proxy"] != values["tv_40.proxy"]


class Loudness(Metric):
    """Root mean square of sounds."""

    modality = "audio"

    def compute(self) -> dict[str, float]:
        return {"loudness": float(self.judged.data.double().square().mean().sqrt())}


class Hum(Painter):
    """A model of a modality that evaluation has no code for."""

    modality, conditions = Audio(8000), ()

    def sample(self, seeds: Tensor, condition: Any = None, sampler: Any = None) -> Samples:
        return Samples(Audio(8000), torch.full((len(seeds), 1, 50), 0.5) * (seeds % 2)[:, None, None])


def test_another_modality_needs_a_metric_only(cache: Path) -> None:
    data = make_data(cache / "data")
    protocol = Protocol(metrics={"loudness": Loudness()}, n=20, chunk=8)
    record = evaluate(Hum(), data, protocol, progress=False)
    assert record["values"] == {"loudness_20_test.proxy": pytest.approx(0.5 / 2**0.5)}
    assert "floor" not in record
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(ConfigError, match="judges image, the model makes audio"):
        evaluate(Hum(), data, small(), progress=False)
    with pytest.raises(ConfigError, match=r"evaluation\.n: say how many"):
        evaluate(Hum(), data, Protocol(metrics={"loudness": Loudness()}), progress=False)
    with pytest.raises(ConfigError, match=r"evaluation\.metrics is empty"):
        evaluate_samples(lambda wanted: items_from(data, "val", wanted), data, Protocol(metrics={}, n=4), device=CPU)


def test_two_of_one_class_have_names_of_their_own(cache: Path) -> None:
    metrics = {"kid": KID(3, 20), "kid_large": KID(3, 40)}
    record = evaluate(Painter(), make_data(cache / "data"), small(metrics=metrics, floor=False), progress=False)
    assert list(record["values"]) == [
        f"{name}_40_test.proxy" for name in ("kid", "kid_std", "kid_large_kid", "kid_large_kid_std")
    ]
    assert record["metric_of"]["kid_large_kid_40_test.proxy"] == "kid_large"
    assert len(set(record["values"].values())) == 4


# ---- what cannot be given is refused beforehand


class Texter(Painter):
    modality, conditions = Text(), ()


class Continuer(Texter):
    conditions = (Prompt(),)


def test_what_the_model_or_the_data_cannot_give_is_refused(cache: Path) -> None:
    data, model = make_data(cache / "data"), Painter()
    for metrics, options, words in (
        ({"fid": FID()}, {"reference_split": "folder"}, "painted has only train, val, test"),
        ({"wer": WordErrorRate()}, {}, "judges text, the model makes image"),
        ({"fid": FID()}, {"judged": "reconstructions"}, "Painter cannot reconstruct images or sounds; take samples"),
    ):
        with pytest.raises(ConfigError, match=words):
            Protocol(metrics=metrics, n=40, **options).check(model, data, "image")
    for kind, metrics, options, words in (
        (Continuer, {"wer": WordErrorRate()}, {}, "set evaluation.prompt to the number of tokens"),
        (Texter, {"wer": WordErrorRate()}, {}, "with references: Texter makes none that has; take another"),
        (Texter, {"text_quality": TextQuality()}, {"prompt": 3}, "Texter takes no prompt; take 0"),
        (Texter, {"text_copying": TextCopying()}, {}, "reads the training set"),
    ):
        with pytest.raises(ConfigError, match=words):
            Protocol(metrics=metrics, n=40, **options).check(kind(), object(), "text")


def test_refused_before_training(tmp_path: Path) -> None:
    from runs import log, new_run, rows, small_run, work

    run = new_run(small_run("model=ddpm", tmp_path, "evaluation=rfid_10k_test", "evaluation.extractor=mnist-cnn"))
    assert work(run) == 2
    assert "DiffusionModel cannot reconstruct images or sounds; take samples" in log(run)
    assert not rows(run)


# ---- the form before


def test_every_stored_config_and_record_is_read() -> None:
    """Each protocol under docs/results builds, is called as before, and its settings are those that were written."""
    configs = records = 0
    for path in sorted(RESULTS.rglob("config.yaml")):
        node = yaml.safe_load(path.read_text())["evaluation"]
        if node is None:  # of a run that was evaluated later
            continue
        protocol = build_protocol(node)
        assert protocol is not None, path
        assert list(protocol.metrics) == list(node["metrics"]), path
        assert (protocol.n, protocol.reference_split) == (node["n"], node["reference_split"]), path
        if "kid_subsets" in node and "kid" in node["metrics"]:
            assert protocol.metrics["kid"].subset_size == node["kid_subset_size"], path
        configs += 1
    for path in sorted(RESULTS.rglob("*.json")):
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not isinstance(record.get("protocol"), dict):
            continue
        read = record_in_new_form(record)
        stored = {key: value for key, value in read["protocol"].items() if key != "lowered_from"}
        protocol = build_protocol({"_target_": "genlab.evaluation.protocol.Protocol", **stored})
        assert protocol is not None, path
        assert protocol.name == record["protocol"]["name"], path
        assert set(read["metric_of"]) == set(record["values"]), path
        for name, metric in read["metric_of"].items():
            assert metric in record["protocol"]["metrics"], (path, name)
            assert protocol.metrics[metric].record() == read["protocol"]["metrics"][metric], path
        records += 1
    assert (configs, records) >= (50, 100)


def test_the_form_before_means_the_same() -> None:
    old = {
        "_target_": "genlab.evaluation.protocol.Protocol", "metrics": ["fid", "kid"], "n": 50, "kid_subsets": 7,
        "density_neighbours": 9, "extractor": "mnist-cnn", "extractor_path": None, "resize": 28, "batch": 10,
    }  # fmt: skip
    protocol = build_protocol(old)
    assert protocol is not None
    assert protocol.record()["metrics"] == {"fid": FID().record(), "kid": KID(subsets=7).record()}
    assert vars(protocol.extractor) == {"name": "mnist-cnn", "path": None, "resize": 28, "batch": 10}
    assert new_form(new_form(old)) == new_form(old)
    less = new_form(old)
    left_out = build_protocol({**less, "metrics": {**less["metrics"], "kid": None}})
    assert left_out is not None
    assert list(left_out.metrics) == ["fid"]
    with pytest.raises(ConfigError, match=r"evaluation\.metrics\.fud: 'fud' is no metric"):
        build_protocol({**old, "metrics": ["fid", "fud"]})
    given = build_protocol({**old, "metrics": ["text_bound"], "n": None, "terms": 3, "stride": 4, "batch": 5})
    assert given is not None
    assert given.record()["metrics"]["text_bound"] == {
        "_target_": "genlab.evaluation.metrics.TextBound", "terms": 3, "context": None, "stride": 4, "batch": 5,
    }  # fmt: skip
    assert given.name == "text_bound_test_stride4"
    assert given.extractor.batch is None
    for name, (kind, _) in METRICS.items():  # each class is called as it was
        from genlab.evaluation import metrics

        assert getattr(metrics, kind).key == name


@pytest.mark.parametrize(
    ("option", "moved"),
    [
        ("evaluation.kid_subsets=10", "evaluation.metrics.kid.subsets"),
        ("+evaluation.kid_subsets=10", "evaluation.metrics.kid.subsets"),
        ("evaluation.extractor_path=/x", "evaluation.extractor.path"),
        ("evaluation.resize=28", "evaluation.extractor.resize"),
    ],
)
def test_an_old_key_is_answered_by_the_new_one(option: str, moved: str, tmp_path: Path) -> None:
    done = command("evaluate.py", "run=x", "evaluation=kid_10k_test", option, folder=tmp_path)
    assert done.code == 2
    (line,) = [line for line in done.output.splitlines() if line.startswith("genlab: error")]
    assert f"unknown key 'evaluation.{option.partition('.')[2].partition('=')[0]}'" in line
    assert f"It is now {moved}" in line
    assert " or " not in line
    assert new_keys("data.batch") == []


def test_a_foreign_metric_is_not_synchronised_and_starts_anew() -> None:
    metric = Foreign(WordErrorRate(), "wer")
    assert not metric.metric.sync_on_compute
    items = Items([text for text, _ in PAIRS], references=[[right] for _, right in PAIRS])
    found = []
    for _ in range(2):
        metric.reset()
        metric.update(items)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.append(metric.compute())
    assert found[0] == found[1] == {"wer": pytest.approx(2 / 6)}
