"""The variational bound of DDPM by its terms (section 3 of 2006.11239): L_T + sum over t > 1 of L_{t-1} + L_0.

Each term is in nats an item, float64 [B], a sum over its dimensions. Times t are int64 [B], 1 to T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.diffusion.processes import VP


def reverse_variance(process: VP, t: Tensor, variance: str) -> Tensor:
    """Variance of p(x_{t-1} | x_t), [B]: 'beta' or 'beta_tilde'.

    At t = 1 both take beta_tilde_2, as DDPM's code does: beta_tilde_1 is zero, and beta_1 decodes worse.
    """
    inner = t.clamp(min=2)
    posterior = process.posterior(inner - 1, inner)[2]
    beta = process.transition(inner - 1, inner)[1]
    return torch.where(t > 1, beta, posterior) if variance == "beta" else posterior


def prior_term(process: VP, x_0: Tensor) -> Tensor:
    """L_T = KL(q(x_T | x_0) || N(0, I))."""
    alpha, sigma = process.at(process.end)
    return _sum(0.5 * ((alpha * x_0.to(torch.float64)) ** 2 + sigma**2 - 1 - 2 * math.log(sigma)))


def transition_term(process: VP, x_0: Tensor, predicted_x_0: Tensor, t: Tensor, variance: str = "beta") -> Tensor:
    """L_{t-1} = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), t > 1: eq. 8 with the terms of the two variances, which
    the paper drops as constant.

    Both means are c_t x_t + c_0 x_0, once with the true x_0 and once with the predicted one: x_t falls out.
    """
    _, c_0, true_variance = process.posterior(t - 1, t)
    model_variance = reverse_variance(process, t, variance)
    ratio = true_variance / model_variance
    squared_error = _sum((x_0.to(torch.float64) - predicted_x_0.to(torch.float64)) ** 2)
    return 0.5 * (c_0**2 / model_variance * squared_error + x_0[0].numel() * (ratio - 1 - ratio.log()))


def decoder_term(process: VP, x_0: Tensor, predicted_x_0: Tensor, variance: str = "beta") -> Tensor:
    """L_0 = -log p(x_0 | x_1): eq. 13, the mass of a Gaussian around each of 256 levels, for x_0 of 8 bits in [-1, 1].

    Its mean is the predicted x_0, since c_t = 0 and c_0 = 1 at t = 1. The difference of the two distribution functions
    is taken on the lower tail, where it does not cancel.
    """
    x, mean = x_0.to(torch.float64), predicted_x_0.to(torch.float64)
    std = float(reverse_variance(process, torch.ones(1, dtype=torch.int64), variance).sqrt())
    low = torch.where(x < -0.999, -math.inf, (x - 1 / 255 - mean) / std)
    high = torch.where(x > 0.999, math.inf, (x + 1 / 255 - mean) / std)
    upper = low > 0  # Phi(h) - Phi(l) = Phi(-l) - Phi(-h)
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return -_sum(log_high + torch.log1p(-torch.exp(log_low - log_high)))


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)
