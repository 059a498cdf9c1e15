"""Dual encoders: images and texts in one space, near each other where they belong together (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.data.computed import computed_rows, text_key
from genlab.models.trained import TrainedModel
from genlab.networks.text_encoder import TextEncoder
from genlab.objectives.contrastive import Contrastive, compare, keys_of

POOLED = "text_pooled"  # of a frozen text encoder, in a batch


class DualEncoder(TrainedModel):
    """Trained by a contrastive objective; it does not generate, but finds images and texts and judges how they fit.

    The vector of a text by a frozen encoder is computed once before training.

    Args:
        image: images [B, C, H, W] in [-1, 1] -> [B, D], with D as `width`: see genlab.networks.image_encoder.
        text: TextEncoder, whose pooled vector is taken; frozen or trained along.
        width: E, numbers of a vector in the common space.
        objective: from genlab.objectives.contrastive.
        text_hidden: units of a layer between a text's vector and the common space; 0: a linear map, as of images.
        augment: (images, keys) -> images, in training: genlab.data.augment.Augment; or null.
    """

    reads = ("image", "caption")

    def __init__(
        self,
        image: nn.Module,
        text: TextEncoder,
        width: Annotated[int, "gt 0"],
        objective: Contrastive,
        text_hidden: Annotated[int, "ge 0"] = 0,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.image, self.text, self.objective, self.augment = image, text, objective, augment
        images: Any = image.width
        self.image_projection = nn.Linear(images, width, bias=False)
        hidden = [nn.Linear(text.width, text_hidden), nn.GELU()] if text_hidden else []
        self.text_projection = nn.Sequential(*hidden, nn.Linear(text_hidden or text.width, width, bias=False))

    @property
    def logit_scale(self) -> Tensor:
        """Logarithm of the factor of cosines."""
        return self.objective.logit_scale

    def check_items(self, data: Any) -> None:
        """Also that the text encoder has learned the data's tokens."""
        super().check_items(data)
        self.text.check_vocabulary(data)

    def prepare(self, data: Any, device: torch.device) -> None:
        """Attaches what a frozen text encoder makes of the captions."""
        once = self.text.frozen and not getattr(data, "varies", False)  # one caption an item
        for split in ("train", "val") if once else ():
            key = text_key(self.text, data.tokenizer)
            rows = computed_rows(data, split, "captions", key, lambda batch: {POOLED: self._pooled(batch)}, device)
            data.attach(split, POOLED, rows[POOLED])

    def image_features(self, image: Tensor) -> Tensor:
        """float [B, C, H, W] in [-1, 1] -> float [B, E] of length 1."""
        return F.normalize(self.image_projection(self.image(image)).float(), dim=1)

    def text_features(self, caption: Tensor) -> Tensor:
        """Token ids, int64 [B, L] with -1 after the end -> float [B, E] of length 1."""
        return self._text_features({"caption": caption})

    def _text_features(self, batch: Mapping[str, Tensor]) -> Tensor:
        pooled = batch[POOLED] if POOLED in batch else self._pooled(batch)
        return F.normalize(self.text_projection(pooled).float(), dim=1)

    def _pooled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.text(batch["caption"], self.tokenizer).pooled

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The objective's loss, and R@1 in the batch both ways. Items of equal captions are no negatives of each
        other."""
        x = batch["image"]
        if self.training and self.augment is not None:
            x = self.augment(x, self.keys(batch))
        image, text = self.image_features(x), self._text_features(batch)
        similarity = compare(image, text, keys_of(batch["caption"]), even=self.training)
        with torch.no_grad():
            recall = similarity.recall()
        return {"loss": self.objective(similarity), **recall}
