"""Small data of the tests of genlab.data: a cache of its own, an .npz file, comparisons."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

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


TONES = ["1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"]
_FACE, _HEART, _SHAPE = ("Smileys & Emotion", "face-smiling"), ("Smileys & Emotion", "heart"), ("Symbols", "geometric")
_HAND, _BODY = ("People & Body", "hand-fingers-open"), ("People & Body", "body-parts")
EMOJI = {
    **dict.fromkeys(["WAVING HAND SIGN", "RAISED HAND", "VICTORY HAND"], _HAND),
    **{"FLEXED BICEPS": _BODY, "BRAIN": _BODY, "RUNNER": ("People & Body", "person-activity")},
    **dict.fromkeys([f"{c} HEART" for c in ("HEAVY BLACK", "GREEN", "PURPLE", "ORANGE", "BLUE", "SPARKLING")], _HEART),
    **dict.fromkeys([f"LARGE {c} CIRCLE" for c in ("GREEN", "PURPLE", "ORANGE", "RED", "BLUE")], _SHAPE),
    **dict.fromkeys([f"FACE NUMBER {i}" for i in range(20)], _FACE),
    "RED APPLE": ("Food & Drink", "food-fruit"),
    "FAMILY: MAN, GIRL": ("People & Body", "family"),
    **dict.fromkeys(["NORWAY FLAG", "SPAIN FLAG"], ("Flags", "country-flag")),
}


def emoji_package(folder: Path, drawing: str = "google") -> Path:
    """The files of an emoji-data package: emoji.json of EMOJI and the sheet of their pictures, one colour each, the
    upper half transparent, in cells with a red rim. Faces 3 and 4 look alike; Twitter has no apple."""
    records, colours, pictures = [], np.random.default_rng(len(drawing)), []
    sheet = np.zeros((66 * 10, 66 * 10, 4), np.uint8)
    sheet[:] = 255, 0, 0, 255

    def picture(name: str) -> dict[str, Any]:
        y, x = divmod(len(pictures), 10)
        cell = sheet[66 * x + 1 : 66 * x + 65, 66 * y + 1 : 66 * y + 65]  # sheet_x counts columns
        cell[:] = *colours.integers(0, 256, 3), 255
        cell[:32, :, 3], cell[32:40, :, 3] = 0, 100
        if name == "FACE NUMBER 4":
            cell[:] = pictures[-1]
        pictures.append(cell.copy())
        has = {f"has_img_{d}": d == "google" or name != "RED APPLE" for d in ("google", "twitter")}
        return {"sheet_x": y, "sheet_y": x, **has}

    for name, (category, subcategory) in EMOJI.items():
        record = {"name": name, "category": category, "subcategory": subcategory, **picture(name)}
        record["short_names"] = [name.lower().replace(" ", "_"), f"x_{name.lower().split()[-1]}"]
        if category == "People & Body" and name not in ("BRAIN", "FAMILY: MAN, GIRL"):
            record["skin_variations"] = {tone: picture(name) for tone in [*TONES, "1F3FB-1F3FC"]}
        records.append(record)
    place = folder / "package" / "img" / drawing / "sheets"
    place.mkdir(parents=True)
    (folder / "package" / "emoji.json").write_text(json.dumps(records), encoding="utf-8")
    Image.fromarray(sheet).save(place / "64.png")
    return folder
