"""Rewards of pictures: how sure a classifier is of the class asked for, and how well a picture is compressed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from genlab.errors import ConfigError
from genlab.evaluation.extractors import load_extractor
from genlab.judges import DifferentiableJudge, Judge
from genlab.modality import to_float
from genlab.samples import Samples


class Confidence(DifferentiableJudge):
    """log p(label | picture) in nats, by a classifier of the metrics (mnist-cnn, fashion-cnn, ...).

    Args:
        classifier: name of an extractor whose logits are the data's labels.

    Raises:
        ConfigError: one whose logits are not.
    """

    def __init__(self, classifier: str = "mnist-cnn") -> None:
        self.classifier = classifier

    @cached_property
    def _extractor(self) -> Any:
        extractor = load_extractor(self.classifier)
        if not extractor.labels:
            raise ConfigError(f"feedback.reward.classifier={self.classifier}: its logits are not the data's labels")
        return extractor

    def score(self, images: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        if "label" not in condition:
            raise ConfigError(
                "feedback.reward: a classifier's confidence needs labels; choose data and a model with them"
            )
        network = self._extractor.network.to(images.device)
        logits = network((images.clamp(-1, 1) + 1) * 127.5)[1]
        return logits.log_softmax(1).gather(1, condition["label"].long()[:, None])[:, 0]

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor:
        with torch.no_grad():
            return self.score(
                to_float(samples.data), {k: torch.tensor(v) for k, v in condition.items() if k == "label"}
            )


class JPEGSize(Judge):
    """Kilobytes of a picture as JPEG, less than 0: what compresses well is better (arXiv 2305.13301, section 5.1).

    Args:
        quality: of the JPEG, 1 to 95.
        large: true: large files are better.
    """

    modality = "image"

    def __init__(self, quality: Annotated[int, "gt 0, le 95"] = 95, large: bool = False) -> None:
        self.quality, self.sign = quality, 1.0 if large else -1.0

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        return [self.sign * self._size(image) / 1000 for image in samples.data]

    def _size(self, image: Tensor) -> int:
        array = image.permute(1, 2, 0).cpu().numpy()
        out = io.BytesIO()
        PILImage.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(out, "JPEG", quality=self.quality)
        return out.tell()
