"""Rewards and preferences: formulas against trl's, what is drawn and what is learned, exact resume, refusals."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import leaves, log, new_run, small_run, work
from test_feedback_pictures import Bright, painter
from torch import Tensor, nn

from genlab.data.vocabulary import END, PAD, encode, train_tokenizer
from genlab.decoding.reading import padded
from genlab.decoding.tokens import Ancestral
from genlab.diffusion.samplers import DDIM, DPMSolverPP
from genlab.errors import ConfigError
from genlab.feedback import DDPO, DRaFT, PolicyGradient, PreferenceFeedback, Reference
from genlab.judges import Judge
from genlab.models.instruction import InstructionModel
from genlab.models.reward import RewardModel
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.objectives.policy import advantages, answer_means, clipped_share, clipped_surrogate, k3
from genlab.objectives.preferences import bradley_terry, preference_loss
from genlab.runs.checkpoint import load_checkpoint
from genlab.samples import Samples

# ---- formulas


# log p of four answers' tokens: of the policy, of the one that drew them, of the reference; and what
# `GRPOTrainer._compute_loss` of trl 1.16.0 made of them (epsilon 0.2, beta 0.1, longest completion 8) on 2026-12-01.
LOG_P = [[-2.91, -2.12, -1.38], [-2.37, -0.54, -1.05, -1.74, -0.86], [-1.36, -0.53], [-1.32, -1.22, -0.62, -2.0]]
OLD = [[-2.92, -2.06, -1.33], [-2.31, -0.5, -1.06, -1.6, -0.52], [-1.25, -0.59], [-1.05, -0.87, -0.65, -2.59]]
BEFORE = [[-3.43, -1.63, -1.42], [-2.67, -0.99, -1.27, -2.09, -0.7], [-1.8, -0.33], [-1.14, -1.31, -0.13, -1.79]]
BY_TRL = {"grpo": 0.01010515909206161, "dr_grpo": -0.0011045114263365484}


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_policy_losses_are_trls(kind: Any) -> None:
    log_p, old, before = (torch.tensor([v for row in rows for v in row]) for rows in (LOG_P, OLD, BEFORE))
    answer = torch.tensor([i for i, row in enumerate(LOG_P) for _ in row])
    advantage = advantages(torch.tensor([[1.0, 0.0, 0.25, 2.0]]), kind).flatten()
    each = clipped_surrogate(log_p, old, advantage[answer], 0.2) + 0.1 * k3(log_p, before)
    loss = answer_means(each, answer, 4, 8 if kind == "dr_grpo" else None).mean()
    assert float(loss) == pytest.approx(BY_TRL[kind], abs=1e-6)


def test_baselines_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert advantages(rewards, "rloo")[0].tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert advantages(rewards, "reinforce").equal(rewards)
    for kind in ("rloo", "grpo", "dr_grpo"):
        assert advantages(rewards, kind)[1].abs().max() == 0  # nothing is learned of a flat group


def test_the_gradient_at_the_first_step_is_reinforce_and_the_clip_takes_it_away_later() -> None:
    log_p, advantage = torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([3.0, -1.0])
    clipped_surrogate(log_p, log_p.detach(), advantage, 0.2).sum().backward()
    assert log_p.grad is not None
    assert (-log_p.grad).tolist() == pytest.approx(advantage.tolist())
    far = torch.tensor([-0.5, -2.5])  # both have gone the way of their advantage by more than the clip
    assert clipped_share(far, log_p.detach(), advantage, 0.2) == 1
    assert clipped_share(far, log_p.detach(), -advantage, 0.2) == 0


def test_k3_is_an_unbiased_kl() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    assert (p * k3(p.log(), q.log())).sum() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert k3(p.log(), q.log()).min() >= 0


def test_preference_losses_by_their_equations() -> None:
    chosen, rejected = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([-0.5, 0.25, 1.0])
    margin = chosen - rejected
    logistic = torch.nn.functional.softplus
    assert preference_loss("dpo", chosen, rejected, 0.1).tolist() == pytest.approx(logistic(-0.1 * margin).tolist())
    smooth = 0.9 * logistic(-0.1 * margin) + 0.1 * logistic(0.1 * margin)
    assert preference_loss("dpo", chosen, rejected, 0.1, 0.1).tolist() == pytest.approx(smooth.tolist())
    assert preference_loss("ipo", chosen, rejected, 0.1).tolist() == pytest.approx(((margin - 5) ** 2).tolist())
    kto = [(1 - torch.sigmoid(0.1 * (c - 0.25)) + 1 - torch.sigmoid(0.1 * (0.5 - r))) / 2
           for c, r in zip(chosen, rejected, strict=True)]  # fmt: skip
    assert preference_loss("kto", chosen, rejected, 0.1).tolist() == pytest.approx([float(k) for k in kto])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx(logistic(-margin).tolist())


# ---- language models

V = 30


@functools.cache
def tokenizer() -> Any:
    return train_tokenizer("characters", 29, [], "abcdefghijklmnopqrstuvwxyz ", [END, PAD])


def policy(seed: int = 0) -> InstructionModel:
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=29, n_positions=24, n_layer=1, n_head=2, n_embd=16, resid_pdrop=0.1, embd_pdrop=0.1,
                        attn_pdrop=0.1, bos_token_id=None, eos_token_id=None)  # fmt: skip
    model = InstructionModel(GPT2LMHeadModel(config), context=24, before="", after=" ", end=END)
    model.tokenizer = tokenizer()
    model.plan = Plan(lambda groups: torch.optim.AdamW(groups, lr=1e-3), Schedule(100), 4, seed=5)
    return model.train()


def rows(texts: Sequence[str], fill: int = -1, end: bool = False) -> Tensor:
    last = [tokenizer().token_to_id(END)] if end else []
    ids = padded([[*encode(tokenizer(), text), *last] for text in texts])
    return ids.masked_fill(ids < 0, fill)


def questions(*texts: str) -> dict[str, Tensor]:
    places = torch.arange(len(texts)) + 100
    return {"source": rows(texts), "labels": rows(["ab"] * len(texts), -100, True), "position": places, "id": places}


class Letters(Judge):
    """Share of the letter e."""

    modality = "text"

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> list[float]:
        assert set(condition) == {"source", "reference"}
        assert all(len(values) == len(samples) for values in condition.values())
        assert set(condition["reference"]) == {"ab"}
        return [text.count("e") / max(1, len(text)) for text in samples.data]


class Answer(Judge):
    """What a function says of the texts."""

    def __init__(self, says: Callable[[Sequence[str]], Any]) -> None:
        self.says = says

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Any:
        return self.says(samples.data)


def feedback(**options: Any) -> PolicyGradient:
    return PolicyGradient(Letters(), **{"group": 4, "max_new_tokens": 6, **options})


def test_answers_depend_on_seed_and_place_alone_and_dropout_is_off() -> None:
    model, ours = policy(), feedback()
    ours.attach(model)
    both = questions("what is it", "and this")
    one = {name: value[1:] for name, value in both.items()}
    one["source"] = rows(["and this"])
    whole, alone = ours.draw(model, both), ours.draw(model, one)
    counts = [drawn.counted.sum(1) for drawn in (whole, alone)]
    assert counts[0][4:].tolist() == counts[1].tolist()
    tokens = [drawn.rows[drawn.counted] for drawn in (whole, alone)]
    assert tokens[0][int(counts[0][:4].sum()) :].equal(tokens[1])
    assert len({tuple(part.tolist()) for part in tokens[1].split(counts[1].tolist())}) > 1  # answers of a group differ
    assert model.training
    again = ours.draw(model, both)
    assert again.rows.equal(whole.rows)
    model.plan = Plan(model.plan.optimizer, model.plan.schedule, 4, seed=6)  # type: ignore[union-attr]
    other = ours.draw(model, both)
    assert other.rows.shape != whole.rows.shape or not other.rows.equal(whole.rows)


def test_the_kl_is_zero_before_training_and_there_is_no_reference_without_a_weight() -> None:
    model, ours = policy(), feedback(kl=0.1)
    ours.attach(model)
    losses = ours.losses(model, questions("what", "is it"))
    assert losses["kl"] == pytest.approx(0, abs=1e-6)
    assert set(losses) == {"loss", "reward", "reward_deviation", "flat_groups", "length", "unfinished", "kl",
                           "kl_weight", "entropy", "clipped"}  # fmt: skip
    assert model.frozen() == {"model.reference": model.reference.sha256}
    plain, free = policy(), feedback(kl=0.0)
    free.attach(plain)
    assert not hasattr(plain, "reference")
    assert "kl" not in free.losses(plain, questions("what"))


@pytest.mark.parametrize("kind", ["reinforce", "rloo", "grpo", "dr_grpo"])
def test_rewards_teach(kind: Any) -> None:
    model, ours = policy(), feedback(advantage=kind, group=16, kl=0.0)
    ours.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen = []
    for step in range(30):
        batch = questions("what is it", "and this") | {"position": torch.tensor([2 * step, 2 * step + 1])}
        losses = ours.losses(model, batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(losses["reward"]))
    assert sum(seen[-3:]) / 3 > sum(seen[:3]) / 3 + 0.3, seen


def test_the_weight_of_the_kl_goes_to_its_target_and_is_kept() -> None:
    model, ours = policy(), feedback(kl=0.1, kl_target=1.0)
    ours.attach(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    losses = ours.losses(model, questions("what", "is it"))
    ours.at_step(model)
    away = min(max(float(losses["kl"]) - 1, -0.2), 0.2)
    assert ours.weight == pytest.approx(0.1 * (1 + 0.1 * away))
    other = feedback(kl=0.1, kl_target=1.0)
    other.load_state_dict(ours.state_dict())
    assert other.weight == ours.weight


def test_a_reference_is_the_network_before_whatever_is_trained() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    network[0].requires_grad_(False)
    before, x = Reference(network, "test"), torch.randn(5, 3)
    assert set(before.weights) == {"1.weight", "1.bias"}
    first = network(x)
    with torch.no_grad():
        network[1].weight.add_(1)
    now = network(x)
    with torch.no_grad(), before.inside(network):
        assert network(x).equal(first)
    assert network(x).equal(now)
    with pytest.raises(RuntimeError, match="stop"), before.inside(network):
        raise RuntimeError("stop")
    assert network(x).equal(now)


def pairs() -> dict[str, Tensor]:
    asked = ["ab", "cd", "ef", "gh"]
    return {"source": rows(asked), "chosen": rows(["yes", "aye", "yes", "aye"], -100, True),
            "rejected": rows(["no", "nay", "not", "nil"], -100, True)}  # fmt: skip


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_preferences_teach(kind: Any) -> None:
    model, ours = policy(), PreferenceFeedback(kind, beta=0.1)
    ours.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = ours.losses(model, pairs())
    assert first["chosen_ratio"] == pytest.approx(0, abs=1e-5)
    for _ in range(15):
        losses = ours.losses(model, pairs())
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["accuracy"] == 1
    assert losses["loss"] < first["loss"]
    assert losses["margin"] > 0
    with_sft, fresh = PreferenceFeedback(kind, sft=1.0), policy()
    with_sft.attach(fresh)
    assert with_sft.losses(fresh, pairs())["loss"] > first["loss"] + 1  # nats a token of the chosen answers


def test_the_log_ratio_is_that_of_the_answers_own_tokens() -> None:
    model, ours = policy(), PreferenceFeedback()
    ours.attach(model)
    with torch.no_grad():
        model.network.transformer.wte.weight.add_(0.1 * torch.randn(29, 16))
    losses, model_before = ours.losses(model, pairs()), policy()
    sums = [m.eval().log_likelihood({"source": pairs()["source"], "labels": pairs()["chosen"]})[0]
            for m in (model, model_before)]  # fmt: skip
    assert losses["chosen_ratio"] == pytest.approx(float((sums[0] - sums[1]).detach().mean()), rel=1e-4)


def test_a_reward_model_learns_which_answer_is_preferred() -> None:
    model = RewardModel(policy())
    model.tokenizer = tokenizer()
    assert float(model.losses(pairs())["loss"].detach()) == pytest.approx(0.6931, abs=1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        losses = model.losses(pairs())
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses["accuracy"] == 1
    model.eval()
    alone = {name: value[:1] for name, value in pairs().items()}
    alone["chosen"] = alone["chosen"][:, :4]
    both = [float(model.rewards(batch, "chosen")[0].detach()) for batch in (alone, pairs())]
    assert both[0] == pytest.approx(both[1], abs=1e-5)


# ---- runs

TINY = ("evaluation=none", "callbacks.samples.count=0", "callbacks.final.count=0", "resume=never")


def grpo_run(folder: Path, *overrides: str) -> Any:
    return small_run("model=gpt_answers", folder, "feedback=grpo", "feedback.group=4", "feedback.max_new_tokens=4",
                     "feedback.kl_target=0.01", "data.batch_size=4", "schedule.decay=constant",
                     *TINY, *overrides)  # fmt: skip


@pytest.mark.parametrize("options", [(), ("feedback.updates=2", "feedback.advantage=dr_grpo")])
def test_a_run_goes_on_bit_for_bit_from_its_own_reference(options: tuple[str, ...], tmp_path: Path) -> None:
    start = new_run(small_run("model=gpt_answers", tmp_path, "data.batch_size=4", *TINY))
    assert work(start) == 0, log(start)
    own = (f"init_from={start.path}", "debug=null", "schedule.save_every=8", "schedule.warmup=0", "data.limit_val=8")
    whole = new_run(grpo_run(tmp_path, *own, "schedule.max_samples=24", *options))
    assert work(whole) == 0, log(whole)
    part = new_run(grpo_run(tmp_path, *own, "schedule.max_samples=16", *options))
    assert work(part) == 0, log(part)
    config = part.config.read_text().replace("max_samples: 16", "max_samples: 24")
    part.config.write_text(config)
    part.set_status("running")
    assert work(part) == 0, log(part)
    a, b = load_checkpoint(whole.last), load_checkpoint(part.last)
    assert a["samples"] == b["samples"] == 24
    for key in ("state_dict", "optimizer_states", "ema", "frozen"):
        ours, theirs = leaves(a[key]), leaves(b[key])
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            same = value.equal(theirs[name]) if isinstance(value, Tensor) else value == theirs[name]
            assert same, f"{key}{name}"
    assert a["feedback"] == b["feedback"] != {"kl": 0.05}


# ---- refusals


@pytest.mark.parametrize(("make", "words"), [
    (lambda: feedback(group=1), "feedback.group=1: grpo compares"),
    (lambda: feedback(kl=0.0, kl_target=1.0), "feedback.kl_target adapts feedback.kl, which is 0"),
    (lambda: feedback(max_new_tokens=40).losses(policy(), questions("what")), "beyond the context of 24; lower it"),
    (lambda: feedback(prompt_tokens=2).attach(policy()), "feedback.prompt_tokens=2: this model answers whole sources"),
    (lambda: feedback().attach(painter()), "DiffusionModel has no probability of each token"),
    (lambda: PreferenceFeedback().attach(painter()), "DiffusionModel answers nothing"),
    (lambda: PreferenceFeedback("ipo", smoothing=0.1), "feedback.smoothing is of dpo, not of ipo"),
    (lambda: DRaFT(Answer(len), DPMSolverPP(steps=4)), "no gradient flows through"),  # type: ignore[arg-type]
    (lambda: DRaFT(Bright(), DPMSolverPP(steps=4), last=5), "feedback.last=5: the sampler has 4 steps"),
    (lambda: DDPO(Bright(), DDIM(steps=4)), "take DDIM with eta=1"),
    (lambda: DRaFT(Bright(), DPMSolverPP(steps=4)).attach(policy()), "does not make pictures step by step"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("says", "words"), [
    (lambda texts: [float("nan")] * len(texts), "item 0 .* has nan"),
    (lambda texts: [1.0] * (len(texts) - 1) + [float("inf")], "item 3 .* has inf"),
    (lambda texts: [1.0], r"4 items, but scores of shape \[1\]"),
    (lambda texts: torch.zeros(len(texts), 2), r"4 items, but scores of shape \[4, 2\]"),
])  # fmt: skip
@pytest.mark.faults(40)
def test_a_reward_that_is_none_is_named_with_its_item(says: Any, words: str) -> None:
    model, ours = policy(), PolicyGradient(Answer(says), group=4, max_new_tokens=4)
    ours.attach(model)
    with pytest.raises(ValueError, match=words):
        ours.losses(model, questions("what"))


def test_copies_of_a_policy_share_nothing() -> None:
    model = policy()
    feedback().attach(model)
    other = copy.deepcopy(model.reference.weights)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(model.reference.weights[name].equal(value) for name, value in other.items())


def test_answers_are_drawn_from_the_policys_own_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator) * 2
    uniform = (torch.arange(20000) + 0.5) / 20000
    chosen, log_p = Ancestral().choose(logits.expand(20000, 7), uniform)
    assert (torch.bincount(chosen, minlength=7) / 20000).tolist() == pytest.approx(logits.softmax(0).tolist(), abs=2e-4)
    assert log_p.tolist() == pytest.approx(logits.double().log_softmax(0)[chosen].tolist())
    never = logits.clone()
    never[[0, 6]] = -torch.inf
    ends = torch.tensor([0.0, 1 - 2.0**-24])
    assert Ancestral().choose(never.expand(2, 7), ends)[0].tolist() == [1, 5]


def test_answers_that_come_to_their_end_are_finished() -> None:
    model, ours = policy(), feedback(stop=["a"], max_new_tokens=5, kl=0.0)
    end = tokenizer().token_to_id(END)
    rows_of = {True: [[end], [*encode(tokenizer(), "bca")]], False: [[*encode(tokenizer(), "bcdeb")]]}
    for ended, answers in rows_of.items():
        assert all(ours._ended(model, answer) is ended for answer in answers)
    drawn = ours.draw(model, questions("what is it", "and this"))
    lengths = drawn.counted.sum(1)
    assert float(drawn.report["unfinished"]) <= float((lengths == 5).float().mean())
