"""Diffusion samplers against diffusers' schedulers on an analytic denoiser in float64; their orders of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genlab.diffusion.parameterisation import Denoised
from genlab.diffusion.processes import VP, Flow, Process
from genlab.diffusion.samplers import DDIM, DDPM, PLMS, DPMSolverPP, Euler, Heun, Sampler

SHAPE = (6, 1, 2, 2)
torch.manual_seed(0)
CENTRES = torch.randn(5, 4, dtype=torch.float64)  # the data: a mixture of Gaussians in four dimensions
STD, WEIGHTS = 0.3, torch.tensor([0.3, 0.1, 0.25, 0.15, 0.2], dtype=torch.float64)
X_T = torch.randn(SHAPE, dtype=torch.float64)
NOISE = torch.randn(1000, *SHAPE, dtype=torch.float64)


def posterior_mean(x_t: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] of the mixture, in closed form."""
    x = x_t.flatten(1)
    variance = alpha**2 * STD**2 + sigma**2
    distance = ((x[:, None] - alpha * CENTRES) ** 2).sum(-1)
    weight = torch.softmax(WEIGHTS.log() - distance / (2 * variance), 1)
    mean = CENTRES + alpha * STD**2 / variance * (x[:, None] - alpha * CENTRES)
    return (weight[..., None] * mean).sum(1).view_as(x_t)


def exact(
    process: Process, seen: list[tuple[float, Tensor]] | None = None, clip: bool = False
) -> Callable[..., Denoised]:
    def denoise(x_t: Tensor, t: float) -> Denoised:
        if seen is not None:
            seen.append((t, x_t))
        alpha, sigma = process.at(t)
        x_0 = posterior_mean(x_t, alpha, sigma)
        x_0 = x_0.clamp(-1, 1) if clip else x_0
        return Denoised(x_0, (x_t - alpha * x_0) / sigma)

    return denoise


def noise(k: int, shape: Any) -> Tensor:
    assert tuple(shape) == SHAPE[1:]
    return NOISE[k]


def ours(sampler: Sampler, process: Process, clip: bool = False) -> tuple[list[float], Tensor]:
    """Times and the whole trajectory: every x_t that the network is shown, and x_0."""
    seen: list[tuple[float, Tensor]] = []
    x_0 = sampler(exact(process, seen, clip), X_T, process, noise)
    assert len(seen) == sampler.evaluations
    return [t for t, _ in seen], torch.stack([*(x for _, x in seen), x_0])


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) < 1e-5
    assert float(a[-1].std()) > 0.3  # it went somewhere


def vp_scheduler(kind: str, process: VP, **kwargs: Any) -> Any:
    import diffusers

    scheduler = getattr(diffusers, kind)(num_train_timesteps=int(process.end), **kwargs)
    scheduler.alphas_cumprod = process.alpha_bar[1:].clone()  # theirs are float32
    return scheduler


def theirs(
    scheduler: Any, process: VP, steps: int, scaled: bool = False, clip: bool = False, **kwargs: Any
) -> tuple[list[float], Tensor]:
    """The trajectory of a scheduler that predicts eps. scaled: it works on x / alpha (sigma coordinates)."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas") and scaled:
        sigmas = [s / a for a, s in (process.at(int(t) + 1.0) for t in scheduler.timesteps)] + [0.0]
        scheduler.sigmas = torch.tensor(
            sigmas, dtype=torch.float64
        )  # the same numbers before their rounding to float32
    x, path, times = X_T.clone(), [], []
    for k, t in enumerate(scheduler.timesteps):
        alpha, _ = process.at(int(t) + 1.0)
        x = x / alpha if scaled and k == 0 else x
        x_t = x * alpha if scaled else x
        times.append(int(t) + 1.0)
        path.append(x_t)
        eps = exact(process, None, clip)(x_t, int(t) + 1.0).eps
        extra = {name: value(k) for name, value in kwargs.items()}
        x = scheduler.step(eps, t, x, **extra).prev_sample
    return times, torch.stack([*path, x])


@pytest.mark.parametrize("steps", [1000, 25])
@pytest.mark.parametrize(("variance", "their_name"), [("beta", "fixed_large"), ("beta_tilde", "fixed_small")])
def test_ddpm(monkeypatch: pytest.MonkeyPatch, variance: Any, their_name: str, steps: int) -> None:
    process = VP(1000, "linear")
    drawn = iter(NOISE)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *args, **kwargs: next(drawn))
    scheduler = vp_scheduler("DDPMScheduler", process, variance_type=their_name, clip_sample=True)
    times, path = theirs(scheduler, process, steps, clip=True)
    got_times, got = ours(DDPM(steps=steps, variance=variance), process, clip=True)
    assert got_times == times
    close(got, path)


@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(eta: float, spacing: Any) -> None:
    process = VP(1000, "linear")
    name = {"uniform": "leading"}.get(spacing, spacing)
    scheduler = vp_scheduler("DDIMScheduler", process, clip_sample=False, timestep_spacing=name)
    times, path = theirs(scheduler, process, 50, eta=lambda k: eta, variance_noise=lambda k: NOISE[k] if eta else None)
    got_times, got = ours(DDIM(steps=50, eta=eta, spacing=spacing), process)
    assert got_times == times
    close(got, path)


@pytest.mark.parametrize("to_1", [True, False])
def test_plms(to_1: bool) -> None:
    process = VP(1000, "scaled_linear", betas=(0.00085, 0.012))
    options = {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": not to_1}
    scheduler = vp_scheduler("PNDMScheduler", process, **options)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0] if to_1 else torch.ones((), dtype=torch.float64)
    times, path = theirs(scheduler, process, 20)
    got_times, got = ours(PLMS(steps=20, spacing="leading_to_1" if to_1 else "leading"), process)
    assert got_times == times
    close(got, path)


def test_ancestral_euler_is_ddim_with_eta_1(monkeypatch: pytest.MonkeyPatch) -> None:
    process, drawn = VP(1000, "linear"), iter(NOISE)
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *args, **kwargs: next(drawn))
    scheduler = vp_scheduler("EulerAncestralDiscreteScheduler", process, timestep_spacing="leading", steps_offset=1)
    times, path = theirs(scheduler, process, 30, scaled=True)
    got_times, got = ours(DDIM(steps=30, eta=1.0, spacing="leading"), process)
    assert got_times == times
    close(got, path)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_dpm_solver(schedule: Any) -> None:
    process = VP(1000, schedule)
    scheduler = vp_scheduler(
        "DPMSolverMultistepScheduler",
        process,
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps = lambda steps, set_=scheduler.set_timesteps: (
        set_(steps),
        exact_sigmas(scheduler, process),
    )
    times, path = theirs(scheduler, process, 20)
    got_times, got = ours(DPMSolverPP(steps=20), process)
    assert got_times == times
    close(got, path)


def exact_sigmas(scheduler: Any, process: VP) -> None:
    sigmas = [s / a for a, s in (process.at(int(t) + 1.0) for t in scheduler.timesteps)] + [0.0]
    torch.testing.assert_close(
        scheduler.sigmas.double(), torch.tensor(sigmas, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)


def test_dpm_solver_on_a_flow() -> None:
    import diffusers

    process = Flow()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=1.0,
    )
    scheduler.set_timesteps(16)  # takes no grid of one's own: give it ours after its own
    got_times, got = ours(DPMSolverPP(steps=16), process)
    scheduler.sigmas = torch.tensor([*got_times, 0.0], dtype=torch.float64)
    x, path = X_T.clone(), []
    for t, time in zip(scheduler.timesteps, got_times, strict=True):
        path.append(x)
        x_0, eps = exact(process)(x, time)
        x = scheduler.step(eps - x_0, t, x).prev_sample
    close(got, torch.stack([*path, x]))


@pytest.mark.parametrize("spacing", ["uniform", "trailing"])
def test_euler_in_sigma_coordinates(spacing: Any) -> None:
    process = VP(1000, "linear")
    scheduler = vp_scheduler(
        "EulerDiscreteScheduler", process, timestep_spacing={"uniform": "leading"}.get(spacing, spacing)
    )
    times, path = theirs(scheduler, process, 30, scaled=True)
    got_times, got = ours(Euler(steps=30, coordinates="sigma", spacing=spacing), process)
    assert got_times == times
    close(got, path)


def test_heun_in_sigma_coordinates() -> None:
    process = VP(1000, "linear")
    scheduler = vp_scheduler("HeunDiscreteScheduler", process, timestep_spacing="trailing")
    times, path = theirs(scheduler, process, 20, scaled=True)
    got_times, got = ours(Heun(steps=20, coordinates="sigma"), process)
    assert got_times == times
    close(got, path)


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [(Euler(steps=20), "FlowMatchEulerDiscreteScheduler"), (Heun(steps=20), "FlowMatchHeunDiscreteScheduler")],
)
def test_flow(sampler: Sampler, kind: str) -> None:
    import diffusers

    process = Flow()
    scheduler = getattr(diffusers, kind)()
    got_times, got = ours(sampler, process)
    if isinstance(sampler, Euler):
        scheduler.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
    else:  # takes no grid of one's own: give it ours after its own
        scheduler.set_timesteps(20)
        scheduler.timesteps = torch.tensor(got_times, dtype=torch.float64) * 1000
        scheduler.sigmas = torch.tensor([*got_times, 0.0], dtype=torch.float64)
    x, path = X_T.clone(), []
    for t in scheduler.timesteps:
        path.append(x)
        x_0, eps = exact(process)(x, float(t) / 1000)
        x = scheduler.step(eps - x_0, t, x).prev_sample.double()
    close(got, torch.stack([*path, x]))


def test_euler_is_ddim_in_sigma_and_time_coordinates() -> None:
    vp = VP(1000, "linear")
    torch.testing.assert_close(
        ours(Euler(steps=20, coordinates="sigma"), vp)[1], ours(DDIM(steps=20, spacing="trailing"), vp)[1]
    )
    torch.testing.assert_close(ours(Euler(steps=20), Flow())[1], ours(DDIM(steps=20), Flow())[1])


def order(sampler: Callable[[int], Sampler], process: Process, steps: list[int], truth: Tensor) -> float:
    """Slope of log error over log step size."""
    errors = [float((ours(sampler(n), process)[1][-1] - truth).norm()) for n in steps]
    assert all(a > b for a, b in pairwise(errors))
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def test_orders_of_convergence() -> None:
    """On the ODE of a mixture of Gaussians with known score: Euler first order, Heun second."""
    steps = [32, 64, 128, 256]
    truth = ours(Heun(steps=4096), Flow())[1][-1]
    assert order(lambda n: Euler(steps=n), Flow(), steps, truth) == pytest.approx(1, abs=0.15)
    assert order(lambda n: Heun(steps=n), Flow(), steps, truth) == pytest.approx(2, abs=0.2)


def test_the_ode_samplers_agree_on_a_fine_grid() -> None:
    """Every deterministic sampler solves the same ODE, in whichever coordinates."""
    vp = VP(4000, "linear")
    fine = [
        ours(sampler, vp)[1][-1]
        for sampler in (
            DDIM(steps=1000, spacing="trailing"),
            DPMSolverPP(steps=1000),
            Euler(steps=1000, coordinates="angle"),
            Heun(steps=500, coordinates="angle"),
            Heun(steps=500, coordinates="sigma"),
        )
    ]
    for other in fine[1:]:
        assert float((other - fine[-1]).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        (DDPM(steps=200, clip=False), VP(200, "cosine")),
        (DDPM(steps=200, clip=False, variance="beta_tilde"), VP(200, "cosine")),
        (DDIM(steps=200, eta=1.0), VP(200, "cosine")),
        (DDPM(steps=200, clip=False), Flow()),
        (DDIM(steps=200, eta=1.0), Flow()),
        (DPMSolverPP(steps=50), VP(200, "cosine")),
        (Heun(steps=50), Flow()),
    ],
)
def test_samples_have_the_moments_of_the_data(sampler: Sampler, process: Process) -> None:
    generator = torch.Generator().manual_seed(1)
    draw = lambda k=0, shape=(1, 2, 2): torch.randn(4000, *shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x_0 = sampler(exact(process), draw(), process, draw).flatten(1)
    mean = (WEIGHTS[:, None] * CENTRES).sum(0)
    cov = (CENTRES - mean).T @ (WEIGHTS[:, None] * (CENTRES - mean)) + STD**2 * torch.eye(4)
    scale = math.sqrt(float(cov.diagonal().max()))
    assert float((x_0.mean(0) - mean).abs().max()) < 5 * scale / math.sqrt(4000) + 0.01
    assert float((x_0.T.cov() - cov).abs().max()) < 0.12 * scale**2
