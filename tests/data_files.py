"""Small data of the tests of genlab.data: a cache of its own, an .npz file, comparisons."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genlab.data.images import Npz
from genlab.data.module import DataModule


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A cache of its own for every test, but for those of real data."""
    if request.node.get_closest_marker("data") is None:  # not request.keywords: a checkout may lie in a folder "data"
        monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def npz(folder: Path, n: int = 23, shape: tuple[int, ...] = (3, 4, 6), classes: int = 3, name: str = "a.npz") -> Path:
    path = folder / name
    image = np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)
    np.savez(path, image=image, label=np.arange(n) % classes)
    return path


def module(folder: Path, **options: Any) -> Npz:
    defaults: dict[str, Any] = {
        "batch_size": 6,
        "shape": [3, 4, 6],
        "num_classes": 3,
        "val_fraction": 0.2,
        "random_flip": True,
        "seed": 5,
    }
    path = npz(folder) if "path" not in options else options.pop("path")
    return Npz("tiny", path=str(path), **defaults | options)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def raw_images(data: DataModule, split: Any) -> torch.Tensor:
    n = len(data.source(split))
    return data.source(split).batch(torch.arange(n), torch.zeros(n, dtype=torch.int64))["image"]


def tgz(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                file.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path
