"""Rewards of answers: REINFORCE, RLOO, GRPO, Dr. GRPO and PPO's clip, on language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab import noise
from genlab.decoding.reading import ENDED, lengths_of
from genlab.decoding.tokens import Ancestral
from genlab.errors import ConfigError
from genlab.feedback.base import Feedback, Reference, evaluating
from genlab.judges import Judge
from genlab.modality import Text
from genlab.objectives.policy import Advantage, advantages, answer_means, clipped_share, clipped_surrogate, k3
from genlab.samples import Samples

STEP = 0.1  # of the weight of the KL at a step, at most, as a share (Ziegler et al. 2019)


@dataclass
class Rollout:
    """G answers to each of P questions.

    Attributes:
        rows: int64 [P * G, T], question and answer, 0 after the end.
        counted: bool [P * G, T], tokens of the answers.
        answer: int64 [N], the answer that each of these tokens is of.
        advantage: float [P * G].
        reference: float [N], log p of the tokens under the reference; None: there is none.
        report: scalars for the log.
        old: float [N], log p of the tokens when they were drawn; None: not known yet.
    """

    rows: Tensor
    counted: Tensor
    answer: Tensor
    advantage: Tensor
    reference: Tensor | None
    report: dict[str, Tensor]
    old: Tensor | None = None


class PolicyGradient(Feedback):
    """Answers are drawn at temperature 1, judged, and made likelier or less likely by how good they are beside the
    others of their group. Answer k to the item at a place of the run is a function of (weights, seed, place, k); a
    group stays on one device.

    Args:
        reward: genlab.judges.Judge of texts; it is told what the items are ("source" and "reference", or "prompt").
        advantage: see genlab.objectives.policy.advantages.
        group: answers to each item of a batch.
        max_new_tokens: of an answer; a longer one is judged as it stands there.
        stop: strings that end an answer.
        prompt_tokens: first tokens of an item that answers go on from, of models without sources; 0: the model's start.
        clip: of the ratio to the policy that drew the answers; it has an effect from the second update on.
        updates: optimizer steps on the answers of a batch.
        kl: weight of the KL to the reference, which is the policy as it is before training; 0: there is no reference.
        kl_target: nats an answer that the weight is adapted to (Ziegler et al. 2019, arXiv 1909.08593, section 2.2);
            None: the weight stays.

    Raises:
        ConfigError: rloo and grpo of one answer; a target without a weight.
    """

    def __init__(
        self,
        reward: Judge,
        advantage: Advantage = "grpo",
        group: Annotated[int, "gt 0"] = 8,
        max_new_tokens: Annotated[int, "gt 0"] = 64,
        stop: Sequence[str] = (),
        prompt_tokens: Annotated[int, "ge 0"] = 0,
        clip: Annotated[float, "gt 0, lt 1"] = 0.2,
        updates: Annotated[int, "gt 0"] = 1,
        kl: Annotated[float, "ge 0"] = 0.05,
        kl_target: Annotated[float, "gt 0"] | None = None,
    ) -> None:
        if group == 1 and advantage != "reinforce":
            raise ConfigError(f"feedback.group=1: {advantage} compares the answers of a group; take at least 2")
        if kl_target is not None and not kl:
            raise ConfigError("feedback.kl_target adapts feedback.kl, which is 0: give it a weight to begin with")
        self.reward, self.advantage, self.group, self.prompt_tokens = reward, advantage, group, prompt_tokens
        self.sampler = Ancestral(max_new_tokens=max_new_tokens, stop=tuple(stop))
        self.clip, self.updates, self.weight, self.kl_target = clip, updates, kl, kl_target
        self._kl: Tensor | None = None  # mean of the step that is going on, times `_parts`
        self._parts = 0

    def attach(self, model: Any) -> None:
        if not hasattr(model, "token_log_p"):
            raise ConfigError(
                f"feedback: {type(model).__name__} has no probability of each token; choose gpt, llama, ..."
            )
        if getattr(model.network, "recurrent", False):
            raise ConfigError("feedback: a recurrent network draws and reads differently; choose gpt, llama, ...")
        model.check_prompts(self.prompt_tokens)
        if self.weight:
            model.reference = Reference(model.network, "the policy before feedback")
        model.automatic_optimization = self.updates == 1

    # ---- answers

    @torch.no_grad()
    def rollout(self, model: Any, batch: Mapping[str, Tensor], keys: Tensor) -> Rollout:
        prompts, condition = model.prompts_of(batch, self.prompt_tokens, keys)
        group = self.group
        prompts = prompts.repeat_interleave(group, 0)
        seeds = torch.stack([noise.fold_in(keys, k) for k in range(group)], 1).flatten()
        tokens, lengths = self.sampler.decode(model, prompts, seeds).tokens, lengths_of(prompts)
        if model.context is not None and tokens.shape[1] > model.context + 1:  # the last token is not read
            raise ConfigError(
                f"feedback.max_new_tokens={self.sampler.max_new_tokens}: with a prompt of {int(lengths.max())} tokens "
                f"beyond the context of {model.context}; lower it"
            )
        after = torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None]
        counted = after & (tokens != ENDED)
        answers = [row[own].tolist() for row, own in zip(tokens.cpu(), counted.cpu(), strict=True)]
        texts = [model.answer_text(ids) for ids in answers]
        told = {name: [value for value in values for _ in range(group)] for name, values in condition.items()}
        rewards = self.reward(Samples(Text(), texts), told).to(tokens.device).view(-1, group).float()
        rows, answer = tokens.clamp(min=0), counted.nonzero()[:, 0]
        reference = None
        if self.weight:
            with model.reference.inside(model.network):
                reference = model.token_log_p(rows, counted)
        length = counted.sum(1).float()
        ended = [float(self._ended(model, ids)) for ids in answers]
        report = {
            "reward": rewards.mean(),
            "reward_deviation": rewards.std(1).mean() if group > 1 else rewards.new_zeros(()),
            "flat_groups": (rewards == rewards[:, :1]).all(1).float().mean(),
            "length": length.mean(),
            "unfinished": 1 - length.new_tensor(ended).mean(),
        }
        return Rollout(rows, counted, answer, advantages(rewards, self.advantage).flatten(), reference, report)

    def _ended(self, model: Any, answer: list[int]) -> bool:
        """Whether an answer has come to its end, and not to the bound of its length."""
        if answer[-1] == getattr(model, "end", None):
            return True
        text = model.tokenizer.decode(answer, skip_special_tokens=False) if self.sampler.stop else ""
        return any(stop in text for stop in self.sampler.stop)

    # ---- the loss

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The clipped surrogate with the KL, and beside it what tells whether anything is learned: reward, KL in nats
        an answer, entropy in nats a token, length in tokens, shares of flat groups and of clipped tokens."""
        return self.losses_of(model, self.draw(model, batch))

    def draw(self, model: Any, batch: Mapping[str, Tensor]) -> Rollout:
        """Answers to a batch, and what they are worth."""
        keys = model.keys(batch)
        with evaluating(model):
            return self.rollout(model, batch, keys)

    def losses_of(self, model: Any, rollout: Rollout) -> dict[str, Tensor]:
        """Losses of answers that have been drawn."""
        training = model.training
        with evaluating(model):
            return self._surrogate(model, rollout, training)

    def _surrogate(self, model: Any, rollout: Rollout, training: bool) -> dict[str, Tensor]:
        log_p, count = model.token_log_p(rollout.rows, rollout.counted), len(rollout.rows)
        if rollout.old is None:
            rollout.old = log_p.detach()
        advantage = rollout.advantage[rollout.answer]
        each, report = clipped_surrogate(log_p, rollout.old, advantage, self.clip), dict(rollout.report)
        if rollout.reference is not None:
            divergence = k3(log_p, rollout.reference)
            each = each + self.weight * divergence
            report["kl"] = answer_means(divergence.detach(), rollout.answer, count, 1).mean()
            report["kl_weight"] = torch.tensor(self.weight)
            if training:
                self._kl, self._parts = report["kl"] + (0 if self._kl is None else self._kl), self._parts + 1
        length = {"dr_grpo": self.sampler.max_new_tokens, "grpo": None}.get(self.advantage, 1)
        loss = answer_means(each, rollout.answer, count, length).mean()
        report["entropy"] = -log_p.detach().mean()
        report["clipped"] = clipped_share(log_p.detach(), rollout.old, advantage, self.clip)
        return {"loss": loss, **report}

    # ---- the weight of the KL

    def at_step(self, model: Any) -> None:
        """Moves the weight of the KL towards the target: equation 2 of arXiv 1909.08593 and the lines after it."""
        if self.kl_target is None or self._kl is None:
            self._kl, self._parts = None, 0
            return
        kl = self._kl / self._parts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(kl)
            kl = kl / torch.distributed.get_world_size()
        error = min(max(float(kl) / self.kl_target - 1, -0.2), 0.2)
        self.weight *= 1 + STEP * error
        self._kl, self._parts = None, 0

    def state_dict(self) -> dict[str, Any]:
        return {"kl": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weight = float(state["kl"])
