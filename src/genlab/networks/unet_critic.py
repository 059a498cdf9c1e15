"""U-Net critic (Schonfeld et al. 2020, arXiv 2002.12655): one logit for the image and one for each of its pixels."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.networks.conditioning import ClassCritic, CriticCondition
from genlab.networks.dcgan import initialise, sizes
from genlab.networks.spectral import normalise


class UNetCritic(ClassCritic):
    """Images [B, C, H, W] in [-1, 1] (and labels int64 [B]) -> [logits [B], logits of pixels [B, H, W]].

    The encoder is DCGAN's critic; its decoder mirrors it, with skip connections (figure 2 of the paper), the last of
    them the image itself. The paper's residual encoder, whose last features are summed over places, gave one image
    whatever z in our short runs; here the image's logit reads every place. The loss is the sum of both outputs'
    (equations 4 to 6); the paper's CutMix consistency is not part of it.

    Args:
        shape: C, H, W; H and W divisible by 2^stages.
        width: channels at full resolution; twice as many at each stage below.
        stages: how often the size is halved.
        num_classes: classes of the condition; None or 0 for none.
        condition: how they enter: see genlab.networks.conditioning.
        spectral_norm: see genlab.networks.spectral.
    """

    def __init__(
        self,
        shape: list[int],
        width: int = 32,
        stages: Annotated[int, "gt 0"] = 2,
        num_classes: int | None = None,
        condition: CriticCondition = "projection",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(num_classes, condition)
        channels, height, rows = sizes(shape, stages, "model.critic")
        features = width * 2**stages * height * rows
        self.embedding, seen = self.class_embedding(features, shape), self.planes(channels)
        widths = [seen, *(width * 2**stage for stage in range(1, stages + 1))]
        self.down = nn.ModuleList([nn.Conv2d(widths[i], widths[i + 1], 4, 2, 1) for i in range(stages)])
        self.up = nn.ModuleList()
        for stage in range(stages, 0, -1):  # all but the lowest get the encoder's features beside the decoder's
            inputs = width * 2**stage * (1 if stage == stages else 2)
            self.up.append(nn.ConvTranspose2d(inputs, width * 2 ** (stage - 1), 4, 2, 1))
        self.head, self.pixels = nn.Linear(features, 1), nn.Conv2d(width + seen, 1, 3, 1, 1)
        self.apply(initialise)
        if spectral_norm:
            normalise(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        h, skips = self.joined(x, labels), []
        for layer in self.down:
            skips.append(h)
            h = F.leaky_relu(layer(h), 0.2)
        logits = self.logits(h.flatten(1), labels)
        for layer in self.up:
            h = torch.cat([F.leaky_relu(layer(h), 0.2), skips.pop()], 1)
        return [logits, self.pixels(h).squeeze(1)]
