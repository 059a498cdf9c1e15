"""Image sets: .npz, idx, CIFAR, folders, a user's Dataset, the real ones; bad input."""

from __future__ import annotations

import os
import pickle
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import cache as cache
from data_files import module, npz, raw_images, same
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset

from genlab.cli.targets import instantiate
from genlab.data.fetch import present
from genlab.data.folder import ImageFolder
from genlab.data.images import Npz, StandardImages, UserDataset
from genlab.data.readers import idx_array, read_cifar, read_idx
from genlab.errors import ConfigError, DataError, LoaderError

RNG = np.random.default_rng(0)


def test_splits_subset_and_manifest(tmp_path: Path) -> None:
    path = npz(tmp_path, n=30)
    full, other_seed = module(tmp_path, path=path), module(tmp_path, path=path, seed=6)
    full.setup()
    other_seed.setup()
    assert full.manifest.identity() == other_seed.manifest.identity()  # the held-out part does not depend on the run
    splits = full.manifest.to_dict()["splits"]
    assert (splits["train"]["count"], splits["val"]["count"], splits["test"]["count"]) == (24, 6, 6)
    assert splits["test"]["from"] == "alias of val"
    assert full.manifest.identity("test") == full.manifest.identity("val") != full.manifest.identity("train")
    raw = np.load(path)["image"]
    split = [raw_images(full, "train"), raw_images(full, "val")]
    rows = {row.tobytes() for part in split for row in part.numpy()}
    assert rows == {row.tobytes() for row in raw}
    few = module(tmp_path, path=path, subset=[2, 0])
    labels = torch.cat([b["label"] for b in few.batches(few.train_loader(0, 16))])
    assert set(labels.tolist()) == {0, 2}
    assert few.manifest.filter == {"subset": [0, 2]}
    assert few.manifest.identity("val") != full.manifest.identity("val")
    with pytest.raises(ConfigError, match=r"subset=\[7\] leaves 0 of the 30"):
        module(tmp_path, path=path, subset=[7]).setup()
    changed = module(tmp_path, path=npz(tmp_path, n=31, name="b.npz"))
    changed.setup()
    assert changed.manifest.identity() != full.manifest.identity()


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhw"])
def test_npz_layouts(tmp_path: Path, layout: str) -> None:
    image = RNG.integers(0, 256, (8, 3, 4, 5), dtype=np.uint8)
    shape = [3, 4, 5]
    stored = image.transpose(0, 2, 3, 1) if layout == "nhwc" else image
    if layout == "nhw":
        image, stored, shape = image[:, :1], image[:, 0], [1, 4, 5]
    np.savez(tmp_path / "x.npz", image=stored)
    np.savez(tmp_path / "v.npz", image=stored[:2])
    data = Npz("x", path=str(tmp_path / "x.npz"), val_path=str(tmp_path / "v.npz"), shape=shape, batch_size=8)
    batch = next(data.batches(data.train_loader(0, 8)))
    assert set(batch) == {"id", "position", "image"}
    expected = torch.from_numpy(image)[batch["id"]].float() / 127.5 - 1
    torch.testing.assert_close(batch["image"], expected)
    assert len(data.source("val")) == 2


@pytest.mark.faults(19)
def test_npz_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    image = np.zeros((4, 3, 4, 6), np.uint8)

    def fails(match: str, error: type[Exception] = DataError, **options: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            module(tmp_path, path=path, batch_size=1, **options).setup()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value) or "data." in str(caught.value)

    fails("no such file", ConfigError)
    np.savez(path, image=np.array([{"a": 1}], dtype=object))
    fails("pickled")
    path.write_bytes(pickle.dumps({"image": 1}))
    fails("no .npz file")
    np.savez(path, image=image)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails("truncated")
    path.write_bytes(whole[:100] + b"\xff" * 20 + whole[120:])
    fails("corrupt")
    np.savez(path, picture=image)
    fails("has picture; expected 'image'")
    np.savez(path, image=image.astype(np.float32))
    fails("float32, expected uint8")
    np.savez(path, image=image[:, :, :3])
    fails(r"image is \[4, 3, 3, 6\], data.shape is \[3, 4, 6\]")
    np.savez(path, image=image, label=np.arange(3))
    fails(r"label is int64 \[3\], expected integers \[4\]")
    np.savez(path, image=image, label=np.array([0, 1, 3, 0]))
    fails(r"record 2: label 3 is outside 0..2 \(data.num_classes=3\)")
    np.savez(path, image=image[:0])
    fails("train split of data 'tiny' .* is empty: 0 items", ConfigError)
    np.savez(path, image=image)
    fails("validation has 0 items, train 4; set data.val_fraction", ConfigError, val_fraction=0.0)
    fails("val split of data 'tiny' .* is empty", ConfigError, val_fraction=0.01)
    for key, value in (
        ("val_fraction", 1.0),
        ("batch_size", 0),
        ("limit_val", 0),
        ("resident_max", -1),
        ("num_workers", -1),
        ("shape", [3]),
    ):
        node = {"_target_": "genlab.data.images.Npz", "name": "tiny", "path": "x", "shape": [3, 4, 6], key: value}
        with pytest.raises(ConfigError, match=f"data.{key}"):
            instantiate(OmegaConf.create({"data": node}).data)


def write_idx(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())
    return path


@pytest.mark.faults(19)
def test_idx(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    images, labels = write_idx(tmp_path / "i", image), write_idx(tmp_path / "l", np.arange(5, dtype=np.uint8))
    batch = read_idx(images, labels).batch(torch.tensor([4, 1]), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(batch["image"], torch.from_numpy(image)[[4, 1]][:, None])
    assert batch["label"].tolist() == [4, 1]
    whole = images.read_bytes()
    for data, match in (
        (whole[:-1], "75 bytes, but the header's count .5, 4, 3. needs 76"),
        (whole + b"x", "77 bytes"),
        (whole[:9], "truncated in its header at offset 9"),
        (b"", "starts with nothing"),
        (b"\x1f\x8b" + whole, "starts with 1f8b0000"),
        (bytes([0, 0, 13, 3]) + whole[4:], "unsigned bytes"),
    ):
        images.write_bytes(data)
        with pytest.raises(DataError, match=match) as caught:
            idx_array(images)
        assert str(images) in str(caught.value)
    images.write_bytes(whole)
    with pytest.raises(DataError, match=r"shape \(4,\) does not go with the images \(5, 4, 3\)"):
        read_idx(images, write_idx(labels, np.arange(4, dtype=np.uint8)))


def test_cifar(tmp_path: Path) -> None:
    record = RNG.integers(0, 256, (3, 3073), dtype=np.uint8)
    (tmp_path / "a.bin").write_bytes(record.tobytes())
    source = read_cifar([tmp_path / "a.bin", tmp_path / "a.bin"])
    assert len(source) == 6
    batch = source.batch(torch.tensor([4]), torch.tensor([0]))
    assert torch.equal(batch["image"][0], torch.from_numpy(record[1, 1:].reshape(3, 32, 32)))
    assert batch["label"].item() == record[1, 0]
    (tmp_path / "a.bin").write_bytes(record.tobytes()[:-1])
    with pytest.raises(DataError, match="9218 bytes is no whole number"):
        read_cifar([tmp_path / "a.bin"])


# ---- folders


def folder(
    root: Path, classes: tuple[str, ...] = ("cat", "犬 dog"), n: int = 6, size: tuple[int, int] = (12, 9)
) -> Path:
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.random.default_rng([c, i]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def folder_module(root: Path, **options: Any) -> ImageFolder:
    defaults: dict[str, Any] = {"shape": [3, 8, 8], "num_classes": 2, "val_fraction": 0.25, "batch_size": 4}
    return ImageFolder("photos", root=str(root), **defaults | options)


def test_folder_cached_and_lazy_are_bit_equal(tmp_path: Path, cache: Path) -> None:
    root = folder(tmp_path / "photos")
    stored, lazy = folder_module(root), folder_module(root, cache_max=0, num_workers=2)
    batches = [list(d.batches(d.train_loader(0, 36))) for d in (stored, lazy)]
    assert all(same(a, b) for a, b in zip(*batches, strict=True))
    assert stored.resident("train")
    assert not lazy.resident("train")
    files = sorted(p.name for p in (cache / "folders").iterdir())
    assert [Path(f).suffix for f in files] == [".json", ".lock", ".uint8"]
    before = (cache / "folders" / files[2]).stat().st_mtime_ns
    again = folder_module(root)
    again.setup()
    assert (cache / "folders" / files[2]).stat().st_mtime_ns == before
    assert again.manifest.identity() == stored.manifest.identity()
    other = folder_module(root, resize="box")
    other.setup()
    assert other.manifest.identity() != stored.manifest.identity()
    one = Image.open(root / "cat" / "0.png").resize((11, 8), Image.Resampling.LANCZOS).crop((1, 0, 9, 8))
    pixels = torch.from_numpy(np.array(one)).permute(2, 0, 1)
    assert any(torch.equal(pixels, image) for s in ("train", "val") for image in raw_images(stored, s))
    Image.new("RGB", (12, 9)).save(root / "cat" / "0.png")
    changed = folder_module(root)
    changed.setup()
    assert changed.manifest.identity() != stored.manifest.identity()


def test_folder_layouts(tmp_path: Path) -> None:
    for split, n in (("train", 5), ("val", 2)):
        folder(tmp_path / "split" / split, n=n)
    data = folder_module(tmp_path / "split", val_fraction=0.0)
    assert (len(data.source("train")), len(data.source("val"))) == (10, 4)
    assert data.source("val").labels.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    flat = folder_module(folder(tmp_path / "flat", classes=("",)), num_classes=None)
    assert set(next(flat.batches(flat.train_loader(0, 4)))) == {"id", "position", "image"}
    grey = folder_module(tmp_path / "flat", num_classes=None, shape=[1, 8, 8], crop="none")
    assert raw_images(grey, "val").shape == (2, 1, 8, 8)


def test_folder_transparency_orientation_and_sizes(tmp_path: Path) -> None:
    root = tmp_path / "x"
    root.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(root / "a.png")
    turned = Image.new("RGB", (4, 8), "black")
    turned.paste("white", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(root / "b.png", exif=exif)
    data = folder_module(root, num_classes=None, shape=[3, 4, 8], crop="none", resize="none")
    with pytest.raises(DataError, match=r"a\.png: 8x8 pixels, data.shape wants 8x4; set data.resize"):
        data.setup()
    data = folder_module(root, num_classes=None, shape=[3, 4, 8], val_fraction=0.5, batch_size=1)
    images = torch.cat([raw_images(data, "train"), raw_images(data, "val")])
    images = images[images.float().mean((1, 2, 3)).argsort(descending=True)]
    assert images[0].min() == 255  # transparent red over white
    assert images[1][:, :, 4:].min() == 255  # the white half has come to the right
    assert images[1][:, :, :4].max() == 0


@pytest.mark.faults(19)
def test_folder_bad_input(tmp_path: Path, cache: Path) -> None:
    def fails(match: str, error: type[Exception] = DataError, **options: Any) -> None:
        with pytest.raises(error, match=match) as caught:
            folder_module(tmp_path / "f", **options).setup()
        assert "\n" not in str(caught.value)

    fails("no such folder", ConfigError)
    (tmp_path / "f").mkdir()
    fails("holds 0 images", ConfigError, num_classes=None)
    root = folder(tmp_path / "f")
    fails("has 2 class folders, data.num_classes is 5; set data.num_classes=2", ConfigError, num_classes=5)
    good = (root / "cat" / "3.png").read_bytes()
    for bad in (b"", b"no image", good[:-40], good[:60] + b"\xff\xff" + good[62:]):
        (root / "cat" / "3.png").write_bytes(bad)
        fails(r"cat/3\.png: cannot be read")
        assert not list((cache / "folders").glob("*.uint8"))
        assert not list((cache / "folders").glob(".*"))
    lazy = folder_module(root, cache_max=0, num_workers=2)
    with pytest.raises(DataError, match=r"cat/3\.png: cannot be read") as caught:
        list(lazy.batches(lazy.train_loader(0, 36)))
    assert "\n" not in str(caught.value)
    (root / "cat" / "3.png").write_bytes(good)
    (root / "empty").mkdir()
    fails(r"empty: a class folder with 0 images", num_classes=3)
    (root / "empty").rmdir()
    (root / "loose.png").write_bytes(good)
    fails(r"loose\.png: lies beside the class folders")
    (root / "loose.png").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "cat" / "4.png")
    fails(r"cat/4\.png: cannot be read \(mode I;16: more than 8 bits")
    with pytest.raises(ConfigError, match=r"data.resize='cubic': choose from lanczos"):
        folder_module(root, resize="cubic")


@pytest.mark.faults(20)
def test_folder_refuses_a_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "f")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size: None)  # its warning, not ours
    with pytest.raises(DataError, match=r"0\.png: cannot be read .*12x9: more than 100 pixels"):
        folder_module(root).setup()


# ---- a user's Dataset


class Mine(Dataset):
    """Random transforms, as users write them."""

    def __init__(self, item: str = "tuple", n: int = 20) -> None:
        self.item, self.n = item, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        image = torch.randint(0, 200, (3, 4, 4), dtype=torch.uint8) + int(np.random.randint(50))
        return {
            "tuple": (image, i % 2),
            "dict": {"image": image, "label": torch.tensor(i % 2)},
            "alone": image,
            "float": (image.float() / 127.5 - 1, np.int64(i % 2)),
            "pil": (Image.fromarray(image.permute(1, 2, 0).numpy()), i % 2),
            "range": (image.float(), 0),
            "shape": (image[:, 1:], 0),
            "label": (image, i),
            "dtype": (image.long(), 0),
            "words": ("cat", 0),
            "mixed": (image, None if i == 3 else 0),
        }[self.item]


def user(item: str = "tuple", **options: Any) -> UserDataset:
    defaults: dict[str, Any] = {"shape": [3, 4, 4], "num_classes": 2, "val_fraction": 0.2, "batch_size": 4}
    return UserDataset("mine", dataset=Mine(item), **defaults | options)


@pytest.mark.parametrize("item", ["tuple", "dict", "alone", "float", "pil"])
def test_user_dataset(item: str) -> None:
    data, workers = user(item), user(item, num_workers=2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    batches = list(data.batches(data.train_loader(0, 48)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    assert all(same(a, b) for a, b in zip(batches, workers.batches(workers.train_loader(0, 48)), strict=True))
    later = list(data.batches(data.train_loader(16, 48)))
    assert all(same(a, b) for a, b in zip(batches[4:], later, strict=True))
    batch = batches[0]
    assert batch["image"].dtype == torch.float32
    assert batch["image"].abs().max() <= 1
    assert ("label" in batch) == (item != "alone")
    by_id = [
        {i: x for b in part for i, x in zip(b["id"].tolist(), b["image"], strict=True)}
        for part in (batches[:4], batches[4:8])
    ]
    assert not torch.equal(by_id[0][0], by_id[1][0])  # another epoch, another draw


@pytest.mark.parametrize(
    ("item", "match"),
    [
        ("range", r"Mine\[0\]: float image outside \[-1, 1\]"),
        ("shape", r"Mine\[0\]: image is \(3, 3, 4\), data.shape is \(3, 4, 4\)"),
        ("label", r"Mine\[3\]: label 3 is outside 0..1 \(data.num_classes=2\)"),
        ("dtype", r"Mine\[0\]: image is torch.int64; give uint8"),
        ("words", r"Mine\[0\]: expected a uint8 \[C,H,W\] tensor or an image"),
        ("mixed", r"Mine\[3\]: differs from other items"),
    ],
)
def test_user_dataset_bad_items(item: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        user(item).setup()


def test_a_killed_worker_is_named() -> None:
    class Deadly(Mine):
        def __getitem__(self, i: int) -> Any:
            if torch.utils.data.get_worker_info() is not None:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(i)

    data = UserDataset("x", dataset=Deadly(), shape=[3, 4, 4], val_fraction=0.2, batch_size=4, num_workers=1)
    with pytest.raises(LoaderError, match=r"DataLoader worker \(pid \d+ \(exit code -9\)\) has died"):
        list(data.batches(data.train_loader(0, 16)))


@pytest.mark.faults(21)
def test_user_dataset_of_the_wrong_kind() -> None:
    with pytest.raises(ConfigError, match=r"data.dataset: builtins.object needs __len__ and __getitem__"):
        UserDataset("x", dataset=object(), shape=[3, 4, 4]).setup()
    with pytest.raises(ConfigError, match="is empty: 0 items"):
        UserDataset("x", dataset=Mine(n=0), shape=[3, 4, 4]).setup()


# ---- real data, where it has been fetched


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "shape", "train"),
    [("mnist", [1, 28, 28], 60000), ("fashion_mnist", [1, 28, 28], 60000), ("cifar10", [3, 32, 32], 50000)],
)
def test_real_images(name: str, shape: list[int], train: int) -> None:
    if not present(name):
        pytest.skip(f"python scripts/fetch_data.py {name}")
    data = StandardImages(name, shape=shape, num_classes=10, val_batch_size=2500)
    assert (len(data.source("train")), len(data.source("val")), len(data.source("test"))) == (train, 10000, 10000)
    assert data.source("val") is data.source("test")
    assert torch.bincount(data.source("test").labels).tolist() == {  # type: ignore[arg-type]
        "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    }.get(name, [1000] * 10)
    mean = (
        torch.stack([b["image"].double().mean((0, 2, 3)) for b in data.batches(data.eval_loader("val"))]).mean(0) / 2
        + 0.5
    )
    expected = {"mnist": [0.1325], "fashion_mnist": [0.2868], "cifar10": [0.4942, 0.4851, 0.4504]}[name]
    torch.testing.assert_close(mean, torch.tensor(expected, dtype=torch.float64), atol=2e-4, rtol=0)
