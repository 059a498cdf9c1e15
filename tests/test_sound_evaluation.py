"""Sounds judged: Frechet distance by named features, judges by condition, recognition, nearest clips, round trips."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from test_sound_judge import tones
from torch import Tensor

from genlab.conditions import Label
from genlab.data.clips import Clips
from genlab.data.manifest import Manifest
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate, evaluate_samples, load_extractor
from genlab.evaluation.judged import items_from
from genlab.evaluation.metrics import (
    FID,
    FrechetAudio,
    Items,
    JudgedAs,
    NearestSounds,
    Recognition,
    SoundReconstruction,
)
from genlab.evaluation.metrics.base import measure
from genlab.evaluation.metrics.sounds import mel_distances, si_sdr
from genlab.evaluation.recognition import Recogniser, recogniser
from genlab.evaluation.reference import at_rate
from genlab.evaluation.sound_files import SoundFolder
from genlab.modality import Audio, Image
from genlab.models.base import GenerativeModel
from genlab.networks.mel import LogMel

CPU = torch.device("cpu")
RATE, T = 22050, 4096
DIGITS, SPEAKERS = "spoken-digits-cnn", "spoken-speakers-cnn"


class Speaker(Label):
    name = "speaker"


def voices(seeds: Tensor, tone: Tensor, rate: int = RATE, length: int = T) -> Tensor:
    """A tone of its own pitch for each of `tone`, with noise that is the seed's: float32 [N, 1, length]."""
    i = torch.arange(length) / rate
    noise = [torch.randn(length, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return (0.3 * torch.sin(2 * torch.pi * (150 + 60 * tone[:, None]) * i) + 0.02 * torch.stack(noise))[:, None]


class Data:
    """Tones as digits by speakers, in the place of a data set."""

    def __init__(self, rate: int = RATE, known: tuple[str, ...] = ("label", "speaker"), speakers: int = 6) -> None:
        self.clips = {split: self._clips(first, rate, known) for split, first in (("train", 1000), ("test", 2000))}
        facts = {"shape": [1, T], "sample_rate": rate, "num_classes": 10, "num_speakers": speakers}
        splits = {split: {"count": 20, "sha256": f"{split}{rate}{known}"} for split in self.clips}
        self.manifest = Manifest("tones", "audio", facts, splits)

    def _clips(self, first: int, rate: int, known: tuple[str, ...]) -> Clips:
        n = torch.arange(20)
        rows = {"label": n % 10, "speaker": n % 6}
        sounds = voices(n + first, n % 10, rate).flatten()[:, None]
        spans = torch.stack([n * T, torch.full_like(n, T)])
        return Clips(sounds, spans, T, {name: rows[name] for name in known}, [{"file": f"{i}"} for i in n], "tones")

    def source(self, split: str) -> Clips:
        return self.clips[split]

    def finish(self, batch: dict[str, Tensor], split: str) -> dict[str, Tensor]:
        return batch


class Singer(GenerativeModel):
    """Sings the tone of a label; gives back what it hears at half the loudness."""

    chunk_size = 4

    def __init__(self, conditions: tuple[Any, ...] = (Label(10), Speaker(6)), rate: int = RATE) -> None:
        super().__init__()
        self.conditions, self.modality = conditions, Audio(rate)

    def losses(self, batch: Any) -> Any:
        raise AssertionError("it is not trained")

    def generate(self, seeds: Tensor, condition: Any, sampler: Any) -> Tensor:
        told = (condition or {}).get("label", seeds % 10)
        return voices(seeds, told, self.modality.sample_rate)  # type: ignore[attr-defined]

    def reconstruct(self, batch: Any) -> tuple[Tensor, Tensor]:
        return batch["audio"], batch["audio"] / 2


class Layered(Singer):
    """A codec of two levels: all that is lost is lost by the second."""

    levels = 2

    def reconstruct(self, batch: Any, levels: int | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        hiss = torch.randn(batch["audio"].shape, generator=torch.Generator().manual_seed(1))
        return batch["audio"], batch["audio"] + (0.1 * hiss if levels == 1 else 0)


class Mute(Singer):
    """Has no way back."""

    reconstruct = None  # type: ignore[assignment]


class Draws(GenerativeModel):
    """Makes pictures."""

    modality = Image()

    def losses(self, batch: Any) -> Any:
        raise AssertionError("it is not trained")

    def generate(self, seeds: Tensor, condition: Any, sampler: Any) -> Tensor:
        return torch.zeros(len(seeds), 1, 8, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


def protocol(metrics: dict[str, Any], **options: Any) -> Protocol:
    return Protocol(**{"metrics": metrics, "n": 20, "extractor": DIGITS, "floor": False, **options})


def values(record: dict[str, Any]) -> dict[str, float]:
    """By the first part of their names."""
    return {name.partition("_20_")[0].removesuffix("_test"): value for name, value in record["values"].items()}


def judged_as() -> dict[str, Any]:
    return {"label_accuracy": JudgedAs("label", DIGITS), "speaker_accuracy": JudgedAs("speaker", SPEAKERS)}


# ---- the distance


def test_frechet_distance_of_gaussians() -> None:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 sqrt(C1 C2)) of diagonal covariances, by hand: sum of (m1 - m2)^2 + (s1 - s2)^2."""
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # moments exactly 0 and 1
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, -2.0])
    one, two = Items(features=x.float()), Items(features=(x * scale + shift).float())
    found = measure({"frechet_audio": FrechetAudio(), "fid": FID()}, one, two).values
    assert found["frechet_audio"] == pytest.approx(5 + 0 + 1 + 0.25, rel=1e-4)
    assert found["frechet_audio"] == found["fid"]


def test_the_value_carries_the_name_of_the_features_and_its_floor() -> None:
    data = Data()
    record = evaluate(Singer(), data, protocol({"frechet_audio": FrechetAudio()}, floor=True), progress=False)
    name = f"frechet_audio_20_test_{DIGITS}.proxy"
    assert list(record["values"]) == list(record["floor"]["values"]) == [record["name"]] == [name]
    assert record["floor"]["samples"]["split"] == "train"
    assert record["extractor"]["name"] == DIGITS
    sounds = {split: data.source(split).batch(torch.arange(20), torch.zeros(20))["audio"] for split in data.clips}
    features = {split: load_extractor(DIGITS).features(rows)["features"] for split, rows in sounds.items()}
    by_hand = measure({"fid": FID()}, Items(features=features["train"]), Items(features=features["test"])).values["fid"]
    assert record["floor"]["values"][name] == pytest.approx(by_hand, rel=1e-6)
    with pytest.raises(ConfigError, match=r"extractor.name=null: frechet_audio says by which features"):
        protocol({"frechet_audio": FrechetAudio()}, extractor=None)


def test_a_model_of_another_rate_is_heard_as_it_sounds() -> None:
    """16,000 Hz against 22,050: nearly the value of a model of the data's rate; and of other tones another."""
    near = [
        values(evaluate(Singer(rate=rate), Data(), protocol({"frechet_audio": FrechetAudio()}), progress=False))
        for rate in (RATE, 16000)
    ]
    shifted = Singer(conditions=())
    shifted.generate = lambda seeds, condition, sampler: voices(seeds, seeds % 10 + 20)  # type: ignore[method-assign]
    other = values(evaluate(shifted, Data(), protocol({"frechet_audio": FrechetAudio()}), progress=False))
    assert abs(near[0]["frechet_audio"] - near[1]["frechet_audio"]) < 0.3 * other["frechet_audio"]
    assert at_rate(tones(2), RATE, 16000).shape == (2, 1, -(-8192 * 16000 // RATE))


# ---- judges


def test_judges_by_condition() -> None:
    """Of each condition that the model was told, beside the real clips' share; what it was not told is missing."""
    data, found = Data(), {}
    heard = {name: load_extractor(judge) for name, judge in (("label", DIGITS), ("speaker", SPEAKERS))}
    record = evaluate(Singer(), data, protocol(judged_as()), progress=False)
    n = torch.arange(20)
    for name, told in (("label", n % 10), ("speaker", n % 6)):
        for kind, sounds in (("", voices(n, n % 10)), ("real_", voices(n + 2000, n % 10))):
            share = (heard[name].features(sounds)["logits"].argmax(1) == told).double().mean().item()
            found[f"{kind}{name}_accuracy"] = share
    assert values(record) == pytest.approx(found)
    mute = evaluate(Singer((Label(10),)), data, protocol(judged_as()), progress=False)
    assert values(mute)["speaker_accuracy"] is None
    assert values(mute)["real_speaker_accuracy"] == found["real_speaker_accuracy"]
    reason = "the sounds were not made for a speaker"
    assert mute["missing"] == {"speaker_accuracy_20_test.proxy": reason}


def test_the_card_of_the_speakers() -> None:
    from genlab.evaluation.extractors import WEIGHTS

    card = json.loads((WEIGHTS / f"{SPEAKERS}.json").read_text())
    assert (WEIGHTS / f"{SPEAKERS}.safetensors").stat().st_size < 600_000
    assert card["test"]["accuracy"] >= 0.97
    assert load_extractor(SPEAKERS).labels == card["architecture"]["classes"] == 6


# ---- recognition


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None, reason="pocketsphinx is not installed")
def test_silence_is_not_recognised() -> None:
    assert Recogniser(("one", "two")).words(torch.zeros(2, 1, 8192), RATE) == ["", ""]
    with pytest.raises(ConfigError, match="does not know the word 'zwei'; give English words"):
        Recogniser(("one", "zwei"))
    silent = Singer()
    silent.generate = lambda seeds, condition, sampler: torch.zeros(len(seeds), 1, T)  # type: ignore[method-assign]
    record = evaluate(silent, Data(), protocol({"recognition": Recognition()}), progress=False)
    assert values(record)["recognition"] == 0
    assert values(record)["real_recognition"] is not None


def test_without_pocketsphinx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    recogniser.cache_clear()
    with pytest.raises(ConfigError, match=r'recognition needs pocketsphinx: pip install "genlab\[audio\]"'):
        evaluate(Singer(), Data(), protocol({"recognition": Recognition()}), progress=False)


# ---- copies


def test_copies_are_told(tmp_path: Path) -> None:
    """Clips of the training split itself: distance 0, ratio 0, all near duplicates; held-out ones in the floor not."""
    data, metrics = Data(), {"nearest_sounds": NearestSounds()}
    record = evaluate_samples(
        lambda wanted: items_from(data, "train", wanted), data, protocol(metrics, reference_split="train", floor=True),
        device=CPU, progress=False, picture=tmp_path / "closest.png",
    )  # fmt: skip
    copied, new = values(record), values(record["floor"])
    assert (copied["near_duplicates"], copied["nearest_ratio"], copied["nearest_distance"]) == (1, 0, 0)
    assert copied["authenticity"] == 0
    assert new["near_duplicates"] < 0.5
    assert new["nearest_ratio"] > 0.3
    assert (tmp_path / "closest.png").is_file()
    assert (tmp_path / "closest.html").read_text().count("data:audio/wav") == 32


# ---- round trips


def test_si_sdr_of_a_known_mix() -> None:
    """Orthogonal noise of a tenth of the power: 10 dB at any loudness (Le Roux et al. 2019, equation 4)."""
    clean = torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat(1000)[None, None]
    noise = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(1000)[None, None] * 0.1**0.5
    for gain in (1, 0.1):
        assert si_sdr(gain * (clean + noise), clean).item() == pytest.approx(10, abs=1e-3)


def test_mel_distance_of_a_known_gain() -> None:
    """Half the magnitude is log 2 less, where the floor is not reached."""
    sound = 0.2 * torch.randn(2, 1, 8192, generator=torch.Generator().manual_seed(0))
    found = mel_distances(LogMel(), sound / 2, sound)
    assert torch.allclose(found["mel_distance_loud"], torch.full((2,), np.log(2), dtype=torch.float64), atol=1e-4)
    assert mel_distances(LogMel(), sound, sound)["mel_distance"].tolist() == [0, 0]


def test_a_round_trip() -> None:
    own = Protocol(metrics={"sound_reconstruction": SoundReconstruction()}, reference_split="test")
    record = evaluate(Singer(), Data(), own, progress=False)
    assert record["name"] == "sound_reconstruction_test"
    found = values(record)
    assert set(found) == {"si_sdr", "mel_distance", "mel_distance_loud", "label_accuracy", "real_label_accuracy"}
    assert found["si_sdr"] > 60  # nothing but loudness has changed
    assert found["mel_distance_loud"] == pytest.approx(np.log(2), abs=1e-3)
    back = protocol({"frechet_audio": FrechetAudio(), **judged_as()}, judged="reconstructions")
    judged = evaluate(Singer(), Data(), back, progress=False)
    assert judged["name"] == f"rfrechet_audio_20_test_{DIGITS}.proxy"
    assert judged["values"]["rspeaker_accuracy_20_test.proxy"] is not None


def test_a_round_trip_at_fewer_levels() -> None:
    few = SoundReconstruction(judge=None, levels=[1])
    found = values(
        evaluate(
            Layered(), Data(), Protocol(metrics={"sound_reconstruction": few}, reference_split="test"), progress=False
        )
    )
    assert list(found) == [*few.outputs]
    assert found["si_sdr"] > 60 > 20 > found["si_sdr_1_levels"]
    assert found["mel_distance_1_levels"] > found["mel_distance"]
    for model, count, words in ((Layered(), 3, "levels: 3, but the model has 1 to 2"), (Singer(), 1, "model has none")):
        wrong = Protocol(
            metrics={"sound_reconstruction": SoundReconstruction(judge=None, levels=[count])}, reference_split="test"
        )
        with pytest.raises(ConfigError, match=words):
            evaluate(model, Data(), wrong, progress=False)


# ---- files


def write(folder: Path, classes: bool = True, rate: int = RATE) -> Path:
    """The 20 sounds that Singer makes under evaluation seed 0."""
    n = torch.arange(20)
    for i, sound in enumerate(voices(n, n % 10, rate)):
        at = folder / f"{i % 10}" if classes else folder
        at.mkdir(parents=True, exist_ok=True)
        Audio(rate).save(at / f"{i:03d}", sound, {})
    return folder


def test_files_give_the_values_of_the_model_that_made_them(tmp_path: Path) -> None:
    data, metrics = Data(), {"frechet_audio": FrechetAudio(), "label_accuracy": JudgedAs("label", DIGITS)}
    expected = values(evaluate(Singer(), data, protocol(metrics), progress=False))
    folder = SoundFolder(write(tmp_path / "made"), data)
    record = evaluate_samples(
        lambda wanted: items_from(folder, "folder", wanted), data, protocol(metrics), device=CPU, progress=False
    )
    assert values(record) == pytest.approx(expected, rel=1e-2)  # 16 bits a sample
    assert record["generated"]["sha256"] == folder.manifest.identity("folder")
    alone = SoundFolder(write(tmp_path / "loose", classes=False, rate=16000))
    assert (alone.manifest.facts["sample_rate"], alone.manifest.facts["num_classes"]) == (16000, None)
    assert SoundFolder(tmp_path / "loose", data).source("folder").batch(torch.arange(2), torch.zeros(2))[
        "audio"
    ].shape == (2, 1, T)


def test_the_command(tmp_path: Path) -> None:
    """Files of another program against a data set, and against a second folder."""
    write(tmp_path / "made"), write(tmp_path / "real" / "train"), write(tmp_path / "real" / "test")
    own = ("evaluation=frechet_audio_300_test_spoken-digits-cnn.proxy", "evaluation.metrics.speaker_accuracy=null")
    data = ("data=audio_folder", "data.root=real", f"data.samples={T}", "data.num_classes=10",
            "data.val_fraction=0.2", "data.batch_size=8")  # fmt: skip
    done = command("evaluate.py", "samples=made", *data, *own, "out=r.json", folder=tmp_path)
    assert done.code == 0, done.output
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["values"][f"frechet_audio_20_test_{DIGITS}.proxy"] == pytest.approx(0, abs=1e-3)
    done = command("evaluate.py", "samples=made", "reference=real/test", *own, "out=f.json", folder=tmp_path)
    assert done.code == 0, done.output
    assert f"frechet_audio_20_folder_{DIGITS}.proxy" in json.loads((tmp_path / "f.json").read_text())["values"]


# ---- CLAP


def test_a_folder_of_clap(tmp_path: Path) -> None:
    import transformers

    audio = {
        "hidden_size": 8, "patch_embeds_hidden_size": 4, "depths": [1, 1], "num_attention_heads": [1, 2],
        "spec_size": 256, "num_mel_bins": 64, "window_size": 8, "patch_size": 4, "projection_dim": 8,
        "num_hidden_layers": 2,
    }  # fmt: skip
    text = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 8, "projection_dim": 8}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=8)
    transformers.ClapModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no preprocessor_config\.json"):
        load_extractor("clap", path=str(tmp_path))
    for truncation in ("fusion", "rand_trunc"):
        transformers.ClapFeatureExtractor(max_length_s=1, truncation=truncation).save_pretrained(tmp_path)
        if truncation == "fusion":
            with pytest.raises(ConfigError, match=r"truncation is 'fusion' in .*, enable_fusion is False in"):
                load_extractor("clap", path=str(tmp_path))
    extractor: Any = load_extractor("clap", path=str(tmp_path), batch=3)
    assert (extractor.sample_rate, extractor.has_logits) == (48000, False)
    whole = extractor.features(tones(4))["features"]
    assert whole.shape == (4, 8)
    assert torch.equal(whole[:1], extractor.features(tones(4)[:1])["features"])
    assert not torch.allclose(whole[0], whole[3])
    with pytest.raises(ConfigError, match=r"set evaluation.extractor.path to the folder of a Hugging Face ClapModel"):
        load_extractor("clap")
    choice = {"name": "clap", "path": str(tmp_path)}
    record = evaluate(Singer(), Data(), protocol({"frechet_audio": FrechetAudio()}, extractor=choice), progress=False)
    assert list(record["values"]) == ["frechet_audio_20_test_clap.proxy"]


# ---- what cannot be


@pytest.mark.parametrize(
    ("model", "data", "metrics", "options", "words"),
    [
        (Draws(), Data(), {"frechet_audio": FrechetAudio()}, {}, r"judges audio, the model makes image: choose"),
        (Singer(), Data(), {"fid": FID()}, {}, r"judges image, the model makes audio: choose another protocol"),
        (Singer(), Data(), {"frechet_audio": FrechetAudio()}, {"extractor": "mnist-cnn"}, r"mnist-cnn reads no sounds"),
        (Singer(rate=500), Data(), {"frechet_audio": FrechetAudio()}, {}, r"have 500 Hz, which cannot be resampled"),
        (Singer(), Data(known=("label",)), judged_as(), {}, r"the clips of tones have no speaker; leave it out with"),
        (Singer(), Data(speakers=7), judged_as(), {}, r"spoken-speakers-cnn tells 6 apart, tones has 7; leave it out"),
        (Singer(), Data(), {"a": JudgedAs("label", "mnist-cnn")}, {}, r"judge=mnist-cnn tells no sounds apart: take"),
        (Singer(), Data(), {"r": Recognition(("one", "two"))}, {}, r"a list of 2 words tells 2 apart, tones has 10"),
        (Singer(), Data(), {"frechet_audio": FrechetAudio()}, {"reference_split": "val"}, r"tones has only train"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(
    model: Any, data: Any, metrics: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        evaluate(model, data, protocol(metrics, **options), progress=False)
    assert "\n" not in str(told.value)


def test_data_of_another_modality() -> None:
    pictures = Data()
    pictures.manifest = replace(pictures.manifest, modality="image")
    with pytest.raises(ConfigError, match=r"compares with real items of what it judges, tones has image: choose"):
        evaluate(Singer(), pictures, protocol({"frechet_audio": FrechetAudio()}), progress=False)


def test_round_trips_that_cannot_be(tmp_path: Path) -> None:
    own = Protocol(metrics={"sound_reconstruction": SoundReconstruction()}, reference_split="test")
    with pytest.raises(ConfigError, match=r"have no label; leave it out with .*sound_reconstruction.judge=null"):
        evaluate(Singer(), Data(known=()), own, progress=False)
    with pytest.raises(ConfigError, match="Mute cannot give a sound reconstruction, it has no reconstruct"):
        evaluate(Mute(), Data(), own, progress=False)
    without = Protocol(metrics={"sound_reconstruction": SoundReconstruction(judge=None)}, reference_split="test")
    found = values(evaluate(Singer(), Data(known=()), without, progress=False))
    assert set(found) == {"si_sdr", "mel_distance", "mel_distance_loud"}
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "nothing", "expected a folder of sounds"), (tmp_path / "empty", "holds 0 sounds")):
        with pytest.raises(ConfigError, match=words):
            SoundFolder(path)
