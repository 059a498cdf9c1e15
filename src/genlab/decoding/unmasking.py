"""Texts by iterative unmasking: all new tokens are masked at first, and chosen in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from genlab import noise
from genlab.decoding.reading import ENDED, Decoded, Stops, lengths_of
from genlab.decoding.tokens import Show, TokenSampler
from genlab.errors import ConfigError
from genlab.noise import Stream


@runtime_checkable
class Filler(Protocol):
    """A model that tells masked tokens from those around them.

    Attributes:
        context: most tokens that it can read at a time.
        mask_id: what stands in the place of a masked token.
        tokenizer: of the library tokenizers; asked only where there are stop strings.
    """

    context: int
    mask_id: int
    tokenizer: Any

    def token_logits(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """tokens int64 [B, L]; attended bool [B, L], False beyond the end of a row -> float [B, L, V], without a logit
        of [MASK]."""


@dataclass(frozen=True)
class Unmasking(TokenSampler):
    """Unmasks `max_new_tokens` tokens after the prompt; each is drawn as by TokenSampler, and stays.

    A text that is longer than the context is made in windows, one after another, each with up to half of the context
    that is known already. All windows of a row are those of the row alone.

    Args:
        steps: of a window; in each the network is called once at most.
        order: "ancestral": the reverse process of masked diffusion (Sahoo et al. 2024, arXiv 2406.07524, equation 7
            with alpha_t = 1 - t) at equal steps of time: from t to s a masked token is unmasked with probability
            (t - s) / t. "confidence": all masked tokens are drawn, and the likeliest of the drawn ones are kept, so
            that floor(cos(pi/2 k / steps) n) of n are masked after step k, at least one fewer than before (MaskGIT,
            Chang et al. 2022, arXiv 2202.04200, section 3.2).

    Raises:
        ConfigError: an unknown order, an empty stop string.
    """

    max_new_tokens: Annotated[int, "gt 0"] = 64
    steps: Annotated[int, "gt 0"] = 64
    order: Literal["ancestral", "confidence"] = "ancestral"

    kind: ClassVar[str] = "gaps"
    streams: ClassVar[bool] = False

    @property
    def nfe(self) -> int:
        """Network evaluations of a window, at most."""
        return self.steps

    def decode(self, reader: Any, prompt: Tensor, seeds: Tensor, show: Show | None = None) -> Decoded:
        """See TokenSampler.decode; nothing is shown before the end. log_p is that of the tokens given what was known
        when each was drawn, which depends on the order.

        Raises:
            ConfigError: a model that cannot read masked tokens.
        """
        if not isinstance(reader, Filler):
            raise ConfigError(f"sampler=unmasking: {type(reader).__name__} knows no masked tokens; take nucleus")
        lengths, context = lengths_of(prompt), reader.context
        known, ends = lengths, lengths + self.max_new_tokens
        tokens = prompt.new_full((len(prompt), max(int(ends.max()), context)), ENDED)
        tokens[:, : int(lengths.max())] = prompt[:, : int(lengths.max())]
        log_p = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        window, part = 0, torch.arange(context, device=tokens.device)
        while bool((known < ends).any()):
            # The last window ends with the row, so that it knows as much as can be known.
            first = torch.minimum(known - context // 2, ends - context).clamp(min=0)
            places = first[:, None] + part
            masked = (places >= known[:, None]) & (places < ends[:, None])
            filled, own = self._fill(
                reader, tokens.gather(1, places), masked, places < ends[:, None], noise.fold_in(seeds, window)
            )
            tokens, log_p = tokens.scatter(1, places, filled), log_p.scatter_add(1, places, own)
            known, window = torch.minimum(first + context, ends), window + 1
        tokens = self._cut(tokens, lengths, ends, reader)
        log_p = (log_p * (tokens != ENDED)).sum(1)
        return Decoded(tokens[:, : int(ends.max())], log_p, lengths_of(tokens) - lengths)

    def _fill(
        self, reader: Filler, tokens: Tensor, masked: Tensor, attended: Tensor, seeds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Windows [B, L] without masked tokens, and the log-probability of what was chosen, float64 [B, L]."""
        log_p = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        count, width = masked.sum(1), masked.shape[1:]
        # Unmasked with probability 1 / (steps - k) at step k, if not before: at each step alike.
        moment = (noise.uniform(seeds, Stream.TIME, width).double() * self.steps).long()
        for k in range(self.steps):
            wanted = masked & (moment == k) if self.order == "ancestral" else masked
            rows, places = wanted.nonzero(as_tuple=True)
            if not len(rows):
                continue
            logits = reader.token_logits(tokens.masked_fill(masked, reader.mask_id).clamp(min=0), attended)
            logits, uniform = logits[rows, places], noise.uniform(seeds, (Stream.STEP, k), width)[rows, places]
            chosen, own = self.choose(logits, uniform, tokens[rows])
            if self.order == "confidence":
                left = (math.cos(math.pi / 2 * (k + 1) / self.steps) * count).long()
                left = torch.minimum(left, masked.sum(1) - 1).clamp(min=0)
                score = torch.full_like(log_p, -math.inf).index_put((rows, places), own)
                rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
                kept = (rank < (masked.sum(1) - left)[:, None])[rows, places]
                rows, places, chosen, own = rows[kept], places[kept], chosen[kept], own[kept]
            tokens, log_p = (a.index_put((rows, places), b) for a, b in ((tokens, chosen), (log_p, own)))
            masked = masked.index_put((rows, places), torch.zeros_like(rows, dtype=torch.bool))
        return tokens, log_p

    def _cut(self, tokens: Tensor, lengths: Tensor, ends: Tensor, reader: Filler) -> Tensor:
        """Rows that end with the token whose text completes a stop string."""
        stops, ended = Stops(self.stop, reader), torch.zeros_like(lengths, dtype=torch.bool)
        for t in range(int(lengths.min()), int(ends.max())) if self.stop else ():
            tokens[ended, t] = ENDED
            ended |= stops.met(tokens[:, : t + 1], lengths, ~ended & (t >= lengths) & (t < ends))
        return tokens
