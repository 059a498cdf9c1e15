"""Processes, parameterisations, guidance, bound and the family; samplers are in test_samplers.py."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from genlab import noise
from genlab.diffusion import bound, parameterisation
from genlab.diffusion.guidance import guided, with_null
from genlab.diffusion.processes import VP, Flow, Process, Spacing
from genlab.diffusion.samplers import DDIM, DDPM, DPMSolverPP, Euler, Heun, Sampler
from genlab.errors import ConfigError
from genlab.models.diffusion import DiffusionModel
from genlab.networks.patch import Patch
from genlab.noise import Stream

PROCESSES = [VP(1000, "linear"), VP(1000, "cosine"), VP(37, "cosine"), Flow()]


def all_times(process: Process) -> Tensor:
    return torch.arange(1, int(process.end) + 1) if isinstance(process, VP) else torch.linspace(0.001, 1, 1000)


# ---- processes


def test_vp_is_the_papers() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    np.testing.assert_allclose(VP(1000, "linear").alpha_bar[1:], np.cumprod(1 - betas), rtol=1e-12)
    roots = np.linspace(0.00085**0.5, 0.012**0.5, 1000)  # 2112.10752's code: make_beta_schedule
    scaled = VP(1000, "scaled_linear", betas=(0.00085, 0.012)).alpha_bar[1:]
    np.testing.assert_allclose(scaled, np.cumprod(1 - roots**2), rtol=1e-12)
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731  eq. 17 of Improved DDPM
    for t in (1, 100, 500, 990):  # up to where beta is clipped
        assert float(VP(1000, "cosine").alpha_bar[t]) == pytest.approx(f(t) / f(0), rel=1e-9)
    last = VP(1000, "cosine").alpha_bar[-2:]
    assert 1 - float(last[1] / last[0]) == pytest.approx(0.999)
    with pytest.raises(ConfigError, match="steps"):
        VP(10, "linear")
    with pytest.raises(ConfigError, match="betas"):
        VP(1000, betas=(0.0, 0.02))
    with pytest.raises(ConfigError, match="schedule"):
        VP(10, "quadratic")  # type: ignore[arg-type]


@pytest.mark.parametrize("process", PROCESSES)
def test_identities(process: Process) -> None:
    t = all_times(process)
    alpha, sigma = process.alpha_sigma(t)
    if isinstance(process, VP):
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    else:
        torch.testing.assert_close(alpha + sigma, torch.ones_like(alpha))
    snr = (alpha / sigma) ** 2
    assert (snr[1:] < snr[:-1]).all()
    assert process.at(0.0) == (1.0, 0.0)
    assert process.at(float(t[5])) == (float(alpha[5]), float(sigma[5]))


def test_transition_and_posterior_are_ddpms() -> None:
    process, betas = VP(1000, "linear"), np.linspace(1e-4, 0.02, 1000)
    a_bar = np.cumprod(1 - betas)
    for t in (2, 300, 1000):
        beta, now, before = betas[t - 1], a_bar[t - 1], a_bar[t - 2]
        assert process.transition(t - 1, t) == pytest.approx((math.sqrt(1 - beta), beta), rel=1e-9)
        c_0 = math.sqrt(before) * beta / (1 - now)  # eq. 7
        c_t = math.sqrt(1 - beta) * (1 - before) / (1 - now)
        assert process.posterior(t - 1, t) == pytest.approx((c_t, c_0, (1 - before) / (1 - now) * beta), rel=1e-9)
    assert process.posterior(0, 1) == pytest.approx((0.0, 1.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_posterior_is_bayes_rule(process: Process) -> None:
    """q(x_s | x_t, x_0) by conditioning the joint Gaussian of (x_s, x_t), for times that are not neighbours."""
    s, t = (8.0, 30.0) if isinstance(process, VP) else (0.25, 0.7)
    (alpha_s, sigma_s), (a, b) = process.at(s), process.transition(s, t)
    x_0, x_t = 0.7, -0.4
    mean_s, var_s = alpha_s * x_0, sigma_s**2
    gain = a * var_s / (a**2 * var_s + b)
    c_t, c_0, variance = process.posterior(s, t)
    assert c_t * x_t + c_0 * x_0 == pytest.approx(mean_s + gain * (x_t - a * mean_s), rel=1e-9)
    assert variance == pytest.approx(var_s - gain * a * var_s, rel=1e-9)


def test_training_times() -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    t = VP(1000).quantile(u)
    assert t.dtype == torch.int64
    assert t.min() >= 1
    assert t.max() <= 1000
    assert stats.kstest((t.double() / 1000).numpy(), "uniform").pvalue > 1e-3
    edges = torch.tensor([0.0, 1 - 2.0**-24])
    for steps in (7, 513, 1000, 4000):
        assert VP(steps, "cosine").quantile(edges).tolist() == [1, steps]
    t = Flow("logit_normal", mean=-0.5, std=1.2).quantile(u).double()
    assert stats.kstest(((t / (1 - t)).log().numpy() + 0.5) / 1.2, "norm").pvalue > 1e-3
    assert Flow("logit_normal", std=100.0).quantile(edges).isfinite().all()
    ends = Flow().quantile(edges)
    assert 0 < ends[0] < ends[1] < 1
    with pytest.raises(ConfigError, match="times"):
        Flow("cosine")  # type: ignore[arg-type]


def test_grids() -> None:
    process = VP(1000)
    for steps in (10, 20, 50, 100, 1000):  # DDIM's code: seq = range(0, T, T // S), 0-based, and its quadratic one
        seq = list(range(0, 1000, 1000 // steps))
        assert process.grid(steps, "uniform") == [*(t + 1.0 for t in reversed(seq)), 0.0]
        seq = [int(s) for s in list(np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2)]
        assert process.grid(steps, "quadratic") == [*(t + 1.0 for t in sorted(set(seq), reverse=True)), 0.0]
    assert process.grid(3, "trailing") == [1000.0, 667.0, 333.0, 0.0]
    assert process.grid(3, "leading") == [668.0, 335.0, 2.0, 0.0]
    assert process.grid(3, "leading_to_1") == [668.0, 335.0, 2.0, 1.0]
    assert process.grid(3, "linspace") == [1000.0, 667.0, 334.0, 0.0]
    for schedule in ("linear", "cosine"):
        for steps in (1, 2, 7, 20, 999, 1000):
            for spacing in get_args(Spacing):
                grid = VP(1000, schedule).grid(steps, spacing)
                assert all(a > b for a, b in pairwise(grid))
                assert grid[0] <= 1000
                assert grid[-2:][0] >= 1
                assert len(grid) == steps + 1 or spacing == "quadratic" or (steps == 1000 and len(grid) == 1000)
    grid = VP(1000, "linear").grid(10, "logsnr")[:-1]
    assert (grid[0], grid[-1]) == (1000, 1)
    lam = [math.log(a / s) for a, s in map(VP(1000, "linear").at, grid)]
    assert np.diff(lam)[:-2] == pytest.approx([np.diff(lam)[0]] * 7, rel=0.05)  # times are whole: coarse near t = 1
    assert Flow().grid(4, "uniform") == [1.0, 0.75, 0.5, 0.25, 0.0]
    for bad in (
        lambda: process.grid(1001, "uniform"),
        lambda: process.grid(0, "uniform"),
        lambda: Flow().grid(0, "uniform"),
    ):
        with pytest.raises(ConfigError, match=r"sampler\.steps"):
            bad()
    for bad in (lambda: process.grid(5, "karras"), lambda: Flow().grid(5, "quadratic")):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"sampler\.spacing"):
            bad()


# ---- parameterisation


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
@pytest.mark.parametrize("process", PROCESSES)
def test_conversions_round_trip(process: Process, prediction: Any) -> None:
    torch.manual_seed(0)
    times = torch.tensor([1.0, 5.0, 36.0]) if isinstance(process, VP) else torch.tensor([0.02, 0.5, 0.9])
    x_0, eps = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    alpha, sigma = process.coefficients(times, x_0)
    x_t = alpha * x_0 + sigma * eps
    out = parameterisation.target(prediction, x_0, eps, alpha, sigma)
    found = parameterisation.denoised(prediction, out, x_t, alpha, sigma)
    torch.testing.assert_close(found.x_0, x_0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.eps, eps, rtol=1e-7, atol=1e-7)


def test_targets_by_hand() -> None:
    x_0, eps = torch.tensor([2.0]), torch.tensor([3.0])
    wanted = {"eps": 3.0, "x0": 2.0, "v": 0.8 * 3 - 0.6 * 2, "velocity": 1.0}
    for prediction, value in wanted.items():
        assert float(parameterisation.target(prediction, x_0, eps, 0.8, 0.6)) == pytest.approx(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_weights_count_the_error_where_they_say(prediction: Any) -> None:
    """An error of the output, times its weight, is the squared error of eps or x_0 that it implies."""
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    x_0, eps = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([1.1, 0.2], dtype=torch.float64)
    error = torch.tensor([0.01, -0.3], dtype=torch.float64)
    out = parameterisation.target(prediction, x_0, eps, alpha, sigma) + error
    found = parameterisation.denoised(prediction, out, alpha * x_0 + sigma * eps, alpha, sigma)
    errors = {"own": error, "eps": found.eps - eps, "x0": found.x_0 - x_0}
    errors["min_snr"] = errors["x0"] * math.sqrt(min(0.64 / 0.36, 5))
    for weighting, wanted in errors.items():
        weight = parameterisation.loss_weight(weighting, prediction, alpha, sigma)  # type: ignore[arg-type]
        torch.testing.assert_close(weight * error**2, wanted**2)


def test_clipping_keeps_x_t() -> None:
    x_t = torch.tensor([0.5, -2.0, 1.0])
    found = parameterisation.clipped(
        parameterisation.denoised("eps", torch.tensor([0.1, 3.0, -1.0]), x_t, 0.8, 0.6), x_t, 0.8, 0.6
    )
    assert found.x_0.abs().max() <= 1
    torch.testing.assert_close(0.8 * found.x_0 + 0.6 * found.eps, x_t)


# ---- guidance


def test_guidance() -> None:
    calls = []

    def network(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        assert label is not None
        calls.append(label.tolist())
        return x * (1 + label.view(-1, 1)) + t.view(-1, 1)

    x, t, label, nulls = torch.randn(2, 3), torch.tensor([5.0, 5.0]), torch.tensor([0, 1]), torch.tensor([9, 9])
    assert torch.equal(guided(network, x, t, label, nulls, 1.0), network(x, t, label))
    null = guided(network, x, t, label, nulls, 0.0)
    assert torch.equal(null, network(x, t, torch.tensor([9, 9])))
    calls.clear()
    torch.testing.assert_close(guided(network, x, t, label, nulls, 3.0), null + 3 * (network(x, t, label) - null))
    assert calls[0] == [0, 1, 9, 9]
    assert (with_null(10), with_null(0), with_null(None)) == (11, None, None)
    # combining v is combining eps: (alpha v + ...) is affine
    alpha, sigma, u, c = 0.8, 0.6, torch.randn(2, 3), torch.randn(2, 3)
    both = [parameterisation.denoised("v", out, x, alpha, sigma).eps for out in (u, c, u + 2.5 * (c - u))]
    torch.testing.assert_close(both[2], both[0] + 2.5 * (both[1] - both[0]))


# ---- the bound


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_bound_of_a_gaussian_equals_its_closed_form(variance: str) -> None:
    """Data N(m, s^2) and the optimal denoiser: E[-ELBO] = KL(q(x_{0:T}) || p(x_{0:T})) + H(x_0), by joint covariances.

    Our terms are quadratic in (x_0, eps), so Gauss-Hermite quadrature takes their expectation exactly. L_0 is here that
    of a continuous decoder; the discretised one is tested below.
    """
    m, s, steps = 0.3, 0.7, 12
    process = VP(steps, "cosine")

    def optimal(x_t: Tensor, t: float) -> Tensor:  # E[x_0 | x_t]
        alpha, sigma = process.at(t)
        return m + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x_t - alpha * m)

    def reverse(t: int) -> tuple[float, float, float]:  # p(x_{t-1} | x_t) = N(a x_t + b, v)
        alpha, sigma = process.at(t)
        c_t, c_0, _ = process.posterior(t - 1, t)
        k = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
        v = float(bound.reverse_variance(process, torch.tensor([t]), variance))
        return c_t + c_0 * k, c_0 * m * (1 - k * alpha), v

    # the joint of the forward chain, in the order x_0, ..., x_T
    mean_q, cov_q = np.array([process.at(t)[0] * m for t in range(steps + 1)]), np.zeros((steps + 1, steps + 1))
    for i in range(steps + 1):
        for j in range(i, steps + 1):
            (alpha_i, sigma_i), a = process.at(i), process.transition(i, j)[0] if j > i else 1.0
            cov_q[i, j] = cov_q[j, i] = a * (alpha_i**2 * s**2 + sigma_i**2)
    # the joint of the reverse chain: precision and mean from its factors
    precision, linear, log_det = np.zeros_like(cov_q), np.zeros(steps + 1), 0.0
    precision[steps, steps] = 1.0
    for t in range(1, steps + 1):
        a, b, v = reverse(t)
        row = np.zeros(steps + 1)
        row[t - 1], row[t] = 1, -a
        precision += np.outer(row, row) / v
        linear += row * b / v
        log_det -= math.log(v)
    mean_p = np.linalg.solve(precision, linear)
    delta = mean_q - mean_p
    kl = 0.5 * (
        np.trace(precision @ cov_q) + delta @ precision @ delta - (steps + 1) - np.linalg.slogdet(cov_q)[1] - log_det
    )
    closed = kl + 0.5 * math.log(2 * math.pi * math.e * s**2)

    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    x_0, eps = (torch.from_numpy(v.ravel()[:, None].copy()) for v in np.meshgrid(m + s * nodes, nodes))
    w = torch.from_numpy(np.outer(weights, weights).ravel())
    total = (w * bound.prior_term(process, x_0)).sum()
    for t in range(2, steps + 1):
        alpha, sigma = process.at(t)
        times = torch.full((len(x_0),), t)
        total += (w * bound.transition_term(process, x_0, optimal(alpha * x_0 + sigma * eps, t), times, variance)).sum()
    alpha, sigma = process.at(1)
    v = reverse(1)[2]
    x_hat = optimal(alpha * x_0 + sigma * eps, 1)
    total += (w * (0.5 * (x_0 - x_hat) ** 2 / v + 0.5 * math.log(2 * math.pi * v)).sum(1)).sum()
    assert float(total) == pytest.approx(closed, rel=1e-10)


def test_decoder_is_a_distribution_and_equals_scipy() -> None:
    process = VP(1000, "linear")
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 127.5 - 1
    std = math.sqrt(process.posterior(1, 2)[2])
    for mean in (-1.4, -1.0, 0.123, 0.9999, 7.0):
        nats = bound.decoder_term(process, levels, torch.full_like(levels, mean))
        assert torch.isfinite(nats).all()
        assert float((-nats).exp().sum()) == pytest.approx(1, rel=1e-9)
    nats = bound.decoder_term(process, levels, torch.full_like(levels, 0.1))
    i = 140  # near the mean, where scipy's difference is accurate
    x = float(levels[i])
    mass = stats.norm.cdf((x + 1 / 255 - 0.1) / std) - stats.norm.cdf((x - 1 / 255 - 0.1) / std)
    assert float(nats[i]) == pytest.approx(-math.log(mass), rel=1e-6)
    float32 = (torch.arange(256).float() / 127.5 - 1)[:, None]  # as batches hold them
    torch.testing.assert_close(
        bound.decoder_term(process, float32, 0 * float32),
        bound.decoder_term(process, levels, 0 * levels),
        rtol=1e-4,
        atol=1e-4,
    )


# ---- the family


def unet(num_classes: int = 3, channels: int = 1) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=with_null(num_classes),
    )


def model(process: Process | None = None, prediction: Any = "v", num_classes: int = 3, **kwargs: Any) -> DiffusionModel:
    made = DiffusionModel(
        unet(num_classes), process or VP(1000, "cosine"), [1, 8, 8], prediction, num_classes=num_classes, **kwargs
    )
    return made.eval()


def batch(ids: list[int]) -> dict[str, Tensor]:
    rows = torch.tensor(ids)
    image = (noise.uniform(rows, 99, (1, 8, 8)) * 256).floor() / 127.5 - 1
    return {"id": rows, "image": image, "label": rows % 3}


class Line(nn.Module):
    """F = 0.3 x_t + 0.01 t + label: small enough to check by hand; writes down what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        self.seen.append((timestep, class_labels))
        shift = 0 if class_labels is None else class_labels.view(-1, 1, 1, 1)
        return self.a * sample + 0.01 * timestep.view(-1, 1, 1, 1) + shift


def test_loss_is_ddpms_by_hand() -> None:
    """L_simple, eq. 14: || eps - eps_theta(sqrt(a_bar_t) x_0 + sqrt(1 - a_bar_t) eps, t) ||^2, mean over dimensions."""
    x_0 = torch.rand(5, 1, 2, 2) * 2 - 1
    trained = DiffusionModel(Line(), VP(1000, "linear"), [1, 2, 2], "eps").train()
    loss = trained.losses({"image": x_0, "position": torch.arange(5)})["loss"]
    keys = noise.fold_in(torch.arange(5), 0)  # without a plan the seed is 0
    t = (noise.uniform(keys, Stream.TIME, ()) * 1000).long()  # 0-based, as the network is told
    eps = noise.normal(keys, Stream.LOSS, (1, 2, 2))
    a_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].float().view(5, 1, 1, 1)
    x_t = a_bar.sqrt() * x_0 + (1 - a_bar).sqrt() * eps
    wanted = ((eps - (0.3 * x_t + 0.01 * t.view(5, 1, 1, 1))) ** 2).mean()
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(trained.network.seen[0][0], t)
    loss.backward()
    assert trained.network.a.grad.abs() > 0


def test_loss_is_flow_matchings_by_hand() -> None:
    x_0 = torch.rand(5, 1, 2, 2) * 2 - 1
    trained = DiffusionModel(Line(), Flow("logit_normal"), [1, 2, 2], "velocity", num_classes=3, label_drop=0.5).train()
    label = torch.tensor([0, 1, 2, 0, 1])
    loss = trained.losses({"image": x_0, "label": label, "position": torch.arange(5)})["loss"]
    keys = noise.fold_in(torch.arange(5), 0)
    t = torch.sigmoid(torch.special.ndtri(noise.uniform(keys, Stream.TIME, ())))
    eps, kept = noise.normal(keys, Stream.LOSS, (1, 2, 2)), noise.uniform(keys, Stream.LABEL, ()) >= 0.5
    told = torch.where(kept, label, 3)
    assert 0 < kept.sum() < 5
    r = t.view(5, 1, 1, 1)
    out = 0.3 * ((1 - r) * x_0 + r * eps) + 0.01 * 1000 * r + told.view(5, 1, 1, 1)
    torch.testing.assert_close(loss, ((eps - x_0 - out) ** 2).mean())
    assert torch.equal(trained.network.seen[0][1], told)


def test_validation_loss_is_a_function_of_the_ids() -> None:
    made, ids = model(), [0, 7, 3, 12, 5, 100]
    with torch.no_grad():
        whole = made.losses(batch(ids))["loss"]
        torch.manual_seed(5)
        parts = [made.losses(batch(ids[i : i + 2]))["loss"] for i in (0, 2, 4)]
        torch.testing.assert_close(whole, torch.stack(parts).mean())
        assert not torch.equal(made.losses(batch([1, 7, 3, 12, 5, 100]))["loss"], whole)
    line = DiffusionModel(Line(), VP(1000), [1, 8, 8], num_classes=3, label_drop=0.9).eval()
    line.losses(batch(list(range(100))))
    times, label = line.network.seen[0]
    assert torch.equal(label, torch.arange(100) % 3)  # none dropped
    counts = torch.histc(times.float(), bins=10, min=0, max=1000)
    assert counts.min() >= 9  # any 100 ids cover the times evenly
    assert counts.max() <= 11


SAMPLERS: list[Sampler] = [
    DDPM(steps=4, spacing="trailing"),
    DDIM(steps=4, eta=0.5),
    DPMSolverPP(steps=4, guidance_scale=2.0),
    Heun(steps=3, guidance_scale=2.0),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("process", [VP(1000, "cosine"), Flow()])
def test_an_item_does_not_depend_on_its_place_in_the_chunk(process: Process, sampler: Sampler) -> None:
    if isinstance(process, Flow) and sampler.spacing == "uniform":
        sampler = DDIM(steps=4, eta=0.5, spacing="trailing")
    made = model(process, "v" if isinstance(process, VP) else "velocity")
    seeds, label = torch.arange(40, 44), torch.tensor([0, 1, 2, 1])
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        first = made.generate(seeds, {"label": label}, sampler)
        moved = made.generate(seeds[order], {"label": label[order]}, sampler)
        other = made.generate(torch.tensor([40, 1, 2, 3]), {"label": torch.tensor([0, 0, 0, 0])}, sampler)
    assert first.shape == (4, 1, 8, 8)
    assert torch.isfinite(first).all()
    assert torch.equal(moved, first[order])
    assert torch.equal(other[0], first[0])
    assert not torch.equal(first[0], first[1])


def test_guidance_scale_one_is_the_conditional_model_and_calls_are_counted() -> None:
    line = DiffusionModel(Line(), VP(1000), [1, 8, 8], num_classes=3).eval()
    seeds, label = torch.arange(2), torch.tensor([2, 0])
    with torch.no_grad():
        for sampler, rows in (
            (DDIM(steps=5), 2),
            (DDIM(steps=5, guidance_scale=0), 2),
            (Heun(steps=3, guidance_scale=2), 4),
        ):
            line.network.seen.clear()
            line.generate(seeds, {"label": label}, sampler)
            assert len(line.network.seen) == sampler.evaluations
            assert all(len(t) == rows for t, _ in line.network.seen)
            assert sampler.nfe * len(seeds) == rows * len(line.network.seen)
        line.network.seen.clear()
        line.generate(seeds, {"label": label}, DDIM(steps=5))
        assert all(torch.equal(told, label) for _, told in line.network.seen)
        line.generate(seeds, None, DDIM(steps=5, guidance_scale=2.0))  # no label: the null class, and nothing to guide
        assert line.network.seen[-1][1].tolist() == [3, 3]
        assert line.network.seen[-1][0].dtype == torch.int64
    assert Heun(steps=18).nfe == 35  # EDM's count
    assert Sampler.record(DDIM(steps=7, eta=0.2))["eta"] == 0.2


def test_noise_of_a_sample_is_keyed_by_seed_and_step() -> None:
    seeds, drawn = torch.tensor([5, 2]), []

    class Look(Sampler):
        def __call__(self, denoise: Any, x: Tensor, process: Process, step_noise: Any) -> Tensor:
            drawn.extend([x, *(step_noise(k, (1, 8, 8)) for k in range(3))])
            return x

    DiffusionModel(Line(), VP(1000), [1, 8, 8]).eval().generate(seeds, None, Look(steps=3))
    assert torch.equal(drawn[0], noise.normal(seeds, Stream.INITIAL, (1, 8, 8)))
    for k in range(3):
        assert torch.equal(drawn[1 + k], noise.normal(seeds, (Stream.STEP, k), (1, 8, 8)))


def test_bound_of_a_model() -> None:
    made = model(VP(20, "cosine"), "v")
    with pytest.raises(AssertionError, match="eval"):
        made.train().variational_bound(batch([0]))
    made.eval()
    full = made.variational_bound(batch([0, 1, 2, 3]))
    assert all(v.shape == (4,) and torch.isfinite(v).all() for v in full.values())
    torch.testing.assert_close(full["L_T"] + full["L_t"] + full["L_0"], full["bits_per_dim"])
    again = made.variational_bound(batch([3, 1]))
    for key in full:  # an item's bound is its own
        torch.testing.assert_close(again[key], full[key][[3, 1]], rtol=1e-4, atol=1e-6)
    many = batch([0] * 200)  # one image, many draws of noise and times
    many["id"] = torch.arange(200)
    error = made.variational_bound(many, terms=4)["L_t"] - made.variational_bound(many)["L_t"]
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(200)
    with pytest.raises(ConfigError, match="VP"):
        model(Flow(), "velocity").variational_bound(batch([0]))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="prediction"):
        DiffusionModel(Line(), Flow(), [1, 8, 8], "eps")
    with pytest.raises(ConfigError, match=r"model\.prediction"):
        DiffusionModel(Line(), VP(), [1, 8, 8], "noise")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.weighting"):
        DiffusionModel(Line(), VP(), [1, 8, 8], "eps", weighting="snr")  # type: ignore[arg-type]
    plain = DiffusionModel(Line(), VP(), [1, 8, 8])
    assert [known.name for known in plain.conditions] == ["image", "mask"]
    with pytest.raises(ConfigError, match="guidance_scale"):
        plain.generate(torch.arange(2), None, DDIM(guidance_scale=2.0))
    with pytest.raises(ConfigError, match=r"condition\.label"):
        model().generate(torch.arange(2), {"label": torch.tensor([0, 4])}, DDIM())
    with pytest.raises(ConfigError, match=r"sampler\.variance"):
        DDPM(variance="small")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"sampler\.coordinates"):
        Euler(steps=2, coordinates="angle", spacing="uniform")(lambda x, t: (x, x), torch.zeros(1), Flow(), None)  # type: ignore[arg-type, return-value]


def test_channels_last_gives_the_same() -> None:
    x, t, label = torch.randn(4, 1, 8, 8), torch.full((4,), 500), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(model(channels_last=True)(x, t, label), model()(x, t, label), rtol=1e-4, atol=1e-5)


def test_patch_folds_and_unfolds() -> None:
    class Shift(nn.Module):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(out_channels, in_channels))

        def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Any:
            assert sample.shape[1] == self.weight.shape[1] == 12
            return (sample + timestep.view(-1, 1, 1, 1),)

    patched = Patch(Shift, channels=3, patch=2)
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(patched(x, torch.tensor([1.0, 2.0])), x + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    assert list(patched.state_dict()) == ["network.weight"]
    with pytest.raises(ConfigError, match="patch"):
        patched(torch.randn(2, 3, 5, 6), torch.zeros(2))
    folded = F.pixel_unshuffle(x, 2)
    assert torch.equal(folded[:, 1], x[:, 0, 0::2, 1::2])


# ---- configurations


@pytest.mark.parametrize(
    ("chosen", "parameters"),
    [
        ("experiment=ddpm_cifar10", 35_746_307),  # google/ddpm-cifar10-32, as its paper's 35.7M
        ("model=ddpm", 704_484),
        ("model=flow", 704_484),
    ],
)
def test_parameter_counts(chosen: str, parameters: int) -> None:
    from runs import compose_train

    from genlab.cli.build import build_model

    config = compose_train([chosen, "logger=none"])
    with torch.device("meta"):
        made = build_model(config)
    assert sum(p.numel() for p in made.parameters()) == parameters
    assert isinstance(made, DiffusionModel)
    assert isinstance(made.sampler, Sampler)
    assert all(name.startswith("network.") for name in made.state_dict())


def test_every_diffusion_sampler_of_conf_samples() -> None:
    from runs import ROOT, compose_train

    from genlab.cli.problem import Problem
    from genlab.cli.targets import instantiate

    line = DiffusionModel(Line(), VP(1000), [1, 2, 2], num_classes=3).eval()
    samplers = []
    for path in sorted((ROOT / "conf" / "sampler").glob("*.yaml")):
        with contextlib.suppress(Problem):  # those of other families are refused
            samplers.append(instantiate(compose_train([f"sampler={path.stem}", "logger=none"]).sampler, Sampler))
    assert len(samplers) >= 7
    for sampler in samplers:
        with torch.no_grad():
            assert line.generate(torch.arange(2), {"label": torch.tensor([0, 1])}, sampler).shape == (2, 1, 2, 2)
