"""What families that generate tokens share: prompts, decoding, text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genlab.conditions import Condition, Prompt
from genlab.data.vocabulary import encode
from genlab.decoding.reading import ENDED
from genlab.errors import ConfigError, DataError
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
    sampled_by: ClassVar[str | None] = "tokens"
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

    def check_items(self, data: Any) -> None:
        """Also that the vocabulary has what a text begins with."""
        super().check_items(data)
        own = type(self).generate is LanguageModel.generate and type(self).begin is LanguageModel.begin
        if not own or data.tokenizer is None:
            return
        try:
            known = encode(data.tokenizer, self.start)
        except DataError:
            known = []
        if not known:
            first = min(data.tokenizer.get_vocab().items(), key=lambda pair: pair[1])[0]
            raise ConfigError(
                f"model.start={self.start!r}: data={data.name} has no such token; say what a text begins with: "
                f"model.start={first}"
            )

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
