"""Feature extractors: the shipped ones, Inception in two forms, DINOv2 and CLIP from a folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import blobs
from torch import Tensor, nn

from genlab.data.images import StandardImages
from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation import Extractor, load_extractor
from genlab.evaluation.extractors import WEIGHTS, NetworkExtractor
from genlab.evaluation.inception import _Inception
from genlab.evaluation.reference import subset


@pytest.fixture(scope="module")
def first() -> Tensor:
    return blobs(torch.arange(250))


@pytest.fixture(scope="module")
def cnn() -> NetworkExtractor:
    return load_extractor("mnist-cnn")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_features_do_not_depend_on_batching(first: Tensor, cnn: NetworkExtractor) -> None:
    whole = cnn.features(first[:250])
    assert whole["features"].shape == (250, 128)
    assert whole["logits"].shape == (250, 10)
    assert {v.dtype for v in whole.values()} == {torch.float32}
    for key in whole:
        assert torch.equal(torch.cat([cnn.features(part)[key] for part in first[:250].split(37)]), whole[key])
    order = torch.randperm(250, generator=torch.Generator().manual_seed(2))
    assert torch.equal(cnn.features(first[order])["features"], whole["features"][order])


def test_extractor_is_exact_and_leaves_settings(first: Tensor, cnn: NetworkExtractor) -> None:
    """bfloat16 autocast and reduced float32 precision around it change nothing, and stay as they were."""
    plain = cnn.features(first[:20])["features"]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cnn.features(first[:20])["features"], plain)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert isinstance(cnn, Extractor)


def test_extractor_refuses(tmp_path: Path, cnn: NetworkExtractor, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes images of 1 channel.*these have 3"):
        cnn.features(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"28x28.*32x32.*evaluation.extractor.resize=28"):
        cnn.features(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="no such extractor"):
        load_extractor("mnist")
    with pytest.raises(ConfigError, match="no weights at"):
        load_extractor("inception-v3-compat")
    damaged = tmp_path / "mnist-cnn.safetensors"
    content = bytearray((WEIGHTS / "mnist-cnn.safetensors").read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    shutil.copy(WEIGHTS / "mnist-cnn.json", tmp_path)
    with pytest.raises(CheckpointError, match="sha256"):
        load_extractor("mnist-cnn", path=str(damaged))


@pytest.mark.parametrize("name", ["mnist-cnn", "fashion-cnn"])
def test_shipped_weights(name: str) -> None:
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 1_000_000
    assert card["test"]["accuracy"] >= {"mnist-cnn": 0.994, "fashion-cnn": 0.93}[name]
    assert card["command"] == f"python scripts/train_classifier.py {name}"


@pytest.mark.data
@pytest.mark.parametrize(("name", "data_name"), [("mnist-cnn", "mnist"), ("fashion-cnn", "fashion_mnist")])
def test_accuracy_on_real_images(name: str, data_name: str) -> None:
    """The card's accuracy is found again on 2,000 images (within four deviations), of the data that the card names."""
    from genlab.data.fetch import present

    if not present(data_name):
        pytest.skip(f"{data_name} is not in the cache: python scripts/fetch_data.py {data_name}")
    data = StandardImages(data_name, shape=[1, 28, 28], num_classes=10)
    extractor = load_extractor(name)
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    ids = torch.from_numpy(subset(len(data.source("test")), 2000))
    rows = data.source("test").batch(ids, torch.zeros_like(ids))
    right = extractor.features(rows["image"])["logits"].argmax(1) == rows["label"]
    expected = card["test"]["accuracy"]
    deviation = math.sqrt(expected * (1 - expected) / 2000)
    assert right.double().mean().item() == pytest.approx(expected, abs=4 * deviation)
    assert data.manifest.splits["test"]["sha256"] == card["data"]["test"]


# ---- Inception


def test_inception_folded() -> None:
    """Batch norm in the convolutions changes nothing but rounding; weights and statistics are random here."""
    torch.manual_seed(0)
    plain, folded = _Inception().eval(), _Inception().eval()
    generator = torch.Generator().manual_seed(1)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            for values in (module.weight, module.bias, module.running_mean):
                assert values is not None
                nn.init.uniform_(values, 0.5, 1, generator=generator)
    folded.load_state_dict(plain.state_dict())
    folded.fold()
    images = blobs(torch.arange(2), channels=3, size=32)
    with torch.no_grad():
        expected, found = plain(images), folded(images)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for a, b in zip(expected, found, strict=True):  # features, logits
        assert a.std() > 1e-3 * a.abs().max() > 0
        assert (a - b).abs().max() < 1e-5 * a.abs().max()


@pytest.mark.data
def test_inception_fast() -> None:
    """With the real weights: features within 1e-4 of torch-fidelity's path; a name and a batch of its own."""
    try:
        plain, fast = load_extractor("inception-v3-compat", batch=4), load_extractor("inception-v3-compat-fast")
    except ConfigError as error:
        pytest.skip(str(error))
    assert (fast.name, fast.batch, fast.sha256) == ("inception-v3-compat-fast", 20, plain.sha256)
    assert load_extractor("inception-v3-compat-fast", batch=7).batch == 7
    images = blobs(torch.arange(4), channels=3, size=32)
    a, b = plain.features(images)["features"], fast.features(images)["features"]
    assert a.shape == (4, 2048)
    assert 0 < (a - b).abs().max() < 1e-4
    assert a.std() > 0.1


# ---- DINOv2 and CLIP


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of random weights, as transformers saves them."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "intermediate_size": 64, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    text = {**small, "intermediate_size": 64, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    models = {
        "dinov2": Dinov2Model(Dinov2Config(**small, image_size=70, patch_size=14)),
        "clip": clip,
        "clip_vision": CLIPVisionModelWithProjection(clip.config.vision_config),
    }
    folder = tmp_path_factory.mktemp("hub")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def resized_by_pillow(images: Tensor, width: int, height: int) -> Tensor:
    """uint8 [N, 3, H, W] -> uint8 [N, 3, height, width]."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    arrays = [np.array(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def test_dinov2(folders: dict[str, Path]) -> None:
    """The class token of transformers' own forward; images resized as by Pillow, but for single grey levels."""
    from transformers import Dinov2Model

    noisy = torch.randint(0, 256, (5, 3, 40, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_extractor("dinov2", path=str(folders["dinov2"]), batch=3)
    rows = extractor.features(noisy)
    assert set(rows) == {"features"}
    assert rows["features"].shape == (5, 32)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = extractor.network.pixels(noisy)
    grey = (pixels * deviation + mean) * 255
    difference = (grey - resized_by_pillow(noisy, 224, 224)).abs()
    assert difference.max() < 2.01
    assert (difference > 0.01).double().mean() < 0.02
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(folders["dinov2"]).eval()(pixel_values=pixels).last_hidden_state[:, 0]
    assert torch.allclose(rows["features"], expected, atol=1e-5)
    assert expected.std(0).min() > 1e-4  # the images differ for it


@pytest.mark.parametrize("folder", ["clip", "clip_vision"])
@pytest.mark.parametrize("size", [(40, 64), (64, 40), (20, 20), (32, 32)])
def test_clip(folders: dict[str, Path], folder: str, size: tuple[int, int]) -> None:
    """transformers' own image processor and forward."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    noisy = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_extractor("clip", path=str(folders[folder]), batch=3)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(list(noisy), return_tensors="pt")["pixel_values"]
    assert torch.allclose(extractor.network.pixels(noisy), pixels, atol=1e-6)
    with torch.no_grad():
        expected = CLIPVisionModelWithProjection.from_pretrained(folders[folder]).eval()(pixel_values=pixels)
    assert torch.allclose(extractor.features(noisy)["features"], expected.image_embeds, atol=1e-5)


def test_hub_extractors(folders: dict[str, Path]) -> None:
    """Grey images are repeated, batches do not matter, the weights' sha256 is told."""
    grey = blobs(torch.arange(7))
    digests = set()
    for name in ("dinov2", "clip", "clip_vision"):
        extractor = load_extractor(name.removesuffix("_vision"), path=str(folders[name]), batch=4)
        assert isinstance(extractor, Extractor)
        whole = extractor.features(grey)["features"]
        assert torch.equal(whole, extractor.features(grey.expand(-1, 3, -1, -1))["features"])
        assert torch.equal(whole[5:], extractor.features(grey[5:])["features"])
        assert "bicubic" in extractor.resize
        assert (extractor.labels, extractor.has_logits) == (0, False)
        digests.add(extractor.sha256)
    assert len(digests) == 3
    assert all(len(digest) == 64 for digest in digests)


def test_hub_extractors_refuse(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("dinov2", "clip"):
        with pytest.raises(ConfigError, match=r"set evaluation.extractor.path to the folder"):
            load_extractor(name)
    with pytest.raises(ConfigError, match=r"evaluation.extractor.path=.*no config.json and no model.safetensors"):
        load_extractor("clip", path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"evaluation.extractor=clip .*model_type is 'dinov2', expected clip or"):
        load_extractor("clip", path=str(folders["dinov2"]))
    damaged = shutil.copytree(folders["dinov2"], tmp_path / "damaged")
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"cannot be loaded as Dinov2Model"):
        load_extractor("dinov2", path=str(damaged))
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"the weights lack \d+ of Dinov2Model"):
        load_extractor("dinov2", path=str(damaged))
    (damaged / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json cannot be read"):
        load_extractor("dinov2", path=str(damaged))
