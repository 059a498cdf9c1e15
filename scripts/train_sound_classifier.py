#!/usr/bin/env python
"""Trains a judge of spoken digits, of their speakers or of drum hits, for the metrics; writes weights and a card.

python scripts/train_sound_classifier.py spoken-digits-cnn
python scripts/train_sound_classifier.py spoken-speakers-cnn
python scripts/train_sound_classifier.py drum-hits-cnn

It learns from all recordings that are not of the official test split; of drum hits from the train split. Shipped
weights came from these commands; the card (NAME.json) states accuracy, data, date and the sha256 of the weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor
from train_classifier import everything, fit, save

from genlab.data.audio import AudioData, SpokenDigits
from genlab.data.drum_hits import DrumHits
from genlab.errors import GenlabError
from genlab.evaluation.extractors import WEIGHTS, exact_float32
from genlab.evaluation.sounds import SoundCNN

SAMPLES = 16384  # of a clip
CONF = Path(__file__).resolve().parent.parent / "conf" / "data"


@dataclass(frozen=True)
class Recipe:
    """How a judge is trained.

    Attributes:
        told: what it learns to tell of a recording: "label" (the digit, what is hit) or "speaker".
        classes: how many there are.
        epochs: passes over the train split.
        speed: largest change of a batch's speed and pitch, as a share.
        shift: largest delay, as a share of the clip.
        gain: largest change of loudness, in dB.
        noise: white noise has a deviation between 1e-5 and this, evenly in its logarithm.
        bands: most mel bands on end that are hidden. frames: likewise of frames.
        data: "spoken_digits" or "drum_hits". high: in Hz, where the judge's mel bands end.
        lr: peak of the one-cycle schedule. weight_decay: of AdamW, on tensors of two or more dimensions.
    """

    told: str = "label"
    classes: int = 10
    epochs: int = 24
    speed: float = 0.1
    shift: float = 0.15
    gain: float = 10.0
    noise: float = 3e-3
    bands: int = 10
    frames: int = 8
    batch_size: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    seed: int = 0
    data: str = "spoken_digits"
    high: float = 4000.0


RECIPES = {
    "spoken-digits-cnn": Recipe(),
    "spoken-speakers-cnn": Recipe("speaker", 6, speed=0.03),  # a pitch is a part of who speaks
    # About 420 steps. A hit begins at once, and what tells cymbals apart from hats is above 4 kHz.
    "drum-hits-cnn": Recipe(classes=7, epochs=60, shift=0.03, data="drum_hits", high=11025.0),
}
ARCHITECTURE: dict[str, Any] = {"channels": [16, 32, 64], "features": 128, "dropout": 0.1}


def architecture(recipe: Recipe) -> dict[str, Any]:
    """Arguments of SoundCNN."""
    return {**ARCHITECTURE, "classes": recipe.classes, "high": recipe.high}


def data_of(recipe: Recipe, path: str | None) -> AudioData:
    """The data set as its configuration splits it; all of train, where val would be a part of it."""
    common: dict[str, Any] = {"path": path, "samples": SAMPLES, "sample_rate": SoundCNN.sample_rate}
    common |= {"num_classes": recipe.classes if recipe.told == "label" else None, "batch_size": recipe.batch_size}
    if recipe.data == "spoken_digits":
        return SpokenDigits("spoken_digits", **common)
    own = OmegaConf.load(CONF / f"{recipe.data}.yaml")
    chosen = {key: OmegaConf.to_object(own)[key] for key in ("test_kits", "val_kits", "shortest")}  # type: ignore[index, call-overload]
    return DrumHits(recipe.data, **chosen, **common)


def augment(sounds: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Another speed for the batch; another delay, loudness and noise for each. [B, 1, T] -> the same shape."""
    n, length = len(sounds), sounds.shape[2]

    def drawn(low: float, high: float, size: int = n) -> Tensor:
        return torch.rand(size, generator=generator) * (high - low) + low

    speed = 1 + float(drawn(-recipe.speed, recipe.speed, 1))
    fast = F.interpolate(sounds, int(length / speed), mode="linear")
    fast = F.pad(fast, (0, max(0, length - fast.shape[2])))[..., :length]
    at = torch.arange(length) - (drawn(0, recipe.shift) * length).long()[:, None]
    moved = fast[:, 0].gather(1, at.clamp(min=0)) * (at >= 0)
    loud = moved * (10 ** (drawn(-recipe.gain, recipe.gain) / 20))[:, None]
    deviation = torch.exp(drawn(torch.tensor(1e-5).log().item(), torch.tensor(recipe.noise).log().item()))
    noise = torch.randn(n, length, generator=generator) * deviation[:, None]
    return (loud + noise).clamp(-1, 1)[:, None]


def hide(log_mels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Some bands and some frames of each at the mean of all (Park et al. 2019, SpecAugment, arXiv 1904.08779)."""
    out = log_mels.clone()
    for axis, most in ((2, recipe.bands), (3, recipe.frames)):
        size = out.shape[axis]
        width = torch.randint(0, most + 1, (len(out), 1), generator=generator)
        first = (torch.rand(len(out), 1, generator=generator) * (size - width)).long()
        place = torch.arange(size)
        hidden = (place >= first) & (place < first + width)
        shape = [len(out), 1, 1, 1]
        shape[axis] = size
        out = torch.where(hidden.view(shape), out.mean(), out)
    return out


def train(recipe: Recipe, sounds: Tensor, labels: Tensor) -> SoundCNN:
    """Sounds float32 [N, 1, T], labels int64 [N] -> the trained network, in eval mode."""
    torch.manual_seed(recipe.seed)
    network = SoundCNN(**architecture(recipe))

    def logits(ids: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            log_mels = hide(network.mel(augment(sounds[ids], recipe, generator)), recipe, generator)
        return network.judge(log_mels)[1]

    fit(network, recipe, labels, logits)
    return network.eval()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights and the card")
    parser.add_argument("--path", help="archive or folder of the recordings; else they are fetched")
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    args = parser.parse_args()
    recipe = RECIPES[args.name]
    recipe = replace(recipe, epochs=args.epochs) if args.epochs else recipe
    try:
        data = data_of(recipe, args.path)
        learned, held_out = everything(data.source("train")), everything(data.source("test"))
        began = time.monotonic()
        network = train(recipe, learned["audio"], learned[recipe.told])
        seconds = time.monotonic() - began
        with exact_float32(torch.device("cpu")):
            logits = torch.cat([network(part)[1] for part in held_out["audio"].split(50)])
        path = args.out / f"{args.name}.safetensors"
        save(path, network, logits, held_out[recipe.told], architecture(recipe), data, recipe, seconds)
    except GenlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
