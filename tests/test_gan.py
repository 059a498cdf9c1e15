"""GANs: losses and penalties against closed forms, networks, ensembles, augmentation, accounting, several ranks."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import assert_same_state, compose_train, log, new_run, small_run, start, work
from test_ddp import QUICK, weights_after
from test_families import Linear
from torch import Tensor, nn

from genlab import noise
from genlab.cli.build import build_model
from genlab.cli.targets import instantiate
from genlab.errors import ConfigError
from genlab.models.gan import GAN
from genlab.models.latent import LatentSampler
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.networks import dcgan, r3gan, resnet_gan
from genlab.networks.ensemble import Ensemble
from genlab.networks.spectral import iterated_once, normalise
from genlab.networks.unet_critic import UNetCritic
from genlab.objectives.adversarial import LeastSquares, Relativistic, per_item, total
from genlab.objectives.diffaugment import DiffAugment, translate
from genlab.objectives.penalties import R1, R2, WGANGP, Consistency, Penalties
from genlab.runs.checkpoint import load_checkpoint

KEYS = torch.arange(5)


# ---- losses and penalties


class Quadratic(nn.Module):
    """D(x) = 3 |x|^2 / 2: its gradient by x is 3 x."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * x.flatten(1).square().sum(1)


def test_r1_is_of_the_real_and_r2_of_the_fake() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    r1 = 0.7 / 2 * 9 * real.flatten(1).square().sum(1).mean()
    r2 = 0.2 / 2 * 9 * fake.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(R1(0.7)(Quadratic(), real, fake, KEYS), r1)
    torch.testing.assert_close(R2(0.2)(Quadratic(), real, fake, KEYS), r2)
    both = Penalties([R1(0.7), R2(0.2)], weight=3.0)(Quadratic(), real, fake, KEYS)
    torch.testing.assert_close(both, 3 * (r1 + r2))


def test_least_squares_of_a_linear_critic_is_least_at_the_optimum() -> None:
    """The best critic is p / (p + q) (equation 11): at equal batches, 1/2 everywhere, with the loss 1/4."""
    loss, half = LeastSquares(), torch.full((4,), 0.5, requires_grad=True)
    value = loss.critic(half, half)
    torch.testing.assert_close(value, torch.tensor(0.25))
    (gradient,) = torch.autograd.grad(value, half)
    torch.testing.assert_close(gradient, torch.zeros(4))
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0])
    torch.testing.assert_close(loss.critic(real, fake), torch.tensor((0 + 4) / 4 + (4 + 0) / 4))
    torch.testing.assert_close(loss.generator(fake, None), torch.tensor((1 + 1) / 4))


def test_relativistic_loss_pairs_real_and_fake() -> None:
    real, fake = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 3.0, 0.0])
    loss, bce = Relativistic(), nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss.critic(real, fake), bce(real - fake, torch.ones(3)))
    torch.testing.assert_close(loss.generator(fake, real), bce(fake - real, torch.ones(3)))


def test_several_outputs_of_a_critic_are_added() -> None:
    torch.manual_seed(0)
    logit, pixels = torch.randn(4), torch.randn(4, 3, 3)
    loss = LeastSquares()
    alone = loss.generator(logit) + loss.generator(pixels)
    torch.testing.assert_close(total(loss.generator, [logit, pixels], None), alone)
    torch.testing.assert_close(total(loss.generator, logit, None), loss.generator(logit))
    torch.testing.assert_close(per_item([logit, pixels]), logit + pixels.mean((1, 2)))
    w, x = torch.randn(12), torch.randn(5, 3, 2, 2)
    one = R1(1.0)(Linear(w), x, x, KEYS)
    # a map of the same logit four times, and the logit once: twice the gradient
    two = R1(1.0)(lambda x: [(x.flatten(1) @ w)[:, None].expand(-1, 4), x.flatten(1) @ w], x, x, KEYS)
    torch.testing.assert_close(two, 4 * one)


def test_consistency_is_zero_for_a_critic_that_moving_does_not_change() -> None:
    torch.manual_seed(0)
    x = torch.zeros(5, 1, 16, 16)
    x[:, :, 6:10, 6:10] = torch.randn(5, 1, 4, 4)  # nothing leaves the image
    penalty = Consistency(weight=2.0, shift=4)
    torch.testing.assert_close(penalty(lambda x: x.sum((1, 2, 3)), x, x, KEYS), torch.tensor(0.0), atol=1e-9, rtol=0)
    place = penalty(lambda x: (x * torch.arange(16.0)).sum((1, 2, 3)), x, x, KEYS)
    assert place > 0.1
    assert torch.equal(place, penalty(lambda x: (x * torch.arange(16.0)).sum((1, 2, 3)), x, x, KEYS)), "keyed"


@pytest.mark.parametrize("penalty", [R1(), R2(), WGANGP(), Consistency()], ids=lambda p: type(p).__name__)
def test_penalties_are_in_float32_under_autocast(penalty: Any) -> None:
    seen = []
    x = torch.rand(5, 1, 8, 8, dtype=torch.bfloat16)

    def critic(x: Tensor) -> Tensor:
        seen.append(((x.flatten(1) @ torch.ones(64, 2)).dtype, x.dtype))
        return (x.flatten(1) @ torch.ones(64, 2)).square().sum(1)

    with torch.autocast("cpu", torch.bfloat16):
        assert penalty(critic, x, x, KEYS).dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32)}


# ---- augmentation


def test_diffaugment_is_keyed_by_item_and_differentiable() -> None:
    torch.manual_seed(0)
    augment = DiffAugment(["color", "translation", "cutout"])
    x, keys = torch.rand(6, 3, 8, 12, requires_grad=True), torch.arange(6)
    whole = augment(x, keys)
    assert whole.shape == x.shape
    assert not torch.equal(whole, x)
    torch.testing.assert_close(augment(x[3:5], keys[3:5]), whole[3:5], rtol=0, atol=0)
    assert not torch.equal(augment(x, keys + 6), whole)
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    assert all(g.abs().sum() > 0 for g in gradient)
    assert torch.autograd.gradcheck(lambda x: augment(x, keys[:2]), x[:2, :, :4, :4].double().detach().requires_grad_())


def test_operations_of_diffaugment() -> None:
    x = torch.arange(1.0, 65.0).view(1, 1, 8, 8)
    moved = translate(x, torch.tensor([2]), torch.tensor([-1]))
    torch.testing.assert_close(moved[0, 0, 2:, :7], x[0, 0, :6, 1:])
    assert moved[0, 0, :2].abs().sum() == moved[0, 0, :, 7].abs().sum() == 0
    many, keys = torch.ones(500, 1, 8, 8), torch.arange(500)
    hidden = (DiffAugment(["cutout"])(many, keys) == 0).flatten(1).sum(1)
    assert hidden.max() == 16  # 4 x 4, less where it leaves the image
    assert hidden.min() >= 4
    kept = DiffAugment(["translation"])(many, keys).flatten(1).sum(1)
    assert set(kept.tolist()) == {64.0, 56.0, 49.0}  # an eighth is one pixel
    bright = DiffAugment(["color"])(many[:, :, :1, :1], keys)
    assert 0.49 < float((bright - 1).abs().max()) <= 0.5


# ---- networks


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (resnet_gan.Generator, 4_276_739),  # mimicry's SNGANGenerator32
        (resnet_gan.Critic, 1_053_825),  # and its critic
        (partial(resnet_gan.Generator, num_classes=10), 4_276_739 + 6 * (20 - 2) * 256),  # scales and shifts a class
        (partial(resnet_gan.Critic, num_classes=10), 1_053_825 + 10 * 128),
        (r3gan.Generator, 8 * (2 * 768 * 1536 + 1536 * 16 * 9 + 2 * 1536) + 768 * 16 + 64 * 768 + 768 * 3),
        (r3gan.Critic, 8 * (2 * 768 * 1536 + 1536 * 16 * 9 + 2 * 1536) + 768 * 16 + 768 + 768 * 3),
    ],
)
def test_parameters_at_cifar10_size(make: Any, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make([3, 32, 32]).parameters()) == count


CRITICS = {
    "dcgan": partial(dcgan.Critic, width=4),
    "resnet": partial(resnet_gan.Critic, width=4, norm="layer"),
    "unet": partial(UNetCritic, width=4),
}


@pytest.mark.parametrize("shape", [[1, 28, 28], [3, 32, 32], [2, 8, 12]], ids=str)
def test_generators_of_any_size_divisible_by_4(shape: list[int]) -> None:
    torch.manual_seed(0)
    z, labels = torch.randn(3, 5), torch.tensor([0, 1, 1])
    for make in (dcgan.Generator, resnet_gan.Generator, partial(r3gan.Generator, group=4)):
        for classes in (None, 2):
            network = make(shape, latent_dim=5, width=4, num_classes=classes).eval()
            with torch.no_grad():
                x = network(z, labels)
                assert x.shape == (3, *shape)
                other = network(z, 1 - labels)
            assert (classes is None) == torch.equal(x, other), "a class changes the image"


@pytest.mark.parametrize(
    ("name", "condition", "spectral"),
    itertools.product(CRITICS, ["projection", "concatenation", "none"], [False, True]),
)
def test_critics(name: str, condition: str, spectral: bool) -> None:
    torch.manual_seed(0)
    for shape in ([1, 28, 28], [3, 8, 12]):
        x, labels = torch.randn(3, *shape), torch.tensor([0, 1, 1])
        critic = CRITICS[name](shape, num_classes=2, condition=condition, spectral_norm=spectral).eval()
        with torch.no_grad():
            found, other = critic(x, labels), critic(x, 1 - labels)
        found, other = (out if isinstance(out, list) else [out] for out in (found, other))
        assert [tuple(out.shape) for out in found] == [(3,), (3, *shape[1:])][: len(found)]
        assert len(found) == (2 if name == "unet" else 1)
        same = all(torch.equal(a, b) for a, b in zip(found, other, strict=True))
        assert same == (condition == "none")


def test_r3gan_begins_as_the_identity_and_keeps_the_variance() -> None:
    torch.manual_seed(0)
    block = r3gan.Block(32, group=16, expansion=2, blocks=1)
    x = torch.randn(4, 32, 8, 8)
    assert torch.equal(block(x), x)
    inner = block.second(block.mix(block.first(block.enter(torch.randn(64, 32, 8, 8)))))[:, :, 1:-1, 1:-1]
    assert 0.8 < inner.square().mean().item() < 1.25 * 2 / 1.04  # variance 1 into each activation of that gain
    with pytest.raises(ConfigError, match="group=5"):
        r3gan.Block(32, group=5, expansion=2, blocks=1)


def test_r3gan_of_unequal_widths() -> None:
    torch.manual_seed(0)
    widths, labels = [8, 4, 2], torch.tensor([0, 1, 1])
    generator = r3gan.Generator([1, 28, 28], 5, widths, 4, num_classes=2)
    critic = r3gan.Critic([1, 28, 28], widths, 4, num_classes=2)
    x = generator(torch.randn(3, 5), labels)
    assert x.shape == (3, 1, 28, 28)
    assert critic(x, labels).shape == (3,)
    assert generator.basis.shape == (8, 7, 7)
    assert critic.enter.weight.shape == (2, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"width=\[8, 4\]: these images have 3 sizes"):
        r3gan.Critic([1, 28, 28], [8, 4], 4)


def test_spectral_norm_brings_the_largest_singular_value_to_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5), nn.ConvTranspose2d(4, 6, 2))
    with torch.no_grad():
        network[2].weight *= 7.0
    normalise(network)
    for _ in range(30):
        with iterated_once(network):
            pass
    network.eval()
    for layer in (network[0], network[2]):
        value = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(value, torch.tensor(1.0), rtol=1e-3, atol=0)
    value = torch.linalg.matrix_norm(network[3].weight.transpose(0, 1).flatten(1), 2)
    torch.testing.assert_close(value, torch.tensor(1.0), rtol=1e-3, atol=0)


def test_one_power_iteration_a_move() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    normalise(layer)
    passes = [layer.parametrizations["weight"][0]._u.clone()]
    with iterated_once(layer):
        for _ in range(3):
            layer(torch.randn(2, 6))
            passes.append(layer.parametrizations["weight"][0]._u.clone())
    assert not torch.equal(passes[0], passes[1])
    assert all(torch.equal(u, passes[1]) for u in passes[1:])
    layer(torch.randn(2, 6))  # outside, torch's own: one a pass
    assert not torch.equal(layer.parametrizations["weight"][0]._u, passes[1])


def test_an_ensemble_averages_and_one_is_no_ensemble() -> None:
    torch.manual_seed(0)
    make = partial(dcgan.Generator, [1, 8, 8], latent_dim=4, width=4)
    critic = partial(UNetCritic, [1, 8, 8], width=4)
    model = GAN(make, critic, LeastSquares(), ensemble=3).eval()
    assert isinstance(model.generator, Ensemble)
    assert isinstance(model.critic, Ensemble)
    z = torch.randn(2, 4)
    with torch.no_grad():
        images = [member(z) for member in model.generator.members]
        assert not torch.equal(images[0], images[1])
        torch.testing.assert_close(model.generator(z, None), torch.stack(images).mean(0))
        maps = [member(images[0]) for member in model.critic.members]
        for place, output in enumerate(model.critic(images[0], None)):
            torch.testing.assert_close(output, torch.stack([m[place] for m in maps]).mean(0))
    alone = GAN(make, critic, LeastSquares()).state_dict()
    assert alone.keys() == {f"generator.{k}" for k in make().state_dict()} | {
        f"critic.{k}" for k in critic().state_dict()
    }
    made = GAN(make(), critic(), LeastSquares())
    assert made.state_dict().keys() == alone.keys()
    with pytest.raises(ConfigError, match="ensemble=2"):
        GAN(make(), critic(), LeastSquares(), ensemble=2)


def test_configs_of_runs_before_partials_load(tmp_path: Path) -> None:
    config = small_run("model=gan", tmp_path)
    state = build_model(config).state_dict()
    for part in ("generator", "critic"):
        for field in ("_partial_", "condition", "spectral_norm"):
            del config.model[part][field]
    del config.model.ensemble
    del config.sampler.threshold
    old = build_model(config).state_dict()
    assert old.keys() == state.keys()
    assert all(torch.equal(old[name], state[name]) for name in old)


# ---- sampling


def test_threshold_truncates_the_normal_distribution() -> None:
    seeds = torch.arange(4000)
    z = LatentSampler(threshold=0.8).draw(seeds, (16,))
    assert z.abs().max() < 0.8
    normal = torch.distributions.Normal(0.0, 1.0)
    inside = 2 * normal.cdf(torch.tensor(0.8)) - 1
    for edge in (-0.5, 0.0, 0.4):
        share = (normal.cdf(torch.tensor(edge)) - normal.cdf(torch.tensor(-0.8))) / inside
        assert float((z < edge).float().mean()) == pytest.approx(float(share), abs=0.006)
    assert torch.equal(LatentSampler(threshold=0.8).draw(seeds[7:9], (16,)), z[7:9])
    wide = LatentSampler(threshold=9.0).draw(seeds, (16,))
    assert float(wide.std()) == pytest.approx(1.0, abs=0.01)
    plain = LatentSampler().draw(seeds, (16,))
    assert torch.equal(plain, noise.normal(seeds, noise.Stream.INITIAL, (16,)))
    assert torch.equal(LatentSampler(truncation=0.5).draw(seeds, (16,)), 0.5 * plain)
    sampler = instantiate(compose_train(["model=gan", "sampler=latent_truncated"]).sampler)
    assert sampler.record() == {"truncation": 1.0, "threshold": 1.0, "nfe": 1}


# ---- training


def trained(model: GAN, micro: int, batch_size: int, accumulation: int, n: int) -> list[list[int]]:
    """Positions of the items each generator's move saw, over n micro-batches, without a trainer."""
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.01)  # noqa: E731
    model.plan = Plan(sgd, Schedule(max_samples=1000), batch_size=batch_size, accumulation=accumulation)
    made = model.configure_optimizers()
    model.all_optimizers = lambda: made  # type: ignore[method-assign]
    model.manual_backward = lambda loss, *args, **kwargs: loss.backward()  # type: ignore[method-assign]
    moves: list[list[int]] = []
    losses = model.losses

    def watched(batch: Any, player: str | None = None) -> dict[str, Tensor]:
        if player == "generator":
            moves.append(batch["position"].tolist())
        return losses(batch, player)

    model.losses = watched  # type: ignore[method-assign]
    images = torch.rand(n * micro, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for i in range(n):
        at = torch.arange(i * micro, (i + 1) * micro)
        model.training_step({"image": images[at], "label": at % 3, "position": at, "id": at}, i)
        model.samples_seen += micro
    return moves


class Flat(dcgan.Generator):
    """Without batch norm, whose statistics depend on how a batch is shared."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = nn.Sequential(*(nn.Identity() if isinstance(m, nn.BatchNorm2d) else m for m in self.body))


def small(objective: Any, **options: Any) -> GAN:
    torch.manual_seed(0)
    return GAN(
        partial(Flat, shape=[1, 8, 8], latent_dim=4, width=4, num_classes=3),
        partial(dcgan.Critic, [1, 8, 8], width=4, num_classes=3, spectral_norm=True),
        objective,
        num_classes=3,
        **options,
    )


def test_five_critic_moves_and_accumulation_take_the_samples_that_the_counter_says() -> None:
    model = small(LeastSquares(), n_critic=5)
    moves = trained(model, micro=4, batch_size=8, accumulation=2, n=20)
    assert model.samples_seen == 80  # 10 updates of 8
    assert model.updates == 2
    assert moves == [list(range(32, 36)), list(range(36, 40)), list(range(72, 76)), list(range(76, 80))]


@pytest.mark.parametrize("objective", [LeastSquares(), Relativistic()], ids=lambda o: type(o).__name__)
def test_accumulation_changes_nothing_with_spectral_norm_augmentation_and_penalties(objective: Any) -> None:
    """Power iterations once a move; pairs, augmentation and points of the penalty keyed by item."""
    states = []
    for micro, accumulation in ((8, 1), (4, 2)):
        augment = DiffAugment(["color", "translation", "cutout"])
        model = small(objective, penalty=Penalties([WGANGP(), R2()]), augment=augment, n_critic=2)
        trained(model, micro, 8, accumulation, 4 * accumulation)
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=2e-5)
    begun = small(objective).state_dict()
    assert not torch.equal(states[0]["generator.project.weight"], begun["generator.project.weight"])


def test_mixed_precision_with_spectral_norm_augmentation_and_penalties() -> None:
    penalty = Penalties([R1(), R2(), WGANGP(), Consistency(shift=1)])
    model = small(Relativistic(), penalty=penalty, augment=DiffAugment(["color", "translation", "cutout"]))
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.autocast("cpu", torch.bfloat16):
        trained(model, 4, 4, 1, 3)
    assert model.updates == 3
    assert model.skipped == 0
    for value in model.state_dict().values():
        assert value.dtype == torch.float32
        assert value.isfinite().all()
    for name in ("generator.project.weight", "critic.head.parametrizations.weight.original"):
        assert not torch.equal(model.state_dict()[name], begun[name])


WGAN = ("model/objective=wasserstein", "model/penalty=wgan_gp", "model.penalty_every=1", "model.n_critic=2",
        "model/augment=diffaugment", "model.critic.spectral_norm=true", "model.critic.width=4",
        "model.generator.width=4")  # fmt: skip


def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """WGAN-GP with keyed points and augmentation; spectral norm's buffers are equal on both ranks."""
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    config = small_run("model=gan", tmp_path, *QUICK, *WGAN, "schedule.max_samples=16", "resume=never")
    config.optimizer = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.001})
    config.model.generator._target_ = "ddp_parts.Generator"
    alone = weights_after(config, 1)
    config.callbacks.extra = [{"_target_": "ddp_parts.Dump", "folder": str(tmp_path / "states")}]
    weights_after(config, 2)
    first, second = (torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    before = build_model(config).state_dict()
    assert any(name.endswith("._u") for name in alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert all(not torch.equal(before[f"{part}.weight"], alone[f"{part}.weight"]) for part in ("generator.project",))


def test_spectral_norm_resumes_to_the_last_bit(tmp_path: Path) -> None:
    options = (*QUICK, *WGAN, "schedule.max_samples=48", "schedule.save_every=16", "resume=never")
    whole = new_run(small_run("model=gan", tmp_path, *options))
    assert work(whole) == 0
    config = small_run("model=gan", tmp_path, *options)
    config.callbacks.extra = [
        {"_target_": "fault_parts.Kill", "moment": "batch", "samples": 24, "folder": str(tmp_path)}
    ]
    broken = new_run(config)
    process = start(broken, allow="fault_parts")
    process.join(120)
    assert process.exitcode == -9, log(broken)
    assert load_checkpoint(broken.last)["samples"] == 16
    assert work(broken, allow="fault_parts") == 0, log(broken)
    assert_same_state(whole, broken)
