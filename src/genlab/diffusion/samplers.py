"""Samplers: from noise to data along a process, by a denoiser. One signature, one page each.

    sampler(denoise, x, process, noise) -> x_0
        denoise(x_t, t) -> Denoised(x_0, eps)   one network evaluation (two rows an item where guidance needs them)
        x                                        x_T: standard normal [B, ...], in the precision to compute in
        noise(k, shape) -> [B, *shape]           standard normals of step k, keyed by the items' seeds

Times t > s are those of `process.grid`. Coefficients are Python floats, computed in double precision. Every sampler
works on every process. `guidance_scale` and `clip` are read by whoever makes `denoise` (DiffusionModel.generate).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor

from genlab.diffusion.parameterisation import Denoised
from genlab.diffusion.processes import Process, Spacing
from genlab.errors import ConfigError
from genlab.settings import check_settings

Denoise = Callable[[Tensor, float], Denoised]
Noise = Callable[[int, Sequence[int]], Tensor]
Coordinates = Literal["auto", "sigma", "angle", "time"]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Options that all samplers have.

    Attributes:
        steps: number of steps.
        spacing: how they are placed in time, see `VP.grid`.
        guidance_scale: 1 is the conditional model, 0 the unconditional one, above 1 strengthens the label.
        clip: clip x_0 to [-1, 1] at every step.
        strength: with a picture to begin from, the share of the steps that is taken, the last ones; 1: all, which leave
            little of it.
    """

    steps: Annotated[int, "gt 0"]
    spacing: Spacing = "trailing"
    guidance_scale: Annotated[float, "ge 0"] = 1.0
    clip: bool = False
    strength: Annotated[float, "gt 0, le 1"] = 1.0

    kind: ClassVar[str] = "process"  # see genlab.kinds

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "sampler.")

    @abstractmethod
    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        """x_T -> x_0, both [B, ...]."""

    def check(self, process: Process) -> float:
        """The first of its times.

        Raises:
            ConfigError: the process has no such times or coordinates.
        """
        if isinstance(coordinates := getattr(self, "coordinates", None), str):
            _ODE(process, coordinates)  # type: ignore[arg-type]
        return process.grid(self.steps, self.spacing)[0]

    @property
    def evaluations(self) -> int:
        """Calls of `denoise`."""
        return self.steps

    @property
    def nfe(self) -> int:
        """Network evaluations an item; guidance needs two a call."""
        return self.evaluations * (1 if self.guidance_scale in (0, 1) else 2)

    def record(self) -> dict[str, Any]:
        """Its options, for the metric record; of those of editing only what changes something."""
        return {name: value for name, value in asdict(self).items() if name != "strength" or value != 1}


@dataclass(frozen=True, kw_only=True)
class DDPM(Sampler):
    """Ancestral sampling, algorithm 2 of DDPM (2006.11239), on all T times or respaced ones.

    Attributes:
        variance: of the reverse step: 'beta' (that of the forward step) or 'beta_tilde' (that of the posterior), DDPM
            section 3.2. The last step adds no noise.
    """

    steps: Annotated[int, "gt 0"] = 1000
    spacing: Spacing = "uniform"
    clip: bool = True
    variance: Literal["beta", "beta_tilde"] = "beta"

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        for k, (t, s) in enumerate(pairwise(process.grid(self.steps, self.spacing))):
            c_t, c_0, variance = process.posterior(s, t)
            x = c_t * x + c_0 * denoise(x, t).x_0  # eq. 7
            if s > 0:
                if self.variance == "beta":
                    variance = process.transition(s, t)[1]
                x = x + math.sqrt(variance) * noise(k, x.shape[1:])
        return x


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Eq. 12 of DDIM (2010.02502). eta 0: deterministic; eta 1: the variance of the posterior (eq. 16)."""

    steps: Annotated[int, "gt 0"] = 50
    spacing: Spacing = "uniform"
    eta: Annotated[float, "ge 0"] = 0.0

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        for k, (t, s) in enumerate(pairwise(process.grid(self.steps, self.spacing))):
            x, std = self.transition(denoise(x, t), process, t, s)
            if std > 0:
                x = x + std * noise(k, x.shape[1:])
        return x

    def transition(self, at: Denoised, process: Process, t: float, s: float) -> tuple[Tensor, float]:
        """Mean [B, ...] and deviation of the normal that x_s is drawn from, after what is expected at x_t."""
        alpha, sigma = process.at(s)
        std = self.eta * math.sqrt(process.posterior(s, t)[2])
        return alpha * at.x_0 + math.sqrt(max(sigma**2 - std**2, 0.0)) * at.eps, std


@dataclass(frozen=True, kw_only=True)
class PLMS(Sampler):
    """Pseudo linear multistep, Liu et al. (2202.09778): DDIM's step by a combination of the last four eps (eq. 12); the
    first step is of second order, by eps at both its ends. As diffusers' PNDM without its Runge-Kutta steps."""

    steps: Annotated[int, "gt 0"] = 50

    @property
    def evaluations(self) -> int:
        return self.steps + 1

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        def step(t: float, s: float, eps: Tensor) -> Tensor:
            (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(t), process.at(s)
            return alpha_s * (x - sigma_t * eps) / alpha_t + sigma_s * eps

        last: list[Tensor] = []  # eps, the newest first
        for k, (t, s) in enumerate(pairwise(process.grid(self.steps, self.spacing))):
            last = [denoise(x, t).eps, *last[:3]]
            eps: Any = sum(weight * e for weight, e in zip(_ADAMS[len(last) - 1], last, strict=True))
            if k == 0 and s > 0:
                eps = (eps + denoise(step(t, s, eps), s).eps) / 2
            x = step(t, s, eps)
        return x


# Adams-Bashforth, of order 1 to 4
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(Sampler):
    """DPM-Solver++(2M), algorithm 2 of Lu et al. (2211.01095): second order, multistep, on x_0.

    The first step has no predecessor and the last ends at sigma = 0, where lambda is infinite: both are of first order
    (`lower_order_final` of the authors' code).
    """

    steps: Annotated[int, "gt 0"] = 20

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        grid = process.grid(self.steps, self.spacing)
        previous: Tensor | None = None
        h_previous = math.inf
        for t, s in pairwise(grid):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = process.at(t), process.at(s)
            h = _lambda(alpha_s, sigma_s) - _lambda(alpha_t, sigma_t)  # infinite into s = 0, and out of alpha_t = 0
            x_0 = denoise(x, t).x_0
            d = x_0
            if previous is not None and s > 0:
                d = x_0 + (h / (2 * h_previous)) * (x_0 - previous)  # D_i; r = h_previous / h
            x = (sigma_s / sigma_t) * x - alpha_s * math.expm1(-h) * d
            previous, h_previous = x_0, h
        return x


def _lambda(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), half the log SNR."""
    return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    """Euler's method on the probability-flow ODE, dy/dr = slope, in one of three coordinates:

        sigma   y = x / alpha, r = sigma / alpha, slope eps; EDM (2206.00364). Euler is then DDIM with eta 0.
        angle   y = x, r = atan(sigma / alpha), slope v = alpha eps - sigma x_0; Salimans and Ho (2202.00512). VP only.
        time    y = x, r = t, slope eps - x_0. Flow matching only.

    'auto' takes 'angle' for VP, since sigma / alpha reaches 20,000 under the cosine schedule, and 'time' for flow.
    """

    steps: Annotated[int, "gt 0"] = 50
    coordinates: Coordinates = "auto"

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        ode = _ODE(process, self.coordinates)
        for t, s in pairwise(process.grid(self.steps, self.spacing)):
            (scale_t, r_t), (scale_s, r_s) = ode.point(t), ode.point(s)
            x = scale_s * (x / scale_t + (r_s - r_t) * ode.slope(denoise(x, t), t))
        return x


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler):
    """Heun's second-order method on the ODE of `Euler`: algorithm 1 of EDM (2206.00364).

    The step to t = 0 is Euler's, since the network is not defined there; the order stays two, as it is a single step.
    """

    steps: Annotated[int, "gt 0"] = 18
    coordinates: Coordinates = "auto"

    @property
    def evaluations(self) -> int:
        return 2 * self.steps - 1

    def __call__(self, denoise: Denoise, x: Tensor, process: Process, noise: Noise) -> Tensor:
        ode = _ODE(process, self.coordinates)
        for t, s in pairwise(process.grid(self.steps, self.spacing)):
            (scale_t, r_t), (scale_s, r_s) = ode.point(t), ode.point(s)
            y, d = x / scale_t, ode.slope(denoise(x, t), t)
            x = scale_s * (y + (r_s - r_t) * d)
            if s > 0:
                x = scale_s * (y + (r_s - r_t) * (d + ode.slope(denoise(x, s), s)) / 2)
        return x


class _ODE:
    """The probability-flow ODE of a process in the coordinates that `Euler` lists."""

    def __init__(self, process: Process, coordinates: Coordinates) -> None:
        self.process = process
        self.coordinates = process.coordinates[0] if coordinates == "auto" else coordinates
        if self.coordinates not in process.coordinates:
            known = ", ".join(process.coordinates)
            raise ConfigError(f"sampler.coordinates: this process has auto, {known}; got {coordinates!r}")

    def point(self, t: float) -> tuple[float, float]:
        """(scale, r) at t, where y = x / scale."""
        alpha, sigma = self.process.at(t)
        if self.coordinates == "sigma":
            return alpha, sigma / alpha
        return 1.0, t if self.coordinates == "time" else math.atan2(sigma, alpha)

    def slope(self, at: Denoised, t: float) -> Tensor:
        """dy/dr, from x_0 and eps at t."""
        if self.coordinates == "sigma":
            return at.eps
        if self.coordinates == "time":
            return at.eps - at.x_0
        alpha, sigma = self.process.at(t)
        return alpha * at.eps - sigma * at.x_0
