"""Variational autoencoders of images (Kingma & Welling 2014, arXiv 1312.6114), and importance-weighted ones."""

from __future__ import annotations

import math
from typing import Annotated

from torch import Tensor, nn

from genlab.conditions import class_labels
from genlab.errors import ConfigError
from genlab.models.base import Rows
from genlab.models.latent import Batch, GaussianLatents, LatentSampler
from genlab.objectives import elbo
from genlab.objectives.likelihoods import Likelihood


class VAE(GaussianLatents):
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

    def observed(self, batch: Batch, keys: Tensor) -> Batch:
        return {**batch, "image": self.likelihood.observe(batch["image"], keys)}

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(batch["image"], self._label(batch)).float().chunk(2, 1)
        return mu, logvar

    def nll(self, batch: Batch, z: Tensor) -> Tensor:
        x, label = batch["image"], self._label(batch)
        count = len(z) // len(x)
        output = self.decoder(z, label.repeat(count) if label is not None and count > 1 else label)
        return -self.likelihood.log_prob(output, x if count == 1 else x.expand(count, *x.shape).flatten(0, 1))

    def _label(self, batch: Batch) -> Tensor | None:
        return batch["label"] if self.conditions else None

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The bound's terms in nats an item; in validation also neg_elbo, the bound itself whatever is weighted."""
        keys = self.keys(batch)
        batch = self.observed(batch, keys)
        mu, logvar = self.encoded(batch)
        if self.importance_samples > 1 and not (self.training and self.samples_seen < self.importance_start):
            log_weights = self.log_weights(batch, mu, logvar, keys, 0, self.importance_samples)
            bound = elbo.importance_bound(log_weights).mean()
            return {"loss": -bound, "neg_elbo": -log_weights.mean(), "kl": elbo.gaussian_kl(mu, logvar).sum(1).mean()}
        z = self.drawn(mu, logvar, keys)[0]
        reconstruction = self.nll(batch, z).mean()
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

    # ---- sampling

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: LatentSampler) -> Tensor:
        """The likelihood's mean at z from the prior, [B, C, H, W] in [-1, 1]."""
        z = sampler.draw(seeds, (self.latent_dim,))
        return self.decode(z, (condition or {}).get("label"))

    # ---- capabilities

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, latent_dim] -> the likelihood's mean, [B, C, H, W] in [-1, 1]."""
        return self.likelihood.mean(self.decoder(z, label))

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model was shown, and its decoding of the posterior's mean; [B, C, H, W] in [-1, 1] each."""
        batch = self.observed(batch, batch["id"])
        return batch["image"], self.decode(self.encoded(batch)[0], self._label(batch))

    def values(self, name: str, nats: Tensor, batch: Batch) -> dict[str, Tensor]:
        """In nats; bits a dimension beside it where the likelihood is a probability."""
        bits = {"bits_per_dim": nats / (math.prod(self.shape) * math.log(2))} if self.likelihood.discrete else {}
        return {name: nats, **bits}
