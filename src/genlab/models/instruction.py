"""Causal language models that answer: p(answer | what is asked), as instruction tuning trains them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab.conditions import Condition, Source
from genlab.data.vocabulary import encode
from genlab.data.windows import IGNORED
from genlab.decoding.reading import ENDED, lengths_of
from genlab.errors import ConfigError
from genlab.models.base import Rows
from genlab.models.causal import CausalModel


class InstructionModel(CausalModel):
    """A causal network of the transformers library, trained by the cross-entropy of answers alone (Ouyang et al. 2022,
    arXiv 2203.02155, step 1); logits are computed where an answer is predicted and nowhere else.

    A batch has "source", int64 [B, S], and "labels", int64 [B, T], a text and its end, -100 after it, as data of pairs
    have them. The network reads `before`, the source, `after`, the text, and `end` in the place of the data's own.

    Args:
        network: with `base_model` and `get_output_embeddings()`, as transformers' causal models.
        context: most tokens of a source, what is around it, and its answer.
        before: text before each source, special tokens written out.
        after: text between a source and its answer.
        end: the token after an answer.
        gradient_checkpointing: keep only each block's input for the backward pass and compute the rest again.
        chunk_size: items generated at a time (see GenerativeModel).
    """

    conditions: tuple[Condition, ...] = (Source(),)
    context: int
    reading = MappingProxyType({"logits_to_keep": 1})
    reads = ("source", "labels")

    def __init__(
        self,
        network: Any,
        context: Annotated[int, "gt 1"],
        before: str,
        after: str,
        end: str,
        gradient_checkpointing: bool = False,
        chunk_size: int = 8,
    ) -> None:
        super().__init__()
        self.network, self.context, self.chunk_size = network, context, chunk_size
        self.frame, self.end_token = (before, after), end
        self._ids: tuple[Any, list[int], list[int], int] = (..., [], [], -1)
        if gradient_checkpointing:
            self.checkpoint_gradients(network)

    # ---- what is read

    @property
    def ids(self) -> tuple[list[int], list[int], int]:
        """Token ids before a source and after it, and of the end.

        Raises:
            ConfigError: the vocabulary has no such end.
        """
        if self._ids[0] is not self.tokenizer:  # once a vocabulary: each training step asks for it
            end = self.tokenizer.token_to_id(self.end_token)
            if end is None:
                raise ConfigError(f"model.end={self.end_token}: the vocabulary has no such token")
            before, after = (encode(self.tokenizer, text) for text in self.frame)
            self._ids = self.tokenizer, before, after, end
        return self._ids[1:]

    @property
    def end(self) -> int:
        """Id of the token that ends an answer (see genlab.decoding.reading.Reader)."""
        return self.ids[2]

    def prompts(self, source: Tensor) -> Tensor:
        """What stands before the answers to sources, int64 [B, S] with -1 after their ends: int64 [B, P], likewise.

        Raises:
            ConfigError: one fills the context.
        """
        before, after, _ = self.ids
        begin, lengths = len(before), lengths_of(source)
        longest = int(lengths.max())
        if (most := begin + longest + len(after)) >= self.context:
            raise ConfigError(
                f"a source of {longest} tokens, with {most - longest} around it, leaves no room for an answer in "
                f"model.context={self.context}; shorten it"
            )
        rows = source.new_full((len(source), most), ENDED)
        rows[:, :begin] = source.new_tensor(before)
        rows[:, begin : begin + longest] = source[:, :longest]
        places = (begin + lengths)[:, None] + torch.arange(len(after), device=source.device)
        return rows.scatter(1, places, source.new_tensor(after).expand(len(source), -1))

    def answer_rows(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Prompts and answers of a batch, int64 [B, L], and which of their tokens are an answer's, bool [B, L]; after
        the end of a row 0, which is never read by what stands before it."""
        prompts, labels = self.prompts(batch["source"]), batch["labels"]
        lengths, counts = lengths_of(prompts), (labels != IGNORED).sum(1)
        answers = labels.scatter(1, (counts - 1)[:, None], self.end)
        total = int((lengths + counts).max())
        if total > self.context:
            raise ConfigError(f"a source and its answer have {total} tokens, beyond model.context={self.context}")
        rows = F.pad(prompts.clamp(min=0), (0, max(0, total - prompts.shape[1])))[:, :total]
        places = lengths[:, None] + torch.arange(labels.shape[1], device=labels.device)
        inside = labels != IGNORED
        batch_rows = torch.arange(len(rows), device=rows.device)[:, None].expand_as(places)
        rows[batch_rows[inside], places[inside]] = answers[inside]
        answered = torch.zeros_like(rows, dtype=torch.bool)
        answered[batch_rows[inside], places[inside]] = True
        return rows, answered

    def _nll(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """-log p of each token of the answers in nats, float32 [N], and the row of each, int64 [N]."""
        rows, answered = self.answer_rows(batch)
        return -self.token_log_p(rows, answered), answered.nonzero()[:, 0]

    # ---- training

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats a token of the answers."""
        nll, row = self._nll(batch)
        return {"loss": (nll * batch["weight"][row]).sum() if "weight" in batch else nll.mean()}

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each answer given what is asked.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        nll, row = self._nll(batch)
        zeros = torch.zeros(len(batch["source"]), dtype=torch.float64, device=nll.device)
        return zeros.index_add(0, row, -nll.double()), torch.bincount(row, minlength=len(zeros))

    # ---- what feedback asks

    def check_prompts(self, tokens: int) -> None:
        """Refuses a number of tokens to go on from: here answers begin after a source."""
        if tokens:
            raise ConfigError(f"feedback.prompt_tokens={tokens}: this model answers whole sources; leave it 0")

    def prompts_of(self, batch: Mapping[str, Tensor], tokens: int, keys: Tensor) -> tuple[Tensor, dict[str, list[str]]]:
        """What the items of a batch are answers to, int64 [B, P], -1 after the end; and what a judge is told of it."""
        told = {"source": batch["source"], "reference": batch["labels"]}
        texts = {
            name: [self.answer_text([i for i in row if i >= 0]) for row in rows.tolist()] for name, rows in told.items()
        }
        return self.prompts(batch["source"]), texts

    def answer_text(self, ids: list[int]) -> str:
        """Text of the tokens of an answer, or of a source."""
        return str(self.tokenizer.decode(ids[:-1] if ids and ids[-1] == self.end else ids))

    # ---- generation

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Any) -> Tensor:
        """Token ids of the answers, int64 [B, T], -1 after the end of a row.

        Raises:
            ConfigError: no source, or one that fills the context.
        """
        if "source" not in (condition or {}):
            raise ConfigError('this model needs a source: condition.source="TEXT", or conditions=FILE, a source a line')
        prompts = self.prompts((condition or {})["source"])
        tokens, lengths = sampler.decode(self, prompts, seeds).tokens, lengths_of(prompts)
        places = lengths[:, None] + torch.arange(tokens.shape[1] - int(lengths.min()), device=tokens.device)
        answers = tokens.gather(1, places.clamp(max=tokens.shape[1] - 1))
        return answers.masked_fill((places >= tokens.shape[1]) | (answers == self.end), ENDED)
