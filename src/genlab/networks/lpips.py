"""LPIPS, the distance of two images in the features of VGG16: a perceptual loss, and a metric."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.frozen import cached_weights, weights_sha256

FILE = "vgg16-lpips.safetensors"
SHA256 = "2e0ba84e925305490c5eade22da17fc978701d0a31989bf5753e213fdf1fea72"
# Places of the convolutions in torchvision's `features`; a max pool stands before the first of each later slice.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's means and deviations, for [-1, 1]
EPS = 1e-10


class LPIPS(nn.Module):
    """Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", arXiv 1801.03924,
    equation 1, with VGG16 and the linear heads of version 0.1.

    The network is frozen and no part of the state: it has no parameters, and nothing of it is saved with a model. The
    weights are read at the first call from the cache, where `python scripts/fetch_data.py lpips` puts them, and follow
    the device of the images. Gradients flow to the images.

    Args:
        weights: instead of the cache's: tensors by the names in its file, e.g. `features.0.weight` [64,3,3,3] ...
            `lin4.weight` [1,512,1,1]. Channels may be fewer than VGG16's.

    Attributes:
        sha256, source: of the weights, for records and checkpoints, as a frozen part has them.

    Raises:
        ConfigError: at the first call, where the weights are not in the cache; or images of a wrong shape.
        DataError: likewise, where the file is not the expected one.
    """

    source = "lpips"

    def __init__(self, weights: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.sha256 = SHA256 if weights is None else weights_sha256(weights)
        # In a plain dictionary, which nn.Module does not look into.
        self._weights: dict[str, Tensor] = dict(weights or {})

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [B] (0 for equal images) of images [B,C,H,W], float in [-1, 1]; C is 1 (taken as grey) or 3; H and
        W at least 16, because VGG16 halves them four times."""
        for image in (x, y):
            if image.ndim != 4 or image.shape != x.shape or image.shape[1] not in (1, 3) or min(image.shape[2:]) < 16:
                raise ConfigError(
                    f"LPIPS: images {list(x.shape)} and {list(y.shape)}; expected two of one shape [B,C,H,W], "
                    "C 1 or 3, H and W at least 16"
                )
        weights = self._on(x.device)
        total = x.new_zeros(len(x))
        for i, (a, b) in enumerate(zip(_features(x, weights), _features(y, weights), strict=True)):
            difference = (_unit(a) - _unit(b)).square()
            total = total + F.conv2d(difference, weights[f"lin{i}.weight"].to(x.dtype)).mean((1, 2, 3))
        return total

    @torch.compiler.disable
    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if not self._weights:
            self._weights = cached_weights("lpips", FILE, SHA256)
        if next(iter(self._weights.values())).device != device:
            self._weights = {name: value.to(device) for name, value in self._weights.items()}
        return self._weights


def _features(image: Tensor, weights: dict[str, Tensor]) -> list[Tensor]:
    """VGG16's relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, each [B,C,H,W]."""
    shift, scale = (image.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    h = (image.expand(-1, 3, -1, -1) - shift) / scale
    out = []
    for i, places in enumerate(SLICES):
        h = F.max_pool2d(h, 2) if i else h
        for place in places:
            weight, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
            h = F.relu(F.conv2d(h, weight.to(h.dtype), bias.to(h.dtype), padding=1))
        out.append(h)
    return out


def _unit(features: Tensor) -> Tensor:
    """Of length 1 at each position. vector_norm's gradient at a zero vector is 0; that of sqrt(sum) would be NaN."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)
