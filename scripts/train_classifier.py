#!/usr/bin/env python
"""Trains one of the small classifiers whose features and labels the metrics use, and writes weights and a card.

python scripts/train_classifier.py mnist-cnn
python scripts/train_classifier.py fashion-cnn

On one free core a pass takes one to two minutes. The shipped weights came from these commands; a card (NAME.json)
states accuracy, command, data, date and the sha256 of the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from genlab.data.images import StandardImages
from genlab.data.module import DataModule
from genlab.data.sources import Source
from genlab.errors import GenlabError
from genlab.evaluation.extractors import WEIGHTS, SmallCNN, exact_float32
from genlab.evaluation.metrics.fidelity import confident, label_accuracy
from genlab.files import replacing, sha256_of


@dataclass(frozen=True)
class Recipe:
    """What a classifier is trained on and how its training images are varied.

    Attributes:
        data: name of the data set.
        epochs: passes over the train split.
        rotate: largest angle in radians. zoom: largest change of size, as a share. shift: largest shift in pixels.
        flip: mirror left-right with probability 1/2.
        lr: peak of the one-cycle schedule. weight_decay: of AdamW, on tensors of two or more dimensions.
    """

    data: str
    epochs: int
    rotate: float = 0.0
    zoom: float = 0.0
    shift: int = 2
    flip: bool = False
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.05
    seed: int = 0


RECIPES = {
    "mnist-cnn": Recipe("mnist", epochs=5, rotate=0.2, zoom=0.1),
    "fashion-cnn": Recipe("fashion_mnist", epochs=16, shift=1, flip=True),
}
ARCHITECTURE: dict[str, Any] = {"channels": [32, 48, 96], "features": 128, "classes": 10, "dropout": 0.1}


def everything(source: Source) -> dict[str, Tensor]:
    """All items of a split: image uint8 [N, 1, 28, 28], label int64 [N]."""
    ids = torch.arange(len(source))
    return source.batch(ids, torch.zeros_like(ids))


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """A random affine map an image. uint8 [B, 1, H, W] -> float32 [B, 1, H, W] in [0, 255]; outside is 0."""
    n, size = len(images), images.shape[-1]

    def symmetric(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, scale = symmetric(recipe.rotate), 1 + symmetric(recipe.zoom)
    dx, dy = torch.randint(-recipe.shift, recipe.shift + 1, (2, n), generator=generator) * (2 / size)
    mirror = 1 - 2 * torch.randint(0, 2, (n,), generator=generator) * recipe.flip
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    maps = torch.stack([torch.stack([cosine * mirror, -sine, dx], 1), torch.stack([sine * mirror, cosine, dy], 1)], 1)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> SmallCNN:
    """Images uint8 [N, 1, 28, 28], labels int64 [N] -> the trained network, in eval mode."""
    torch.manual_seed(recipe.seed)
    network = SmallCNN(**ARCHITECTURE)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def logits(ids: Tensor, generator: torch.Generator) -> Tensor:
        batch = augment(images[ids], recipe, generator).contiguous(memory_format=torch.channels_last)
        return network(batch)[1]

    fit(network, recipe, labels, logits)
    return network.eval()


def fit(network: nn.Module, recipe: Any, labels: Tensor, logits: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    """AdamW and one cycle of the learning rate over `recipe.epochs` passes in random order.

    Args:
        labels: int64 [N].
        logits: of the items with these ids, varied by the generator.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.lr,
    )
    steps = len(labels) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.epochs * steps, pct_start=0.15)
    began = time.monotonic()
    for epoch in range(recipe.epochs):
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        for ids in order[: steps * recipe.batch_size].split(recipe.batch_size):
            loss = F.cross_entropy(logits(ids, generator), labels[ids])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        left = (time.monotonic() - began) / (epoch + 1) * (recipe.epochs - epoch - 1)
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.4f}, {left / 60:.0f} min left", flush=True)


def save(
    path: Path,
    network: nn.Module,
    logits: Tensor,
    labels: Tensor,
    architecture: str,
    data: DataModule,
    recipe: Any,
    seconds: float,
) -> None:
    """Writes weights and their card.

    Args:
        path: NAME.safetensors.
        logits: of the test split, [N, classes]. labels: int64 [N].
        architecture: in words.
        data: what it learned from, and was tested on.
        recipe: a dataclass.
        seconds: of the training.
    """
    with replacing(path) as temporary:
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, temporary)
    card = {
        "name": path.stem,
        "sha256": sha256_of(path),
        "architecture": architecture,
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": {"name": data.name, **{split: data.manifest.splits[split]["sha256"] for split in ("train", "test")}},
        "test": {
            "accuracy": round(label_accuracy(logits, labels), 6),
            "confident_09": round(confident(logits), 6),
            "cross_entropy": round(F.cross_entropy(logits, labels).item(), 6),
        },
        "recipe": asdict(recipe),
        "command": f"python scripts/{Path(sys.argv[0]).name} " + " ".join(sys.argv[1:]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "minutes": math.ceil(seconds / 60),
    }
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: test accuracy {card['test']['accuracy']:.4f}, {path.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights and the card")
    parser.add_argument("--epochs", type=int, help="other than the recipe's")
    args = parser.parse_args()
    recipe = RECIPES[args.name]
    if args.epochs:
        recipe = Recipe(**{**asdict(recipe), "epochs": args.epochs})
    try:
        data = StandardImages(recipe.data, shape=[1, 28, 28], num_classes=10)
        learned, held_out = everything(data.source("train")), everything(data.source("test"))
        began = time.monotonic()
        network = train(recipe, learned["image"], learned["label"])
        seconds = time.monotonic() - began
        with exact_float32(torch.device("cpu")):
            logits = torch.cat([network(part)[1] for part in held_out["image"].split(100)])
        path = args.out / f"{args.name}.safetensors"
        save(path, network, logits, held_out["label"], ARCHITECTURE, data, recipe, seconds)
    except GenlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
