"""What is judged besides a model's own samples: folders, .npz, .jsonl, real splits; and how long it may take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluation import Corner, Painter, make_data, paint, small

from genlab.errors import ConfigError, DataError
from genlab.evaluation import evaluate, evaluate_samples
from genlab.evaluation.features import lowered
from genlab.evaluation.judged import Folder, items_from, texts_from
from genlab.evaluation.metrics import FID, LabelAccuracy

CPU = torch.device("cpu")
COUNT = 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_folder(folder: Path) -> Path:
    """The 40 images that Painter makes under evaluation seed 0, one folder a class, and none."""
    seeds = torch.arange(COUNT)
    for i, image in enumerate(paint(seeds, seeds % 10)[:, 0].numpy()):
        (folder / f"{i % 10}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i % 10}" / f"{i:03d}.png")
    return folder


def test_files_give_the_values_of_the_model_that_made_them(tmp_path: Path, cache: Path) -> None:
    data, protocol = make_data(tmp_path / "data"), small(metrics={"fid": FID(), "label_accuracy": LabelAccuracy()})
    values = evaluate(Painter(), data, protocol, progress=False)["values"]
    write_folder(tmp_path / "made")
    seeds = torch.arange(COUNT)
    images = paint(seeds, seeds % 10)
    np.savez(tmp_path / "made.npz", image=images[:, 0].numpy(), label=(seeds % 10).numpy())
    np.savez(tmp_path / "adm.npz", images.permute(0, 2, 3, 1).numpy(), (seeds % 10).numpy())  # arr_0, arr_1
    for name in ("made", "made.npz", "adm.npz"):
        folder = Folder(tmp_path / name)
        record = evaluate_samples(
            lambda wanted, f=folder: items_from(f, "folder", wanted), data, protocol, device=CPU, progress=False
        )
        assert record["values"] == pytest.approx(values, rel=1e-6), name
        assert record["generated"]["sha256"] == folder.manifest.identity("folder")
        assert record["model"] is None
        assert json.loads(json.dumps(record)) == record


def test_fewer_files_than_asked_for_are_called_what_they_are(tmp_path: Path, cache: Path) -> None:
    data, folder = make_data(tmp_path / "data"), Folder(write_folder(tmp_path / "made"))
    record = evaluate_samples(
        lambda wanted: items_from(folder, "folder", wanted), data, small(n=1000), device=CPU, progress=False
    )
    assert next(iter(record["values"])) == "fid_40_test.proxy"


def test_a_folder_as_reference_and_a_split_as_samples(tmp_path: Path, cache: Path) -> None:
    data, folder = make_data(tmp_path / "data"), Folder(write_folder(tmp_path / "made"))
    protocol = small(reference_split="folder", floor=False, metrics={"fid": FID()})
    itself = evaluate_samples(
        lambda wanted: items_from(folder, "folder", wanted), folder, protocol, device=CPU, progress=False
    )
    assert itself["values"] == {"fid_40_folder.proxy": pytest.approx(0, abs=1e-6)}
    train = evaluate_samples(
        lambda wanted: items_from(data, "train", wanted), data, small(n=200), device=CPU, progress=False
    )
    floor = evaluate(Painter(), data, small(n=200), progress=False)["floor"]
    assert train["values"] == pytest.approx(floor["values"])
    assert (train["generated"]["split"], train["generated"]["n"]) == ("train", 200)
    with pytest.raises(ConfigError, match=r"samples=val2: painted has only"):
        items_from(data, "val2", protocol)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a folder of images or an \.npz"):
        Folder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds 0 images"):
        Folder(tmp_path / "empty")
    folder = write_folder(tmp_path / "made")
    (folder / "3" / "003.png").write_bytes(b"no image")
    broken = Folder(folder)
    with pytest.raises(DataError, match=r"003\.png: cannot be read"):
        items_from(broken, "folder", small()).read(0, COUNT)
    np.savez(tmp_path / "floats.npz", image=np.zeros((4, 8, 8), np.float32))
    with pytest.raises(DataError, match=r"image is float32"):
        Folder(tmp_path / "floats.npz")


def test_texts(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    rows = [{"text": "一 a", "reference": "b"}, {"text": "c", "references": ["d", "e"]}]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    judged = texts_from(path, None)
    assert judged.items.references == [["b"], ["d", "e"]]
    assert judged.read(0, 2).data == ["一 a", "c"]
    assert texts_from(path, 1).n == 1
    for line, words in (
        ("{}", "line 3"),
        ("[1]", "line 3"),
        ('{"text": 1}', "line 3"),
        ('{"text": "x"}', "all lines must have a reference"),
        ("{", "line 3"),
    ):
        path.write_text("\n".join([*(json.dumps(row) for row in rows), line]), encoding="utf-8")
        with pytest.raises(DataError, match=words):
            texts_from(path, None)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        texts_from(path, None)


def test_time_lowers_the_number_and_makes_a_proxy(tmp_path: Path, cache: Path) -> None:
    protocol = small(n=20_000)
    assert protocol.name == "fid_20k_test"
    fewer = lowered(protocol, 8, item_s=0.01, real_s=30, minutes=2.5)
    assert (fewer.n, fewer.lowered_from, fewer.name) == (12_000, 20_000, "fid_12k_test.proxy")
    assert lowered(protocol, 8, item_s=0.001, real_s=0, minutes=1).name == "fid_20k_test"
    with pytest.raises(ConfigError, match=r"max_minutes=0\.1: the smallest evaluation takes about 0\.5 minutes"):
        lowered(protocol, 8, item_s=0.01, real_s=30, minutes=0.1)
    said: list[str] = []
    data, model = make_data(tmp_path / "data"), Painter()
    record = evaluate(model, data, small(extractor=Corner()), progress=False, max_minutes=10, say=said.append)
    assert record["name"] == "fid_40_test.proxy"
    assert said[0].startswith("fid_40_test.proxy: about 0.0 min (40 samples at ")
