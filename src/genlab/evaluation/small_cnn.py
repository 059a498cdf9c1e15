"""Small classifiers of our own, and their weights, which are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import CheckpointError
from genlab.files import sha256_of

WEIGHTS = Path(__file__).parent / "weights"


class Block(nn.Module):
    """3x3 convolution, batch norm, ReLU; adds its input where the widths agree."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        y = F.relu(self.norm(self.conv(x)))
        return x + y if x.shape == y.shape else y


class SmallCNN(nn.Module):
    """Classifier whose penultimate layer serves as a feature space for metrics.

    Args:
        channels: widths at 28x28, 14x14 and 7x7.
        features: width of the penultimate layer (the pooled output of the last convolution, after its ReLU).
        classes: number of logits.
        dropout: on the features, in training only.
    """

    size = 28  # height and width of the images it takes

    def __init__(
        self,
        channels: tuple[int, int, int] = (32, 48, 96),
        features: int = 128,
        classes: int = 10,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        a, b, c = channels
        self.blocks = nn.Sequential(
            Block(1, a), nn.MaxPool2d(2), Block(a, b), Block(b, b), nn.MaxPool2d(2), Block(b, c), Block(c, c)
        )
        self.last = nn.Conv2d(c, features, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 or float in [0, 255], [B, 1, 28, 28] -> features [B, features], logits [B, classes], both float32."""
        x = images.to(torch.float32).div(127.5).sub(1)
        x = F.relu(self.last(self.blocks(x))).mean((2, 3))
        return x, self.head(self.dropout(x))


def shipped(name: str, path: str | None = None) -> tuple[dict[str, Any], Path]:
    """The card of a classifier, and its file of weights, which is the one that the card describes.

    Args:
        path: of NAME.safetensors, with NAME.json beside it; None: the shipped one.

    Raises:
        CheckpointError: it is another one, or cannot be read.
    """
    file = Path(path) if path else WEIGHTS / f"{name}.safetensors"
    try:
        card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        digest = sha256_of(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot read the weights or their .json ({error}): reinstall genlab") from error
    if digest != card["sha256"]:
        raise CheckpointError(
            f"{file}: sha256 is {digest[:12]}..., its .json says {card['sha256'][:12]}...: reinstall genlab or train "
            f"it again: {card['command']}"
        )
    return card, file
