"""What the network predicts, how that turns into x_0 and eps, and how its error is weighted.

A prediction is a target a eps + b x_0. Together with x_t = alpha x_0 + sigma eps that is a 2 x 2 linear system, so
every conversion is one formula:

    eps       a, b = 1, 0            DDPM (2006.11239) eq. 14
    x0        a, b = 0, 1
    v         a, b = alpha, -sigma   Salimans and Ho (2202.00512) section 4
    velocity  a, b = 1, -1           flow matching: dx_t/dt of the CondOT path, eps - x_0
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from genlab.errors import ConfigError

Prediction = Literal["eps", "x0", "v", "velocity"]
Weighting = Literal["own", "eps", "x0", "min_snr"]
Number = float | Tensor  # a coefficient: one number, or a tensor that broadcasts over the batch

LEAST_SIGNAL = math.exp(-5.1)  # alpha / sigma, as DPM-Solver cuts it; DDPM's linear schedule ends just above


class Denoised(NamedTuple):
    """The two ends of the line through x_t that the network sees: both of the shape of x_t."""

    x_0: Tensor
    eps: Tensor


def check(prediction: str, weighting: str) -> None:
    """Raises ConfigError unless both names are known."""
    for key, value, known in (("prediction", prediction, Prediction), ("weighting", weighting, Weighting)):
        if value not in get_args(known):
            raise ConfigError(f"model.{key}: expected one of {', '.join(get_args(known))}, got {value!r}")


def check_start(prediction: Prediction, alpha: float, sigma: float) -> None:
    """ConfigError where sampling without clipping begins at so little signal that an error of eps is all of x_0."""
    if prediction == "eps" and alpha < LEAST_SIGNAL * sigma:
        raise ConfigError(
            f"model.prediction: eps says too little of x_0 where sampling begins (its error counts "
            f"{sigma / max(alpha, 1e-12):,.0f} times); take sampler.clip=true, or train with model.prediction=v"
        )


def _mix(prediction: Prediction, alpha: Number, sigma: Number) -> tuple[Number, Number]:
    """(a, b) of the table above."""
    table: dict[str, tuple[Number, Number]] = {
        "eps": (1.0, 0.0),
        "x0": (0.0, 1.0),
        "v": (alpha, -sigma),
        "velocity": (1.0, -1.0),
    }
    return table[prediction]


def target(prediction: Prediction, x_0: Tensor, eps: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """What the network should put out for x_t = alpha x_0 + sigma eps."""
    a, b = _mix(prediction, alpha, sigma)
    return a * eps + b * x_0


def denoised(prediction: Prediction, output: Tensor, x_t: Tensor, alpha: Number, sigma: Number) -> Denoised:
    """The network's output at x_t -> (x_0, eps), with alpha x_0 + sigma eps = x_t.

    Undefined where the prediction says nothing: x_0 from eps at alpha = 0, eps from x_0 at sigma = 0.
    """
    a, b = _mix(prediction, alpha, sigma)
    determinant = a * alpha - b * sigma
    return Denoised((a * x_t - sigma * output) / determinant, (alpha * output - b * x_t) / determinant)


def clipped(
    prediction: Denoised, x_t: Tensor, alpha: float, sigma: float, bounds: tuple[Any, Any] = (-1, 1)
) -> Denoised:
    """x_0 clipped to the range of data (numbers, or tensors that broadcast), as DDPM's sampler does, and the eps that
    then explains x_t."""
    x_0 = prediction.x_0.clamp(*bounds)
    return Denoised(x_0, (x_t - alpha * x_0) / sigma)


def loss_weight(weighting: Weighting, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Factor [B, 1, ...] on the squared error of the network's output, for SNR = alpha^2 / sigma^2:

    - 'own': 1; with prediction eps, this is L_simple (DDPM eq. 14)
    - 'eps', 'x0': the squared error counts as that of the eps or x_0 it implies
    - 'min_snr': that of x_0 times min(SNR, 5) (Hang et al., 2303.09556, eq. 8)
    """
    if weighting == "own":
        return torch.ones_like(alpha)
    a, b = _mix(prediction, alpha, sigma)
    x0_per_output = (sigma / (a * alpha - b * sigma)) ** 2  # squared error of x_0 per squared error of the output
    snr = (alpha / sigma) ** 2
    if weighting == "eps":
        return snr * x0_per_output
    if weighting == "x0":
        return x0_per_output
    return snr.clamp(max=5.0) * x0_per_output
