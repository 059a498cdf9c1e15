"""Judges: how good each item is, as one number, for metrics, best-of-n, rewards and the choice of what is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genlab.errors import RewardError
from genlab.samples import Samples


class Judge(ABC):
    """(Samples, conditions) -> float [N]; a higher number is better. A judge of one's own is a subclass.

    Attributes:
        name: for records; say in it which weights.
        modality: name of what it judges ("image", "text", ...); None: anything.
    """

    modality: str | None = None

    @property
    def name(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"

    @abstractmethod
    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor | Sequence[float]:
        """One number an item.

        Args:
            samples: N items.
            condition: what each was asked to be, as a person reads it: N values by the names of conditions.
        """

    def __call__(self, samples: Samples, condition: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """What `judge` gives, float64 [N] on the CPU.

        Raises:
            RewardError: items of another modality; not one finite number an item.
        """
        if self.modality not in (None, samples.modality.name):
            raise RewardError(f"{self.name} judges {self.modality}, not {samples.modality.name}")
        scores = torch.as_tensor(self.judge(samples, condition or {}), dtype=torch.float64).cpu()
        if scores.shape != (len(samples),):
            raise RewardError(
                f"{self.name}: {len(samples)} items, but scores of shape {list(scores.shape)}; give one each"
            )
        if not bool((finite := scores.isfinite()).all()):
            item = int(finite.logical_not().nonzero()[0, 0])
            shown = f" ({samples.data[item][:60]!r})" if isinstance(samples.data[item], str) else ""
            raise RewardError(f"{self.name}: item {item}{shown} has {scores[item].item()}; a score must be finite")
        return scores


class DifferentiableJudge(Judge):
    """A judge of pictures through which gradients flow."""

    modality = "image"

    @abstractmethod
    def score(self, images: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """One number an item, float [N], a differentiable function of float [N, C, H, W] in about [-1, 1].

        Args:
            condition: rows of tensors by the names of conditions, such as "label", int64 [N].
        """


class CaptionJudge(Judge):
    """A judge of pictures by their captions, in a space that both have.

    Attributes:
        kind: "dual" or "clip", which names the values.
    """

    modality = "image"
    kind: str

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, E] of length 1, on the CPU."""

    @abstractmethod
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """N texts -> float32 [N, E] of length 1, on the CPU."""

    @abstractmethod
    def scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """Of vectors of N pictures and of their captions, float [N]."""
