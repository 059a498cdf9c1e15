"""The judge of spoken digits: its card, its features, what it refuses, and how its training varies a sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train_sound_classifier import Recipe, augment, hide

from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation import load_extractor
from genlab.evaluation.extractors import WEIGHTS
from genlab.evaluation.sounds import SoundExtractor

NAME = "spoken-digits-cnn"


@pytest.fixture(scope="module")
def judge() -> SoundExtractor:
    extractor = load_extractor(NAME, batch=4)
    assert isinstance(extractor, SoundExtractor)
    return extractor


def tones(n: int = 7) -> Tensor:
    i = torch.arange(8192) / 22050
    return torch.stack([0.3 * torch.sin(2 * torch.pi * (200 + 90 * k) * i) for k in range(n)])[:, None]


def test_the_card() -> None:
    card = json.loads((WEIGHTS / f"{NAME}.json").read_text())
    assert (WEIGHTS / f"{NAME}.safetensors").stat().st_size < 1_000_000
    assert card["test"]["accuracy"] >= 0.97
    assert card["command"] == f"python scripts/train_sound_classifier.py {NAME}"


def test_features_do_not_depend_on_batching(judge: SoundExtractor) -> None:
    sounds = tones()
    whole = judge.features(sounds)
    assert {name: (rows.dtype, *rows.shape) for name, rows in whole.items()} == {
        "features": (torch.float32, 7, 128), "logits": (torch.float32, 7, 10),
    }  # fmt: skip
    assert (judge.labels, judge.sample_rate) == (10, 22050)
    for name, rows in whole.items():
        assert torch.equal(torch.cat([judge.features(part)[name] for part in sounds.split(3)]), rows)
    stereo = judge.features(sounds.expand(-1, 2, -1))
    assert torch.equal(stereo["logits"], whole["logits"])
    assert not whole["features"][0].allclose(whole["features"][6], atol=0.1)


@pytest.mark.parametrize(
    ("sounds", "words"),
    [
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8), r"takes sounds, .* these are uint8 \[2, 1, 28, 28\]"),
        (torch.zeros(2, 9000), r"these are float32 \[2, 9000\]: choose another extractor"),
        (torch.zeros(2, 1, 2000), "with T at least 2048; these have 2000: pad them"),
    ],
)
def test_it_refuses_what_is_no_sound(judge: SoundExtractor, sounds: Tensor, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge.features(sounds)


def test_it_refuses_other_weights(tmp_path: Path) -> None:
    for suffix in ("safetensors", "json"):
        content = bytearray((WEIGHTS / f"{NAME}.{suffix}").read_bytes())
        content[-5] ^= suffix == "safetensors"
        (tmp_path / f"{NAME}.{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"train it again: python scripts/train_sound_classifier\.py {NAME}"):
        load_extractor(NAME, path=str(tmp_path / f"{NAME}.safetensors"))


def test_training_varies_each_sound_and_hides_a_part() -> None:
    recipe, sounds = Recipe(), tones(3)
    one, two, again = (augment(sounds, recipe, torch.Generator().manual_seed(seed)) for seed in (1, 2, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert one.shape == sounds.shape
    assert one.abs().max() <= 1
    log_mels = torch.randn(20, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    hidden = hide(log_mels, recipe, torch.Generator().manual_seed(0)) != log_mels
    assert hidden.any((1, 2, 3)).sum() > 10
    rows, columns = hidden.all(3)[:, 0].sum(1), hidden.all(2)[:, 0].sum(1)
    assert rows.max() <= recipe.bands
    assert columns.max() <= recipe.frames
    assert torch.equal(hidden, hidden.all(3, keepdim=True) | hidden.all(2, keepdim=True))


@pytest.mark.data
def test_accuracy_on_the_official_test_split() -> None:
    from genlab.data.audio import SpokenDigits
    from genlab.data.fetch import present

    if not present("spoken_digits"):
        pytest.skip("spoken_digits is not in the cache: python scripts/fetch_data.py spoken_digits")
    data = SpokenDigits("spoken_digits", samples=16384, sample_rate=22050, num_classes=10)
    rows = data.source("test").batch(torch.arange(300), torch.zeros(300, dtype=torch.int64))
    right = load_extractor(NAME).features(rows["audio"])["logits"].argmax(1) == rows["label"]
    card = json.loads((WEIGHTS / f"{NAME}.json").read_text())
    assert right.double().mean().item() == pytest.approx(card["test"]["accuracy"], abs=0.007)
    assert data.manifest.splits["test"]["sha256"] == card["data"]["test"]
