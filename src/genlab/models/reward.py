"""Reward models: how good an answer is, learned from pairs of which one is preferred."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from genlab.models.trained import TrainedModel
from genlab.networks.attention import whole_sequences
from genlab.objectives.preferences import SIDES, bradley_terry


class RewardModel(TrainedModel):
    """A policy's network with a number in the place of the next token: Ouyang et al. 2022, arXiv 2203.02155, section
    3.5, with pairs (the paper compares four to nine answers at a time). Data: data=preferences.

    Args:
        policy: an InstructionModel, whose network reads what is asked and the answer; its head is not used.

    Attributes:
        head: from the state at the end of the answer to the reward.
    """

    reads = ("source", *SIDES)

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        width = policy.network.get_input_embeddings().weight.shape[1]
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.head.weight)  # every answer is worth the same at first

    @property
    def tokenizer(self) -> Any:
        """That of the policy."""
        return self.policy.tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        if "policy" in self._modules:  # not while the base class is built
            self.policy.tokenizer = value

    def rewards(self, batch: Mapping[str, Tensor], side: str) -> Tensor:
        """Rewards of answers, float32 [B].

        Args:
            batch: "source" int64 [B, S], -1 after the end; answers int64 [B, T] under the name `side`, with their end,
                -100 after it.
        """
        rows, answered = self.policy.answer_rows({"source": batch["source"], "labels": batch[side]})
        last = (answered * torch.arange(rows.shape[1], device=rows.device)).amax(1)
        network = self.policy.network
        with whole_sequences(network):
            states = network.base_model(input_ids=rows, use_cache=False)[0]
        return self.head(states[torch.arange(len(rows), device=rows.device), last]).squeeze(1).float()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the pairs, the share in which the preferred answer has the higher reward, and the difference."""
        chosen, rejected = (self.rewards(batch, side) for side in SIDES)
        margin = (chosen - rejected).detach()
        loss = bradley_terry(chosen, rejected).mean()
        return {"loss": loss, "accuracy": (margin > 0).float().mean(), "margin": margin.mean()}
