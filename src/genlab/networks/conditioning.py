"""How a class enters a network, and how many times an image is halved: what the networks of GANs share."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

CriticCondition = Literal["projection", "concatenation", "none"]


class ClassCritic(nn.Module):
    """Base of critics that a class enters: in the order of its own layers, a subclass makes `embedding` and `head`.

    Args:
        num_classes: classes of the condition; None or 0 for none.
        condition: projection: logits get the product of the features with a vector of the class (Miyato & Koyama 2018,
            arXiv 1802.05637, equation 3); concatenation: the image gets a plane of the class (Mirza & Osindero 2014,
            arXiv 1411.1784).
    """

    embedding: Any
    head: nn.Linear

    def __init__(self, num_classes: int | None, condition: CriticCondition) -> None:
        super().__init__()
        self.classes, self.condition = num_classes, condition if num_classes else "none"

    def planes(self, channels: int) -> int:
        """Channels that the first layer gets, for an image of so many."""
        return channels + int(self.condition == "concatenation")

    def class_embedding(self, features: int, shape: list[int]) -> nn.Embedding | None:
        """The table for a critic of so many features and images of shape C, H, W; None without a condition."""
        sizes = {"projection": features, "concatenation": shape[1] * shape[2]}
        return nn.Embedding(self.classes or 0, sizes[self.condition]) if self.condition in sizes else None

    def joined(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Images [B, C, H, W], with the class's plane as one more channel under concatenation."""
        if self.condition != "concatenation":
            return x
        return torch.cat([x, self.embedding(labels).view(-1, 1, *x.shape[2:])], 1)

    def logits(self, h: Tensor, labels: Tensor | None) -> Tensor:
        """Features [B, F] -> logits [B]."""
        logits = self.head(h).squeeze(1)
        return logits + (self.embedding(labels) * h).sum(1) if self.condition == "projection" else logits


def with_class(z: Tensor, embedding: nn.Embedding | None, labels: Tensor | None) -> Tensor:
    """A generator's z [B, D], with the embedding of the class beside it where there is one."""
    return z if embedding is None else torch.cat([z, embedding(labels)], 1)


def halvings(shape: list[int]) -> int:
    """How often H and W can be halved while both stay whole and at least 4: 3 for 32, 2 for 28, 4 for 64."""
    count = 0
    while all(size % 2 ** (count + 1) == 0 and size // 2 ** (count + 1) >= 4 for size in shape[1:]):
        count += 1
    return count
