"""The text GAN's mathematics: sampling, likelihood and the three gradients against enumeration of all short texts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab import noise
from genlab.decoding.tokens import TokenSampler
from genlab.models.schedule import Schedule
from genlab.models.text_gan import TextGAN
from genlab.models.trained import Plan
from genlab.networks.lstm import TextCritic, TokenLSTM
from genlab.objectives.adversarial import NonSaturating

V, T = 3, 2


class Bigram(nn.Module):
    """p(next | token) = softmax of a row of a table."""

    vocab_size = V

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[0.5, -1.0, 0.0], [0.0, 1.0, -0.5], [1.0, 0.2, -1.0]]))

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return (tokens @ self.table if tokens.is_floating_point() else self.table[tokens]), state


class Judge(nn.Module):
    """A logit linear in the one-hot rows of T tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[2.0, -4.0, 1.0], [1.0, 4.0, -3.0]]))

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens * self.weight).sum((1, 2))


def bigram(estimator: str = "reinforce", **options: Any) -> TextGAN:
    return TextGAN(Bigram(), Judge(), NonSaturating(), estimator, **options)  # type: ignore[arg-type]


def batch_of(count: int, first: int = 1) -> dict[str, Tensor]:
    ids = torch.arange(count)
    inputs = torch.full((count, T), first)
    return {"id": ids, "position": ids, "input_ids": inputs, "labels": torch.randint(V, (count, T))}


def sequences() -> list[tuple[int, ...]]:
    return list(itertools.product(range(V), repeat=T))


def log_p(model: TextGAN, first: int = 1) -> Tensor:
    """Of every sequence after `first`."""
    labels = torch.tensor(sequences())
    inputs = torch.cat([torch.full((len(labels), 1), first), labels[:, :-1]], 1)
    return model.log_likelihood({"input_ids": inputs, "labels": labels})[0]


def test_probabilities_of_all_texts_sum_to_one_and_fakes_come_with_them() -> None:
    model = bigram().eval()
    p = log_p(model).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64))
    n = 100_000
    u = noise.uniform(torch.arange(n), (noise.Stream.LOSS, 0), (T, V)).clamp(min=2.0**-25)
    with torch.no_grad():
        fake = model.rollout(torch.ones(n, 1, dtype=torch.int64), -(-u.log()).log())
    assert set(fake.unique().tolist()) == {0.0, 1.0}
    tokens = fake.argmax(-1)
    found = torch.bincount(tokens @ torch.tensor([V, 1]), minlength=V**T) / n
    torch.testing.assert_close(found.double(), p.detach(), atol=0.005, rtol=0)


def test_reinforce_has_the_gradient_of_the_expected_reward() -> None:
    """Enumeration gives d/dw of -E[sigmoid(critic)] / T; a baseline changes the variance, not the mean."""
    model = bigram().eval()
    reward = model.critic(F.one_hot(torch.tensor(sequences()), V).float()).sigmoid().detach()
    expected_reward = (log_p(model).exp() * reward).sum()
    (expected,) = torch.autograd.grad(-expected_reward / T, model.generator.table)
    batch = batch_of(200_000)
    for baseline in (0.0, 0.5):
        model.baseline.fill_(baseline)
        report = model.losses(batch, "generator")
        (found,) = torch.autograd.grad(report["loss"], model.generator.table)
        torch.testing.assert_close(found, expected, atol=1.5e-3, rtol=0)
        torch.testing.assert_close(report["reward"].double(), expected_reward.detach(), atol=2e-3, rtol=0)
    assert expected.abs().max() > 0.015  # ten times the tolerance


def test_what_the_critic_is_shown() -> None:
    first, gumbel = torch.ones(5, 1, dtype=torch.int64), torch.randn(5, T, V, generator=torch.manual_seed(0))
    soft = bigram("gumbel", temperature=0.5)
    shown = soft.rollout(first, gumbel)
    torch.testing.assert_close(shown.sum(-1), torch.ones(5, T))
    step = ((soft.generator.table[1] + gumbel[:, 0]) / 0.5).softmax(-1)  # equation 2 of arXiv 1611.01144
    torch.testing.assert_close(shown[:, 0], step)
    torch.testing.assert_close(shown[:, 1], ((step @ soft.generator.table + gumbel[:, 1]) / 0.5).softmax(-1))
    through = bigram("straight_through", temperature=0.5)
    hard = through.rollout(first, gumbel)
    torch.testing.assert_close(hard, F.one_hot(hard.argmax(-1), V).float())
    torch.testing.assert_close(hard, bigram("reinforce").rollout(first, gumbel))
    weight = torch.tensor([1.0, -2.0, 0.5])
    (a,) = torch.autograd.grad((shown[:, 0] @ weight).sum(), soft.generator.table)
    (b,) = torch.autograd.grad((hard[:, 0] @ weight).sum(), through.generator.table)
    torch.testing.assert_close(a, b)  # forward a token, backward the softmax
    assert a.abs().sum() > 0


@pytest.mark.parametrize("estimator", ["gumbel", "straight_through", "reinforce"])
def test_gradients_are_finite_at_the_ends_of_the_uniform_numbers(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bigram(estimator).eval()
    for value in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(noise, "uniform", lambda keys, _, shape, v=value: torch.full((len(keys), *shape), v))
        for player in ("generator", "critic"):
            loss = model.losses(batch_of(4), player)["loss"]
            assert loss.isfinite()
            loss.backward()
        assert all(p.grad.isfinite().all() for p in model.generator.parameters() if p.grad is not None)


class Alone(TextGAN):
    """Without a trainer."""

    def all_optimizers(self) -> list[Any]:
        if not hasattr(self, "made"):
            self.made = self.configure_optimizers()
        return self.made

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()


def alone(accumulation: int = 1, **options: Any) -> Alone:
    model = Alone(Bigram(), Judge(), NonSaturating(), "reinforce", **options)
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.1)  # noqa: E731
    model.plan = Plan(sgd, Schedule(max_samples=1000), batch_size=8, accumulation=accumulation, clip_norm=None)
    return model


def test_phases() -> None:
    """Maximum likelihood to 24 samples, the critic from 16 on, then the generator at every second update."""
    model = alone(pretrain_samples=24, critic_warmup=8, n_critic=2)
    moved = []
    for update in range(7):
        model.samples_seen = 8 * update
        before = [p.clone() for p in (model.critic.weight, model.generator.table)]
        report = model.training_step(batch_of(8), update)
        after = (model.critic.weight, model.generator.table)
        moved.append(tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
        assert ("generator_reward" in report) == (update in (3, 5))
    assert moved == [(False, True)] * 2 + [(True, True)] * 2 + [(True, False), (True, True), (True, False)]


def test_micro_batches_share_one_baseline_and_it_follows_the_rewards() -> None:
    torch.manual_seed(0)
    batch = batch_of(8)
    one, two = alone(), alone(accumulation=2)
    for model in (one, two):
        model.baseline.fill_(0.2)
    report = one.training_step(batch, 0)
    assert two.training_step({k: v[:4] for k, v in batch.items()}, 0) == {}
    two.training_step({k: v[4:] for k, v in batch.items()}, 1)
    torch.testing.assert_close(one.generator.table, two.generator.table)
    torch.testing.assert_close(one.baseline, two.baseline)
    torch.testing.assert_close(one.baseline, 0.95 * torch.tensor(0.2) + 0.05 * report["generator_reward"])
    assert "baseline" in one.state_dict()


def test_validation_loss_is_the_likelihood_without_padding() -> None:
    model = bigram().eval()
    batch = batch_of(6)
    batch["labels"][5, 1] = -100
    report = model.losses(batch)
    sums, counts = model.log_likelihood(batch)
    assert counts.tolist() == [T] * 5 + [1]
    torch.testing.assert_close(report["loss"].double(), -sums.sum() / counts.sum())
    assert {"critic", "real", "fake"} < set(report)


def test_lstm_reads_step_by_step_what_it_reads_at_once() -> None:
    torch.manual_seed(0)
    network = TokenLSTM(7, embedding=4, width=5, layers=2)
    tokens = torch.randint(7, (3, 6))
    whole, _ = network(tokens)
    state, steps = None, []
    for t in range(6):
        logits, state = network(F.one_hot(tokens[:, t : t + 1], 7).float(), state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    critic = TextCritic(7, embedding=4, channels=3, widths=(2, 3))
    torch.testing.assert_close(critic(tokens), critic(F.one_hot(tokens, 7).float()))


def test_generation_goes_on_from_a_prompt_with_the_models_distribution() -> None:
    model = bigram().eval()
    n = 20_000
    sampler = TokenSampler(max_new_tokens=T)
    prompt = torch.tensor([[0, 1]]).expand(n, -1)
    with torch.no_grad():
        tokens = model.generate(torch.arange(n), {"prompt": prompt}, sampler)
        again = model.generate(torch.arange(7, 12), {"prompt": prompt[:5]}, sampler)
    assert tokens.shape == (n, 2 + T)
    assert torch.equal(tokens[:, :2], prompt)
    assert torch.equal(again, tokens[7:12])
    found = torch.bincount(tokens[:, 2:] @ torch.tensor([V, 1]), minlength=V**T) / n
    torch.testing.assert_close(found.double(), log_p(model).exp().detach(), atol=0.012, rtol=0)
