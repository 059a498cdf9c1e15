"""Beam search: the likeliest continuation that a search of fixed width finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from genlab.decoding.reading import ENDED, Decoded, Reader, Reading, Stops, lengths_of, most_steps
from genlab.decoding.tokens import Show, check_stop
from genlab.settings import check_settings


@dataclass(frozen=True)
class BeamSearch:
    """Of all continuations that end, the one of highest log p / lp(length) (Wu et al. 2016, arXiv 1609.08144).

    A continuation ends where a stop string does, or at max_new_tokens. A row is given up as soon as nothing that is
    left in its beam can do better, so the result is that of a search to the end. No randomness: seeds play no part.

    Args:
        max_new_tokens: longest continuation.
        beams: width of the search.
        alpha: of the length penalty lp(n) = ((offset + n) / (offset + 1))^alpha (equation 14 there, with offset 5); 0:
            log p itself, which favours short continuations.
        stop: strings at which a continuation ends, in what is new.
        offset: of the length penalty; 0, with alpha 1, ranks by the mean log p a token, as transformers and fairseq do.

    Raises:
        ConfigError: an empty stop string, a number out of its bounds.
    """

    max_new_tokens: Annotated[int, "gt 0"] = 256
    beams: Annotated[int, "gt 0"] = 5
    alpha: Annotated[float, "ge 0"] = 0.6
    stop: Sequence[str] = ()
    offset: Annotated[float, "ge 0"] = 5.0

    kind: ClassVar[str] = "tokens"  # see genlab.kinds
    streams: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "sampler.")
        check_stop(self.stop)

    @property
    def nfe(self) -> int:
        return self.max_new_tokens * self.beams

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def length_penalty(self, length: Tensor) -> Tensor:
        return ((self.offset + length.double()) / (self.offset + 1)) ** self.alpha

    def decode(self, reader: Reader, prompt: Tensor, seeds: Tensor, show: Show | None = None) -> Decoded:
        """See TokenSampler.decode; nothing is shown before the end."""
        rows, width, steps = len(prompt), self.beams, most_steps(self.max_new_tokens, reader)
        lengths = lengths_of(prompt)
        shortest, longest = int(lengths.min()), int(lengths.max())
        beams = prompt.new_full((rows, width, longest + steps), ENDED)
        beams[:, :, :longest] = prompt[:, None, :longest]
        scores = torch.full((rows, width), -math.inf, dtype=torch.float64, device=prompt.device)
        scores[:, 0] = 0  # the beams are still one
        best = torch.full((rows,), -math.inf, dtype=torch.float64, device=prompt.device)
        best_log_p, best_tokens = best.clone(), beams[:, 0].clone()
        largest = self.length_penalty(torch.tensor(steps))
        base = torch.arange(rows, device=prompt.device)[:, None] * width
        same = torch.arange(width, device=prompt.device).expand(rows, -1)
        reading, stops = Reading(reader), Stops(self.stop, reader)
        done, t = torch.zeros(rows, dtype=torch.bool, device=prompt.device), shortest
        while t < longest + steps and not bool(done.all()):
            log_p = reading.logits(beams[:, :, :t].flatten(0, 1)).double().log_softmax(1).unflatten(0, (rows, width))
            vocabulary = log_p.shape[2]
            k = t - lengths
            active = (k >= 0) & ~done
            # Twice as many candidates as beams: enough go on even if each beam has one that ends.
            found, index = (scores[:, :, None] + log_p).flatten(1).topk(min(2 * width, width * vocabulary))
            origin, token = index // vocabulary, index % vocabulary
            candidates = beams.gather(1, origin[:, :, None].expand(-1, -1, beams.shape[2]))
            candidates[:, :, t] = token
            n = candidates.shape[1]
            ends = stops.met(
                candidates[:, :, : t + 1].flatten(0, 1), lengths.repeat_interleave(n), active.repeat_interleave(n)
            ).unflatten(0, (rows, n))
            # What ends counts if it is among the first `beams` (as in transformers); at the last step all ends.
            counts = active[:, None] & torch.where((k + 1 == steps)[:, None], ~ends, False)
            counts[:, :width] |= active[:, None] & ends[:, :width]
            value = torch.where(counts, found / self.length_penalty(k + 1)[:, None], -math.inf)
            top, at = value.max(1)
            better = top > best
            best = torch.where(better, top, best)
            best_log_p = torch.where(better, found.gather(1, at[:, None])[:, 0], best_log_p)
            winners = candidates[torch.arange(rows, device=at.device), at]
            best_tokens = torch.where(better[:, None], winners, best_tokens)
            kept, at = found.masked_fill(ends, -math.inf).topk(width)
            # Rows within their prompt and rows that are done keep their beams.
            origin = torch.where(active[:, None], origin.gather(1, at), same)
            moved = candidates.gather(1, at[:, :, None].expand(-1, -1, beams.shape[2]))
            beams = torch.where(active[:, None, None], moved, beams)
            scores = torch.where(active[:, None], kept, scores)
            done |= active & ((best >= scores[:, 0] / largest) | (k + 1 == steps))
            reading.select((base + origin).flatten())
            t += 1
        count = lengths_of(best_tokens) - lengths
        return Decoded(best_tokens[:, : int((lengths + count).max())], best_log_p, count)
