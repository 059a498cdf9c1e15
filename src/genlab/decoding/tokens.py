"""Choosing the next token from logits, with each item's own seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from genlab import noise
from genlab.decoding.reading import ENDED, Decoded, Reader, Reading, Stops, lengths_of, most_steps
from genlab.errors import ConfigError
from genlab.settings import check_settings

Show = Callable[[Tensor], None]
SHORTLIST = 1024  # the likeliest tokens among which top_p is looked for first
MARGIN = 1e-9  # what rounding may do to their mass, and more


@dataclass(frozen=True)
class TokenSampler:
    """Ancestral sampling from a tempered, truncated distribution.

    A token is kept if every truncation keeps it, each judging the whole tempered distribution; the likeliest where they
    agree on none.

    Args:
        max_new_tokens: tokens to add to the prompt.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only the k likeliest tokens (Fan et al. 2018, arXiv 1805.04833); 0 keeps all.
        top_p: the smallest set of likeliest tokens whose mass reaches p (nucleus; Holtzman et al. 2020,
            arXiv 1904.09751); 1 keeps all.
        min_p: only tokens at least so likely as a share of the likeliest's probability (Nguyen et al. 2025,
            arXiv 2407.01082); 0 keeps all.
        typical: the smallest set, of mass at least so much, of tokens whose information -log p is nearest to the
            entropy (locally typical sampling; Meister et al. 2023, arXiv 2202.00666); 1 keeps all.
        repetition_penalty: the logit of a token that the row holds already, in the prompt too, is divided by it (CTRL,
            arXiv 1909.05858, section 4.1); a negative logit is multiplied instead, as transformers does, or it would
            rise. 1: no penalty.
        stop: an item ends with the token whose text completes one of these strings in what is new.

    Raises:
        ConfigError: an empty stop string, a number out of its bounds.
    """

    max_new_tokens: Annotated[int, "gt 0"] = 256
    temperature: Annotated[float, "ge 0"] = 1.0
    top_k: Annotated[int, "ge 0"] = 0
    top_p: Annotated[float, "gt 0, le 1"] = 1.0
    min_p: Annotated[float, "ge 0, le 1"] = 0.0
    typical: Annotated[float, "gt 0, le 1"] = 1.0
    repetition_penalty: Annotated[float, "gt 0"] = 1.0
    stop: Sequence[str] = ()

    kind: ClassVar[str] = "tokens"  # see genlab.kinds
    streams: ClassVar[bool] = True  # whether `decode` shows tokens as they come

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "sampler.")
        check_stop(self.stop)

    @property
    def nfe(self) -> int:
        """Network evaluations an item: one a token, thanks to the key-value cache."""
        return self.max_new_tokens

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def decode(self, reader: Reader, prompt: Tensor, seeds: Tensor, show: Show | None = None) -> Decoded:
        """Goes on from the prompts until each row has max_new_tokens more or has met a stop string.

        Args:
            prompt: int64 [B, P], at least one token a row; a shorter prompt is followed by -1.
            seeds: int64 [B].
            show: called with all tokens so far, int64 [B, t] with -1 in rows that have ended, after each of them.
        """
        lengths, rows, steps = lengths_of(prompt), len(seeds), most_steps(self.max_new_tokens, reader)
        shortest, longest = int(lengths.min()), int(lengths.max())
        tokens = prompt.new_full((rows, longest + steps), ENDED)
        tokens[:, :longest] = prompt[:, :longest]
        # Of all tokens in one call, which costs as much as that of one token.
        k = torch.arange(steps, device=seeds.device).repeat_interleave(rows)
        uniforms = noise.uniform(seeds.repeat(steps), (noise.Stream.STEP, k), ()).view(steps, rows)
        reading, stops = Reading(reader), Stops(self.stop, reader)
        log_p = torch.zeros(rows, dtype=torch.float64, device=prompt.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=prompt.device)
        t = shortest
        while t < longest + steps and not (stops and bool((ended | (t >= lengths + steps)).all())):
            logits = reading.logits(tokens[:, :t])
            k = t - lengths  # how many new tokens a row has; negative within its prompt
            new = (k >= 0) & (k < steps) & ~ended
            uniform = uniforms.gather(0, k.clamp(0, steps - 1)[None])[0]
            chosen, own = self.choose(logits, uniform, tokens[:, :t])
            tokens[:, t] = torch.where(new, chosen, tokens[:, t])
            log_p += torch.where(new, own, torch.zeros_like(own))
            t += 1
            ended |= stops.met(tokens[:, :t], lengths, new)
            if show is not None:
                show(tokens[:, :t])
        tokens = tokens[:, :t]
        return Decoded(tokens, log_p, lengths_of(tokens) - lengths)

    def choose(self, logits: Tensor, uniform: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Next tokens by inversion of the cumulative distribution.

        Args:
            logits: float [B, V].
            uniform: float [B] in [0, 1), one number an item.
            tokens: int64 [B, t], what the rows hold; -1 is no token. Needed for the repetition penalty.

        Returns:
            Tokens, int64 [B]; their log-probability by the model, neither tempered nor truncated, float64 [B].
        """
        # In float64 and in order of likelihood: rounding then cannot move the borders between tokens by much.
        logits = logits.double()
        log_p, scores = logits.log_softmax(1), logits
        if self.repetition_penalty != 1 and tokens is not None:
            held = logits.new_zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool)
            held = held.scatter_(1, tokens.remainder(logits.shape[1] + 1), True)[:, :-1]  # -1: the last, cut off
            theta = self.repetition_penalty
            scores = torch.where(held, torch.where(logits > 0, logits / theta, logits * theta), logits)
        if self.temperature == 0:
            chosen = scores.argmax(1, keepdim=True)
        else:
            if self.temperature != 1:
                scores = scores / self.temperature
            chosen = self._invert(scores, log_p if scores is logits else None, uniform)
        return chosen.squeeze(1), log_p.gather(1, chosen).squeeze(1)

    def _invert(self, scores: Tensor, log_p: Tensor | None, uniform: Tensor) -> Tensor:
        """Places [B, 1] at which the truncated distribution of scores, float64 [B, V], reaches uniform [B].

        Args:
            log_p: log_softmax of the scores, where it is known.
        """
        if (shortlist := self._shortlist(scores, log_p)) is not None:
            values, order, probabilities = shortlist
        else:
            values, order = scores.sort(dim=1, descending=True, stable=True)
            probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities  # mass of the likelier tokens
        kept = before < self.top_p
        if self.top_k:
            kept[:, self.top_k :] = False
        if self.min_p:
            kept &= probabilities >= self.min_p * probabilities[:, :1]
        if self.typical < 1:
            kept &= _typical(values.log_softmax(1), self.typical)
        kept[:, 0] |= ~kept.any(1)
        probabilities = probabilities * kept
        cumulative = probabilities.cumsum(1)
        target = uniform.double()[:, None] * cumulative[:, -1:]
        rank = torch.searchsorted(cumulative, target, right=True)
        # Rounding of the last sum must not reach a dropped token.
        last = (kept * torch.arange(kept.shape[1], device=kept.device)).amax(1, keepdim=True)
        return order.gather(1, torch.minimum(rank, last))

    def _shortlist(self, scores: Tensor, log_p: Tensor | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """The head of the sorted scores, their places and probabilities, [B, k] each, where nothing behind it can be
        kept: sorting 50,000 scores costs 25 times as much. None where all have to be sorted."""
        k = self.top_k or (SHORTLIST if self.top_p < 1 else 0)
        if not 0 < k < scores.shape[1] or self.typical < 1:
            return None
        least = scores.topk(k)[0][:, -1:]
        places = (scores >= least).nonzero()[:, 1]  # in their order, as a stable sort leaves those of one score
        if len(places) != k * len(scores):  # of several with the last score only some belong to it; or NaN
            return None
        places = places.view(-1, k)
        values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
        order = places.gather(1, order)
        probabilities = (scores.log_softmax(1) if log_p is None else log_p).gather(1, order).exp()
        if not self.top_k and bool((probabilities.sum(1) < self.top_p + MARGIN).any()):
            return None
        return values, order, probabilities


@dataclass(frozen=True)
class Ancestral(TokenSampler):
    """The model's own distribution, inverted in the order of the vocabulary: without the sorting that truncation needs,
    which costs more than a small network. Of one seed it draws other texts than TokenSampler."""

    def choose(self, logits: Tensor, uniform: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See TokenSampler.choose."""
        log_p = logits.double().log_softmax(1)
        cumulative = log_p.exp().cumsum(1)
        target = uniform.double()[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[1] - 1)
        return chosen[:, 0], log_p.gather(1, chosen)[:, 0]


def _typical(log_p: Tensor, mass: float) -> Tensor:
    """Bool [B, V]: of log-probabilities [B, V] the smallest set of that mass, nearest to the entropy first."""
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, torch.zeros_like(p)).sum(1, keepdim=True)
    order = (-log_p - entropy).abs().argsort(dim=1, stable=True)
    sorted_p = p.gather(1, order)
    kept = sorted_p.cumsum(1) - sorted_p < mass
    return torch.zeros_like(kept).scatter_(1, order, kept)


def check_stop(stop: Sequence[str]) -> None:
    """ConfigError for a stop string that every text, or none, would meet."""
    if isinstance(stop, str) or any(not isinstance(s, str) or not s for s in stop):
        raise ConfigError(f"sampler.stop={stop!r}: expected a list of strings, none of them empty")
