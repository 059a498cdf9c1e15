"""Preferences between two answers: DPO, IPO and KTO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.errors import ConfigError
from genlab.feedback.base import Feedback, Reference, evaluating
from genlab.objectives.preferences import SIDES, PreferenceLoss, preference_loss


class PreferenceFeedback(Feedback):
    """A policy is trained on pairs of answers directly, without a reward model. The reference is the policy as it is
    before training. Data: data=preferences.

    Args:
        loss: see genlab.objectives.preferences.preference_loss.
        beta: how dear it is to leave the reference (ipo: tau, of log-ratios of the mean token).
        smoothing: share of preferences that dpo takes to be turned round.
        sft: weight of the chosen answers' own negative log-likelihood in nats a token (RPO, arXiv 2404.19733); 0: none.

    Raises:
        ConfigError: smoothing of another loss than dpo.
    """

    reads = ("source", *SIDES)

    def __init__(
        self,
        loss: PreferenceLoss = "dpo",
        beta: Annotated[float, "gt 0"] = 0.1,
        smoothing: Annotated[float, "ge 0, lt 0.5"] = 0.0,
        sft: Annotated[float, "ge 0"] = 0.0,
    ) -> None:
        if smoothing and loss != "dpo":
            raise ConfigError(f"feedback.smoothing is of dpo, not of {loss}; leave it out")
        self.kind, self.beta, self.smoothing, self.sft = loss, beta, smoothing, sft

    def attach(self, model: Any) -> None:
        if not hasattr(model, "answer_rows"):
            raise ConfigError(f"feedback: {type(model).__name__} answers nothing; take model=instruction")
        model.reference = Reference(model.network, "the policy before feedback")

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss; beside it the share of pairs in which the implicit reward beta log pi/ref prefers the chosen
        answer, the mean difference of these rewards, and each side's log-ratio in nats an answer."""
        with evaluating(model):
            sides = [model.answer_rows({"source": batch["source"], "labels": batch[side]}) for side in SIDES]
            with torch.no_grad(), model.reference.inside(model.network):
                before = [self.log_p(model, *side) for side in sides]
            after = [self.log_p(model, *side) for side in sides]
        counts = [counted.sum(1) for _, counted in sides]
        ratios = [a - b for a, b in zip(after, before, strict=True)]
        chosen, rejected = [r / n for r, n in zip(ratios, counts, strict=True)] if self.kind == "ipo" else ratios
        each = preference_loss(self.kind, chosen, rejected, self.beta, self.smoothing)
        loss = each.mean()
        if self.sft:
            loss = loss - self.sft * (after[0] / counts[0]).mean()
        margin = (chosen - rejected).detach()
        return {
            "loss": loss,
            "accuracy": (margin > 0).float().mean(),
            "margin": self.beta * margin.mean(),
            **{f"{name}_ratio": ratio.detach().mean() for name, ratio in zip(SIDES, ratios, strict=True)},
        }

    @staticmethod
    def log_p(model: Any, rows: Tensor, counted: Tensor) -> Tensor:
        """log p of each answer, float32 [B]."""
        each = model.token_log_p(rows, counted)
        return each.new_zeros(len(rows)).index_add(0, counted.nonzero()[:, 0], each)
