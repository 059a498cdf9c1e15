"""Sets of sounds: folders, captions, spoken digits from archives made here; rates, crops, faults, exact resume."""

from __future__ import annotations

import io
import json
import tarfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import cache, same  # noqa: F401
from runs import compose_train
from scipy.io import wavfile

from genlab import sound
from genlab.cli.build import build_data
from genlab.data.audio import AudioData, AudioFolder, SpokenDigits
from genlab.data.clips import is_clipped, resampled
from genlab.data.convert_sound import spoken_digits
from genlab.data.registry import DATASETS
from genlab.errors import ConfigError, DataError

RATE = 8000


def tone(seconds: float = 0.1, hertz: float = 440, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """float [n, channels], the second channel half as loud."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave, wave / 2][:channels], 1)


def write(path: Path, values: np.ndarray | None = None, rate: int = RATE, kind: str = "<i2") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = tone(rate=rate) if values is None else values
    wavfile.write(path, rate, (values * 32767).round().astype(kind) if kind == "<i2" else values.astype(kind))
    return path


def folder_of(root: Path, per_class: int = 4) -> Path:
    """Class folders "high" and "low", each clip of another length and pitch."""
    for i in range(per_class):
        write(root / "low" / f"{i}.wav", tone(0.05 + 0.02 * i, 200 + 20 * i))
        write(root / "high" / f"{i}.wav", tone(0.05 + 0.02 * i, 1000 + 50 * i))
    return root


def audio_folder(root: Path, **options: Any) -> AudioFolder:
    defaults: dict[str, Any] = {"samples": 600, "sample_rate": RATE, "val_fraction": 0.25, "batch_size": 4}
    data = AudioFolder("mine", root=str(root), **defaults | options)
    data.setup()
    return data


def items(data: AudioData, split: Any) -> dict[str, torch.Tensor]:
    n = len(data.source(split))
    return data.source(split).batch(torch.arange(n), torch.zeros(n, dtype=torch.int64))


# ---- folders


def test_a_batch_of_a_folder(tmp_path: Path) -> None:
    data = audio_folder(folder_of(tmp_path / "a"), num_classes=2)
    batch = next(iter(data.batches(data.train_loader(0, 4))))
    assert {key: (value.dtype, *value.shape) for key, value in batch.items()} == {
        "id": (torch.int64, 4), "position": (torch.int64, 4), "label": (torch.int64, 4),
        "audio": (torch.float32, 4, 1, 600),
    }  # fmt: skip
    assert (len(data.source("train")), len(data.source("val"))) == (6, 2)
    assert data.source("test") is data.source("val")
    facts = data.manifest.facts
    assert facts == {"shape": [1, 600], "sample_rate": RATE, "num_classes": 2, "classes": ["high", "low"]}
    labels = [("high", "low").index(fact["file"].split("/")[0]) for fact in data.facts("train")]
    assert items(data, "train")["label"].tolist() == labels
    assert data.manifest.splits["train"]["longer"] == sum(fact["file"][-5] in "23" for fact in data.facts("train"))


def test_values_of_the_file_are_those_of_the_batch(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train" / "x.wav", np.array([[1.0], [-1.0], [0.0], [0.25]] * 50))
    write(tmp_path / "a" / "val" / "y.wav", tone(0.1))
    data = audio_folder(tmp_path / "a", val_fraction=0.0, samples=300, batch_size=1)
    audio = items(data, "train")["audio"][0, 0]
    assert audio[:4].tolist() == pytest.approx([1.0, -1.0, 0.0, round(0.25 * 32767) / 32767], abs=1e-7)
    assert (audio[200:] == 0).all()  # it is shorter: zeros after its end
    middle = items(data, "val")["audio"][0, 0]
    assert middle.numpy() == pytest.approx(tone(0.1)[250:550, 0], abs=1e-4)  # longer: its middle


def test_training_crops_are_drawn_by_seed_epoch_and_id(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "a", per_class=6)
    first, second, other = (audio_folder(root, samples=200, seed=seed) for seed in (1, 1, 2))
    ids = torch.arange(6)
    by_epoch = [first.source("train").batch(ids, torch.full((6,), epoch))["audio"] for epoch in (0, 1)]
    assert not torch.equal(*by_epoch)
    assert torch.equal(by_epoch[1], second.source("train").batch(ids, torch.full((6,), 1))["audio"])
    assert not torch.equal(by_epoch[1], other.source("train").batch(ids, torch.full((6,), 1))["audio"])
    alone = first.source("train").batch(ids[3:4], torch.ones(1, dtype=torch.int64))["audio"]
    assert torch.equal(alone[0], by_epoch[1][3])  # whatever else is in the batch
    for crop, fact in zip(by_epoch[1], first.facts("train")[:6], strict=True):
        whole = torch.from_numpy(wavfile.read(root / fact["file"])[1].astype(np.float32) / 32767)
        assert (whole.unfold(0, 200, 1) - crop[0]).abs().amax(1).min() < 1e-6


def test_it_goes_on_where_it_stopped_and_needs_not_be_resident(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "a")
    data, streamed = audio_folder(root, samples=200), audio_folder(root, samples=200, resident_max=0)
    whole = list(data.batches(data.train_loader(0, 24)))
    assert all(same(a, b) for a, b in zip(whole[3:], data.batches(data.train_loader(12, 24)), strict=True))
    assert all(same(a, b) for a, b in zip(whole, streamed.batches(streamed.train_loader(0, 24)), strict=True))


def test_channels_and_rates(tmp_path: Path) -> None:
    write(tmp_path / "a" / "0.wav", tone(0.1, channels=2))
    write(tmp_path / "a" / "1.wav", tone(0.1))
    write(tmp_path / "a" / "2.wav", tone(0.1, rate=22050), rate=22050)
    mono = audio_folder(tmp_path / "a", val_fraction=0.4, samples=800, batch_size=1)
    stereo = audio_folder(tmp_path / "a", val_fraction=0.4, samples=800, channels=2, batch_size=1)

    def by_file(data: AudioFolder) -> dict[str, np.ndarray]:
        return {
            fact["file"]: sound.numpy()
            for split in ("train", "val")
            for fact, sound in zip(data.facts(split), items(data, split)["audio"], strict=True)
        }

    one, two = by_file(mono), by_file(stereo)
    expected = tone(0.1)[:, 0]
    assert one["0.wav"][0] == pytest.approx(0.75 * expected, abs=1e-4)
    assert two["0.wav"] == pytest.approx(np.stack([expected, expected / 2]), abs=1e-4)
    assert two["1.wav"] == pytest.approx(np.stack([expected, expected]), abs=1e-4)
    # Of 22,050 Hz: the same tone, but for the ends, where the filter sees silence.
    assert one["2.wav"][0, 50:-50] == pytest.approx(expected[50:-50], abs=2e-3)


def test_resampling_keeps_a_tone_and_removes_what_the_rate_cannot_hold() -> None:
    low, high = tone(0.2, 1000, 22050)[:, 0], tone(0.2, 6000, 22050)[:, 0]
    down = resampled(np.stack([low, high]).astype(np.float32), 22050, RATE)
    assert down.shape == (2, 1600)
    assert down[0, 100:-100] == pytest.approx(tone(0.2, 1000)[100:-100, 0], abs=2e-3)
    assert np.abs(down[1, 100:-100]).max() < 2e-3
    again = resampled(np.stack([low, high]).astype(np.float32), 22050, RATE)
    assert (again == down).all()


def test_flac_and_ogg_are_read_where_soundfile_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "a").mkdir()
    for name in ("0.flac", "1.flac", "2.ogg"):
        soundfile.write(tmp_path / "a" / name, tone(0.1), RATE)
    write(tmp_path / "a" / "3.wav")
    data = audio_folder(tmp_path / "a", batch_size=1)
    assert len(data.source("train")) == 3
    monkeypatch.setattr(sound, "_soundfile", lambda: None)
    with pytest.raises(ConfigError, match=r'0\.flac: reading it needs soundfile: pip install "genlab\[audio\]"'):
        audio_folder(tmp_path / "a", shortest=0.03, batch_size=1)
    for path in (tmp_path / "a").glob("[0-2].*"):
        path.unlink()
    write(tmp_path / "a" / "4.wav")
    alone = audio_folder(tmp_path / "a", val_fraction=0.5, batch_size=1)
    assert items(alone, "val")["audio"][0, 0].numpy() == pytest.approx(tone(0.1)[100:700, 0], abs=1e-4)


# ---- captions


def test_captions_beside_and_in_a_table_are_the_same(tmp_path: Path) -> None:
    beside, table = tmp_path / "a", tmp_path / "b"
    rows = []
    for i in range(5):
        for root in (beside, table):
            write(root / f"{i}.wav", tone(0.05 + 0.01 * i))
        (beside / f"{i}.txt").write_text(f"tone {i}\n")
        rows.append({"file": f"{i}.wav", "caption": f"tone {i}"})
    (table / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"vocab_size": 12, "val_fraction": 0.4, "batch_size": 1}
    one = audio_folder(beside, captions="beside", **options)
    two = audio_folder(table, captions="words.jsonl", **options)
    batch = next(iter(one.batches(one.train_loader(0, 1))))
    assert {*batch} == {"id", "position", "audio", "caption"}
    text = one.tokenizer.decode(batch["caption"][0].tolist())
    assert text == f"tone {one.facts('train')[int(batch['id'])]['file'][0]}"
    assert same(batch, next(iter(two.batches(two.train_loader(0, 1)))))
    assert one.manifest.splits["train"]["captions"] == 3
    (beside / "3.txt").unlink()
    with pytest.raises(DataError, match=r"3\.wav: no 3\.txt beside it; write it; data\.faulty=drop leaves it out"):
        audio_folder(beside, captions="beside", **options)
    dropped = audio_folder(beside, captions="beside", faulty="drop", **options | {"vocab_size": 11})
    assert dropped.manifest.filter["dropped"] == {"no caption": 1}


# ---- bad input


def cut_short(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-300])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def bad_flac(path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(path, tone(0.1), RATE)
    path.write_bytes(path.read_bytes()[:60] + bytes(100))


def no_samples(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))


def not_a_number(path: Path) -> None:
    values = tone()
    values[7] = np.nan
    write(path, values, kind="<f4")


FAULTS = [
    ("broken", "x.wav", cut_short, r"x\.wav: cannot be read \(cut short: 1344 of 1644 bytes\); repair or remove it"),
    ("broken", "x.wav", garbage, r"x\.wav: cannot be read"),
    ("broken", "x.flac", bad_flac, r"x\.flac: cannot be read"),
    ("broken", "x.wav", lambda path: write(path, tone(), rate=2_000_000_011), "2000000011 Hz is no rate of a sound"),
    ("empty", "x.wav", no_samples, r"x\.wav: empty, 0 samples; remove it"),
    ("not finite", "x.wav", not_a_number, r"x\.wav: sample 7 is nan; repair or remove it"),
    ("beyond [-1, 1]", "x.wav", lambda path: write(path, 3 * tone(), kind="<f4"),
     r"x\.wav: floats up to 1\.\d+, beyond \[-1, 1\]; scale it down"),
    ("too short", "x.wav", lambda path: write(path, tone(0.01)),
     r"x\.wav: 0\.010 s \(80 samples\) are too short, 160 are the least; remove it or lower data\.shortest"),
    ("channels", "x.wav", lambda path: write(path, np.repeat(tone(), 3, 1)),
     r"x\.wav: 3 channels, data\.channels is 2; mix it down"),
]  # fmt: skip


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("extra", "cause", "name", "make", "words"),
    [(extra, *fault) for fault in FAULTS for extra in (True, False) if extra or fault[1] != "x.flac"],
)
def test_faults_are_named_or_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], extra: bool,
    cause: str, name: str, make: Any, words: str,
) -> None:  # fmt: skip
    root = folder_of(tmp_path / "a")
    make(root / "low" / name)
    if not extra:
        monkeypatch.setattr(sound, "_soundfile", lambda: None)
    with pytest.raises(DataError, match=words) as caught:
        audio_folder(root, samples=300, channels=2)
    assert str(caught.value).endswith("; data.faulty=drop leaves it out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "folders").glob("mine-*"))
    data = audio_folder(root, samples=300, channels=2, faulty="drop")
    assert data.manifest.filter["dropped"] == {cause: 1}
    assert sum(len(data.source(split)) for split in ("train", "val")) == 8
    assert f"mine: left out, {cause}: low/{name}" in capsys.readouterr().out
    again = audio_folder(root, samples=300, channels=2, faulty="drop")  # from the cache
    assert again.manifest == data.manifest


def test_loud_and_equal_clips_are_kept_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of(tmp_path / "a", per_class=2)
    write(root / "low" / "loud.wav", (3 * tone(0.06, 100)).clip(-1, 1))
    write(root / "low" / "twin.wav", tone(0.05, 200))
    data = audio_folder(root, val_fraction=0.2, batch_size=2)
    counts = [data.manifest.splits[split] for split in ("train", "val")]
    assert sum(count["clipped"] for count in counts) == 1
    assert sum(count["same_clips"] for count in counts) == 1
    out = capsys.readouterr().out
    assert "recorded too loud (clipped): low/loud.wav" in out
    assert "equal to one before them" in out
    assert not is_clipped(np.array([[1.0, 1.0, 0.0, 1.0, 1.0]]))
    assert is_clipped(np.array([[0.0, -1.0, -1.0, -1.0]]))


def test_refused_settings_and_folders(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "a")
    flat = tmp_path / "flat"
    write(flat / "0.wav")
    (tmp_path / "empty").mkdir()
    for where, options, words in (
        (root, {"sample_rate": 22050, "resample": False},
         r"\.wav: 8000 Hz, data\.sample_rate is 22050; set data\.resample=true or data\.sample_rate=8000"),
        (flat, {"num_classes": 10}, "flat has 0 class folders, data.num_classes is 10; set data.num_classes=null"),
        (root, {"num_classes": 3}, "a has 2 class folders, data.num_classes is 3; set data.num_classes=2"),
        (tmp_path / "empty", {}, r"empty: holds 0 clips \(\.flac, \.ogg, \.wav\) that can be read"),
        (tmp_path / "none", {}, "none: no such folder"),
        (root, {"val_fraction": 0.0}, "validation has 0 items, train 8; set data.val_fraction=0.1"),
        (root, {"channels": 3}, "data.channels is 3: must be >= 1 and <= 2"),
        (root, {"samples": 0}, "data.samples is 0: must be >= 1"),
        (root, {"captions": "words.txt"}, r"data\.captions=words\.txt: give a \.jsonl or a \.csv, or beside for"),
        (root, {"captions": "beside"}, "data.vocab_size=null: captions need a vocabulary"),
        (root, {"sample_rate": 0}, "data.sample_rate is 0: must be >= 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            audio_folder(where, **options)


# ---- spoken digits


def digits_archive(path: Path, prefix: str = "recordings/", speakers: tuple[str, ...] = ("ann", "bob")) -> Path:
    """Two digits by each speaker, indices 0 to 8."""
    with tarfile.open(path, "w:gz") as file:
        for digit in range(2):
            for s, speaker in enumerate(speakers):
                for index in range(9):
                    content = io.BytesIO()
                    values = tone(0.03 + 0.01 * index, 300 + 200 * digit + 90 * s + index)[:, 0]
                    wavfile.write(content, RATE, (values * 32767).astype("<i2"))
                    info = tarfile.TarInfo(f"{prefix}{digit}_{speaker}_{index}.wav")
                    info.size = len(content.getvalue())
                    content.seek(0)
                    file.addfile(info, content)
    return path


def digits(path: Path | None, **options: Any) -> SpokenDigits:
    defaults: dict[str, Any] = {"samples": 1000, "sample_rate": 16000, "num_classes": 10, "num_speakers": 2,
                                "val_fraction": 0.25, "batch_size": 4}  # fmt: skip
    data = SpokenDigits("spoken_digits", path=None if path is None else str(path), **defaults | options)
    data.setup()
    return data


def test_spoken_digits_have_the_official_split_labels_and_speakers(tmp_path: Path) -> None:
    data = digits(digits_archive(tmp_path / "x.tar.gz"))
    assert {split: len(data.source(split)) for split in ("train", "val", "test")} == {"train": 12, "val": 4, "test": 20}
    assert data.manifest.facts["speakers"] == ["ann", "bob"]
    for split in ("train", "val", "test"):
        known = items(data, split)
        for i, fact in enumerate(data.facts(split)):
            digit, speaker, index = Path(fact["file"]).stem.split("_")
            assert int(known["label"][i]) == int(digit)
            assert ("ann", "bob")[int(known["speaker"][i])] == speaker
            assert (int(index) < 5) == (split == "test")
    batch = next(iter(data.batches(data.train_loader(0, 4))))
    assert {*batch} == {"id", "position", "audio", "label", "speaker"}
    assert batch["audio"].shape == (4, 1, 1000)


def test_the_shipped_configurations(tmp_path: Path) -> None:
    """Beside a family that they do not fit, whose shape is given."""
    archive, root = digits_archive(tmp_path / "x.tar.gz"), folder_of(tmp_path / "a")
    for chosen in (["data=spoken_digits", f"data.path={archive}", "data.num_speakers=2"],
                   ["data=audio_folder", f"data.root={root}", "data.num_classes=2"]):  # fmt: skip
        options = [
            "data.batch_size=2",
            "data.num_workers=0",
            "model=ddpm",
            "model.shape=[1,8,8]",
            "model.network.channels=1",
        ]
        data = build_data(compose_train([*chosen, *options]))
        data.setup()
        batch = next(iter(data.batches(data.train_loader(0, 2))))
        assert batch["audio"].shape == (2, 1, 16384)
        assert data.manifest.facts["sample_rate"] == 22050


def test_spoken_digits_of_a_folder_are_those_of_the_archive(tmp_path: Path) -> None:
    archive = digits_archive(tmp_path / "x.tar.gz", prefix="free-spoken-digit-dataset-1.0.10/recordings/")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "folder", filter="data")
    assert digits(tmp_path / "folder").manifest == digits(archive).manifest


def test_spoken_digits_are_made_of_the_repositorys_archive(tmp_path: Path) -> None:
    """What the registry's builder makes is read as the archive is; two makings have the same bytes."""
    archive = digits_archive(tmp_path / "x.tar.gz", prefix="repo-1/recordings/")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        spoken_digits(tmp_path / "unpacked", tmp_path / name)
        contents.append((tmp_path / name / "recordings.tar").read_bytes())
    assert contents[0] == contents[1]
    made, whole = digits(tmp_path / "one" / "recordings.tar"), digits(archive)
    assert torch.equal(items(made, "test")["audio"], items(whole, "test")["audio"])
    assert DATASETS["spoken_digits"].routes[0].members[0].endswith("recordings/0_george_0.wav")
    assert len(DATASETS["spoken_digits"].routes[0].members) == 3000


@pytest.mark.faults(19)
def test_spoken_digits_refuse_what_they_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = digits_archive(tmp_path / "x.tar.gz")
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(archive.read_bytes()[:2000])
    for name in ("odd", "none", "test_only"):
        (tmp_path / name).mkdir()
    write(tmp_path / "odd" / "hello.wav")
    write(tmp_path / "test_only" / "0_ann_0.wav")
    for path, options, kind, words in (
        (archive, {"num_speakers": 6}, ConfigError, r"2 speakers \(ann, bob\), data.num_speakers is 6; set data.num_"),
        (archive, {"num_classes": 1}, DataError, r"label 1 is outside 0\.\.0 \(data\.num_classes=1\)"),
        (broken, {}, DataError, r"broken\.tar\.gz: corrupt or truncated archive .*; fetch it again"),
        (tmp_path / "odd", {}, DataError, r"hello\.wav: expected DIGIT_SPEAKER_INDEX\.wav; rename or remove it"),
        (tmp_path / "none", {}, ConfigError, r"none: holds 0 recordings DIGIT_SPEAKER_INDEX\.wav"),
        (tmp_path / "gone", {}, ConfigError, r"gone: no such archive or folder \(data\.path\); null fetches"),
        (tmp_path / "test_only", {"num_speakers": 1}, ConfigError, r"no recording for train \(indices 0 to 4 are test"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words) as caught:
            digits(path, **options)
        assert "\n" not in str(caught.value)
