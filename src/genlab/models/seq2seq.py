"""Encoder-decoder Transformers: p(y | x) = prod_t p(y_t | y_<t, x), for translations, summaries and answers.

Vaswani et al. 2017 (arXiv 1706.03762). Marian, BART and T5 of the transformers library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab import noise
from genlab.conditions import Condition, Source
from genlab.data.vocabulary import encode
from genlab.data.windows import IGNORED
from genlab.decoding.reading import ENDED, lengths_of
from genlab.errors import ConfigError, DataError
from genlab.models.base import Rows
from genlab.models.language import LanguageModel
from genlab.models.source_reader import SourceReader


class Seq2Seq(LanguageModel):
    """An encoder-decoder of the transformers library, trained by the cross-entropy of the target's tokens.

    A batch has "source", int64 [B, S], token ids with -1 after the end of a row, and "labels", int64 [B, T], the target
    with the token that ends it, then -100. The source is read with that token after it, or with what the tokenizer's
    own template puts around a text (BART's <s> and </s>).

    A text has at most length_ratio * n + length_extra tokens, for n of the source with what is put around it, and ends
    there if it has not before.

    A family whose source is no text defines `encode_source`, `limits`, `inputs` and `labels` anew.

    Args:
        network: one whose config has decoder_start_token_id, eos_token_id and pad_token_id.
        context: most tokens of a source or a target; None: no limit (T5).
        label_smoothing: share of the probability that the target spreads over all tokens (Szegedy et al. 2016, arXiv
            1512.00567, section 7), in training.
        prefix: text before each source ("summarize: " of T5).
        length_ratio: see above.
        length_extra: likewise.
        gradient_checkpointing: keep only each block's input for the backward pass and compute the rest again.
        chunk_size: rows that are generated at a time (see GenerativeModel).
        word_dropout: share of input tokens of the target, the first excepted, that the decoder sees as padding in
            training (Bowman et al. 2016, arXiv 1511.06349, section 3.1): it then asks the source for more.
    """

    conditions: tuple[Condition, ...] = (Source(),)
    reads = ("source", "labels")
    needs = 'a source: condition.source="TEXT", or conditions=FILE, a source a line'  # for a message

    def __init__(
        self,
        network: Any,
        context: Annotated[int, "gt 1"] | None,
        label_smoothing: Annotated[float, "ge 0, lt 1"] = 0.0,
        prefix: str = "",
        length_ratio: Annotated[float, "ge 0"] = 1.5,
        length_extra: Annotated[int, "ge 1"] = 20,
        gradient_checkpointing: bool = False,
        chunk_size: int = 32,
        copy_samples: Annotated[int, "ge 0"] = 0,
        copy_tokens: Annotated[int, "ge 1"] = 20,
        word_dropout: Annotated[float, "ge 0, lt 1"] = 0.0,
    ) -> None:
        super().__init__()
        self.word_dropout = word_dropout
        self.copy_samples, self.copy_tokens = copy_samples, copy_tokens
        self.network, self.context, self.label_smoothing, self.prefix = network, context, label_smoothing, prefix
        self.length_ratio, self.length_extra, self.chunk_size = length_ratio, length_extra, chunk_size
        self._frame: tuple[Any, list[int]] = (None, [])
        ids = network.config
        self.first, self.end, self.pad = ids.decoder_start_token_id, ids.eos_token_id, ids.pad_token_id
        if gradient_checkpointing:
            self.checkpoint_gradients(network)

    # ---- the network

    def framed(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder reads of sources, int64 [B, S], with what is put around them, and the mask; int64 [B, S'].

        Raises:
            ConfigError: one is beyond the context.
        """
        *before, after = self.frame
        begin, lengths = len(before), lengths_of(source)
        longest = int(lengths.max())
        if self.context is not None and begin + longest + 1 > self.context:
            raise ConfigError(
                f"a source of {longest} tokens, with {begin + 1} around it, is beyond model.context={self.context}; "
                "shorten it"
            )
        ids = source.new_full((len(source), begin + longest + 1), self.pad)
        ids[:, :begin] = torch.tensor(before, dtype=torch.int64, device=source.device)
        ids[:, begin:-1] = torch.where(source[:, :longest] == ENDED, self.pad, source[:, :longest])
        end = (begin + lengths)[:, None]
        ids.scatter_(1, end, after)
        return ids, (torch.arange(ids.shape[1], device=source.device) <= end).to(torch.int64)

    @property
    def frame(self) -> list[int]:
        """Ids before a source (what its template begins with, the prefix), and the one after it."""
        if self._frame[0] is not self.tokenizer:  # once a vocabulary: each training step asks for it
            template = self.tokenizer.encode("").ids or [self.end]
            try:
                prefix = encode(self.tokenizer, self.prefix)
            except DataError as error:
                raise ConfigError(f"model.prefix: {error}") from None
            self._frame = self.tokenizer, [*template[:-1], *prefix, template[-1]]
        return self._frame[1]

    def encode_source(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the decoder looks at: states of sources, float [B, S, D], and which of them count, int64 [B, S].

        Args:
            rows: a batch, or conditions by name.
        """
        ids, mask = self.framed(rows["source"])
        return self.network.get_encoder()(input_ids=ids, attention_mask=mask)[0], mask

    def limits(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Most tokens of the text of each source, int64 [B]."""
        limits = (self.length_ratio * (lengths_of(rows["source"]) + len(self.frame))).long() + self.length_extra
        return limits if self.context is None else limits.clamp(max=self.context - 1)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the network reads of a batch to predict its labels, each from those before it."""
        ids, mask = self.framed(batch["source"])
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": self.before(batch)}

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The targets of a batch, each with the token that ends it, then -100: int64 [B, T]."""
        return batch["labels"]

    def before(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The token before each label, int64 [B, T]; in training some are hidden."""
        labels = self.labels(batch)
        before = torch.cat([labels.new_full((len(labels), 1), self.first), labels[:, :-1]], 1)
        hidden = before == IGNORED  # after a row's end nothing is predicted
        if self.training and self.word_dropout:
            drawn = noise.uniform(self.keys(batch), (noise.Stream.LOSS, 0), labels.shape[1:]) < self.word_dropout
            drawn[:, 0] = False
            hidden = hidden | drawn
        return before.masked_fill(hidden, self.pad)

    def _log_p(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of all tokens in the place of each label, float32 [B, T, V]."""
        return self.network(**self.inputs(batch), use_cache=False).logits.float().log_softmax(2)

    # ---- training

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats a token of the target; with label smoothing also `nll`, the loss without it."""
        if self.training and self.samples_seen < self.copy_samples:
            start = batch["source"][:, : self.copy_tokens]
            batch = {name: rows for name, rows in batch.items() if name != "weight"}  # of the targets' tokens
            batch["labels"] = start.masked_fill(start == ENDED, IGNORED)
        labels = self.labels(batch)
        counted = labels != IGNORED
        # What each token weighs: all of a batch alike, over all of its micro-batches.
        weight = batch["weight"][:, None] if "weight" in batch else 1 / counted.sum().clamp(min=1)
        log_p = self._log_p(batch)
        own = -log_p.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        nll = (own * counted * weight).sum()
        if not (self.training and self.label_smoothing):
            return {"loss": nll}
        uniform = (-log_p.mean(2) * counted * weight).sum()
        return {"loss": (1 - self.label_smoothing) * nll + self.label_smoothing * uniform, "nll": nll}

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each target given its source.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        labels = self.labels(batch)
        counted = labels != IGNORED
        own = self._log_p(batch).gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
        return (own.double() * counted).sum(1), counted.sum(1)

    # ---- generation

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Any) -> Tensor:
        """Token ids, int64 [B, T], -1 after the end of a row.

        Raises:
            ConfigError: no source, or one beyond the context.
        """
        if self.conditions[0].name not in (condition or {}):
            raise ConfigError(f"this model needs {self.needs}")
        return sampler.decode(SourceReader(self, condition or {}), self.begin(seeds), seeds).tokens[:, 1:]

    def begin(self, seeds: Tensor) -> Tensor:
        """The token before each target, int64 [B, 1]."""
        return torch.full((len(seeds), 1), self.first, device=seeds.device)

    def attention(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, list[int], Any]]:
        """See genlab.evaluation.latents.Attends. A row is what the decoder looks at when it predicts that token."""
        inputs, labels, weights = self.inputs(batch), self.labels(batch), self.cross_attention(batch)
        rows, columns = (labels != IGNORED).sum(1).tolist(), inputs["attention_mask"].sum(1).tolist()
        return [
            (weights[i, :t, :s], labels[i, :t].tolist(), inputs["input_ids"][i, :s].tolist())
            for i, (t, s) in enumerate(zip(rows, columns, strict=True))
        ]

    def cross_attention(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Weights of the last layer, the mean over the heads, float [B, T, S]."""
        attention = self.network.config._attn_implementation
        self.network.set_attn_implementation("eager")  # the only one that gives weights
        try:
            output = self.network(**self.inputs(batch), use_cache=False, output_attentions=True)
        finally:
            self.network.set_attn_implementation(attention)
        return output.cross_attentions[-1].mean(1)
