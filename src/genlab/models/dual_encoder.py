"""Dual encoders: images and texts in one space, near each other where they belong together (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.data.computed import SEEN, computed_rows, text_key
from genlab.errors import ConfigError
from genlab.models.trained import TrainedModel
from genlab.networks.image_encoder import Components
from genlab.networks.text_encoder import TextEncoder
from genlab.objectives.contrastive import Contrastive, compare, keys_of

POOLED = "text_pooled"  # of a frozen text encoder, in a batch
LOCKED = "image_vector"  # of a locked image tower, likewise


class DualEncoder(TrainedModel):
    """Trained by a contrastive objective; it does not generate, but finds images and texts and judges how they fit.

    The vector of a text by a frozen encoder is computed once before training, and so is that of an image by a locked
    tower (genlab.networks.image_encoder.Components), whose space the texts are then brought to.

    Args:
        image: images [B, C, H, W] in [-1, 1] -> [B, D], with D as `width`: see genlab.networks.image_encoder.
        text: TextEncoder, whose pooled vector is taken; frozen or trained along.
        width: E, numbers of a vector in the common space.
        objective: from genlab.objectives.contrastive.
        text_hidden: units of a layer between a text's vector and the common space; 0: a linear map, as of images.
        augment: (images, keys) -> images, in training: genlab.data.augment.Augment; or null.

    Raises:
        ConfigError: a locked tower of another width, or whose images are changed at random.
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
        self.locked = isinstance(image, Components)
        images: Any = image.width
        if self.locked and (images != width or augment is not None):
            raise ConfigError(
                f"model.image is locked: set model.width={images} and model.augment=null, as the texts are brought to "
                "its vectors, which are computed once"
            )
        self.image_projection = nn.Identity() if self.locked else nn.Linear(images, width, bias=False)
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
        tower: Any = self.image
        for split in ("train", "val") if self.locked else ():
            seen = computed_rows(data, split, "pictures", tower.key, self._seen, device)[SEEN]
            if not tower.fitted:
                tower.fit(seen)
            data.attach(split, LOCKED, tower.project(seen))

    def _seen(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {SEEN: self.image.features(batch["image"]).half()}  # type: ignore[operator]

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
        image = F.normalize(batch[LOCKED], dim=1) if LOCKED in batch else self.image_features(x)
        text = self._text_features(batch)
        similarity = compare(image, text, keys_of(batch["caption"]), even=self.training)
        with torch.no_grad():
            recall = similarity.recall()
        return {"loss": self.objective(similarity), **recall}
