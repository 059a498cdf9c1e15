"""Log-mels against librosa's numbers, and sounds from them by Griffin-Lim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.networks.mel import GriffinLim, LogMel, mel_filters, slaney_hertz, slaney_mel


def sweep(n: int = 4096) -> np.ndarray:
    """A rising tone, a fading one, and a weak one that fills all bands."""
    i = np.arange(n)
    tones = 0.4 * np.sin(2 * np.pi * (200 + 0.1 * i) * i / 22050)
    return tones + 0.2 * np.sin(2 * np.pi * 3000 * i / 22050) * np.exp(-i / 1000) + 0.01 * np.sin(0.37 * i**1.5)


# Every ninth band and fifth frame of librosa 0.11's log(max(melspectrogram(y, sr=.., n_fft=.., hop_length=..,
# n_mels=.., fmin=.., fmax=.., center=False, power=1), 1e-5)), y in float64 and reflected by (n_fft - hop) / 2.
LIBROSA = [
    ((22050, 1024, 256, 80, 0.0, 8000.0), 4096, [
        [-0.528745, -5.393256, -10.381059, -3.279366], [-1.563167, -1.568349, -7.788954, -3.136726],
        [-3.799447, -4.805523, 0.886628, -2.556731], [-5.202718, -5.062197, -7.140282, 0.278662],
        [-3.970023, -5.514092, -7.569123, -3.363878], [-3.402678, -5.221088, -6.902424, -4.423153],
        [-0.39303, -2.040016, -3.304322, -4.469133], [-3.731666, -5.118434, -5.651744, -5.865809],
        [-4.986745, -5.009671, -5.127262, -6.501676]]),
    ((16000, 512, 128, 40, 50.0, 7000.0), 2000, [
        [-0.202151, -4.050183, -6.416139], [-5.63554, -6.783078, -6.410959], [-3.946706, -6.501237, -6.003137],
        [-3.721691, -5.971611, -5.500871], [-5.261519, -5.547028, -5.598648]]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "samples", "expected"), LIBROSA, ids=["hifigan", "other"])
def test_log_mels_are_those_of_librosa(settings: tuple, samples: int, expected: list) -> None:
    mel, librosas = LogMel(*settings), np.array(expected)
    sound = torch.from_numpy(sweep()[:samples])
    single = mel(sound.float()).numpy()[::9, ::5]
    loud = librosas > -7  # below, float32's own rounding of the transform is heard
    assert single[loud] == pytest.approx(librosas[loud], abs=1e-4)
    assert single == pytest.approx(librosas, abs=1e-3)
    assert mel.double()(sound).numpy()[::9, ::5] == pytest.approx(librosas, abs=1e-4)


def test_the_scale_is_slaneys() -> None:
    hertz = torch.tensor([0.0, 200.0, 1000.0, 6400.0, 8000.0], dtype=torch.float64)
    mels = slaney_mel(hertz)
    assert mels[:4].tolist() == pytest.approx([0, 3, 15, 42])
    assert slaney_hertz(mels).tolist() == pytest.approx(hertz.tolist())
    filters = mel_filters(22050, 1024, 80, 0.0, 8000.0)
    assert filters.shape == (80, 513)
    assert (filters[20:] * 22050 / 1024).sum(1).numpy() == pytest.approx(1, abs=0.06)  # of equal area


def test_shapes_batches_and_gradients() -> None:
    mel, sound = LogMel(), torch.from_numpy(sweep()).float()
    assert mel(sound).shape == (80, 16)
    several = torch.stack([sound, sound.flip(0), torch.zeros_like(sound)])[:, None].requires_grad_()
    out = mel(several)
    assert out.shape == (3, 1, 80, 16)
    assert out[0, 0].allclose(mel(sound), atol=1e-5)
    assert (out[2] == math.log(1e-5)).all()  # silence is at the floor
    out.sum().backward()
    assert several.grad is not None
    assert several.grad.isfinite().all()  # in silence too, where a magnitude has no derivative
    assert several.grad[0].abs().max() > 0
    assert not LogMel().state_dict()  # no weights: a checkpoint does not hold it


def test_the_inverse_of_a_transform_is_the_sound() -> None:
    mel, sound = LogMel(), torch.from_numpy(sweep()).float()[None]
    assert mel.inverse(mel.spectrum(sound)).shape == (1, 4096)
    assert mel.inverse(mel.spectrum(sound)).allclose(sound, atol=1e-5)


def distance(mel: LogMel, log_mel: Tensor, sound: Tensor) -> float:
    loud = log_mel > -6
    return float((mel(sound[:, 0]) - log_mel).abs()[loud].mean())


def test_griffin_lim_comes_near_the_log_mel_and_momentum_nearer() -> None:
    mel = LogMel()
    log_mel = mel(torch.from_numpy(np.stack([sweep(8192), sweep(8192)[::-1].copy()])).float())
    few, plain, fast = (GriffinLim(n, m)(log_mel) for n, m in ((1, 0.0), (24, 0.0), (24, 0.99)))
    assert fast.shape == (2, 1, 8192)
    assert fast.abs().max() <= 1
    distances = [distance(mel, log_mel, sound) for sound in (few, plain, fast)]
    assert distances[0] > 1.5 * distances[1]
    assert distances[1] > distances[2]
    assert distances[2] < 0.25


def test_start_phases_are_keyed() -> None:
    log_mel, vocoder = LogMel()(torch.from_numpy(sweep()).float())[None].repeat(3, 1, 1), GriffinLim(2)
    seeds = torch.tensor([5, 6, 5])
    sounds = vocoder(log_mel, seeds)
    assert torch.equal(sounds[0], sounds[2])
    assert not torch.equal(sounds[0], sounds[1])
    assert sounds[1:2].allclose(vocoder(log_mel[:1], torch.tensor([6])), atol=1e-5)
    assert torch.equal(sounds, vocoder(log_mel, seeds))
    assert vocoder.name == "Griffin-Lim, 2 iterations, momentum 0.99"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"high": 12000.0}, "high=12000 Hz: expected 0 <= low < high <= 11025"),
        ({"low": 9000.0}, "low=9000, high=8000 Hz"),
        ({"hop": 2048}, "hop=2048, n_fft=1024: expected a hop up to n_fft"),
        ({"hop": 255}, "an even number below it"),
    ],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LogMel(**settings)


def test_inputs_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="mel: 300 samples, expected more than 384"):
        LogMel()(torch.zeros(300))
    for shape in ((80, 4), (1, 40, 4)):
        with pytest.raises(ConfigError, match=r"expected \[B, 80, frames\]"):
            GriffinLim()(torch.zeros(shape))
