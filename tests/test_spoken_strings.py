"""Strings of spoken digits: what is joined, which recordings, captions, the same each time; what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data_files import cache  # noqa: F401
from runs import make_digits
from scipy.io import wavfile

from genlab.data.spoken_strings import WORDS, SpokenStrings
from genlab.errors import ConfigError

RATE = 8000


def strings(path: Path, **options: Any) -> SpokenStrings:
    defaults: dict[str, Any] = {"samples": 6000, "sample_rate": RATE, "num_speakers": 2,
                                "vocab_size": 18, "strings": 30, "held_out_strings": 10, "batch_size": 4}  # fmt: skip
    data = SpokenStrings("spoken_strings", path=str(path), **defaults | options)
    data.setup()
    return data


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten digits of two speakers, indices 0, 5 and 10, of 1,000 to 2,000 samples."""
    return make_digits(tmp_path_factory.mktemp("strings") / "digits", 10, 2, 1500)


def audio(data: SpokenStrings, split: Any) -> torch.Tensor:
    ids = torch.arange(len(data.source(split)))
    return data.source(split).batch(ids, torch.zeros_like(ids))["audio"]


def test_a_string_is_recordings_of_one_speaker_with_gaps_and_its_words(recordings: Path) -> None:
    data = strings(recordings)
    indices = {"train": "10", "val": "5", "test": "0"}
    lengths = set()
    for split, index in indices.items():
        source = data.source(split)
        for i, (fact, sound) in enumerate(zip(data.facts(split), audio(data, split)[:, 0], strict=True)):
            pieces = [name.split("_") for name in fact["file"].split("+")]
            assert len({speaker for _, speaker, _ in pieces}) == 1
            assert {own for _, _, own in pieces} == {index}
            assert source.references(torch.tensor([i])) == [[" ".join(WORDS[int(digit)] for digit, _, _ in pieces)]]
            lengths.add(len(pieces))
            end = 0
            for piece in pieces:
                values = torch.from_numpy(wavfile.read(recordings / f"{'_'.join(piece)}.wav")[1] / 32767).float()
                gaps = range(160, 641) if end else range(1)
                fits = [g for g in gaps if torch.equal(sound[end : end + g], torch.zeros(g))
                        and torch.allclose(sound[end + g : end + g + len(values)], values, atol=1e-4)]  # fmt: skip
                assert fits, (fact["file"], piece)
                end += fits[0] + len(values)
            assert (sound[end:] == 0).all()
    assert lengths == {2, 3}  # a fourth does not fit into 6,000 samples


def test_the_same_each_time_and_the_words_are_read(recordings: Path) -> None:
    one, two = strings(recordings, seed=1), strings(recordings, seed=2)
    assert one.manifest == two.manifest
    assert torch.equal(audio(one, "train"), audio(two, "train"))
    batch = next(iter(one.batches(one.train_loader(0, 4))))
    assert {*batch} == {"id", "position", "audio", "caption"}
    fact = one.facts("train")[int(batch["id"][0])]
    words = [WORDS[int(name[0])] for name in fact["file"].split("+")]
    assert one.tokenizer.decode([token for token in batch["caption"][0].tolist() if token >= 0]) == " ".join(words)
    some = one.source("test").select(torch.tensor([3, 7]).numpy())
    ids = torch.arange(2)
    assert torch.equal(some.batch(ids, torch.zeros_like(ids))["audio"], audio(one, "test")[[3, 7]])


def test_all_four_digits_where_they_fit(recordings: Path) -> None:
    data = strings(recordings, samples=12000)
    counts = {len(fact["file"].split("+")) for fact in data.facts("train")}
    assert counts == {2, 3, 4}


@pytest.mark.faults(19)
def test_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    for name in ("0_a_0.wav", "0_b_0.wav", "0_a_10.wav", "0_b_10.wav"):
        (tmp_path / "few" / name).write_bytes((recordings / name).read_bytes())
    for path, options, words in (
        (recordings, {"val_fraction": 0.1}, "data.val_fraction=0.1: val has recordings of its own; set it to 0"),
        (recordings, {"vocab_size": 100}, "set data.vocab_size=18"),
        (recordings, {"num_speakers": 6}, "set data.num_speakers=2"),
        (recordings, {"strings": 0}, "data.strings is 0: must be >= 1"),
        (tmp_path / "few", {}, r"no recording for val \(indices 0 to 4 are test, 5 to 9 val\)"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            strings(path, **options)
        assert "\n" not in str(caught.value)
