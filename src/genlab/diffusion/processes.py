"""Processes that turn data into noise: x_t = alpha_t x_0 + sigma_t eps, with eps standard normal.

Time runs from 0 (data: alpha = 1, sigma = 0) to `end` (noise). All else (posteriors, ODEs, samplers, losses) follows
from alpha and sigma, so a process is its two functions, the times it is trained at and the times it is sampled at.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args, overload

import numpy as np
import torch
from torch import Tensor

from genlab.errors import ConfigError

Times = Literal["uniform", "logit_normal"]
Spacing = Literal["uniform", "quadratic", "trailing", "logsnr", "leading", "leading_to_1", "linspace"]
Time = TypeVar("Time", float, Tensor)


class Process(ABC):
    """What VP and Flow share.

    Attributes:
        end: the time of pure noise (VP: the integer T; Flow: 1.0).
        coordinates: those of the ODE samplers that suit this process, the default first (see `samplers.Euler`).
        times: how training times are distributed over (0, end]: 'uniform', or 'logit_normal' (eq. 19 of Esser et al.,
            2403.03206: end * sigmoid(mean + std z), z normal), which spends more samples in the middle.
    """

    end: float
    coordinates: tuple[str, ...]

    def __init__(self, times: Times = "uniform", mean: float = 0.0, std: float = 1.0) -> None:
        if times not in ("uniform", "logit_normal"):
            raise ConfigError(f"model.process.times: expected uniform or logit_normal, got {times!r}")
        self.times, self.mean, self.std = times, mean, std

    @abstractmethod
    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), float64, of the shape and on the device of t."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t, of the same shape."""

    @abstractmethod
    def grid(self, steps: int, spacing: Spacing) -> list[float]:
        """The decreasing times of a sampler: `steps` of them, and 0 at the end.

        Raises:
            ConfigError: the process has no such spacing, or fewer times than steps.
        """

    @abstractmethod
    def _scale(self, u: Tensor) -> Tensor:
        """Maps (0, 1) onto the times of training."""

    @overload
    def at(self, t: float) -> tuple[float, float]: ...
    @overload
    def at(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def at(self, t: Any) -> tuple[Any, Any]:
        """(alpha_t, sigma_t) in double precision: numbers at one time, float64 tensors [B] at times [B]."""
        if isinstance(t, Tensor):
            return self.alpha_sigma(t)
        alpha, sigma = self.alpha_sigma(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) of times [B], shaped [B, 1, ...] and typed to multiply `like` [B, ...]."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = self.alpha_sigma(t)
        return alpha.to(like.dtype).view(shape), sigma.to(like.dtype).view(shape)

    def quantile(self, u: Tensor) -> Tensor:
        """Uniforms [B] in [0, 1) -> training times [B], by the inverse of their distribution function.

        Random, keyed and stratified uniforms thus give random, keyed and stratified times.
        """
        u = u.clamp(2.0**-25, 1 - 2.0**-24)
        if self.times == "logit_normal":
            u = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)).clamp(max=1 - 2.0**-24)
        return self._scale(u)

    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """q(x_t | x_s) for s < t is N(a x_s, b I): (a, b). For VP with s = t - 1, b is DDPM's beta_t."""
        (alpha_s, sigma_s), (alpha_t, sigma_t) = self.at(s), self.at(t)
        a = alpha_t / alpha_s
        return a, sigma_t**2 - (a * sigma_s) ** 2

    def posterior(self, s: Time, t: Time) -> tuple[Time, Time, Time]:
        """q(x_s | x_t, x_0) for s < t is N(c_t x_t + c_0 x_0, var I): (c_t, c_0, var).

        Eq. 6 and 7 of DDPM (2006.11239), for any alpha, sigma and any s < t as in appendix A.2 of VDM (2107.00630).
        """
        (alpha_s, sigma_s), (_, sigma_t), (a, b) = self.at(s), self.at(t), self.transition(s, t)
        return a * sigma_s**2 / sigma_t**2, alpha_s * b / sigma_t**2, b * sigma_s**2 / sigma_t**2


class VP(Process):
    """The discrete variance-preserving process of DDPM: alpha^2 + sigma^2 = 1, times t = 1..T as in the paper.

    alpha_bar_t = alpha_t^2 is the product of 1 - beta_i, i <= t, and alpha_bar_0 = 1. The network is told the integer
    t - 1, in 0..T-1, as in DDPM's code and in every checkpoint of diffusers.

    Args:
        steps: T.
        schedule: 'linear' (DDPM section 4), 'scaled_linear', linear in the root of beta (Rombach et al. 2022,
            2112.10752), or 'cosine' (eq. 17 of Improved DDPM, 2102.09672, with s = 0.008 and beta <= 0.999).
        betas: the first and the last beta of the two linear ones, scaled by 1000 / T.
    """

    coordinates = ("angle", "sigma")

    def __init__(
        self,
        steps: int = 1000,
        schedule: Literal["linear", "scaled_linear", "cosine"] = "linear",
        times: Times = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        betas: Sequence[float] = (1e-4, 0.02),
    ) -> None:
        super().__init__(times, mean, std)
        self.end, self.schedule, self.ends = steps, schedule, tuple(betas)
        if not 0 < min(self.ends) <= max(self.ends) < 1:
            raise ConfigError(f"model.process.betas: expected two numbers between 0 and 1, got {list(self.ends)}")
        if schedule in ("linear", "scaled_linear"):
            power = 1 if schedule == "linear" else 2
            roots = [end ** (1 / power) for end in self.ends]
            beta = np.linspace(roots[0], roots[-1], steps) ** power * (1000 / steps)
        elif schedule == "cosine":
            f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * (np.pi / 2)) ** 2
            beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
        else:
            raise ConfigError(f"model.process.schedule: expected linear, scaled_linear or cosine, got {schedule!r}")
        if beta.max() >= 1:
            raise ConfigError(f"model.process.steps: {steps} steps are too few for the {schedule} schedule (beta >= 1)")
        # [T + 1], float64; from numpy, so that it is real where the model is built on the meta device
        self.alpha_bar = torch.from_numpy(np.concatenate([[1.0], np.cumprod(1 - beta)]))
        self._tables: dict[torch.device, Tensor] = {}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._tables:
            self._tables[t.device] = self.alpha_bar.to(t.device)
        alpha_bar = self._tables[t.device][t.long()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def network_time(self, t: Tensor) -> Tensor:
        return t.long() - 1

    def _scale(self, u: Tensor) -> Tensor:
        return (u.to(torch.float64) * self.end).long() + 1

    def grid(self, steps: int, spacing: Spacing) -> list[float]:
        """Times of a sampler, whole numbers.

        - 'uniform': 1 + i * floor(T / steps), and 'quadratic': 1 + floor(c i^2), up to 0.8 T: section 4.1 and appendix
          D.2 of DDIM (2010.02502), as in its code. Both start below T. Quadratic repeats small times when steps are
          many; repeats are dropped, since a step from t to t does nothing.
        - 'trailing': T - i T / steps, rounded, which starts at T (Lin et al., 2305.08891, table 2).
        - 'logsnr': evenly spaced in log(alpha / sigma) between T and 1, rounded to distinct times.
        - 'leading': 2 + i * floor(T / steps), diffusers' of that name with steps_offset 1; 'leading_to_1': likewise,
          but it ends at 1, not at 0, as Stable Diffusion is sampled; 'linspace': 1 + i (T - 1) / steps, rounded.
        """
        last = int(self.end)
        if not 1 <= steps <= last:
            raise ConfigError(f"sampler.steps: expected 1 to {last}, the steps of the process, got {steps}")
        if spacing == "uniform":
            times = [1 + i * (last // steps) for i in range(steps)]
        elif spacing in ("leading", "leading_to_1"):
            times = sorted({min(last, 2 + i * (last // steps)) for i in range(steps)})
        elif spacing == "linspace":
            times = sorted({1 + round(i * (last - 1) / steps) for i in range(1, steps + 1)})
        elif spacing == "quadratic":
            times = sorted({1 + int(root**2) for root in np.linspace(0, math.sqrt(0.8 * last), steps)})
        elif spacing == "trailing":
            times = [round(last - i * last / steps) for i in range(steps)][::-1]
        elif spacing == "logsnr":
            logsnr = torch.log(self.alpha_bar[1:] / (1 - self.alpha_bar[1:]))  # of t = 1..T, decreasing
            wanted = torch.linspace(float(logsnr[-1]), float(logsnr[0]), steps, dtype=torch.float64)
            times = [last - int(i) for i in torch.searchsorted(logsnr.flip(0), wanted).clamp(max=last - 1)][::-1]
            for i in range(1, steps):  # distinct: push repeats up, then what was pushed past T down
                times[i] = max(times[i], times[i - 1] + 1)
            for i in range(steps):
                times[i] = min(times[i], last - (steps - 1 - i))
        else:
            raise ConfigError(f"sampler.spacing: {spacing!r} is not one of {', '.join(get_args(Spacing))}")
        return [float(t) for t in reversed(times)] + [1.0 if spacing == "leading_to_1" else 0.0]


class Flow(Process):
    """Flow matching along straight (CondOT) paths: x_t = (1 - t) x_0 + t eps, t in [0, 1].

    Lipman et al. (2210.02747) and Liu et al. (2209.03003) count time the other way; here 0 is data, as all over GenLab.
    The network is told 1000 t, a float, so that its time embedding sees the range that it sees under VP.
    """

    end = 1.0
    coordinates = ("time",)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(torch.float64)
        return 1 - t, t

    def network_time(self, t: Tensor) -> Tensor:
        return t * 1000

    def _scale(self, u: Tensor) -> Tensor:
        return u

    def grid(self, steps: int, spacing: Spacing) -> list[float]:
        """Times of a sampler: 1, 1 - 1/steps, ..., 0 ('uniform', and 'trailing', which is the same here)."""
        if steps < 1:
            raise ConfigError(f"sampler.steps: expected at least 1, got {steps}")
        if spacing not in ("uniform", "trailing"):
            raise ConfigError(f"sampler.spacing: flow matching knows uniform only, got {spacing!r}")
        return [1 - i / steps for i in range(steps)] + [0.0]
