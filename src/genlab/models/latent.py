"""Families that make an item from one latent: how it is sampled, and bounds on log p(x) where there is a posterior."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from genlab import noise
from genlab.models.base import GenerativeModel
from genlab.objectives import elbo
from genlab.settings import check_settings

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class LatentSampler:
    """z ~ N(0, 1), perhaps truncated, which trades variety for fidelity.

    Args:
        truncation: factor of z; 1 samples the model's own distribution.
        threshold: z comes from the normal distribution between -threshold and threshold (Brock et al. 2019, arXiv
            1809.11096, section 3.1); null: from all of it.
    """

    truncation: float = 1.0
    threshold: Annotated[float, "gt 0"] | None = None
    nfe: int = 1

    kind: ClassVar[str] = "latent"  # see genlab.kinds

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "sampler.")

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """z, float32 [B, *shape]: row i a function of seeds[i] (int64 [B])."""
        if self.threshold is None:
            return self.truncation * noise.normal(seeds, noise.Stream.INITIAL, shape)
        # The inverse distribution function of uniforms between its values at the two ends, in float64.
        low = 0.5 * (1 + math.erf(-self.threshold / math.sqrt(2)))
        share = noise.uniform(seeds, noise.Stream.INITIAL, shape).double() + 2.0**-25
        return self.truncation * torch.special.ndtri(low + (1 - 2 * low) * share).float()


class GaussianLatents(GenerativeModel):
    """A model of p(x | z) with q(z | x) = N(mu, exp(logvar)), diagonal, and the prior N(0, 1): its bounds in nats.

    Attributes:
        latent_dim: D, dimensions of z.
    """

    latent_dim: int
    sampled_by: ClassVar[str | None] = "latent"

    @abstractmethod
    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """mu and logvar of an observed batch, float32 [B, D] each."""

    @abstractmethod
    def nll(self, batch: Batch, z: Tensor) -> Tensor:
        """-log p(x | z) of an observed batch and k latents an item, [k B]: z [k B, D], the first of all items first."""

    def observed(self, batch: Batch, keys: Tensor) -> Batch:
        """The batch as the likelihood is of it, with noise by the keys int64 [B]: here as it is."""
        return batch

    def values(self, name: str, nats: Tensor, batch: Batch) -> dict[str, Tensor]:
        """A value [B] under its name, and what goes with it."""
        return {name: nats}

    def drawn(self, mu: Tensor, logvar: Tensor, keys: Tensor, first: int = 0, count: int = 1) -> Tensor:
        """Draws number `first` to first + count - 1 of q(z | x) (arXiv 1312.6114, equation 10): [count, B, D]."""
        j = torch.arange(first, first + count, device=mu.device).repeat_interleave(len(mu))
        normal = noise.normal(keys.repeat(count), (noise.Stream.POSTERIOR, j), mu.shape[1:])
        return mu + (0.5 * logvar).exp() * normal.view(count, *mu.shape)

    def log_weights(self, batch: Batch, mu: Tensor, logvar: Tensor, keys: Tensor, first: int, count: int) -> Tensor:
        """log p(x, z_j) - log q(z_j | x) of these draws: [count, B]."""
        z, zero = self.drawn(mu, logvar, keys, first, count), torch.zeros((), device=mu.device)
        ratio = (elbo.gaussian_log_prob(z, zero, zero) - elbo.gaussian_log_prob(z, mu, logvar)).sum(2)
        return ratio - self.nll(batch, z.flatten(0, 1)).view(count, -1)

    # ---- capabilities

    def posterior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x), float32 [B, D] each."""
        return self.encoded(self.observed(batch, batch["id"]))

    def encode(self, batch: Batch) -> Tensor:
        """The posterior's mean, [B, D]."""
        return self.posterior(batch)[0]

    def variational_bound(self, batch: Batch, terms: int | None = None) -> dict[str, Tensor]:
        """-ELBO from one draw of z, keyed by the id, and its two terms in nats; float64 [B] each."""
        batch = self.observed(batch, batch["id"])
        mu, logvar = self.encoded(batch)
        reconstruction = self.nll(batch, self.drawn(mu, logvar, batch["id"])[0]).double()
        kl = elbo.gaussian_kl(mu, logvar).double().sum(1)
        return self.values("neg_elbo", reconstruction + kl, batch) | {"reconstruction": reconstruction, "kl": kl}

    def importance_nll(self, batch: Batch, draws: int, rows: int = 1000) -> dict[str, Tensor]:
        """-log p(x) estimated from `draws` importance samples, an upper bound in expectation (arXiv 1509.00519, eq. 8).

        Args:
            rows: items with a z each that are decoded at a time, about.
        """
        batch, keys = self.observed(batch, batch["id"]), batch["id"]
        mu, logvar = self.encoded(batch)
        part = max(1, rows // len(mu))
        log_weights = [
            self.log_weights(batch, mu, logvar, keys, first, min(part, draws - first)).double()
            for first in range(0, draws, part)
        ]
        return self.values("nll", -elbo.importance_bound(torch.cat(log_weights)), batch)
