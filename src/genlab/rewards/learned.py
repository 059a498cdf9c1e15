"""A trained reward model as a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.data.vocabulary import encode
from genlab.data.windows import IGNORED
from genlab.decoding.reading import padded
from genlab.errors import ConfigError
from genlab.judges import Judge
from genlab.parts import FrozenPart
from genlab.samples import Samples


class LearnedReward(Judge):
    """The reward of answers to their sources, by a run of model=reward.

    Args:
        path: of the run: path, name or "last".
        batch: answers in one call.
    """

    modality = "text"

    def __init__(self, path: str, batch: Annotated[int, "gt 0"] = 32) -> None:
        self.path, self.batch = path, batch

    @property
    def name(self) -> str:
        return f"{super().name}: {self._part.name}"

    @cached_property
    def _part(self) -> FrozenPart:
        return FrozenPart(self.path)

    @cached_property
    def _model(self) -> Any:
        model = self._part.on("cpu")
        if not hasattr(model, "rewards"):
            raise ConfigError(
                f"feedback.reward.path={self.path}: {type(model).__name__} gives no reward; train model=reward"
            )
        return model

    @torch.no_grad()
    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor:
        if "source" not in condition:
            raise ConfigError(f"{self.name} judges answers to sources, which the items lack")
        sources, rewards = [str(text) for text in condition["source"]], list[Tensor]()
        for start in range(0, len(sources), self.batch):
            part = slice(start, start + self.batch)
            rewards.append(self._model.rewards(self._rows(sources[part], samples.data[part]), "answer"))
        return torch.cat(rewards)

    def _rows(self, sources: Sequence[str], answers: Sequence[str]) -> dict[str, Tensor]:
        tokenizer = self._model.tokenizer
        asked = padded([encode(tokenizer, text, False) for text in sources])
        ended = padded([[*encode(tokenizer, text, False), self._model.policy.end] for text in answers])
        return {"source": asked, "answer": ended.masked_fill(ended < 0, IGNORED)}
