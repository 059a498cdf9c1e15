"""Sounds from noise: log-mels and their scale, labels and speakers, captions, guidance, a vocoder; what cannot be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from runs import compose_train, make_digits, make_sounds, make_text_encoder
from torch import Tensor, nn

from genlab import noise
from genlab.cli.build import build_data, build_model
from genlab.conditions import Speaker, condition_named
from genlab.data.audio import AudioFolder, SpokenDigits
from genlab.diffusion.processes import Flow
from genlab.diffusion.samplers import Euler
from genlab.errors import ConfigError
from genlab.models.diffusion import DiffusionModel
from genlab.models.mel_diffusion import MelDiffusion
from genlab.networks.mel import GriffinLim, LogMel
from genlab.networks.patch import Patch
from genlab.noise import Stream

RATE, SAMPLES, SHAPE = 8000, 1024, (1, 16, 16)
PAIRED = {"num_classes": 10, "num_speakers": 6}


def log_mels(bands: int = 16, rate: int = RATE) -> LogMel:
    return LogMel(rate, 256, 64, bands, high=4000)


def unet(channels: int = 1, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    settings = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
                "down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D"),
                "class_embed_type": "identity"}  # fmt: skip
    return Patch(partial(UNet2DModel, **(settings | options)), channels)


def model(**options: Any) -> MelDiffusion:
    settings = {"network": None, "mel": log_mels(), "vocoder": GriffinLim(2, mel=log_mels()), "samples": SAMPLES,
                "chunk_size": 4, **PAIRED} | options  # fmt: skip
    return MelDiffusion(process=Flow(), **settings | {"network": settings["network"] or unet()}).eval()


def sounds(count: int = 6, channels: int = 1) -> Tensor:
    return 0.3 * noise.normal(torch.arange(count), Stream.LOSS, (channels, SAMPLES)).clamp(-3, 3)


def batch_of(count: int = 6) -> dict[str, Tensor]:
    ids = torch.arange(count)
    return {"id": ids, "position": ids, "audio": sounds(count), "label": ids, "speaker": ids % 6}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SpokenDigits:
    folder = make_digits(tmp_path_factory.mktemp("digits"), 10, 6, 600)
    data = SpokenDigits(
        "digits", path=str(folder), samples=SAMPLES, sample_rate=RATE, num_classes=10, val_fraction=0.2, batch_size=8
    )
    data.setup()
    return data


# ---- log-mels and sounds


def test_samples_are_sounds_and_each_is_its_own() -> None:
    one, seeds, sampler = model(), torch.arange(6), Euler(steps=2, guidance_scale=2.0)
    whole = one.sample(seeds, sampler=sampler)
    assert whole.modality.sample_rate == RATE  # type: ignore[attr-defined]
    assert (whole.data.shape, whole.data.dtype) == ((6, 1, SAMPLES), torch.float32)
    assert whole.data.abs().max() <= 1
    for i in (0, 5):  # in another chunk, at another place
        assert torch.equal(one.sample(seeds[i : i + 1], sampler=sampler).data[0], whole.data[i])
    assert not torch.equal(whole.data[0], one.sample(torch.tensor([60]), sampler=sampler).data[0])  # the same pair


@pytest.mark.parametrize("channels", [1, 2])
def test_the_way_back_from_log_mels(channels: int) -> None:
    audio = sounds(3, channels)
    one = model(network=unet(channels), channels=channels, vocoder=GriffinLim(60, mel=log_mels()))
    one.mel_mean.fill_(-2.0)
    one.mel_std.fill_(3.0)
    x_0 = one.log_mel(audio)
    assert x_0.shape == (3, channels, *SHAPE[1:])
    torch.testing.assert_close(x_0, (one.mel(audio) + 2) / 3)
    again = one.sound(x_0, torch.arange(3))
    assert again.shape == audio.shape
    assert (one.log_mel(again) - x_0).abs().mean() < 0.2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(one.log_mel(audio), x_0)
        assert torch.equal(one.sound(x_0, torch.arange(3)), again)


def test_the_loss_is_that_of_a_diffusion_model_of_the_log_mels() -> None:
    one, batch = model(), batch_of()
    plain = DiffusionModel(one.network, Flow(), SHAPE, "velocity", num_classes=10).eval()
    vectors = one.embeddings[0](batch["label"]) + one.embeddings[1](batch["speaker"])
    wanted = plain.losses({"image": one.log_mel(batch["audio"]), "id": batch["id"], "label": vectors})
    torch.testing.assert_close(one.losses(batch)["loss"], wanted["loss"])


def test_clipping_holds_each_band_at_its_loudest_of_train() -> None:
    one, x = model(), noise.normal(torch.arange(4), Stream.INITIAL, SHAPE)
    one.mel_mean.fill_(-2.0)
    one.mel_std.fill_(3.0)
    one.mel_top.copy_(torch.linspace(-3, 0, 16)[:, None])
    free, held = (one.denoiser({}, 4, clip=clip)(5 * x, 0.5).x_0 for clip in (False, True))
    low, high = (torch.tensor(1e-5).log() + 2) / 3, (one.mel_top + 2) / 3
    assert (free > high).any()
    assert (free < low).any()
    torch.testing.assert_close(held, torch.minimum(free, high).clamp(min=low))


def test_what_is_too_loud_is_scaled_not_cut() -> None:
    audio = sounds(2)
    vocoder = GriffinLim(8, mel=log_mels())
    log_mel = log_mels()(audio[:, 0])
    loud, quiet = vocoder(log_mel + 3), vocoder(log_mel - 3)
    assert loud.abs().amax((1, 2)).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(loud, quiet / quiet.abs().amax((1, 2), keepdim=True), atol=1e-2, rtol=0)


def test_mean_and_deviation_are_measured_once_and_part_of_the_state(digits: SpokenDigits) -> None:
    one = model()
    one.prepare(digits, torch.device("cpu"))
    ids = torch.arange(len(digits.source("train")))
    audio = digits.source("train").batch(ids, torch.zeros_like(ids))["audio"]
    values = one.log_mel(audio)
    assert float(values.mean()) == pytest.approx(0, abs=1e-4)
    assert float(values.std()) == pytest.approx(1, abs=1e-4)
    assert {"mel_mean", "mel_std", "mel_top"} < set(one.state_dict())
    torch.testing.assert_close(one.mel_top[:, 0], one.mel(audio).amax((0, 1, 3)))
    other = model()
    other.load_state_dict(one.state_dict() | {"mel_std": torch.tensor(2.0)})
    other.prepare(digits, torch.device("cpu"))  # what it began with stays
    assert float(other.mel_std) == 2.0
    one.check_items(digits)
    batch = next(iter(digits.batches(digits.eval_loader("val"))))
    assert one.losses(batch)["loss"].isfinite()


# ---- labels and speakers


def test_sixty_seeds_are_all_pairs() -> None:
    one = model()
    rows = one.complete(torch.arange(60), None)
    assert len({*zip(rows["label"].tolist(), rows["speaker"].tolist(), strict=True)}) == 60
    assert rows["label"][:12].tolist() == [*range(10), 0, 1]
    assert rows["speaker"][[0, 9, 10, 59]].tolist() == [0, 0, 1, 5]
    assert Speaker(6, 10).default(torch.tensor([60]), one).tolist() == [0]
    said = one.complete(torch.arange(3), {"label": torch.tensor([7, 7, 7])})  # the speaker of each seed
    assert (said["label"].tolist(), said["speaker"].tolist()) == ([7, 7, 7], [0, 0, 0])


def test_what_evaluation_tells(digits: SpokenDigits) -> None:
    one = model()
    drawn = one.draw(120, digits, SimpleNamespace(labels="balanced"))
    pairs = [*zip(*(drawn[name].rows.tolist() for name in ("label", "speaker")), strict=True)]  # type: ignore[union-attr]
    assert len({*pairs}) == 60
    assert pairs[:60] == pairs[60:]
    assert drawn["speaker"].facts == {"speakers": "balanced: i // 10 % 6"}
    real = one.draw(40, digits, SimpleNamespace(labels="train", chunk=16))
    clips = digits.source("train")
    known = {*zip(clips.known["label"].tolist(), clips.known["speaker"].tolist(), strict=True)}  # type: ignore[attr-defined]
    assert {*zip(*(real[name].rows.tolist() for name in ("label", "speaker")), strict=True)} <= known  # type: ignore[union-attr]
    assert "train" in real["speaker"].facts["speakers"]


def test_what_the_network_is_told_and_guidance() -> None:
    one, seeds = model(), torch.arange(4)
    x, t = noise.normal(seeds, Stream.INITIAL, SHAPE), torch.ones(4)
    rows = {"label": torch.tensor([1, 2, 3, 4]), "speaker": torch.tensor([0, 1, 2, 3])}
    told, null = one.told(rows, 4)
    assert told.tolist() == [[1, 0], [2, 1], [3, 2], [4, 3]]
    assert null.tolist() == [[10, 6]] * 4
    assert one.told({"label": rows["label"]}, 4)[0].tolist() == [[1, 6], [2, 6], [3, 6], [4, 6]]  # nobody in particular
    c, u = (one(x, t, what) for what in (told, null))
    for other in ({"label": rows["label"]}, {"speaker": rows["speaker"]}):
        assert not torch.allclose(one(x, t, one.told(other, 4)[0]), c)
    guided = one.denoiser(rows, 4, 3.0)(x, 1.0)
    torch.testing.assert_close(guided.eps - guided.x_0, u + 3 * (c - u), atol=1e-4, rtol=1e-4)
    nothing = one.denoiser({}, 4, 3.0)(x, 1.0)  # whatever the scale
    torch.testing.assert_close(nothing.eps - nothing.x_0, u, atol=1e-4, rtol=1e-4)


def test_both_are_dropped_together() -> None:
    batch = batch_of()
    unsaid = batch | {"label": torch.full((6,), 10), "speaker": torch.full((6,), 6)}
    dropped, never = (model(condition_drop=share).train() for share in (0.999999, 0.0))
    torch.testing.assert_close(dropped.losses(batch)["loss"], never.losses(unsaid)["loss"])
    assert not torch.allclose(never.losses(batch)["loss"], never.losses(unsaid)["loss"])


def test_one_of_them_or_none() -> None:
    labels, nothing = model(num_speakers=None), model(num_classes=None, num_speakers=None)
    assert [known.name for known in labels.conditions] == ["label"]
    assert labels.reads == ("audio", "label")
    assert (nothing.conditions, nothing.reads) == ((), ("audio",))
    assert nothing.sample(torch.arange(2), sampler=Euler(steps=1)).data.shape == (2, 1, SAMPLES)
    with pytest.raises(ConfigError, match="needs a model with labels or captions; take 1"):
        nothing.sample(torch.arange(2), sampler=Euler(steps=1, guidance_scale=2.0))


# ---- captions


def test_captions(tmp_path: Path) -> None:
    """As the configuration has them, with a smaller network."""
    sizes = "model.network.network."
    tones = make_sounds(tmp_path / "tones", None, RATE, SAMPLES, 20)
    config = compose_train(
        ["model=mel_diffusion", "model/text=minilm", "model/network=mel_text_unet", "model.num_classes=null",
         "model.num_speakers=null", f"model.text.network.path={make_text_encoder(tmp_path / 'text', 17)}",
         "model.text.width=16", f"{sizes}block_out_channels=[8,8,16]", f"{sizes}norm_num_groups=4",
         "data=audio_folder", f"data.root={tones}", "data.captions=beside", "data.vocab_size=17",
         "data.val_fraction=0.3", "data.batch_size=4"]
    )  # fmt: skip
    data, one = build_data(config), build_model(config).eval()
    assert isinstance(one, MelDiffusion)
    data.setup()
    one.tokenizer = data.tokenizer
    one.check_items(data)
    one.prepare(data, torch.device("cpu"))
    assert one.tells_pooled
    assert "text_states" in data.attached("train")
    batch = next(iter(data.batches(data.eval_loader("val"))))
    other = batch | {name: rows.flip(0) for name, rows in batch.items() if name.startswith(("text_", "caption"))}
    assert one.losses(batch)["loss"] != one.losses(other)["loss"]
    rows = {"caption": condition_named(one, "caption").rows(["tone 1", "tone 7"], one)}
    seeds, sampler = torch.zeros(2, dtype=torch.int64), Euler(steps=1, guidance_scale=2.0)
    told = one.sample(seeds, rows, sampler).data
    assert told.shape == (2, 1, config.data.samples)
    assert not torch.equal(told[0], told[1])
    with pytest.raises(ConfigError, match=r"model.text and model.num_speakers: .* set it to null"):
        model(network=one.network, text=one.text, num_classes=None)


# ---- what cannot be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocoder": GriffinLim()}, r"takes log-mels of 22050 Hz, hop 256, 80 bands, model.mel makes 8000 Hz, hop 64"),
        ({"vocoder": GriffinLim(mel=log_mels(20))}, r"hop 64, 20 bands, model.mel .* 16 bands; .*griffin_lim"),
        ({"samples": 1000}, r"data.samples=1000: .* 64 samples in multiples of 4; set data.samples=1024"),
        ({"samples": 64}, r"set data.samples=256"),
        ({"mel": log_mels(18), "vocoder": GriffinLim(mel=log_mels(18))}, r"model.mel.bands=18: .* a multiple of 4"),
        ({"network": unet(class_embed_type=None)}, r"class_embed_type is None; .* class_embed_type=identity"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        model(**options)
    assert "\n" not in str(refusal.value)


def test_the_remedy_for_another_length_works() -> None:
    assert model(samples=256).shape == (1, 16, 4)


def test_data_that_lack_what_it_reads_are_refused(digits: SpokenDigits, tmp_path: Path) -> None:
    root = make_sounds(tmp_path / "tones", 2, RATE, SAMPLES, 8)
    folder = AudioFolder("tones", root=str(root), samples=SAMPLES, sample_rate=RATE, val_fraction=0.3, batch_size=4)
    with pytest.raises(ConfigError, match=r"its items have no speaker, only audio, label; MelDiffusion reads"):
        model().check_items(folder)
    model(num_speakers=None, num_classes=2).check_items(folder)
    fast = log_mels(rate=16000)
    with pytest.raises(ConfigError, match=r"model.mel.sample_rate=16000: data.sample_rate is 8000; set model.mel"):
        model(mel=fast, vocoder=GriffinLim(mel=fast)).prepare(digits, torch.device("cpu"))


def test_conditions_that_it_does_not_know_are_refused() -> None:
    one = model()
    with pytest.raises(ConfigError, match=r"condition.speaker=6: expected 0 to 5."):
        condition_named(one, "speaker").rows([6], one)
    with pytest.raises(ConfigError, match=r"no such condition \(it knows: label, speaker\)"):
        one.sample(torch.arange(1), {"image": torch.zeros(1, *SHAPE)}, Euler(steps=1))
    with pytest.raises(ConfigError, match=r"sampler.strength=0.5: a sound begins from noise alone; take 1"):
        one.sample(torch.arange(1), sampler=Euler(steps=1, strength=0.5))
