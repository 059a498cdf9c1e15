"""Modalities: every item comes back from its file, is shown, and is logged by W&B and TensorBoard."""

from __future__ import annotations

import builtins
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

from genlab import animation, sound
from genlab.callbacks.media import TensorBoardMedia, WandbMedia, media_of
from genlab.drawing import read_meta
from genlab.errors import ConfigError, DataError
from genlab.modality import Audio, Image, Modality, Music, Text, Video
from genlab.samples import Samples

META = {"model": "x", "seed": 3, "sampler": {"steps": 5}}


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def tones(*hertz: float, rate: int = 8000, seconds: float = 0.5) -> Tensor:
    """float32 [N, 1, T]: pure tones."""
    time = torch.arange(int(rate * seconds)) / rate
    return torch.stack([0.8 * torch.sin(2 * math.pi * f * time) for f in hertz])[:, None]


def ball(frames: int = 12, side: int = 16) -> Tensor:
    """uint8 [2, T, 1, H, W]: a square that moves; the second stands still for all but the last frame."""
    video = torch.zeros(2, frames, 1, side, side, dtype=torch.uint8)
    for t in range(frames):
        video[0, t, 0, t : t + 4, 5:9] = 200
    video[1, -1] = 90
    return video


CASES: list[tuple[Modality, Any]] = [
    (Image(), pixels(3, 3, 20, 24)),
    (Image(), pixels(2, 1, 28, 28)),
    (Text(), ["one\ntwo", "Füße 貓", ""]),
    (Music(), ["VOJ7-=_~-=_~\nXQL9-=_~", "no chorale", ""]),
    (Audio(8000), tones(440, 880, 2000)),
    (Audio(16000), torch.rand(2, 2, 500, generator=torch.Generator().manual_seed(0)) * 2 - 1),
    (Video(8), ball()),
    (Video(30), pixels(2, 7, 3, 16, 16)),
]
KINDS = [f"{modality.name}-{i}" for i, (modality, _) in enumerate(CASES)]


@pytest.mark.parametrize(("modality", "data"), CASES, ids=KINDS)
def test_an_item_comes_back_from_its_file(modality: Modality, data: Any, tmp_path: Path) -> None:
    for i, item in enumerate(data):
        path = modality.save(tmp_path / "ü" / f"0.{i}", item, META)  # a dot is no suffix
        assert path.stem == f"0.{i}"
        back = modality.read(path)
        if not isinstance(item, Tensor):
            assert back == item
        elif item.is_floating_point():
            assert back.shape == item.shape
            assert (back - item).abs().max() <= 0.51 / sound.FULL_SCALE
        else:
            assert torch.equal(back, item)


@pytest.mark.parametrize(("modality", "data"), CASES, ids=KINDS)
def test_cut_and_joined(modality: Modality, data: Any) -> None:
    labels, seeds = torch.arange(len(data)), torch.arange(10, 10 + len(data))
    whole = Samples(modality, data, {"label": labels, "caption": [str(i) for i in range(len(data))]}, seeds)
    parts = Samples.cat([whole[:1], whole[1:]])
    assert parts.modality == modality
    assert len(parts) == len(data)
    equal = parts.data == data
    assert equal.all() if isinstance(equal, Tensor) else equal
    assert parts.labels is not None
    assert torch.equal(parts.labels, labels)
    assert parts.condition["caption"] == whole.condition["caption"]
    assert parts.seeds is not None
    assert torch.equal(parts.seeds, seeds)
    assert Samples.cat([whole[:1], Samples(modality, data[1:])]).seeds is None


@pytest.mark.parametrize(
    ("modality", "data", "message"),
    [
        (Image(), torch.zeros(2, 3, 4, 4), "image: expected uint8 [N, C, H, W], got float32 [2, 3, 4, 4]"),
        (Image(), pixels(3, 4, 4), "image: expected uint8 [N, C, H, W], got uint8 [3, 4, 4]"),
        (Text(), ["a", 3], "text: expected a list of strings, got a list"),
        (Audio(8000), torch.full((1, 1, 9), 1.5), "audio: expected floats in [-1, 1]"),
        (Audio(8000), torch.full((1, 1, 9), math.nan), "audio: expected floats in [-1, 1]"),
        (Video(8), ["x"], "video: expected uint8 [N, T, C, H, W], got a list"),
    ],
)
def test_data_of_another_form_is_refused(modality: Modality, data: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Samples(modality, data)
    assert str(caught.value) == message


@pytest.mark.parametrize("modality", [Image(), Audio(8000), Video(8)], ids=lambda modality: modality.name)
def test_a_broken_file_is_one_line(modality: Modality, tmp_path: Path) -> None:
    for name in ("a.png", "a.wav", "a.webp", "a.mp4"):
        (tmp_path / name).write_bytes(b"RIFF no such thing")
        with pytest.raises(DataError, match=rf"{name}: cannot be read \(.*\); repair or remove it"):
            modality.read(tmp_path / name)


def test_spectrogram_shows_the_tone(tmp_path: Path) -> None:
    low, high = (np.asarray(sound.spectrogram(tone, 8000)) for tone in tones(500, 3000))
    for picture, hertz in ((low, 500), (high, 3000)):
        brightest = picture[:, picture.shape[1] // 2].argmax()
        assert abs((1 - brightest / picture.shape[0]) * 4000 - hertz) < 80
        assert picture.max() > 240
    shown = Audio(8000).show(tmp_path / "grid", tones(500, 3000), 2, META, ["label 0", "label <1>"])
    assert read_meta(shown) == META
    page = (tmp_path / "grid.html").read_text()
    assert page.count("<audio") == 2
    assert "label &lt;1&gt;" in page
    assert "http" not in page  # it needs nothing from elsewhere


def test_a_page_of_texts_has_the_sources_that_are_no_part_of_them(tmp_path: Path) -> None:
    page = Text().show(tmp_path / "grid", ["Hello.", "To be or not"], 1, META, ["source Hallo.", "prompt To be"])
    assert page.read_text() == f"source Hallo.\nHello.{Text.rule}To be or not\n"


def test_video_is_shown_moving_and_as_strip(tmp_path: Path) -> None:
    video = Video(8)
    shown = video.show(tmp_path / "grid", ball(20, 32), 2, META)
    with Pillow.open(shown) as strip:
        assert strip.size == (3 * (10 * 34 - 2), 3 * (2 * 34 - 2))  # every second frame
    moving = video.read(tmp_path / "grid.webp")
    assert moving.shape[0] == 20
    encoded = video.read(tmp_path / "grid.mp4")
    assert encoded.shape[0] == 20
    difference = (encoded[:, :, : moving.shape[2], : moving.shape[3]].float() - moving.float()).abs().mean()
    assert difference < 12  # H.264 loses a little
    assert Video(4).read(tmp_path / "grid.mp4").shape[0] == 10  # at another rate, as long


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Packages that are not installed."""
    real: Callable[..., Any] = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in names:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)


def test_extras_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, tone = Audio(8000), tones(440)[0]
    first = audio.save(tmp_path / "with", tone, META)
    soundfile: Any = __import__("soundfile")
    assert json.loads(soundfile.SoundFile(first).comment) == META
    soundfile.write(tmp_path / "x.flac", tone.T.numpy(), 8000)
    assert audio.read(tmp_path / "x.flac").shape == tone.shape
    with pytest.raises(DataError, match="8000 Hz, expected 16000 Hz; convert it"):
        Audio(16000).read(first)
    without(monkeypatch, "soundfile", "av")
    second = audio.save(tmp_path / "without", tone, META)
    assert torch.equal(audio.read(first), audio.read(second))
    with pytest.raises(ConfigError, match=r'x\.flac: reading it needs soundfile: pip install "genlab\[audio\]"'):
        audio.read(tmp_path / "x.flac")
    with pytest.raises(ConfigError, match=r'needs PyAV: pip install "genlab\[video\]"'):
        Video(8).read(tmp_path / "x.mp4")
    Video(8).show(tmp_path / "v", ball(), 2, {})
    assert not (tmp_path / "v.mp4").exists()
    assert not animation.can_write_mp4()


class Recording:
    """In the place of Lightning's W&B logger: what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.mark.parametrize(("modality", "data"), CASES, ids=KINDS)
def test_logged_by_wandb_and_tensorboard(
    modality: Modality, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    shown = modality.show(tmp_path / "000000064", data, 2, META)
    logger = Recording()
    modality.log(WandbMedia(logger), data, shown, 64, {"label": list(range(len(data)))})
    for name, args, kwargs in logger.calls:  # what Lightning then does with them
        assert kwargs.pop("step") == 64
        if name == "log_text":
            table = wandb.Table(columns=kwargs["columns"], data=kwargs["data"])
            assert table.columns == ["samples", "label", "text"]
            continue
        kind = {"log_image": wandb.Image, "log_audio": wandb.Audio, "log_video": wandb.Video}[name]
        for i, value in enumerate(args[1]):
            kind(value, **{key: values[i] for key, values in kwargs.items()})
    expected = {"image": {"log_image"}, "text": {"log_text"}, "audio": {"log_audio", "log_image"},
                "video": {"log_video", "log_image"}}[modality.name]  # fmt: skip
    expected = expected | {"log_audio", "log_image"} if isinstance(modality, Music) else expected
    assert {name for name, _, _ in logger.calls} == expected

    with SummaryWriter(str(tmp_path / "events")) as writer:
        modality.log(TensorBoardMedia(writer), data, shown, 64, {})
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    tags = events.Tags()
    assert {"image": "grid", "text": "texts/text_summary", "audio": "sounds/0", "video": "videos"}[modality.name] in [
        *tags["images"], *tags["audio"], *tags["tensors"],
    ]  # fmt: skip
    for tag in tags["images"]:
        (event,) = events.Images(tag)
        assert event.step == 64
        assert event.encoded_image_string[:4] in (b"\x89PNG", b"GIF8")


def test_loggers_that_show_media(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    assert media_of(CSVLogger(tmp_path)) is None
    assert isinstance(media_of(TensorBoardLogger(tmp_path)), TensorBoardMedia)


def test_panels_of_texts_are_pages_and_tables(tmp_path: Path) -> None:
    handed: list[Any] = []
    media: Any = SimpleNamespace(
        table=lambda *arguments: handed.append(arguments), image=lambda *arguments: handed.append(arguments)
    )
    path = Text().panel(tmp_path / "interpolation", ["a\nb", "", "c", "d  e"], 2, META)
    assert path.read_text() == "a b\n-\n\nc\nd e\n"
    Text().log_panel(media, "interpolation", path, 7)
    picture = Image().panel(tmp_path / "grid", pixels(4, 1, 8, 8), 2, META)
    Image().log_panel(media, "grid", picture, 7)
    Text().log_panel(media, "attention", picture, 7)  # a picture of texts
    assert handed[0] == ("interpolation", ["0", "1"], [["a b", "-"], ["c", "d e"]], 7)
    assert handed[1:] == [("grid", picture, 7), ("attention", picture, 7)]
