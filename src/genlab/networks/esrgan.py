"""The enlarger: a small residual dense network with published weights."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.networks.frozen import cached_weights

# Of the files that `python scripts/fetch_data.py esrgan_slim` makes, by scale.
SHA256 = {
    2: "fa30a2daf017c5d8449e03bba3ad432bddaba1ae1761e1033511e6012119d0fd",
    3: "6d16d7f0296f20187ed76b047bac7e66a77536f606af5b52413f4d2ab94e3746",
    4: "3f3b2b54d22dadea183e39a231bc11d07c2bc71b689a61c2753285bafc55b00f",
}
Positive = Annotated[int, "gt 0"]


class RDN(nn.ModuleDict):
    """Images [B,3,H,W] in [0, 1] -> [B,3,scale H,scale W] in about [0, 1]: Zhang et al. 2018, "Residual dense network
    for image super-resolution", arXiv 1802.08797, section 3, with one convolution a block, and nearest neighbours in
    the place of sub-pixel convolution. Its parts have the names of the published files, which are the paper's.

    Args:
        scale: factor of both sides.
        width: channels of the features (G_0).
        growth: channels that a block's convolution adds (G).
        blocks: residual dense blocks (D).
    """

    def __init__(
        self, scale: Positive, width: Positive = 64, growth: Positive = 4, blocks: Positive = 2, head: Positive = 32
    ) -> None:
        colours = 3 * scale**2
        sizes = {"F_m1": (3, width, 3), "F_0": (width, width, 3)}
        for d in range(1, blocks + 1):
            sizes |= {f"F_{d}_1": (width, growth, 3), f"LFF_{d}": (width + growth, width, 1)}
        sizes |= {"GFF_1": (blocks * width, width, 1), "GFF_2": (width, width, 3), "UPN1": (width, width, 5)}
        sizes |= {"UPN2": (width, head, 3), "UPN3": (head, colours, 3), "SR": (colours, 3, 3)}
        super().__init__({name: nn.Conv2d(i, o, k, padding=k // 2) for name, (i, o, k) in sizes.items()})
        self.scale, self.blocks = scale, blocks

    def forward(self, x: Tensor) -> Tensor:
        shallow = self["F_m1"](x)
        h, states = self["F_0"](shallow), []
        for d in range(1, self.blocks + 1):  # local feature fusion and local residual learning
            h = self[f"LFF_{d}"](torch.cat([h, F.relu(self[f"F_{d}_1"](h))], 1)) + h
            states.append(h)
        h = self["GFF_2"](self["GFF_1"](torch.cat(states, 1))) + shallow  # global feature fusion
        h = F.relu(self["UPN2"](F.relu(self["UPN1"](h))))
        return self["SR"](F.interpolate(self["UPN3"](h), scale_factor=float(self.scale), mode="nearest"))


def esrgan_slim(scale: int) -> RDN:
    """The network with the weights of @upscalerjs/esrgan-slim 1.0.0 (MIT; trained on DIV2K with the adversarial and
    perceptual losses of ESRGAN, arXiv 1809.00219), frozen, on the CPU.

    Args:
        scale: 2, 3 or 4.

    Raises:
        ConfigError, DataError: as `cached_weights`.
    """
    network = RDN(scale)
    network.load_state_dict(cached_weights("esrgan_slim", f"x{scale}.safetensors", SHA256[scale]))
    return network.eval().requires_grad_(False)
