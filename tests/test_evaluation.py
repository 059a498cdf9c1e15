"""Evaluation: protocols, the record, the cache, ranks, text. Metrics, extractors, pictures have their own files."""

from __future__ import annotations

import json
import math
import multiprocessing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from synthetic import blobs
from torch import Tensor, nn

from genlab.cli.targets import instantiate
from genlab.conditions import class_labels
from genlab.data.images import Npz
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate, write_record
from genlab.evaluation.judged import describe
from genlab.evaluation.metrics import (
    FID,
    KID,
    Confidence,
    InceptionScore,
    LabelAccuracy,
    PrecisionRecall,
    TextLikelihood,
    VariationalNLL,
)
from genlab.evaluation.metrics.fidelity import fid
from genlab.evaluation.protocol import ExtractorChoice
from genlab.evaluation.reference import RealItems, resized, subset
from genlab.evaluation.sharding import bounds, sharded
from genlab.modality import Image, Text
from genlab.models.base import GenerativeModel
from genlab.samples import Samples


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class PaintSampler:
    """As in conf/sampler."""

    steps: int = 3
    guidance_scale: float = 1.5

    @property
    def nfe(self) -> int:
        return 2 * self.steps


class Painter(nn.Module):
    """Stands in for a model: an image is a function of its seed and label. Labels are brightness, if `honest`."""

    modality, conditions, chunk_size, samples_seen, sampler = Image(), class_labels(10), 8, 1234, None
    draw, answers = GenerativeModel.draw, GenerativeModel.answers

    def __init__(self, honest: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.honest = honest
        self.asked: list[Tensor] = []  # seeds of each call

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def sample(self, seeds: Tensor, condition: dict[str, Tensor] | None = None, sampler: Any = None) -> Samples:
        assert not self.training
        self.asked.append(seeds)
        assert condition is not None
        label = condition["label"] if self.honest else (condition["label"] + 1) % 10
        return Samples(Image(), paint(seeds, label), {"label": label}, seeds)


def paint(seeds: Tensor, label: Tensor) -> Tensor:
    """Blobs whose upper left corner shows the label as a grey level."""
    images = blobs(seeds)
    images[:, :, :4, :4] = (label * 25).to(torch.uint8)[:, None, None, None]
    return images


class Corner:
    """An Extractor that reads the label from the corner; features are a coarse copy of the image. Counts its work."""

    name, sha256, resize, labels, has_logits, batch = "corner", "0" * 64, "none", 10, True, 10

    def __init__(self, sha256: str = "0" * 64) -> None:
        self.sha256, self.seen = sha256, 0

    def features(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        label = (images[:, 0, 0, 0].float() / 25).round().long().clamp(max=9)
        return {
            "features": F.avg_pool2d(images.float(), 7).flatten(1) / 255,
            "logits": 20.0 * F.one_hot(label, 10).float(),
        }


def make_data(folder: Path, offset: int = 0) -> Npz:
    """200 train and 120 held-out images with labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, count in (("train", 100_000 + offset, 200), ("val", 200_000, 120)):
        seeds = torch.arange(start, start + count)
        label = seeds % 10
        np.savez(folder / f"{name}.npz", image=paint(seeds, label)[:, 0].numpy(), label=label.numpy())
    data = Npz("painted", path=str(folder / "train.npz"), val_path=str(folder / "val.npz"), shape=[1, 28, 28],
               num_classes=10, batch_size=10)  # fmt: skip
    data.setup()
    return data


def small(**options: Any) -> Protocol:
    metrics = {"fid": FID(), "label_accuracy": LabelAccuracy(), "confident_09": Confidence()}
    return Protocol(**{"metrics": metrics, "n": 40, "chunk": 16, "extractor": Corner(), **options})


# ---- protocols


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 2000, "name": "fid_2k_test"}, "fid_2k_test.proxy"),
        ({"n": 50_000, "name": "fid"}, "fid_50k_test"),
        ({"n": 10_000, "name": "fid_50k_test"}, "fid_10k_test"),
        ({"n": 10_000, "reference_n": 500, "name": "fid_10k_test"}, "fid_10k_test500.proxy"),
        ({}, "evaluation.n"),
        ({"n": 0}, ">= 1"),
        ({"metrics": {"fud": "fud"}, "n": 10}, r"evaluation\.metrics\.fud: 'fud' is no metric"),
        ({"metrics": ["fid"], "n": 10}, "is no mapping"),
        ({"metrics": {"fid": FID(), "text_likelihood": TextLikelihood()}, "n": 10}, "mixes"),
        ({"n": 10, "reference_split": "valid"}, "choose one of train, val, test"),
        ({"n": 10, "extractor": {"resize": 0}}, r"evaluation\.extractor\.resize is 0"),
        ({"n": 10, "extractor": 7}, r"evaluation\.extractor=7"),
    ],
)
def test_protocol_refuses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Protocol(**{"metrics": {"fid": FID()}, **options})


def test_a_protocol_has_few_fields_and_a_metric_its_own_settings() -> None:
    assert len(fields(Protocol)) <= 12
    protocol = Protocol(metrics={"fid": FID(), "kid": KID(subsets=7)}, n=10, extractor="mnist-cnn")
    record = protocol.record()
    assert record["metrics"] == {
        "fid": {"_target_": "genlab.evaluation.metrics.FID"},
        "kid": {"_target_": "genlab.evaluation.metrics.KID", "subsets": 7, "subset_size": 1000},
    }
    assert record["extractor"] == {"name": "mnist-cnn", "path": None, "resize": None, "batch": None}
    assert json.loads(json.dumps(record)) == record
    for make, words in (
        (lambda: KID(subsets=0), "kid.subsets is 0: must be >= 1"),
        (lambda: KID(subset_size=1), "kid.subset_size is 1: must be >= 2"),
        (lambda: TextLikelihood(stride=0), "text_likelihood.stride is 0"),
        (lambda: VariationalNLL(terms=-1), "variational_bound.terms is -1"),
    ):
        with pytest.raises(ConfigError, match=rf"evaluation\.metrics\.{words}"):
            make()


def test_names() -> None:
    assert Protocol(metrics={"fid": FID()}, n=50_000, reference_split="train").name == "fid_50k_train"
    metrics = {"fid": FID(), "kid": KID(), "label_accuracy": LabelAccuracy()}
    proxy = Protocol(metrics=metrics, n=1000, name="fid_1k_test.proxy")
    assert proxy.key("kid_std") == "kid_std_1k_test.proxy"
    assert proxy.key("kid") == "kid_1k_test.proxy"
    assert proxy.key("label_accuracy") == "label_accuracy_1k.proxy"  # no reference in it
    text = Protocol(metrics={"text_likelihood": TextLikelihood(stride=3)}, reference_split="val")
    assert text.key("perplexity", "text_likelihood") == "perplexity_val_stride3"


def test_shipped_protocols(root: Path) -> None:
    """Every file of conf/evaluation is a protocol, called as its file where the file's name states a count."""
    names = sorted(path.stem for path in (root / "conf/evaluation").glob("*.yaml"))
    assert {"fid_1k_test.proxy", "fid_50k_train", "fid_10k_test", "text_likelihood", "debug", "none"} <= set(names)
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        for name in names:
            node = compose(f"evaluation/{name}").evaluation
            if name == "none":
                assert node is None
                continue
            if OmegaConf.missing_keys(node):  # what a user must say: a run that judges
                continue
            protocol = instantiate(node, Protocol)
            assert protocol.name == name or name in ("debug", "text_likelihood", "images", "sounds", "texts")


# ---- evaluate


def test_record(tmp_path: Path, cache: Path) -> None:
    data, model = make_data(tmp_path / "data"), Painter()
    model.train()
    metrics = {"fid": FID(), "kid": KID(3, 20), "precision_recall": PrecisionRecall(),
               "inception_score": InceptionScore(2), "label_accuracy": LabelAccuracy(),
               "confident_09": Confidence()}  # fmt: skip
    protocol = small(metrics=metrics)
    record = evaluate(model, data, protocol, sampler=PaintSampler(), seed=3, progress=False, context={"run": "r"})
    assert model.training  # left as it was
    assert torch.equal(torch.cat(model.asked), torch.arange(3 << 32, (3 << 32) + 40))
    assert all(int(seeds[0]) % model.chunk_size == 0 for seeds in model.asked)  # whole chunks of the model
    values = record["values"]
    assert set(values) == {
        *(f"{m}_40_test.proxy" for m in ("fid", "kid", "kid_std", "precision", "recall")),
        *(f"{m}_40.proxy" for m in ("inception_score", "inception_score_std", "label_accuracy", "confident_09")),
    }
    assert record["missing"] == {}
    assert record["metric_of"]["kid_std_40_test.proxy"] == "kid"
    assert record["protocol"]["metrics"]["kid"]["subset_size"] == 20
    assert values["label_accuracy_40.proxy"] == 1.0
    assert values["confident_09_40.proxy"] == 1.0
    generated = record["generated"]
    assert generated["n"] == 40
    assert generated["seeds"] == {"seed": 3, "first": 3 << 32, "count": 40}
    assert generated["labels"] == "balanced: i % 10"
    assert generated["sampler"]["steps"] == 3
    assert generated["sampler"]["_target_"].endswith("PaintSampler")
    assert (generated["nfe"], generated["guidance_scale"], generated["chunk_size"]) == (6, 1.5, 8)
    assert record["reference"] == {
        "data": "painted", "split": "test", "n": 120, "of": 120, "sha256": data.manifest.identity("test"),
        "subset_seed": 2020,
    }  # fmt: skip
    assert record["extractor"]["name"] == "corner"
    assert record["extractor"]["sha256"] == "0" * 64
    assert record["model"]["weights"] == "ema"
    assert record["model"]["samples_seen"] == 1234
    assert record["machine"]["ranks"] == 1
    assert record["machine"]["tf32"] is False
    assert record["versions"]["torch"] == torch.__version__
    assert record["context"] == {"run": "r"}
    floor = record["floor"]
    assert floor["samples"]["split"] == "train"
    assert floor["samples"]["n"] == 40
    assert set(floor["values"]) == set(values)
    # The same numbers by hand.
    label = torch.arange(40) % 10
    made = Corner().features(paint(torch.arange(3 << 32, (3 << 32) + 40), label))["features"]
    ids = torch.arange(120)
    real = Corner().features(data.source("test").batch(ids, ids)["image"])["features"]
    assert values["fid_40_test.proxy"] == pytest.approx(fid(made, real), rel=1e-9)
    chosen = torch.from_numpy(subset(200, 40))
    train = Corner().features(data.source("train").batch(chosen, chosen)["image"])["features"]
    assert floor["values"]["fid_40_test.proxy"] == pytest.approx(fid(train, real), rel=1e-9)
    path = tmp_path / "new" / "record.json"
    write_record(record, path)
    assert json.loads(path.read_text()) == record
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_identity_names_what_decides(tmp_path: Path, cache: Path) -> None:
    data, model = make_data(tmp_path / "data"), Painter()

    def identity(**options: Any) -> str:
        return evaluate(model, data, small(floor=False), progress=False, **options)["identity"]

    base = identity()
    assert identity() == base
    assert len({base, identity(seed=1), identity(weights="raw"), identity(sampler=PaintSampler())}) == 4


def test_wrong_labels_are_seen(tmp_path: Path, cache: Path) -> None:
    data = make_data(tmp_path / "data")
    record = evaluate(Painter(honest=False), data, small(floor=False), progress=False)
    assert record["values"]["label_accuracy_40.proxy"] == 0.0
    assert record["values"]["confident_09_40.proxy"] == 1.0


def test_label_distributions(tmp_path: Path, cache: Path) -> None:
    data, model = make_data(tmp_path / "data"), Painter()
    record = evaluate(model, data, small(labels="train", n=200, floor=False), progress=False)
    assert record["generated"]["labels"].startswith("train")
    assert record["values"]["label_accuracy_200.proxy"] == 1.0
    unconditional = Painter()
    unconditional.conditions = ()
    unconditional.sample = lambda seeds, condition, sampler: Samples(Image(), blobs(seeds))  # type: ignore[method-assign]
    record = evaluate(unconditional, data, small(floor=False), progress=False)
    assert record["values"]["label_accuracy_40.proxy"] is None
    assert "not made for a label" in record["missing"]["label_accuracy_40.proxy"]
    assert record["values"]["fid_40_test.proxy"] > 0


def test_nothing_to_evaluate(tmp_path: Path, cache: Path) -> None:
    record = evaluate(Painter(), make_data(tmp_path / "data"), Protocol(metrics={}), progress=False)
    assert record["values"] == {}
    wrong = Protocol(metrics={"text_likelihood": TextLikelihood()})
    with pytest.raises(ConfigError, match="judges text, the model makes image"):
        evaluate(Painter(), make_data(tmp_path / "data"), wrong, progress=False)


def test_failing_metric_does_not_end_evaluation(tmp_path: Path, cache: Path) -> None:
    data = make_data(tmp_path / "data")
    with pytest.warns(UserWarning, match="kid has no value"):
        record = evaluate(
            Painter(), data, small(metrics={"kid": KID(), "label_accuracy": LabelAccuracy()}), progress=False
        )
    assert record["values"]["kid_40_test.proxy"] is None
    assert "kid.subset_size" in record["missing"]["kid_40_test.proxy"]
    assert record["values"]["label_accuracy_40.proxy"] == 1.0
    assert json.loads(json.dumps(record, allow_nan=False)) == record


# ---- the cache of references


def test_reference_cache(tmp_path: Path, cache: Path) -> None:
    data = make_data(tmp_path / "data")

    def work(data: Npz = data, sha256: str = "0" * 64, resize: int | None = None, **options: Any) -> int:
        """Real images that an evaluation had to pass through the extractor."""
        extractor = Corner(sha256)
        n = {"n": 40, **options}["n"]
        choice = ExtractorChoice(extractor, resize=resize)
        record = evaluate(Painter(), data, small(extractor=choice, **options), progress=False)
        values.append(record["values"]["fid_40_test.proxy"] if n == 40 and not options and not resize else None)
        return extractor.seen - n

    values: list[float | None] = []
    assert work() == 120 + 40  # the reference and the floor
    assert work() == 0
    assert values[0] == values[1]
    assert work(sha256="1" * 64) == 160  # other weights of the extractor
    assert work(reference_n=60) == 60  # other part of the split; the floor is there
    assert work(n=41) == 41  # other floor
    assert work(resize=14) == 160  # other size
    assert work() == 0
    assert work(make_data(tmp_path / "other", offset=1)) == 40  # other train images: other floor, same reference
    files = sorted((cache / "reference").glob("*test-120-corner*.safetensors"))
    files[0].write_bytes(b"rubbish")
    extractor = Corner()
    real = RealItems(data, "test", None, extractor, None)
    files.remove(real.path) if real.path in files else None
    real.path.write_bytes(real.path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="unreadable cache"):
        rows = real.features()
    assert extractor.seen == 120
    assert set(rows) == {"features", "logits", "labels"}
    assert real.features().keys() == rows.keys()
    assert extractor.seen == 120  # mended
    assert not list((cache / "reference").glob(".*"))


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "file"))
    real = RealItems(make_data(tmp_path / "data"), "test", None, Corner(), None)
    with pytest.warns(UserWarning, match="not kept"):
        assert len(real.features()["features"]) == 120


def test_resize_and_subset() -> None:
    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(resized(flat, 8), flat[:, :, :8, :8])
    assert resized(flat, 16) is flat
    ids = subset(1000, 100)
    assert len(set(ids.tolist())) == 100
    assert (np.diff(ids) > 0).all()
    assert ids.max() > 900  # not the first ones
    assert subset(10, None).tolist() == list(range(10))


# ---- ranks


def test_bounds() -> None:
    for n, unit, ranks in ((21, 8, 2), (21, 8, 3), (5, 8, 3), (1000, 16, 7)):
        borders = bounds(n, unit, ranks)
        assert borders[0] == 0
        assert borders[-1] == n
        assert all(b % unit == 0 for b in borders[:-1])
        sizes = np.diff(borders)
        assert sizes.min() >= 0
        assert sizes.max() - sizes.min() <= 2 * unit - 1


def _rank(rank: int, ranks: int, folder: Path, queue: Any) -> None:
    """One rank of test_ranks."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/sync{ranks}", rank=rank, world_size=ranks
    )
    ids = sharded(21, 8, 8, lambda a, b: {"id": torch.arange(a, b)})["id"].tolist()
    metrics = {"fid": FID(), "kid": KID(3, 10), "precision_recall": PrecisionRecall(),
               "inception_score": InceptionScore(2), "label_accuracy": LabelAccuracy()}  # fmt: skip
    protocol = small(n=21, metrics=metrics, extractor=ExtractorChoice("mnist-cnn", batch=10))
    record = evaluate(Painter(), make_data(folder / f"data{rank}"), protocol, progress=False)
    again = evaluate(Painter(), make_data(folder / f"data{rank}"), protocol, progress=False)  # now from the cache
    assert again["values"] == record["values"]
    queue.put((rank, ids, record["values"], record["floor"]["values"], record["machine"]["ranks"]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """21 items on 1, 2, 3 ranks: every index once, and equal values on every rank, without a cache to help."""
    results = []
    context = multiprocessing.get_context("fork")
    for ranks in (1, 2, 3):
        monkeypatch.setenv("GENLAB_DATA", str(tmp_path / f"cache{ranks}"))
        queue = context.Queue()
        processes = [context.Process(target=_rank, args=(r, ranks, tmp_path, queue)) for r in range(ranks)]
        for process in processes:
            process.start()
        found = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        for _, ids, values, floor, world in found:
            assert ids == list(range(21))
            assert world == ranks
            results.append((values, floor))
    values, floor = results[0]
    assert values["fid_21_test.proxy"] > 0
    for other_values, other_floor in results[1:]:
        assert other_values == pytest.approx(values, rel=1e-6)
        assert other_floor == pytest.approx(floor, rel=1e-6)


# ---- text


class Letters(nn.Module):
    """Gives every token of a vocabulary of 4 the probabilities 1/2, 1/4, 1/8, 1/8."""

    modality, conditions, chunk_size, samples_seen = Text(), (), 4, 0
    device = torch.device("cpu")

    def log_likelihood(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        assert not self.training
        labels = batch["labels"]
        nats = -math.log(2) * torch.tensor([1.0, 2.0, 3.0, 3.0])[labels.clamp(min=0)]
        counted = labels != -100
        return (nats * counted).sum(1), counted.sum(1)


class Book:
    """A DataModule of text: 5 windows of 6 tokens, the last one cut short."""

    class manifest:
        name, splits, facts = "book", {"val": {}}, {}

        @staticmethod
        def identity(split: str | None = None) -> str:
            return "f" * 64

    def __init__(self) -> None:
        self.labels = torch.arange(30).reshape(5, 6) % 4
        self.labels[-1, 4:] = -100

    def source(self, split: str) -> Any:
        labels = self.labels

        class Windows:
            rows = None

            def __len__(self) -> int:
                return 5

            def batch(self, ids: Tensor, epochs: Tensor) -> dict[str, Tensor]:
                return {"input_ids": torch.zeros_like(labels[ids]), "labels": labels[ids]}

        return Windows()

    def finish(self, batch: dict[str, Tensor], split: str) -> dict[str, Tensor]:
        return batch

    def units_per_token(self, split: str) -> dict[str, float]:
        return {"byte": 1.5, "character": 1.25, "word": 0.5}


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_text_likelihood(batch: int) -> None:
    protocol = Protocol(metrics={"text_likelihood": TextLikelihood(batch=batch)}, reference_split="val")
    record = evaluate(Letters(), Book(), protocol, progress=False)
    counts = torch.bincount(Book().labels[Book().labels >= 0], minlength=4).double()
    bits = (counts * torch.tensor([1.0, 2, 3, 3])).sum().item() / 28
    assert record["values"] == {
        "nats_per_token_val": pytest.approx(bits * math.log(2), rel=1e-6),
        "perplexity_val": pytest.approx(2**bits, rel=1e-6),
        "bits_per_byte_val": pytest.approx(bits / 1.5, rel=1e-6),
        "bits_per_character_val": pytest.approx(bits / 1.25, rel=1e-6),
        "word_perplexity_val": pytest.approx(2 ** (bits / 0.5), rel=1e-6),
    }
    read = record["reference"]
    assert (read["windows"], read["tokens"], read["context"], read["stride"]) == (5, 28, 6, 6)


def test_text_needs_the_capability() -> None:
    class Mute(nn.Module):
        modality, device = Text(), torch.device("cpu")

    protocol = Protocol(metrics={"text_likelihood": TextLikelihood()}, reference_split="val")
    with pytest.raises(ConfigError, match="cannot give a text likelihood"):
        evaluate(Mute(), Book(), protocol, progress=False)


def test_describe() -> None:
    described = describe({"a": PaintSampler(), "b": [1, None, F.relu]})
    assert described["a"] == {"_target_": f"{__name__}.PaintSampler", **asdict(PaintSampler())}
    assert described["b"][:2] == [1, None]
    assert json.loads(json.dumps(described)) == described


def test_variational_bound_of_a_diffusion_model(tmp_path: Path) -> None:
    """The mean of the terms of single images, whatever the batch; refused where there is no such bound."""
    from runs import small_run

    from genlab.cli.build import build_data, build_model

    values = []
    for batch in (3, 20):
        config = small_run("model=ddpm", tmp_path)
        model, data = build_model(config), build_data(config)
        data.setup()
        protocol = Protocol(metrics={"variational_bound": VariationalNLL(4, batch)}, n=6, reference_split="test")
        record = evaluate(model, data, protocol, progress=False)
        values.append(record["values"])
    bits, *parts = (values[0][f"{name}_6_test.proxy"] for name in ("bits_per_dim", "L_T", "L_t", "L_0"))
    assert bits == pytest.approx(sum(parts))
    assert 0 < parts[0] < 0.01 < bits  # the prior's term is small, an untrained model's bound is not
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    with pytest.raises(ConfigError, match="cannot give a variational bound"):
        evaluate(build_model(small_run("model=gan", tmp_path)), data, protocol, progress=False)
