"""LPIPS, the distance of two images in the features of VGG16: a perceptual loss, and a metric."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genlab.errors import ConfigError
from genlab.networks.vgg import VGG16, unit


class LPIPS(VGG16):
    """Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", arXiv 1801.03924,
    equation 1, with VGG16 and the linear heads of version 0.1, which its weights have as `lin0.weight` [1,64,1,1] ...
    `lin4.weight` [1,512,1,1].

    Raises:
        ConfigError: at the first call: images of a wrong shape.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [B] (0 for equal images) of images [B,C,H,W], float in [-1, 1]; C is 1 (taken as grey) or 3; H and
        W at least 16, because VGG16 halves them four times."""
        for image in (x, y):
            if image.ndim != 4 or image.shape != x.shape or image.shape[1] not in (1, 3) or min(image.shape[2:]) < 16:
                raise ConfigError(
                    f"LPIPS: images {list(x.shape)} and {list(y.shape)}; expected two of one shape [B,C,H,W], "
                    "C 1 or 3, H and W at least 16"
                )
        weights, total = self._on(x.device), x.new_zeros(len(x))
        for i, (a, b) in enumerate(zip(self.features(x), self.features(y), strict=True)):
            difference = (unit(a) - unit(b)).square()
            total = total + F.conv2d(difference, weights[f"lin{i}.weight"].to(x.dtype)).mean((1, 2, 3))
        return total
