"""Variational autoencoders of images (Kingma & Welling 2014, arXiv 1312.6114), and importance-weighted ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from genlab import noise
from genlab.conditions import class_labels
from genlab.errors import ConfigError
from genlab.models.base import GenerativeModel, Rows
from genlab.models.latent import LatentSampler
from genlab.objectives import elbo
from genlab.objectives.likelihoods import Likelihood


class VAE(GenerativeModel):
    """An encoder that gives q(z | x), a decoder and a likelihood that give p(x | z), and the prior N(0, 1).

    Args:
        encoder: (x [B, C, H, W], labels int64 [B] or None) -> mu and logvar in one, [B, 2 latent_dim].
        decoder: (z [B, latent_dim], labels or None) -> parameters of the likelihood, [B, C * outputs, H, W].
        likelihood: p(x | z), from genlab.objectives.likelihoods.
        latent_dim: dimensions of z.
        shape: [C, H, W] of the images.
        importance_samples: k draws of z an item; above 1 the bound is that of the importance-weighted autoencoder.
        importance_start: samples before which training takes one draw, whatever k: a pretraining that costs 1 / k.
        beta: weight of the KL (Higgins et al. 2017, "beta-VAE").
        tc_beta: weight of the KL's part that is total correlation (arXiv 1802.04942, equation 4).
        free_bits: nats a latent dimension that cost as if they were used (see `elbo.free_bits`).
        warmup: samples over which the weight of the KL rises from 0 (arXiv 1511.06349, section 3.1).
        num_classes: classes of the condition; None or 0 for none.
        chunk_size: rows that are sampled at a time (see GenerativeModel).

    Raises:
        ConfigError: a combination without meaning.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_dim: Annotated[int, "gt 0"],
        shape: list[int],
        importance_samples: Annotated[int, "gt 0"] = 1,
        importance_start: Annotated[int, "ge 0"] = 0,
        beta: Annotated[float, "ge 0"] = 1.0,
        tc_beta: Annotated[float, "ge 0"] = 1.0,
        free_bits: Annotated[float, "ge 0"] = 0.0,
        warmup: Annotated[int, "ge 0"] = 0,
        num_classes: int | None = None,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        if importance_samples > 1 and (beta, tc_beta, free_bits, warmup) != (1, 1, 0, 0):
            raise ConfigError(
                f"model.importance_samples={importance_samples}: the importance-weighted bound has no KL that could be "
                "weighted; leave model.beta, tc_beta, free_bits and warmup as they are, or take importance_samples=1"
            )
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.latent_shape, self.shape = latent_dim, (latent_dim,), tuple(shape)
        self.importance_samples, self.importance_start = importance_samples, importance_start
        self.beta, self.tc_beta, self.free_bits, self.warmup = beta, tc_beta, free_bits, warmup
        self.num_classes, self.conditions = num_classes or 0, class_labels(num_classes)
        self.chunk_size = chunk_size

    # ---- training

    def _posterior(self, x: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x) of images as the likelihood observes them."""
        mu, logvar = self.encoder(x, label).float().chunk(2, 1)
        return mu, logvar

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The bound's terms in nats an item; in validation also neg_elbo, the bound itself whatever is weighted."""
        keys, label = self.keys(batch), batch["label"] if self.conditions else None
        x = self.likelihood.observe(batch["image"], keys)
        mu, logvar = self._posterior(x, label)
        if self.importance_samples > 1 and not (self.training and self.samples_seen < self.importance_start):
            log_weights = self._log_weights(x, mu, logvar, label, keys, 0, self.importance_samples)
            bound = elbo.importance_bound(log_weights).mean()
            return {"loss": -bound, "neg_elbo": -log_weights.mean(), "kl": elbo.gaussian_kl(mu, logvar).sum(1).mean()}
        z = self._draw(mu, logvar, keys, 0)
        reconstruction = -self.likelihood.log_prob(self.decoder(z, label), x).mean()
        each = elbo.gaussian_kl(mu, logvar)
        kl = each.sum(1).mean()
        weighted = elbo.free_bits(each, self.free_bits) if self.free_bits else kl
        rising = min(1.0, self.samples_seen / self.warmup) if self.warmup and self.training else 1.0
        loss = reconstruction + rising * self.beta * weighted
        report = {"reconstruction": reconstruction, "kl": kl}
        if self.tc_beta != 1:
            report["total_correlation"] = correlation = elbo.total_correlation(z, mu, logvar)
            loss = loss + rising * (self.tc_beta - 1) * correlation
        if not self.training:
            report["neg_elbo"] = reconstruction + kl
        return {"loss": loss, **report}

    def _draw(self, mu: Tensor, logvar: Tensor, keys: Tensor, j: int) -> Tensor:
        """The j-th draw of q(z | x), reparameterised: equation 10 of the paper."""
        return mu + (0.5 * logvar).exp() * noise.normal(keys, (noise.Stream.POSTERIOR, j), (self.latent_dim,))

    def _log_weights(
        self, x: Tensor, mu: Tensor, logvar: Tensor, label: Tensor | None, keys: Tensor, first: int, count: int
    ) -> Tensor:
        """log p(x, z_j) - log q(z_j | x) of draws first .. first + count - 1: [count, B]."""
        z = torch.stack([self._draw(mu, logvar, keys, first + j) for j in range(count)])
        zero = torch.zeros((), device=z.device)
        ratio = (elbo.gaussian_log_prob(z, zero, zero) - elbo.gaussian_log_prob(z, mu, logvar)).sum(2)
        labels = None if label is None else label.repeat(count)
        output = self.decoder(z.flatten(0, 1), labels)
        seen = x.expand(count, *x.shape).flatten(0, 1)
        return ratio + self.likelihood.log_prob(output, seen).view(count, len(x))

    # ---- sampling

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: LatentSampler) -> Tensor:
        """The likelihood's mean at z from the prior, [B, C, H, W] in [-1, 1]."""
        z = sampler.draw(seeds, (self.latent_dim,))
        return self.decode(z, (condition or {}).get("label"))

    # ---- capabilities

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, latent_dim] -> the likelihood's mean, [B, C, H, W] in [-1, 1]."""
        return self.likelihood.mean(self.decoder(z, label))

    def posterior(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x), float32 [B, latent_dim] each."""
        x = self.likelihood.observe(batch["image"], batch["id"])
        return self._posterior(x, batch["label"] if self.conditions else None)

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The posterior's mean, [B, latent_dim]."""
        return self.posterior(batch)[0]

    def reconstruct(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the model was shown, and its decoding of the posterior's mean; [B, C, H, W] in [-1, 1] each."""
        shown = self.likelihood.observe(batch["image"], batch["id"])
        return shown, self.decode(self.encode(batch), batch["label"] if self.conditions else None)

    def variational_bound(self, batch: Mapping[str, Tensor], terms: int | None = None) -> dict[str, Tensor]:
        """-ELBO from one draw of z, keyed by the id, and its two terms in nats; float64 [B] each."""
        keys, label = batch["id"], batch["label"] if self.conditions else None
        x = self.likelihood.observe(batch["image"], keys)
        mu, logvar = self._posterior(x, label)
        reconstruction = -self.likelihood.log_prob(self.decoder(self._draw(mu, logvar, keys, 0), label), x).double()
        kl = elbo.gaussian_kl(mu, logvar).double().sum(1)
        return self._named("neg_elbo", reconstruction + kl) | {"reconstruction": reconstruction, "kl": kl}

    def importance_nll(self, batch: Mapping[str, Tensor], draws: int, part: int = 50) -> dict[str, Tensor]:
        """-log p(x) estimated from `draws` importance samples, an upper bound in expectation (arXiv 1509.00519, eq. 8).

        Args:
            draws: k, of which `part` are computed at a time.
        """
        keys, label = batch["id"], batch["label"] if self.conditions else None
        x = self.likelihood.observe(batch["image"], keys)
        mu, logvar = self._posterior(x, label)
        log_weights = [
            self._log_weights(x, mu, logvar, label, keys, first, min(part, draws - first)).double()
            for first in range(0, draws, part)
        ]
        return self._named("nll", -elbo.importance_bound(torch.cat(log_weights)))

    def _named(self, name: str, nats: Tensor) -> dict[str, Tensor]:
        """A value in nats; bits a dimension beside it where the likelihood is a probability."""
        bits = {"bits_per_dim": nats / (math.prod(self.shape) * math.log(2))} if self.likelihood.discrete else {}
        return {name: nats, **bits}
