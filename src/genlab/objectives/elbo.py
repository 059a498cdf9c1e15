"""Terms of the evidence lower bound in nats, for posteriors N(mu, exp(logvar)), diagonal, and the prior N(0, 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from genlab.errors import ConfigError


def gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q || N(0, 1)) of each dimension, of the inputs' shape (Kingma & Welling 2014, arXiv 1312.6114, appendix B)."""
    return 0.5 * (mu.square() + logvar.exp() - 1 - logvar)


def gaussian_log_prob(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z; mu, exp(logvar)) of each dimension."""
    return -0.5 * ((z - mu).square() * (-logvar).exp() + logvar + math.log(2 * math.pi))


def free_bits(kl: Tensor, least: float) -> Tensor:
    """The batch's mean KL of each dimension, counted as at least `least` nats, summed: [B, D] -> scalar.

    Kingma et al. 2016 (arXiv 1606.04934), equation 15: a dimension that costs less than that is not pushed further. The
    mean is that of the micro-batch at hand.
    """
    return kl.mean(0).clamp(min=least).sum()


@dataclass(frozen=True)
class KLWeight:
    """The weight of the KL over a training, from 0 to 1.

    Args:
        shape: "linear" (Bowman et al. 2016, arXiv 1511.06349, section 3.1); "sigmoid", theirs, between its values at -6
            and 6; "cyclical": linear, and anew from 0 at each period (Fu et al. 2019, arXiv 1903.10145, equation 6).
        warmup: samples over which it rises; 0: it is 1 throughout.
        period: samples of a cycle, rise included; of "cyclical" alone.

    Raises:
        ConfigError: a cycle that ends before its rise.
    """

    shape: Literal["linear", "sigmoid", "cyclical"] = "linear"
    warmup: Annotated[int, "ge 0"] = 0
    period: Annotated[int, "gt 0"] | None = None

    def __post_init__(self) -> None:
        if self.shape == "cyclical" and (self.period is None or self.period < self.warmup):
            raise ConfigError(f"kl_weight.period={self.period}: a cycle is at least its warmup, {self.warmup} samples")

    def __call__(self, samples: int) -> float:
        """The weight after so many samples."""
        if self.shape == "cyclical" and self.period is not None:
            samples %= self.period
        if samples >= self.warmup:
            return 1.0
        share = samples / self.warmup
        return 1 / (1 + math.exp(6 - 12 * share)) if self.shape == "sigmoid" else share


def mutual_information(z: Tensor, mu: Tensor, logvar: Tensor, rows: int = 256) -> float:
    """I_q(x; z) in nats of N items: the mean of log q(z_i | x_i) - log 1/N sum_j q(z_i | x_j), at most log N (Hoffman
    and Johnson 2016, "ELBO surgery"; He et al. 2019, arXiv 1901.05534, section 4.2).

    Args:
        z: one draw of each posterior, float [N, D], as mu and logvar.
        rows: of z that are held against all posteriors at a time.
    """
    z, mu, logvar = z.double(), mu.double(), logvar.double()
    own, precision = gaussian_log_prob(z, mu, logvar).sum(1), (-logvar).exp()
    # sum_d (z - mu)^2 / var as three products of matrices, instead of an array [rows, N, D]
    constant = (mu.square() * precision + logvar + math.log(2 * math.pi)).sum(1)
    aggregate = [
        (-0.5 * (part.square() @ precision.T - 2 * part @ (mu * precision).T + constant)).logsumexp(1)
        for part in z.split(rows)
    ]
    return float((own - torch.cat(aggregate)).mean()) + math.log(len(z))


def importance_bound(log_weights: Tensor) -> Tensor:
    """log 1/k sum_j w_j: [k, B] -> [B] (Burda et al. 2016, arXiv 1509.00519, equation 8)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def total_correlation(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """KL(q(z) || prod_d q(z_d)) of the aggregate posterior, as a mean over the batch: [B, D] each -> scalar.

    Chen et al. 2018 (arXiv 1802.04942), section 4.1, with q(z) the mixture of the micro-batch's own posteriors: their
    weighting by the size of the data set adds a constant, which has no gradient. It is biased, and depends on how
    many items the micro-batch has.
    """
    pairs = gaussian_log_prob(z[:, None], mu[None], logvar[None])  # [i, j, d]: z_i under the posterior of x_j
    joint, marginals = pairs.sum(2).logsumexp(1), pairs.logsumexp(1).sum(1)
    dimensions = z.shape[1]
    return (joint - marginals).mean() + (dimensions - 1) * math.log(len(z))
