"""Pictures: grids, pairs, PNGs that say what made them, curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from genlab import modality
from genlab.callbacks.pictures import save_samples
from genlab.drawing import curves, grid, read_meta, save_pairs, save_png
from genlab.samples import Samples


def test_grid() -> None:
    images = torch.stack([torch.full((1, 28, 28), 10 * i, dtype=torch.uint8) for i in range(5)])
    picture = grid(images, nrow=3)
    pixels = np.asarray(picture)
    assert pixels.shape == (3 * (2 * 28 + 2), 3 * (3 * 28 + 4))
    assert pixels[0, 0] == 0
    assert pixels[0, 3 * 30] == 10  # second image of the first row
    assert pixels[0, 3 * 28] == 255  # the gap
    assert pixels[3 * 30, 3 * 30] == 40  # fifth: second row, second column
    assert pixels[-1, -1] == 255  # no sixth image
    assert grid(torch.zeros(2, 3, 128, 128, dtype=torch.uint8)).size == (258, 128)


def test_png_metadata(tmp_path: Path) -> None:
    meta = {"model": "ddpm", "run": "数字 run", "seed": 7, "label": 3, "sampler": {"steps": 20}}
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "ü" / "one.png", image, meta)
    assert read_meta(tmp_path / "ü" / "one.png") == meta
    with Image.open(tmp_path / "ü" / "one.png") as picture:
        assert np.array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
    samples = Samples(modality.Image(), image[None].expand(4, -1, -1, -1).contiguous(),
                      seeds=torch.arange(10, 14), meta={"guidance_scale": 2.0})  # fmt: skip
    path = save_samples(tmp_path / "grid", samples, {"label": [0, 1, 2, 3]}, 2, {"run": "r"})
    assert path == tmp_path / "grid.png"
    assert read_meta(path) == {
        "guidance_scale": 2.0, "seeds": [10, 11, 12, 13], "label": [0, 1, 2, 3], "run": "r",
    }  # fmt: skip


def test_curves(tmp_path: Path) -> None:
    rows = [{"samples": 128 * i, "time": float(i), "train/loss": 1 / i, "train/lr": None} for i in range(1, 100)]
    rows += [{"samples": 4000 * i, "time": 1.0, "val/loss": 1 / i, "val/fid_1k_test.proxy": 50 / i} for i in (1, 2, 3)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"samples": 12, "tra', encoding="utf-8")
    assert curves(path, tmp_path / "curves.png") is True
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (920, 320)  # two panels: loss (train and val), fid
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert curves(tmp_path / "missing.jsonl", tmp_path / "none.png") is False
    assert not (tmp_path / "none.png").exists()


def test_pairs(tmp_path: Path) -> None:
    """Sample and nearest real image stand side by side, the distance below, `columns` pairs in a row."""
    shades = torch.arange(10, 60, 10, dtype=torch.uint8)
    samples = shades[:, None, None, None].expand(-1, 1, 28, 28)
    distances = torch.tensor([0.0, 0.5, 1.25, 2.0, 3.0], dtype=torch.float64)
    save_pairs(tmp_path / "pairs.png", samples, samples + 100, distances, columns=2, meta={"run": "r"})
    assert read_meta(tmp_path / "pairs.png") == {"distances": distances.tolist(), "run": "r"}
    with Image.open(tmp_path / "pairs.png") as picture:
        pixels = np.asarray(picture)[..., 0]
    side, across, down = 3 * 28, 2 * 3 * 28 + 2 + 8, 3 * 28 + 14 + 8
    assert pixels.shape == (3 * down - 8, 2 * across - 8)
    for i in range(5):
        top, left = i // 2 * down, i % 2 * across
        assert (pixels[top : top + side, left : left + side] == 10 * (i + 1)).all()
        assert (pixels[top : top + side, left + side + 2 : left + 2 * side + 2] == 10 * (i + 1) + 100).all()
        caption = pixels[top + side : top + side + 14, left : left + 2 * side + 2]
        assert caption.min() < 100 < caption.mean() < 255  # something black on white
    assert (pixels[2 * down :, across:] == 255).all()  # no sixth pair
