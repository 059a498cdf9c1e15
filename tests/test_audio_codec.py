"""The audio codec: residual quantisation, convolutions of waveforms, distances of spectrograms, codes and bit rates."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from genlab.data.augment import CropSound
from genlab.errors import ConfigError
from genlab.models.audio_codec import AudioCodec
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.networks.audio_codec import WaveformStage
from genlab.networks.bottlenecks import FSQ, ResidualQuantiser
from genlab.networks.patch_critic import PatchCritic
from genlab.networks.stft_critic import STFTCritic
from genlab.objectives.adversarial import Hinge
from genlab.objectives.spectrograms import MultiScaleSTFT, feature_matching, magnitudes

RATE, T, HOP = 8000, 1280, 16


def sounds(n: int = 4, samples: int = T) -> Tensor:
    i = torch.arange(samples) / RATE
    return torch.stack([0.3 * torch.sin(2 * torch.pi * (300 + 200 * k) * i) for k in range(n)])[:, None]


def batch(n: int = 4) -> dict[str, Tensor]:
    ids = torch.arange(n)
    return {"audio": sounds(n), "id": ids, "position": ids}


def stage(**options: Any) -> WaveformStage:
    return WaveformStage([1, T], **{"latent_channels": 4, "width": 4, "strides": (4, 4), **options})


def codec(levels: int = 3, **options: Any) -> AudioCodec:
    torch.manual_seed(0)
    quantiser = ResidualQuantiser(levels, 8, 4, [1, levels], decay=0.8)
    options = {"perceptual": MultiScaleSTFT((256, 64)), **options}
    model = AudioCodec(stage(), quantiser, RATE, **options)
    model.plan = Plan(lambda groups: torch.optim.SGD(groups, lr=0.1), Schedule(max_samples=8), 4)
    return model


def trained_quantiser(steps: int = 40, kept: tuple[int, ...] = ()) -> tuple[ResidualQuantiser, Tensor, Tensor]:
    torch.manual_seed(0)
    quantiser, h, keys = ResidualQuantiser(4, 8, 3, kept, decay=0.8), torch.randn(32, 3, 1, 10), torch.arange(32)
    for _ in range(steps):
        quantiser(h, keys)
        quantiser.moved(True)
    return quantiser, h, keys


# ---- residual quantisation


def test_each_level_quantises_what_those_before_leave() -> None:
    quantiser, h, keys = trained_quantiser()
    quantiser.eval()
    codes = quantiser.codes(h)
    assert (codes.dtype, *codes.shape) == (torch.int64, 32, 4, 1, 10)
    errors = [float((h - quantiser.vectors(codes[:, :n])).square().mean()) for n in range(1, 5)]
    assert all(after < 0.7 * before for before, after in zip([float(h.square().mean()), *errors], errors, strict=False))
    z, report = quantiser(h, keys)
    torch.testing.assert_close(z, quantiser.vectors(codes), rtol=0, atol=1e-5)
    assert 4 < float(report["perplexity"]) <= 8
    by_hand = h
    for level, book in enumerate(quantiser.books):  # algorithm 1 of SoundStream, by brute force
        rows = by_hand.permute(0, 2, 3, 1)
        nearest = torch.cdist(rows.flatten(0, 2), book.codebook).argmin(1).view(rows.shape[:-1])
        assert torch.equal(nearest, codes[:, level])
        by_hand = by_hand - book.codebook[nearest].permute(0, 3, 1, 2)


def test_gradients_go_straight_through_to_the_encoder() -> None:
    quantiser, h, keys = trained_quantiser()
    h.requires_grad_(True)
    z, report = quantiser(h, keys)
    weights = torch.randn_like(h)
    (z * weights).sum().backward(retain_graph=True)
    torch.testing.assert_close(h.grad, weights)
    h.grad = None
    report["bottleneck"].backward()
    assert h.grad is not None
    assert h.grad.abs().sum() > 0


def test_levels_are_dropped_by_key_in_training_alone() -> None:
    quantiser, h, keys = trained_quantiser(kept=(1, 3))
    codes = quantiser.codes(h)
    z = quantiser.train()(h, keys, gather=False)[0]
    levels = []
    for i in range(len(h)):
        errors = [float((z[i] - quantiser.vectors(codes[i : i + 1, :n])[0]).abs().max()) for n in range(1, 5)]
        assert min(errors) < 1e-5
        levels.append(1 + errors.index(min(errors)))
    assert {*levels} == {1, 3}
    assert 8 < levels.count(1) < 24
    alone = quantiser(h[5:7], keys[5:7], gather=False)[0]
    torch.testing.assert_close(alone, z[5:7])
    torch.testing.assert_close(quantiser.eval()(h, keys)[0], quantiser.vectors(codes), rtol=0, atol=1e-5)


def test_a_level_begins_after_the_one_before_it() -> None:
    quantiser, h, keys = ResidualQuantiser(3, 4, 3), torch.randn(8, 3, 1, 5), torch.arange(8)
    assert not quantiser(h, keys)[0].any()
    for step in range(3):
        quantiser(h, keys)
        quantiser.moved(step != 1)  # the second step is left out
        assert [int(book.steps) for book in quantiser.books] == [[1, 0, 0], [1, 0, 0], [2, 1, 0]][step]
    drawn = quantiser.draw(torch.arange(3), (3, 1, 5))
    assert drawn.shape == (3, 3, 1, 5)
    assert torch.equal(quantiser.draw(torch.arange(1, 3), (3, 1, 5)), drawn[1:])


# ---- networks


@pytest.mark.parametrize("strides", [(4, 4), (2, 8), (5, 2, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_frame_is_as_many_samples_as_the_strides_multiply_to(strides: tuple[int, ...], causal: bool) -> None:
    hop = math.prod(strides)
    network = WaveformStage([2, 8 * hop], 4, 4, strides, 2, causal)
    z = network.encode(0.1 * torch.randn(3, 2, 12 * hop))
    assert z.shape == (3, 4, 1, 12)
    assert network.latent_shape == (4, 1, 8)
    assert network.decode(z).shape == (3, 2, 12 * hop)


def test_a_causal_network_hears_and_writes_nothing_of_what_comes_later() -> None:
    torch.manual_seed(0)
    for causal in (True, False):
        network, x = stage(causal=causal), torch.randn(1, 1, 20 * HOP)
        changed = x.clone()
        changed[..., 10 * HOP :] = 0
        z, other = network.encode(x), network.encode(changed)
        assert torch.equal(z[..., :10], other[..., :10]) == causal
        assert not torch.equal(z[..., 10:], other[..., 10:])
        z2 = z.clone()
        z2[..., 10:] = 0
        same = torch.equal(network.decode(z)[..., : 10 * HOP], network.decode(z2)[..., : 10 * HOP])
        assert same == causal


def test_first_weights_keep_the_size_of_a_sound() -> None:
    torch.manual_seed(0)
    network = WaveformStage([1, 6400], 32)
    with torch.no_grad():
        z = network.encode(0.1 * torch.randn(4, 1, 6400))
    assert 0.02 < float(z.std()) < 1
    assert float(z.mean((0, 2, 3)).abs().max()) < float(z.std())


def test_the_critic_sees_several_resolutions() -> None:
    torch.manual_seed(0)
    critic = STFTCritic(1, 4, (256, 64))
    x = sounds(3)
    logits, features = critic.features(x)
    assert [tuple(out.shape) for out in logits] == [(3, 1, 21, 17), (3, 1, 81, 5)]
    assert len(features) == 10
    for whole, alone in zip(logits, critic(x[1:2]), strict=True):
        torch.testing.assert_close(alone, whole[1:2], rtol=1e-4, atol=1e-6)
    half = [0.5 * f for f in features]
    torch.testing.assert_close(feature_matching(half, features), torch.tensor(0.5))
    torch.testing.assert_close(feature_matching(features, features), torch.tensor(0.0))


# ---- distances


def test_magnitudes_of_a_tone_lie_at_its_frequency() -> None:
    power = magnitudes(0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(4096) / RATE)[None], 256, 1e-12)
    assert power.shape == (1, 129, 65)
    assert power[0, :, 30].argmax() == 1000 * 256 // RATE
    assert float(power[0, 32, 30]) == pytest.approx(0.5 * 256 / 4, rel=1e-3)  # amplitude times the window's sum, halved


def test_distance_of_a_louder_sound_is_that_of_the_equations() -> None:
    """S(2y) = 2 S(y): spectral convergence 1, log magnitude log 2, at each resolution."""
    x = 0.1 * torch.randn(3, 2, 2048, generator=torch.Generator().manual_seed(0))
    for weights, expected in (((1, 0), 1.0), ((0, 1), math.log(2)), ((2, 3), 2 + 3 * math.log(2))):
        distance = MultiScaleSTFT((512, 128), *weights)(2 * x, x)
        torch.testing.assert_close(distance, torch.full((3,), expected), rtol=1e-3, atol=0)
    assert not MultiScaleSTFT((512, 128))(x, x).any()
    y = torch.zeros_like(x, requires_grad=True)
    MultiScaleSTFT((512, 128))(y, x).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all(), "silence has no phase, and a gradient of 0"
    with pytest.raises(ConfigError, match="sounds of 200 samples: the longest window, 512, needs more"):
        MultiScaleSTFT((512,))(x[..., :200], x[..., :200])


# ---- the codec


def latents(model: AudioCodec, codes: Tensor) -> Tensor:
    return model.bottleneck.vectors(codes[:, :, None])[:, :, 0]


def test_codes_are_what_is_decoded_and_fewer_levels_are_coarser() -> None:
    model = codec()
    optimizer = torch.optim.Adam(model.network.parameters(), 3e-3)
    model.train()
    for step in range(30):
        given = {**batch(), "position": torch.arange(4) + 4 * step}
        loss = model.losses(given, "autoencoder")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.moved(model.players()[-1], True)
    model.eval()
    with torch.no_grad():
        x = batch()
        codes = model.to_codes(x["audio"])
        assert (codes.dtype, *codes.shape) == (torch.int64, 4, 3, T // HOP)
        assert 0 <= int(codes.min()) <= int(codes.max()) < 8
        torch.testing.assert_close(model.from_codes(codes), model.reconstruct(x)[1])
        torch.testing.assert_close(model.from_codes(codes), model.decode(model.encode(x)), rtol=0, atol=1e-4)
        torch.testing.assert_close(model.from_codes(codes[:, :1]), model.reconstruct(x, 1)[1])
        h = model.network.encode(x["audio"])
        errors = [float((h[:, :, 0] - latents(model, codes[:, :n])).square().mean()) for n in range(1, 4)]
    assert errors[2] < errors[1] < errors[0] < float(h.square().mean())
    assert model.bitrate() == 3 * model.bitrate(1) == 3 * 3 * RATE / HOP
    assert model.to_data(model.from_codes(codes)).abs().max() <= 1


def test_the_game_adds_feature_matching() -> None:
    model = codec(critic=STFTCritic(1, 4, (256, 64)), objective=Hinge(), matching_weight=2.0)
    plain = codec(critic=model.critic, objective=Hinge())
    x = batch()["audio"]
    with torch.no_grad():
        both, alone = model.game(0.5 * x, x), plain.game(0.5 * x, x)
    torch.testing.assert_close(both["adversarial"], alone["adversarial"] + 2 * both["matching"])
    critic = model.losses(batch(), "critic")
    real, fake = (torch.stack([out.mean() for out in model.critic(sound)]) for sound in (x, 0 * x))  # type: ignore[misc]
    assert fake.shape == (2,)
    torch.testing.assert_close(critic["real"], real.mean())
    model.losses(batch(), "autoencoder")
    model.moved(model.players()[-1], True)  # the first level begins: until then all that is decoded is silence
    losses = model.losses(batch(), "autoencoder")
    assert losses["adversarial_scale"] > 0
    losses["loss"].backward()
    assert [player.name for player in model.players()] == ["critic", "autoencoder"]


def test_training_looks_at_a_part_of_each_sound() -> None:
    x = torch.zeros(64, 1, 1000)
    x[:, 0, :300] = torch.arange(1, 301) / 300
    parts, keys = CropSound(100)(x, torch.arange(64)), torch.arange(64)
    starts = (parts[:, 0, 0] * 300).round() - 1
    assert starts.min() >= 0
    assert starts.max() <= 250, "half of it lies before the end of the sound"
    assert len(starts.unique()) > 30
    assert torch.equal(parts[:, 0, 1], x[:, 0].gather(1, starts.long()[:, None] + 1)[:, 0])
    assert torch.equal(CropSound(100)(x[7:9], keys[7:9]), parts[7:9])
    assert CropSound(100)(torch.zeros(2, 1, 100), keys[:2]).shape == (2, 1, 100)
    with pytest.raises(ConfigError, match=r"model.augment.samples=200: sounds have 100; take fewer"):
        CropSound(200)(torch.zeros(2, 1, 100), keys[:2])


def data_of(rate: int, keys: tuple[str, ...] = ("audio", "label")) -> Any:
    rows = dict.fromkeys(keys, torch.zeros(1))
    return SimpleNamespace(name="mine", sample_rate=rate, source=lambda _: SimpleNamespace(batch=lambda *_: rows))


def test_what_cannot_be_is_refused_in_a_line() -> None:
    model = codec()
    model.check_items(data_of(RATE))
    cases: list[tuple[Any, str]] = [
        (lambda: model.check_items(data_of(22050)), "data=mine is of 22050 Hz, .*: set data.sample_rate=8000"),
        (lambda: model.check_items(data_of(RATE, ("image",))), "have no audio"),
        (lambda: WaveformStage([1, 1000], 4, 4, (4, 4)), "do not divide sounds of 1000; set data.samples=1008"),
        (lambda: model.to_codes(torch.zeros(1, 1, 1000)), "1000 samples is no multiple of 16: pad or cut it"),
        (lambda: model.from_codes(torch.zeros(1, 4, 3, dtype=torch.int64)), "codes of 4 levels: expected 1 to 3"),
        (lambda: model.reconstruct(batch(), 0), "codes of 0 levels: expected 1 to 3"),
        (lambda: model.from_codes(torch.full((1, 1, 3), 8)), "codes from 8 to 8: expected 0 to 7"),
        (lambda: ResidualQuantiser(3, 8, 4, [1, 4]), r"model.bottleneck.kept=\[1, 4\]: 4 of 3 levels"),
        (lambda: AudioCodec(stage(), FSQ([5, 5, 5, 5]), RATE), "FSQ has no levels; take residual_vq"),  # type: ignore[arg-type]
        (lambda: codec(critic=PatchCritic(1, 8, 1), objective=Hinge(), matching_weight=1.0), "PatchCritic has no feat"),
        (lambda: STFTCritic(windows=[]), r"model.critic.windows=\[\]: name at least one"),
    ]  # fmt: skip
    for call, words in cases:
        with pytest.raises(ConfigError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)
