"""The mathematics of the GAN's players and of token sampling, against closed forms and references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.models.adversarial import AdversarialModel, Player
from genlab.models.gan import GAN
from genlab.models.latent import LatentSampler
from genlab.models.schedule import Schedule, crossed
from genlab.models.trained import Plan
from genlab.networks.dcgan import Critic, Generator
from genlab.objectives.adversarial import NonSaturating, Wasserstein
from genlab.objectives.penalties import R1, WGANGP


class Linear(nn.Module):
    """D(x) = w . x: its gradient by x is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w


def test_penalties_of_a_linear_critic_equal_their_closed_form() -> None:
    torch.manual_seed(0)
    w = torch.randn(12)
    critic, real, fake = Linear(w), torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    norm, keys = w.norm(), torch.arange(5)
    value = WGANGP(10.0)(critic, real, fake, keys)
    torch.testing.assert_close(value, 10 * (norm - 1) ** 2)
    # d/dw of 10 (|w| - 1)^2 = 20 (|w| - 1) w / |w|
    (gradient,) = torch.autograd.grad(value, critic.w)
    torch.testing.assert_close(gradient, 20 * (norm - 1) * w / norm)
    value = R1(3.0)(critic, real, fake, keys)
    torch.testing.assert_close(value, 1.5 * norm**2)
    (gradient,) = torch.autograd.grad(value, critic.w)
    torch.testing.assert_close(gradient, 3 * w)


def test_wasserstein_critic_gradient_is_the_difference_of_means() -> None:
    torch.manual_seed(0)
    critic, real, fake = Linear(torch.randn(4)), torch.randn(6, 4), torch.randn(6, 4)
    (gradient,) = torch.autograd.grad(Wasserstein().critic(critic(real), critic(fake)), critic.w)
    torch.testing.assert_close(gradient, fake.mean(0) - real.mean(0))


def test_non_saturating_loss_is_the_binary_cross_entropy() -> None:
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    bce = nn.functional.binary_cross_entropy_with_logits
    loss = NonSaturating()
    torch.testing.assert_close(loss.critic(real, fake), bce(real, torch.ones(2)) + bce(fake, torch.zeros(2)))
    torch.testing.assert_close(loss.generator(fake), bce(fake, torch.ones(2)))


def small_gan(n_critic: int = 1, **kwargs: Any) -> GAN:
    torch.manual_seed(0)
    return GAN(
        Generator([1, 8, 8], latent_dim=4, width=4, num_classes=3),
        Critic([1, 8, 8], width=4, num_classes=3),
        NonSaturating(),
        n_critic=n_critic,
        num_classes=3,
        chunk_size=4,
        **kwargs,
    )


class Detached(AdversarialModel):
    """Two players on one number each, run without a trainer; every call is written down."""

    def __init__(self, n_critic: int, accumulation: int) -> None:
        super().__init__()
        self.a, self.b, self.calls = nn.Linear(1, 1), nn.Linear(1, 1), []  # type: ignore[var-annotated]
        self.n_critic = n_critic
        sgd = lambda groups: torch.optim.SGD(groups, lr=0.1)  # noqa: E731
        self.plan = Plan(sgd, Schedule(max_samples=1000), batch_size=8, accumulation=accumulation, clip_norm=None)
        self.made = self.configure_optimizers()

    def players(self) -> list[Player]:
        return [Player("critic", self.a), Player("generator", self.b, period=self.n_critic)]

    def losses(self, batch: Any, player: str | None = None) -> dict[str, Tensor]:
        module = self.a if player == "critic" else self.b
        assert next(module.parameters()).requires_grad
        self.calls.append((player, batch["x"].tolist()))
        return {"loss": module(batch["x"][:, None]).square().mean()}

    def generate(self, seeds: Tensor, condition: Any, sampler: Any) -> Any:
        return seeds

    def all_optimizers(self) -> list[Any]:
        return self.made

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


def test_players_move_in_turn_and_the_generator_at_every_nth_update() -> None:
    model = Detached(n_critic=3, accumulation=1)
    for update in range(6):
        model.samples_seen = 8 * update
        model.training_step({"x": torch.arange(8.0)}, update)
    assert [name for name, _ in model.calls] == ["critic", "critic", "critic", "generator"] * 2
    assert model.updates == 2


def test_accumulated_move_equals_that_of_one_large_batch() -> None:
    torch.manual_seed(0)
    one = Detached(n_critic=1, accumulation=1)
    torch.manual_seed(0)
    two = Detached(n_critic=1, accumulation=2)
    x = torch.randn(8)
    one.training_step({"x": x}, 0)
    assert two.training_step({"x": x[:4]}, 0) == {}
    report = two.training_step({"x": x[4:]}, 1)
    assert [name for name, _ in two.calls] == ["critic", "critic", "generator", "generator"]
    assert set(report) == {"critic_loss", "generator_loss", "critic_grad_norm"}
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_gan_items_do_not_depend_on_their_neighbours() -> None:
    model = small_gan().eval()
    sampler = model.sampler = LatentSampler()
    seeds = torch.arange(10, 21)
    whole = model.sample(seeds, {"label": seeds % 3}, sampler)
    for start in (0, 4, 7):
        part = model.sample(seeds[start:], {"label": seeds[start:] % 3}, sampler)
        assert torch.equal(part.data, whole.data[start:])  # type: ignore[arg-type]
    assert torch.equal(model.sample(seeds).data, whole.data)  # type: ignore[arg-type]  # default: seed % classes
    assert len(whole) == 11
    with pytest.raises(ValueError, match="rows"):
        model.sample(seeds, {"label": seeds[:3]})
    with pytest.raises(ConfigError, match="no such condition"):
        model.sample(seeds, {"prompt": seeds})


# ---- tokens


def empirical(sampler: TokenSampler, logits: Tensor, n: int = 200_000) -> Tensor:
    torch.manual_seed(0)
    chosen, _ = sampler.choose(logits.expand(n, -1), torch.rand(n))
    return torch.bincount(chosen, minlength=logits.shape[-1]) / n


def test_token_frequencies_equal_the_tempered_truncated_distribution() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 1.0, -3.0]])
    p = (logits / 0.7).softmax(-1)[0]
    torch.testing.assert_close(empirical(TokenSampler(temperature=0.7), logits), p, atol=0.004, rtol=0)
    top2 = torch.zeros(5)
    top2[[0, 3]] = logits[0, [0, 3]].softmax(0)
    torch.testing.assert_close(empirical(TokenSampler(top_k=2), logits), top2, atol=0.004, rtol=0)
    # probabilities 0.595, 0.219, 0.133, ...: the smallest set that reaches 0.7 is the first two
    torch.testing.assert_close(empirical(TokenSampler(top_p=0.7), logits), top2, atol=0.004, rtol=0)
    greedy, _ = TokenSampler(temperature=0.0).choose(logits.expand(3, -1), torch.rand(3))
    assert greedy.tolist() == [0, 0, 0]


def test_truncation_agrees_with_transformers() -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(1)
    logits = torch.randn(1, 50)
    for warper, sampler in (
        (TopPLogitsWarper(0.8), TokenSampler(top_p=0.8)),
        (TopKLogitsWarper(7), TokenSampler(top_k=7)),
    ):
        kept = torch.isfinite(warper(torch.zeros(1, 1, dtype=torch.long), logits.clone()))[0]
        reached = empirical(sampler, logits, 100_000) > 0
        assert torch.equal(reached, kept)


def test_extreme_uniforms_stay_inside_the_kept_tokens() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, -2.0]])
    sampler = TokenSampler(top_k=2)
    edge = torch.tensor([0.0, math.nextafter(1.0, 0.0), 1.0])
    assert set(sampler.choose(logits.expand(3, -1), edge)[0].tolist()) <= {1, 2}


# ---- schedule


def test_learning_rates() -> None:
    cosine = Schedule(max_samples=1100, warmup=100, decay="cosine", final_lr=0.1)
    assert [cosine.lr_factor(s) for s in (0, 50, 100)] == [0.0, 0.5, 1.0]
    assert cosine.lr_factor(600) == pytest.approx(0.55)
    assert cosine.lr_factor(1100) == cosine.lr_factor(5000) == pytest.approx(0.1)
    linear = Schedule(max_samples=1000, decay="linear")
    assert linear.lr_factor(250) == pytest.approx(0.75)
    inverse = Schedule(max_samples=1000, warmup=100, decay="inverse_sqrt")
    assert inverse.lr_factor(400) == pytest.approx(0.5)
    assert Schedule(max_samples=10).lr_factor(7) == 1.0


def test_events_fire_at_the_first_boundary_past_each_multiple() -> None:
    fired = [after for after in range(8, 81, 8) if crossed(20, after - 8, after)]
    assert fired == [24, 40, 64, 80]
    assert not any(crossed(0, after - 8, after) for after in range(8, 81, 8))
