"""Drum hits: kits from an archive and a folder, classes from names, kits held out, onsets and ends; what cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_sound_classifier
from data_files import cache  # noqa: F401
from runs import compose_train, make_kits
from scipy.io import wavfile

from genlab.cli.build import build_data
from genlab.data.archive import unpack
from genlab.data.convert_sound import COPYRIGHT, DRUM_MEMBERS, DRUMKITS, drum_hits
from genlab.data.drum_hits import CLASSES, DecodeHit, DrumHits, class_of
from genlab.data.registry import DATASETS
from genlab.errors import ConfigError, DataError
from genlab.evaluation import load_extractor
from genlab.evaluation.sounds import SoundCNN

RATE = 8000
MILLO = ["Millo_MultiLayered2", "Millo_MultiLayered3", "Millo-Drums_v.1"]
XML = "<drumkit_info{}><instrumentList>{}</instrumentList></drumkit_info>"
NAMESPACE = ' xmlns="http://www.hydrogen-music.org/drumkit"'


def hit(hertz: float, silence: int = 0, length: int = 400) -> np.ndarray:
    """Silence, and a sine that begins at its peak and decays."""
    i = np.arange(length)
    return np.concatenate([np.zeros(silence), 0.8 * np.cos(2 * np.pi * hertz * i / RATE) * np.exp(-i / 300)])


def write_kit(folder: Path, instruments: dict[str, list[str]], first: float, namespace: str = "") -> None:
    """A kit in which each file is a hit of its own; a file of no instrument is under ""."""
    folder.mkdir(parents=True)
    rows = ""
    for i, (name, files) in enumerate(instruments.items()):
        layers = "".join(f"<layer><filename>{file}</filename></layer>" for file in files)
        rows += f"<instrument><name>{name}</name>{layers}</instrument>" if name else ""
        for k, file in enumerate(files):
            values = hit(first + 40 * i + 7 * k, silence=100)
            wavfile.write(folder / file, RATE, (values * 32767).astype("<i2"))
    (folder / "drumkit.xml").write_text(XML.format(namespace, rows))


def kits(root: Path) -> Path:
    write_kit(root / "One", {"Kick": ["a.wav", "b.wav"], "Closed HH": ["c.wav"], "": ["tom-hi.wav", "fx.wav"]}, 200)
    write_kit(root / "Two 1.0", {"c3 - bass drum 1": ["a.wav"], "Side Stick": ["b.wav"]}, 400, NAMESPACE)
    write_kit(root / "Three", {"Snare Rimshot": ["a.wav"], "17": ["HandClap-Hard.wav"]}, 600)
    return root


def drums(path: Path | None, **options: Any) -> DrumHits:
    defaults: dict[str, Any] = {"test_kits": ["Two 1.0"], "val_kits": ["Three"], "samples": 600, "sample_rate": RATE,
                                "batch_size": 2}  # fmt: skip
    data = DrumHits("drum_hits", path=None if path is None else str(path), **defaults | options)
    data.setup()
    return data


def labels(data: DrumHits, split: Any) -> dict[str, str]:
    known = data.source(split).known["label"].tolist()
    return {fact["file"]: list(CLASSES)[label] for fact, label in zip(data.facts(split), known, strict=True)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Kick (Tama Superstar 22\")"], "kick"), (["BassDrum"], "kick"), (["17", "PowR_BD_1"], "kick"),
        (["Pearl Snare Rimshot"], "snare"), (["redo super opaco", "snare-opaque-1"], "snare"),
        (["Hi-Hat Closed (Paiste Alpha)"], "hat"), (["Side OHH"], "hat"), (["", "closehihat3"], "hat"),
        (["tomhi2"], "tom"), (["Stick", "tom-0105"], "stick"), (["Rim Click"], "stick"), (["Hand Clap"], "other"),
        (["Paiste Bell"], "cymbal"), (["ride-cup"], "cymbal"), (["Crash/Ride Bow"], "cymbal"), (["Cowbell"], "other"),
        (["a4 - ", "beats_08-33"], None), (["Drum 1"], None), (["Custom"], None), ([], None),
    ],
)  # fmt: skip
def test_the_class_is_what_the_first_telling_name_says(names: list[str], expected: str | None) -> None:
    label = class_of(names)
    assert (None if label is None else list(CLASSES)[label]) == expected


def test_whole_kits_are_held_out_and_what_no_name_tells_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = drums(kits(tmp_path / "kits"))
    assert labels(data, "train") == {
        "One/a.wav": "kick", "One/b.wav": "kick", "One/c.wav": "hat", "One/tom-hi.wav": "tom",
    }  # fmt: skip
    assert labels(data, "test") == {"Two 1.0/a.wav": "kick", "Two 1.0/b.wav": "stick"}
    assert labels(data, "val") == {"Three/HandClap-Hard.wav": "other", "Three/a.wav": "snare"}
    assert data.manifest.filter["dropped"] == {"unnamed": 1, "duplicate": 0}
    assert "left out, no name tells what is hit: One/fx.wav" in capsys.readouterr().out
    assert data.manifest.facts["hits"]["train"] == dict.fromkeys(CLASSES, 0) | {"kick": 2, "hat": 1, "tom": 1}
    batch = next(iter(data.batches(data.train_loader(0, 2))))
    assert {*batch} == {"id", "position", "audio", "label"}
    assert batch["audio"].shape == (2, 1, 600)


def test_equal_hits_are_left_out_of_train_first(tmp_path: Path) -> None:
    root = kits(tmp_path / "kits")
    shutil.copy(root / "Two 1.0" / "a.wav", root / "One" / "a.wav")  # of test
    shutil.copy(root / "One" / "c.wav", root / "One" / "HH_again.wav")
    data = drums(root)
    assert {*labels(data, "train")} == {"One/b.wav", "One/HH_again.wav", "One/tom-hi.wav"}
    assert "Two 1.0/a.wav" in labels(data, "test")
    assert data.manifest.filter["dropped"]["duplicate"] == 2


def test_a_hit_begins_with_its_onset_and_fades_where_it_is_cut(tmp_path: Path) -> None:
    values = hit(300, silence=1000, length=2000)
    wavfile.write(tmp_path / "a.wav", RATE, (values * 32767).astype("<i2"))
    whole = DecodeHit(RATE, 1, True, 0.01, 5000)(tmp_path / "a.wav")[0]
    lead = 16  # 2 ms
    assert whole[:lead].tolist() == [0] * lead
    assert whole[lead:] == pytest.approx(values[1000:], abs=1e-4)
    cut = DecodeHit(RATE, 1, True, 0.01, 800)(tmp_path / "a.wav")[0]
    assert len(cut) == 800
    assert (cut[:640] == whole[:640]).all()  # 20 ms are 160 samples
    assert cut[640:] == pytest.approx(whole[640:800] * np.linspace(1, 0, 160), abs=1e-6)


def test_a_deb_becomes_the_pinned_archive(tmp_path: Path) -> None:
    """The builder's archive has sounds, kits' descriptions and the copyright, the same bytes each time."""
    package = tmp_path / "package"
    kits(package / DRUMKITS)
    (package / DRUMKITS / "One" / "demo.h2song").write_text("song")
    (package / "DEBIAN").mkdir()
    (package / COPYRIGHT).parent.mkdir(parents=True)
    (package / COPYRIGHT).write_text("GPL")
    control = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: me <me@example.org>\nDescription: toy\n"
    (package / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", str(package), str(tmp_path / "toy.deb")]
    subprocess.run(command, check=True, capture_output=True)
    contents = []
    members = [name for name in DRUM_MEMBERS if not name.endswith((".flac", ".aiff"))]  # this one has WAV only
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        unpack(tmp_path / "toy.deb", tmp_path / name, members, 10**7)
        (tmp_path / name / "made").mkdir()
        drum_hits(tmp_path / name, tmp_path / name / "made")
        contents.append((tmp_path / name / "made" / "kits.tar").read_bytes())
    assert contents[0] == contents[1]
    with tarfile.open(tmp_path / "x" / "made" / "kits.tar") as tar:
        names = tar.getnames()
    assert names == sorted(names)
    assert {"One/a.wav", "One/drumkit.xml", "copyright"} < {*names}
    assert "One/demo.h2song" not in names
    assert drums(tmp_path / "x" / "made" / "kits.tar").manifest == drums(package / DRUMKITS).manifest
    (route,) = DATASETS["drum_hits"].routes
    assert (route.get, route.members) == ("apt:hydrogen-drumkits", DRUM_MEMBERS)


def test_its_judge_is_trained_on_train_and_hears_the_whole_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_kits(tmp_path / "kits", ["own", *MILLO, "ColomboAcousticDrumkit", "Audiophob"], 7, 4000, count=64)
    command = ["train_sound_classifier.py", "drum-hits-cnn", "--path", str(root), "--out", str(tmp_path), "--epochs=1"]
    monkeypatch.setattr("sys.argv", command)
    assert train_sound_classifier.main() == 0
    judge = load_extractor("drum-hits-cnn", path=str(tmp_path / "drum-hits-cnn.safetensors"))
    assert judge.labels == len(CLASSES)
    card = json.loads((tmp_path / "drum-hits-cnn.json").read_text())
    assert (card["data"]["name"], card["recipe"]["data"]) == ("drum_hits", "drum_hits")
    assert card["architecture"]["high"] == 11025
    i = torch.arange(8192) / 22050
    tones = torch.stack([0.3 * torch.sin(2 * torch.pi * hertz * i) for hertz in (7000, 9000)])[:, None]
    for high, differ in ((11025.0, True), (4000.0, False)):
        log_mels = SoundCNN(high=high).mel(tones)[..., 4:-4]  # without the clicks at the ends
        assert ((log_mels[0] - log_mels[1]).abs().max() > 4) == differ


@pytest.mark.faults(19)
def test_refused_settings_and_kits(tmp_path: Path) -> None:
    root, silent, broken = (kits(tmp_path / name) for name in ("kits", "silent", "broken"))
    wavfile.write(silent / "One" / "a.wav", RATE, np.zeros(500, "<i2"))
    (broken / "Two 1.0" / "drumkit.xml").write_text("<drumkit_info>")
    (tmp_path / "empty").mkdir()
    for path, options, kind, words in (
        (root, {"test_kits": ["Four"]}, ConfigError, "data.test_kits: .* has no kit Four; there are: One, Three, T"),
        (tmp_path / "empty", {}, ConfigError, "has no kit Two 1.0; there are: none"),
        (root, {"val_kits": ["Two 1.0"]}, ConfigError, "Two 1.0 is in both; take it out of one"),
        (root, {"test_kits": ["One", "Two 1.0"]}, ConfigError, "no hit is left for train; set data.val_kits and data"),
        (root, {"num_classes": 5}, ConfigError, "data.num_classes=5: there are 7, kick, snare, "),
        (root, {"val_kits": [], "test_kits": []}, ConfigError, "validation has 0 items, .*; set data.val_fraction=0.1"),
        (tmp_path / "gone", {}, ConfigError, r"gone: no such archive or folder \(data\.path\); null fetches"),
        (broken, {}, DataError, r"drumkit\.xml: no XML \(no element found.*\); repair or remove it"),
        (silent, {}, DataError, r"a\.wav: no sample is above 0\.0001; remove it; data\.faulty=drop leaves it out"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words) as caught:
            drums(path, **options)
        assert "\n" not in str(caught.value)
    assert drums(silent, faulty="drop").manifest.filter["dropped"]["silent"] == 1
    assert len(drums(root, val_kits=[], test_kits=[], val_fraction=0.25).source("val")) == 2
    (broken / "Two 1.0" / "drumkit.xml").unlink()  # as the message says
    assert len(drums(broken, test_kits=["Three"], val_kits=[]).source("train")) == 4


def test_the_shipped_configuration(tmp_path: Path) -> None:
    root = kits(tmp_path / "kits")
    options = ["data=drum_hits", f"data.path={root}", "data.test_kits=[Two 1.0]", "data.val_kits=[Three]",
               "data.batch_size=2", "data.num_workers=0", "model=mel_diffusion", "model.num_speakers=null"]  # fmt: skip
    data = build_data(compose_train(options))
    data.setup()
    assert data.source("train").batch(torch.arange(1), torch.zeros(1, dtype=torch.int64))["audio"].shape == (
        1,
        1,
        16384,
    )
    assert data.manifest.facts["classes"] == list(CLASSES)
