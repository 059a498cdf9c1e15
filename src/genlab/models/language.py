"""What families that generate tokens share: prompts, decoding, text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.conditions import Condition, Prompt
from genlab.decoding.reading import ENDED
from genlab.errors import ConfigError
from genlab.modality import Text
from genlab.models.base import GenerativeModel, Rows
from genlab.samples import Samples


class LanguageModel(GenerativeModel):
    """Tokens, decoded by the sampler. A family that reads from left to right is a genlab.decoding.reading.Reader, with
    `next_logits` and `select`; one that fills gaps is a genlab.decoding.unmasking.Filler.

    The condition `prompt`, int64 [B, P], is what each item goes on from, with -1 after the end of a shorter prompt.

    Attributes:
        context: most tokens that it can read at a time; None: any number.
        start: text that generation begins with where there is no prompt.
    """

    modality = Text()
    reads = ("input_ids", "labels")
    conditions: tuple[Condition, ...] = (Prompt(),)
    context: int | None = None
    start: str = "\n"

    def checkpoint_gradients(self, network: nn.Module) -> None:
        """Keeps only each block's input for the backward pass and computes the rest again.

        Raises:
            ConfigError: a network that has no such thing; those of transformers have.
        """
        enable: Any = getattr(network, "gradient_checkpointing_enable", None)
        if enable is None:
            raise ConfigError(f"model.gradient_checkpointing: {type(network).__name__} has none; set it to false")
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Any) -> Tensor:
        """Token ids, int64 [B, T]: prompt and continuation, -1 after the end of a row."""
        prompt = (condition or {}).get("prompt")
        return sampler.decode(self.reader(seeds), self.begin(seeds) if prompt is None else prompt, seeds).tokens

    def reader(self, seeds: Tensor) -> Any:
        """What decodes the items of these seeds: the model itself, where nothing but tokens is drawn."""
        return self

    def begin(self, seeds: Tensor) -> Tensor:
        """The tokens of `start` for each item, int64 [B, P]."""
        return torch.tensor(self.tokenizer.encode(self.start).ids, device=seeds.device).expand(len(seeds), -1)

    def answers(self, samples: Samples) -> Samples:
        """The texts without the prompts that they go on from."""
        if "prompt" not in samples.condition:
            return samples
        heads = self.shown(samples.condition)["prompt"]
        texts = [text.removeprefix(head) for text, head in zip(samples.data, heads, strict=True)]
        return replace(samples, data=texts)

    def to_data(self, raw: Tensor) -> list[str]:
        return [self.tokenizer.decode([token for token in row if token != ENDED]) for row in raw.tolist()]


class CausalModel(LanguageModel):
    """A network that reads from left to right and gives the logits of the next token, whatever it is trained on."""

    network: Any

    def text_log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of plain text, with nothing put around it.

        Args:
            batch: input_ids int64 [B, T]; labels int64 [B, T], the token that follows each, -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        labels = batch["labels"]
        logits = self.network(input_ids=batch["input_ids"], use_cache=False).logits
        nll = F.cross_entropy(logits.transpose(1, 2).float(), labels, reduction="none")
        return -nll.double().sum(1), (labels != -100).sum(1)

    def select(self, state: Any, rows: Tensor) -> Any:
        """See genlab.decoding.reading.Reader."""
        state.reorder_cache(rows)  # in place
        return state
