"""Work on patches: a network for images at a fraction of their resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional as F

from genlab.errors import ConfigError


class Patch(nn.Module):
    """Folds p x p patches into channels, runs a network, unfolds: same call, 1/p^2 of the positions.

    Args:
        network: makes the inner network from `in_channels` and `out_channels` (a partial of its class); it is called as
            network(sample, timestep, ...) and returns a tensor, or an output of diffusers with `.sample`.
        channels: C of the images.
        patch: p. Height and width must be multiples of it.
    """

    def __init__(self, network: Callable[..., nn.Module], channels: int, patch: Annotated[int, "gt 0"] = 2) -> None:
        super().__init__()
        self.patch = patch
        self.network = network(in_channels=channels * patch**2, out_channels=channels * patch**2)
        self.config = getattr(self.network, "config", {})

    def forward(self, sample: Tensor, timestep: Tensor, *told: Any, **named: Any) -> Tensor:
        """sample [B, C, H, W], timestep [B], and what the inner network is told, such as class_labels int64 [B] ->
        [B, C, H, W]."""
        height, width = sample.shape[-2:]
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"model.network.patch: {height}x{width} images do not divide into patches of {self.patch}"
            )
        out = self.network(F.pixel_unshuffle(sample, self.patch), timestep, *told, **named)
        return F.pixel_shuffle(as_tensor(out), self.patch)


def as_tensor(out: Any) -> Tensor:
    """The tensor of a network's output: itself, `.sample` of a diffusers output, or the first of a tuple."""
    if isinstance(out, Tensor):
        return out
    return out.sample if hasattr(out, "sample") else out[0]
