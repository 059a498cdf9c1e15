"""Chorales: MusicXML to text and back, splits, keys, rules, n-grams, MIDI, sound and pictures."""

from __future__ import annotations

import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from genlab import music
from genlab.data import fetch
from genlab.data.chorales import Chorale, Unsuitable, melodies, music21_chorales, read_chorale
from genlab.data.windows import Windows
from genlab.drawing import read_meta
from genlab.errors import ConfigError, DataError
from genlab.evaluation.metrics import ChoraleRules, Items, TextNGrams
from genlab.evaluation.metrics.chorales import rules
from genlab.evaluation.metrics.ngrams import NGrams
from genlab.modality import Music

# A pickup of a quarter, a bar of four, a last bar of three: (step, alter, octave, eighths, what else a note has).
TIE = '<tie type="{}"/>'
FERMATA = "<notations><fermata/></notations>"
SOPRANO = [[("G", 0, 4, 2, "")],
           [("C", 0, 5, 2, ""), ("B", 0, 4, 1, ""), ("A", 0, 4, 1, ""), ("B", -1, 4, 4, TIE.format("start"))],
           [("B", -1, 4, 2, TIE.format("stop")), ("A", 0, 4, 4, FERMATA)]]  # fmt: skip


def part(bars: list[list[tuple[str, int, int, int, str]]], octaves: int, divisions: int = 2) -> str:
    """MusicXML of a part, so many octaves lower."""
    out = []
    for i, bar in enumerate(bars):
        head = f"<attributes><divisions>{divisions}</divisions><key><fifths>-1</fifths><mode>major</mode></key>"
        notes = [
            f"<note><pitch><step>{step}</step><alter>{alter}</alter><octave>{octave - octaves}</octave></pitch>"
            f"<duration>{eighths * divisions // 2}</duration>{rest}</note>"
            for step, alter, octave, eighths, rest in bar
        ]
        out.append(f'<measure number="{i}">{head}</attributes>{"".join(notes)}<forward/></measure>')
    return "".join(out).replace("<forward/>", "")


def write_score(path: Path, parts: list[str], names: tuple[str, ...] = music.VOICES) -> Path:
    listed = "".join(f'<score-part id="P{i}"><part-name>{n}</part-name></score-part>' for i, n in enumerate(names))
    body = "".join(f'<part id="P{i}">{text}</part>' for i, text in enumerate(parts))
    xml = f"<?xml version='1.0'?><score-partwise><part-list>{listed}</part-list>{body}</score-partwise>"
    if path.suffix == ".xml":
        path.write_text(xml)
        return path
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("META-INF/container.xml", "<container/>")
        file.writestr(f"{path.stem}.xml", xml)
    return path


def four(bars: list[list[tuple[str, int, int, int, str]]] = SOPRANO) -> list[str]:
    return [part(bars, octaves) for octaves in (0, 1, 1, 2)]


def test_a_file_is_read_as_its_notes(tmp_path: Path) -> None:
    """Ties are held, the pickup and the bars stand at their places, so does the fermata; also beside an instrument."""
    chorale = read_chorale(write_score(tmp_path / "bwv1.6.mxl", four()))
    assert (chorale.name, chorale.key, chorale.mode) == ("bwv1.6", -1, "major")
    notes = [(pitch, start, steps) for voice, pitch, start, steps in music.notes_of(chorale.score) if voice == 0]
    assert notes == [(67, 0, 4), (72, 4, 4), (71, 8, 2), (69, 10, 2), (70, 12, 12), (69, 24, 8)]
    assert (len(chorale.score), chorale.score.bars, chorale.score.fermatas) == (32, (4, 20), (24,))
    horn = [part(SOPRANO, 0, 4), *four()]
    with_horn = read_chorale(write_score(tmp_path / "bwv2.xml", horn, ("Horn", "Soprano", "Alto", "Tenor", "Bass")))
    assert music.write_text(with_horn.score) == music.write_text(chorale.score)


def test_text_comes_back_as_the_score() -> None:
    text = "VOJ7-=_~-=_~-=_~\n^XQL9-R_~..8~.._~\nVOJ7"
    score = music.read_text(text)
    assert (score.faults, score.bars, score.fermatas) == (0, (4, 8), (4,))
    assert music.write_text(score) == text
    higher = music.transpose(score, 3)
    assert music.read_text(music.write_text(higher)).pitch.tolist() == higher.pitch.tolist()
    assert [(v, p + 3, t, n) for v, p, t, n in music.notes_of(score)] == music.notes_of(higher)
    assert music.transpose(higher, -3).pitch.tolist() == score.pitch.tolist()
    assert score.pitch[5:8].tolist() == [[69, 63, 57, 45], [-1, -1, 44, 45], [-1, -1, 44, 45]]


@pytest.mark.parametrize(
    ("text", "steps", "faults"),
    [
        ("", 0, 0),
        ("abc", 0, 3),
        ("Ein Text!\n", 1, 5),
        ("-=_~", 1, 4),
        ("VOJ7----", 2, 3),
        ("VOJ7\nVO\nVOJ7", 2, 2),
        ("\n\n^^\n", 0, 0),
    ],
)
def test_what_is_no_chorale_is_counted(text: str, steps: int, faults: int, tmp_path: Path) -> None:
    """It is saved and shown all the same, and judged."""
    score = music.read_text(text)
    assert (len(score), score.faults) == (steps, faults)
    assert Music().read(Music().save(tmp_path / "x", text, {})) == text
    assert Music().show(tmp_path / "all", [text, "VOJ7"], 2, {}).name == "all.txt"
    assert (tmp_path / "x.mid").exists() == (tmp_path / "x.png").exists() == bool(steps)
    assert rules(score)["faults"][0] == faults


def test_parts_that_are_no_chorale_are_refused_with_the_reason(tmp_path: Path) -> None:
    third = [[("G", 0, 4, 2, "")], [("C", 0, 5, 4, "")]]
    voices = four()
    for parts, reason in [
        (voices[:3], "four voices"),
        ([*voices[:3], part(third, 2)], "unequal"),
        (voices[::-1], "not soprano"),
        ([voice.replace("<divisions>2", "<divisions>3") for voice in voices], "sixteenth"),
        ([voice.replace("<octave>4", "<octave>9") for voice in voices], "no voice sings"),
        ([voice.replace("</note>", "</note><backup/>", 1) for voice in voices], "several voices"),
        ([voice.replace("<duration>", "<chord/><duration>", 1) for voice in voices], "chords"),
    ]:
        with pytest.raises(Unsuitable, match=reason):
            read_chorale(write_score(tmp_path / "x.mxl", parts))
    rest = "<note><rest/><duration>{}</duration></note>"
    for steps in (4, 5):  # a half note at most
        resting = [
            v.replace(
                '</note></measure><measure number="2">', f'</note>{rest.format(steps)}</measure><measure number="2">'
            )
            for v in voices
        ]
        path = write_score(tmp_path / "x.mxl", resting)
        if steps == 4:
            assert len(read_chorale(path).score) == 32 + 8
        else:
            with pytest.raises(Unsuitable, match="interludes"):
                read_chorale(path)
    for wrong in ("<score", "<score-partwise/>", ""):
        (tmp_path / "y.xml").write_text(wrong)
        with pytest.raises(DataError):
            read_chorale(tmp_path / "y.xml")
    write_score(tmp_path / "z.mxl", [voice.replace("<duration>2", "<duration>two") for voice in voices])
    with pytest.raises(DataError, match=r"z\.mxl: cannot be read .*'two'"):
        read_chorale(tmp_path / "z.mxl")


def test_a_set_is_never_fetched_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the one line says what is missing and where to put it."""
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"^bach_chorales: could not be fetched to .*train\.jsonl, .*\(see http"
    ) as told:
        fetch.fetch("bach_chorales")
    assert "\n" not in str(told.value)


def tune(start: int, seed: int, name: str, steps: int = 128) -> Chorale:
    """A soprano of quarter notes at random, and voices below it."""
    line = start + np.random.default_rng(seed).integers(0, 8, steps // 4).repeat(4)
    pitch = np.stack([line, line - 7, line - 12, line - 24], 1)
    return Chorale(name, music.Score(pitch, np.tile([[True] * 4] + [[False] * 4] * 3, (steps // 4, 1))), 0, "major")


def test_settings_of_one_melody_are_one_group() -> None:
    longer = tune(65, 1, "bwv5", 192)  # the same, another key, further
    pieces = [tune(62, 1, "bwv1"), tune(62, 2, "bwv2.6"), tune(62, 3, "bwv3"), tune(62, 4, "bwv2.6-a"), longer]
    longer.score.pitch[:128] = pieces[0].score.pitch + 3
    assert sorted(map(sorted, melodies(pieces))) == [[0, 4], [1, 3], [2]]


def test_a_prepared_folder_is_made_of_the_files(tmp_path: Path) -> None:
    """Splits share no melody, only train has several keys, equal chorales come once, and two makings are equal."""
    source = tmp_path / "package"
    source.mkdir()
    names = "CDEFGAB"
    for i in range(40):
        draw = np.random.default_rng(i)
        bars = [[(names[k], 0, 4, 2, "") for k in draw.integers(0, 7, 4)] for _ in range(6)]
        write_score(source / f"bwv{i}.mxl", [part(bars, octaves) for octaves in (0, 1, 1, 2)])
        write_score(source / f"bwv{100 + i}.mxl", [part(bars, octaves) for octaves in (0, 0, 1, 2)])  # another setting
    write_score(source / "copy.mxl", [part(bars, octaves) for octaves in (0, 1, 1, 2)])
    write_score(source / "trio.mxl", four()[:3])
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        music21_chorales(source, folder)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    read = {s: [json.loads(line) for line in files[0][f"{s}.jsonl"].splitlines()] for s in ("train", "val", "test")}
    pieces = {split: {int(record["source"][3:]) % 100 for record in records} for split, records in read.items()}
    assert pieces["train"] | pieces["val"] | pieces["test"] == set(range(40))
    assert sum(map(len, pieces.values())) == 40, "both settings of a melody are in one split"
    assert min(map(len, pieces.values())) >= 1
    assert {record["transposed"] for record in read["val"] + read["test"]} == {0}
    shifts = Counter(record["transposed"] for record in read["train"])
    assert len(shifts) > 1
    assert max(shifts.values()) == shifts[0] == 2 * len(pieces["train"])
    report = json.loads(files[0]["report.json"])
    assert {cause: row["documents"] for cause, row in report["dropped"].items()} == {
        "equal to another": 1,
        "not four voices": 1,
    }
    assert all(music.read_text(record["text"]).faults == 0 for records in read.values() for record in records)


def chords(*rows: tuple[int, int, int, int], steps: int = 4) -> music.Score:
    """Chords of quarter notes."""
    pitch = np.array(rows).repeat(steps, 0)
    return music.Score(pitch, np.tile([[True] * 4] + [[False] * 4] * (steps - 1), (len(rows), 1)))


C, D, G, F = (72, 67, 64, 48), (74, 69, 65, 50), (71, 67, 62, 55), (72, 69, 65, 53)


def test_parallels_are_found_where_they_are() -> None:
    """From C to D minor in root position, all voices up: fifths of alto and bass, octaves of soprano and bass."""
    wrong = rules(chords(C, D))
    assert wrong["parallel_fifths"] == (1, 6)
    assert wrong["parallel_octaves"] == (1, 6)
    assert wrong["consonant"] == (8, 8)
    right = rules(chords(C, F, G, C))  # F to G by contrary motion
    assert right["parallel_fifths"][0] == right["parallel_octaves"][0] == 0
    assert right["parallel_fifths"][1] > 6
    repeated = rules(chords(C, C, C))
    assert repeated["parallel_fifths"] == (0, 0), "a chord that is struck again is no move"
    contrary = rules(chords((67, 62, 55, 48), (60, 62, 55, 53)))  # a fifth to a fifth, one voice up and one down
    assert contrary["parallel_fifths"] == (0, 1)


def test_other_rules() -> None:
    crossed = rules(chords(C, (64, 67, 60, 48)))
    assert crossed["crossings"] == (4, 8)
    assert rules(chords((90, 67, 64, 48)))["in_range"] == (3, 4)
    assert rules(chords((72, 71, 61, 48)))["consonant"] == (0, 4)
    for last, kept in ((C, 1), ((72, 67, 60, 52), 0), ((71, 67, 62, 53), 0)):  # root, sixth chord, seventh
        assert rules(chords(G, last))["final_triad"] == (kept, 1)
    bars = music.read_text("VOJ7\n" + ("VOJ7" + "-=_~" * 3 + "\n") * 3 + "VOJ7-=_~\nVOJ7")
    assert rules(bars)["even_bars"] == (3, 4)


def test_the_metric_sums_over_texts_and_knows_copied_bars() -> None:
    class Data:
        manifest = type("M", (), {"identity": staticmethod(lambda split: "0" * 64), "name": "x"})
        texts = staticmethod(lambda split: [("a", "VOJ7-=_~-=_~-=_~\nXQL9-=_~-=_~-=_~")])

    metric = ChoraleRules()
    texts = ["VOJ7-=_~-=_~-=_~\nXQL9-=_~-=_~XQL9", "VOJ7-=_~-=_~-=_~", "!"]
    items = Items(data=texts)
    metric.prepare(Data, [items])
    metric.update(items)
    values = metric.compute()
    assert values["copied_bars"] == pytest.approx(2 / 3)
    assert values["faults"] == pytest.approx(1 / (16 * 3 + 1))
    assert math.isnan(values["even_bars"])
    assert set(metric.missing) == {"even_bars"}
    assert set(values) == set(ChoraleRules.outputs)
    assert metric.columns["copied bars"] == ["1 of 2", "1 of 1", "0 of 0"]


def slow(tokens: list[int], order: int, size: int, before: list[int], word: int) -> float:
    """Witten and Bell's p as it is written."""
    p = 1 / size
    for k in range(min(order - 1, len(before)) + 1):
        h = tuple(before[len(before) - k :])
        after = [tokens[i + k] for i in range(len(tokens) - k) if tuple(tokens[i : i + k]) == h]
        if after:
            p = (after.count(word) + len(set(after)) * p) / (len(after) + len(set(after)))
    return p


def test_ngrams_are_those_of_the_formula() -> None:
    draw = np.random.default_rng(0)
    tokens, inputs, labels = draw.integers(0, 4, 60), draw.integers(0, 5, (3, 7)), draw.integers(0, 5, (3, 7))
    for order, p in enumerate(NGrams(tokens, 4, 5).probabilities(inputs, labels), 1):
        want = [
            [slow(tokens.tolist(), order, 5, row[: t + 1].tolist(), int(labels[i, t])) for t in range(7)]
            for i, row in enumerate(inputs)
        ]
        np.testing.assert_allclose(p, want, rtol=1e-12)
        whole = [
            list(NGrams(tokens, 4, 5).probabilities(inputs, np.full_like(labels, word)))[order - 1] for word in range(5)
        ]
        np.testing.assert_allclose(np.sum(whole, 0), 1, rtol=1e-12)


def windows(tokens: list[int], size: int) -> SimpleNamespace:
    """Data of windows of 4, the same for each split."""
    source = Windows(torch.tensor(tokens, dtype=torch.int32), 4, "x")
    tokenizer = SimpleNamespace(get_vocab_size=lambda: size)
    return SimpleNamespace(source=lambda split: source, tokenizer=tokenizer, manifest=SimpleNamespace(name="x"))


def test_nats_of_ngrams_are_a_mean_over_tokens() -> None:
    """The last window is partial: what is beyond its end does not count."""
    tokens, metric, protocol = [0, 1, 2, 0, 1, 2, 1], TextNGrams((1, 3)), SimpleNamespace(reference_split="val")
    source = metric.source(None, windows(tokens, 3), protocol)
    rows = metric.score(None, source.batch(torch.arange(2), torch.zeros(2, dtype=torch.int64)))
    assert rows["tokens"].tolist() == [4, 2]
    metric.update(Items(data=rows))
    values = metric.compute()
    for order in (1, 3):
        p = [slow(tokens, order, 3, tokens[:t] if t < 5 else tokens[4:t], tokens[t]) for t in range(1, 7)]
        assert values[f"ngram{order}_nats_per_token"] == pytest.approx(-sum(map(math.log, p)) / 6)
    with pytest.raises(ConfigError, match=r"orders=\[40\]: at most 39 with a vocabulary of 3 tokens"):
        TextNGrams([40]).source(None, windows(tokens, 3), protocol)
    with pytest.raises(ConfigError, match="counts windows of a text, and data 'x' has none"):
        metric.source(None, SimpleNamespace(source=lambda split: None, manifest=SimpleNamespace(name="x")), protocol)


def test_orders_that_cannot_be_are_refused() -> None:
    for orders in ((), (0,), (2, 1.5), ("2",)):
        with pytest.raises(ConfigError, match=r"orders=.*from 1 on"):
            TextNGrams(orders)


def test_midi_bytes_are_the_notes() -> None:
    """Read back by the standard: chunks, times of 7 bits a byte, running through each track."""
    score = music.read_text("VOJ7-=_~-=_~-=_~\n^XQL9" + "-=_~" * 100 + "..8~")
    data = music.midi(score)
    assert data[:14] == b"MThd" + bytes([0, 0, 0, 6, 0, 1, 0, 5, 0x01, 0xE0])
    at, tracks = 14, []
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "big")
        assert data[at : at + 4] == b"MTrk"
        tracks.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    assert len(tracks) == 5
    found = []
    for voice, track in enumerate(tracks[1:]):
        at, now, sounding = 0, 0, {}
        while at < len(track):
            delta = 0
            while True:
                byte, at = track[at], at + 1
                delta = delta << 7 | byte & 0x7F
                if byte < 0x80:
                    break
            now, status = now + delta, track[at]
            if status == 0xFF:
                at += 3 + track[at + 2]
            elif status >> 4 == 0xC:
                at += 2
            else:
                assert status & 0xF == voice
                pitch, at = track[at + 1], at + 3
                if status >> 4 == 9:
                    sounding[pitch] = now
                else:
                    start = sounding.pop(pitch)
                    found.append((voice, pitch, start // 120, (now - start) // 120))
        assert not sounding
    assert found == music.notes_of(score)


@pytest.mark.parametrize("pitch", [48, 69, 81])
def test_sound_has_the_length_and_the_pitch(pitch: int, tmp_path: Path) -> None:
    text = music.write_text(music.Score(np.full((16, 4), pitch), np.array([[True] * 4] + [[False] * 4] * 15)))
    Music().save(tmp_path / "a", text, {"seed": 3})
    rate, values = wavfile.read(tmp_path / "a.wav")
    assert rate == music.SAMPLE_RATE
    assert len(values) == pytest.approx(rate * (4 * 60 / music.TEMPO + 1), abs=1)
    assert np.abs(values[:rate]).max() == pytest.approx(0.8 * 32767, rel=0.02)
    spectrum = np.abs(np.fft.rfft(values[:rate] * np.hanning(rate)))
    assert spectrum.argmax() == pytest.approx(440 * 2 ** ((pitch - 69) / 12), abs=1.5)  # bins of one Hertz
    assert np.abs(values[-rate // 2 :]).max() == 0
    assert read_meta(tmp_path / "a.png")["seed"] == 3
    assert Image.open(tmp_path / "a.png").size[0] == 16 * 4 + 1


def test_what_is_shown_can_be_played_and_is_logged(tmp_path: Path) -> None:
    """The first four; the texts are all there."""
    logged: dict[str, list[object]] = {}

    class Log:
        def __getattr__(self, kind: str) -> object:
            return lambda name, *rest: logged.setdefault(f"{kind} {name}", list(rest))

    texts = ["VOJ7" + "-=_~" * 3 * (i + 1) for i in range(6)]
    shown = Music().show(tmp_path / "grid", texts, 8, {"seed": 0})
    assert shown.read_text().count("VOJ7") == 6
    assert (tmp_path / "grid.html").read_text().count("<audio") == Music.played == 4
    Music().log(Log(), texts, shown, 10, {"seed": range(6)})
    assert set(logged) == {"table texts", "audio chorales", "image piano_rolls"}
    assert len(logged["audio chorales"][0]) == 4  # type: ignore[arg-type]
    assert torch.is_tensor(music.synthesise(music.read_text(texts[0])))
