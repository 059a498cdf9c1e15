"""VGG16 with the weights that LPIPS is measured by: features of pictures, never trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.frozen import cached_weights, weights_sha256

FILE = "vgg16-lpips.safetensors"
SHA256 = "2e0ba84e925305490c5eade22da17fc978701d0a31989bf5753e213fdf1fea72"
# Places of the convolutions in torchvision's `features`; a max pool stands before the first of each later slice.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's means and deviations, for [-1, 1]
EPS = 1e-10


class VGG16(nn.Module):
    """VGG16's convolutions (Simonyan and Zisserman 2015, arXiv 1409.1556), frozen and no part of the state: it has no
    parameters, and nothing of it is saved with a model. The weights are read at first use from the cache, where
    `python scripts/fetch_data.py lpips` puts them, and follow the device of the images. Gradients flow to the images.

    Args:
        weights: instead of the cache's: a safetensors file, or tensors by the names in it, e.g. `features.0.weight`
            [64,3,3,3]. Channels may be fewer than VGG16's.

    Attributes:
        sha256, source: of the weights, for records and checkpoints, as a frozen part has them.

    Raises:
        ConfigError: no file of weights, or one of something else; at first use, where they are not in the cache.
        DataError: at first use, where the cache's file is not the expected one.
    """

    source = "lpips"

    def __init__(self, weights: dict[str, Tensor] | str | None = None) -> None:
        super().__init__()
        if isinstance(weights, str):
            weights = read_weights(Path(weights))
        self.sha256 = SHA256 if weights is None else weights_sha256(weights)
        # In a plain dictionary, which nn.Module does not look into.
        self._weights: dict[str, Tensor] = dict(weights or {})

    @torch.compiler.disable
    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if not self._weights:
            self._weights = cached_weights("lpips", FILE, SHA256)
        if next(iter(self._weights.values())).device != device:
            self._weights = {name: value.to(device) for name, value in self._weights.items()}
        return self._weights

    def features(self, image: Tensor, slices: int = len(SLICES)) -> list[Tensor]:
        """relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of images [B,1,H,W] (taken as grey) or [B,3,H,W] in [-1, 1],
        or the first of them: each [B,C,H',W'], H' and W' halved from one to the next."""
        weights = self._on(image.device)
        shift, scale = (image.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        h = (image.expand(-1, 3, -1, -1) - shift) / scale
        out = []
        for i, places in enumerate(SLICES[:slices]):
            h = F.max_pool2d(h, 2) if i else h
            for place in places:
                weight, bias = weights[f"features.{place}.weight"], weights[f"features.{place}.bias"]
                h = F.relu(F.conv2d(h, weight.to(h.dtype), bias.to(h.dtype), padding=1))
            out.append(h)
        return out


def read_weights(file: Path) -> dict[str, Tensor]:
    """Weights of VGG16 from a safetensors file.

    Raises:
        ConfigError: there is none, or it is of something else.
    """
    if not file.is_file():
        raise ConfigError(f"weights of VGG16: no file {file}")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ConfigError(f"weights of VGG16: {file} is no safetensors file ({error})") from None
    if lacking := [name for place in SLICES[0] if (name := f"features.{place}.weight") not in weights]:
        raise ConfigError(f"weights of VGG16: {file} has no {lacking[0]}, as torchvision names it")
    return weights


def unit(features: Tensor) -> Tensor:
    """Features [B,C,H,W] of length 1 at each position. vector_norm's gradient at a zero vector is 0, that of sqrt(sum)
    NaN."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)


class VGG16Grid(VGG16):
    """What VGG16 sees in the cells of a grid: images [B,C,H,W] in [-1, 1] -> float32 [B, rows * columns, width], row by
    row. The features of each layer have length 1 at each position, as in LPIPS; a cell has their mean.

    Drawings of one thing in two styles lie nearer in these than in vectors of an encoder that one style has trained.

    Args:
        layers: of relu1_2 (1) to relu5_3 (5), side by side.
        grid: rows and columns.
        weights: see VGG16.

    Attributes:
        width: numbers of a cell.
        settings: what decides the result, beside the weights.

    Raises:
        ConfigError: layers out of range; at first use, images smaller than the grid.
    """

    def __init__(
        self,
        layers: Sequence[int] = (2, 3, 4),
        grid: Annotated[int, "gt 0"] = 4,
        weights: dict[str, Tensor] | str | None = None,
    ) -> None:
        super().__init__(weights)
        if not layers or not set(layers) <= set(range(1, len(SLICES) + 1)):
            raise ConfigError(f"layers={list(layers)} of VGG16: choose from 1 (relu1_2) to {len(SLICES)} (relu5_3)")
        self.layers, self.grid = sorted(set(layers)), (grid, grid)
        self.settings = [self.layers, grid]
        shipped = {i: range(min(512, 32 << i)) for i in self.layers}
        channels = [len(self._weights.get(f"features.{SLICES[i - 1][-1]}.bias", shipped[i])) for i in self.layers]
        self.width = sum(channels)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        if min(image.shape[2:]) < (smallest := self.grid[0] << (self.layers[-1] - 1)):
            raise ConfigError(f"images of {image.shape[2]}x{image.shape[3]}: VGG16's grid needs {smallest}x{smallest}")
        maps = self.features(image.float().contiguous(memory_format=torch.channels_last), self.layers[-1])
        cells = [F.adaptive_avg_pool2d(unit(maps[layer - 1]), self.grid) for layer in self.layers]
        return torch.cat(cells, 1).flatten(2).transpose(1, 2)
