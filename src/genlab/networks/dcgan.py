"""DCGAN generator and critic (Radford et al. 2016, arXiv 1511.06434, figure 1), for any size that divides.

No library that GenLab depends on has them. Two departures, both usual since: the critic has no batch norm, so that
gradient penalties are per sample, and a class condition is an embedding (generator: joined to z; critic: projection,
Miyato & Koyama 2018, arXiv 1802.05637, equation 3, or a plane beside the image's channels).
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.networks.conditioning import ClassCritic, CriticCondition, with_class
from genlab.networks.spectral import normalise


class Generator(nn.Module):
    """z [B, latent_dim] (and labels int64 [B]) -> images [B, C, H, W] in [-1, 1].

    Args:
        shape: C, H, W; H and W divisible by 2^stages.
        latent_dim: size of z.
        width: channels at full resolution; twice as many at each stage below.
        num_classes: classes of the condition; None or 0 for none.
        condition: concatenation: an embedding of the class is joined to z.
        spectral_norm: see genlab.networks.spectral.
        stages: how often the size is doubled.
        refine: a last 3x3 convolution at full resolution, which is most of the time on a CPU; False: the image comes
            from the last transposed convolution, as in the paper.
    """

    def __init__(
        self,
        shape: list[int],
        latent_dim: int = 64,
        width: int = 32,
        num_classes: int | None = None,
        condition: Literal["concatenation", "none"] = "concatenation",
        spectral_norm: bool = False,
        stages: Annotated[int, "gt 0"] = 2,
        refine: bool = True,
    ) -> None:
        super().__init__()
        channels, height, rows = sizes(shape, stages, "model.generator")
        self.latent_dim = latent_dim
        self.start = (width * 2**stages, height, rows)
        conditional = bool(num_classes) and condition != "none"
        self.embedding = nn.Embedding(num_classes or 0, latent_dim) if conditional else None
        inputs = latent_dim * (2 if conditional else 1)
        self.project = nn.Linear(inputs, self.start[0] * height * rows, bias=False)
        body: list[nn.Module] = [nn.BatchNorm2d(self.start[0]), nn.ReLU(True)]
        for stage in range(stages, 0, -1):
            if stage == 1 and not refine:
                body += [nn.ConvTranspose2d(width * 2, channels, 4, 2, 1)]
            else:
                out = width * 2 ** (stage - 1)
                body += [nn.ConvTranspose2d(out * 2, out, 4, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(True)]
        self.body = nn.Sequential(*body, *([nn.Conv2d(width, channels, 3, 1, 1)] if refine else []), nn.Tanh())
        self.apply(initialise)
        if spectral_norm:
            normalise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.body(self.project(with_class(z, self.embedding, labels)).unflatten(1, self.start))


class Critic(ClassCritic):
    """Images [B, C, H, W] in [-1, 1] (and labels int64 [B]) -> logits [B].

    Args:
        shape: C, H, W; H and W divisible by 2^stages.
        width: channels at full resolution; twice as many at each stage below.
        num_classes: classes of the condition; None or 0 for none.
        condition: how they enter: see genlab.networks.conditioning.
        spectral_norm: see genlab.networks.spectral.
        stages: how often the size is halved.
        refine: a first 3x3 convolution at full resolution; False: the first convolution halves the size, as in the
            paper.
    """

    def __init__(
        self,
        shape: list[int],
        width: int = 32,
        num_classes: int | None = None,
        condition: CriticCondition = "projection",
        spectral_norm: bool = False,
        stages: Annotated[int, "gt 0"] = 2,
        refine: bool = True,
    ) -> None:
        super().__init__(num_classes, condition)
        channels, height, rows = sizes(shape, stages, "model.critic")
        features = width * 2**stages * height * rows
        embedding, seen = self.class_embedding(features, shape), self.planes(channels)
        body: list[nn.Module] = [nn.Conv2d(seen, width, 3, 1, 1), nn.LeakyReLU(0.2, True)] if refine else []
        for stage in range(stages):
            inputs = seen if stage == 0 and not refine else width * 2**stage
            body += [nn.Conv2d(inputs, width * 2 ** (stage + 1), 4, 2, 1), nn.LeakyReLU(0.2, True)]
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(features, 1)
        self.embedding = embedding
        self.apply(initialise)
        if spectral_norm:
            normalise(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.logits(self.body(self.joined(x, labels)), labels)


def sizes(shape: list[int], stages: int, key: str) -> tuple[int, int, int]:
    """Channels, and height and width at the lowest resolution."""
    channels, height, width = shape
    if height % 2**stages or width % 2**stages:
        raise ConfigError(f"{key}.stages={stages}: {height}x{width} images do not divide by {2**stages}")
    return channels, height // 2**stages, width // 2**stages


def initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02), batch norm scale ~ N(1, 0.02): section 4 of the paper."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
