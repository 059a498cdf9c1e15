"""Best of n: several samples of each item, of which a score keeps one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genlab import noise
from genlab.decoding.reading import ENDED, Decoded, Reader
from genlab.decoding.tokens import Show, TokenSampler
from genlab.judges import Judge
from genlab.modality import Text
from genlab.samples import Samples

Score = Callable[[Decoded, Reader], Tensor]


@dataclass(frozen=True)
class JudgeScore:
    """The score of a judge of texts; a continuation is judged with its prompt.

    Args:
        judge: genlab.judges.Judge.
    """

    judge: Judge

    def __call__(self, decoded: Decoded, reader: Reader) -> Tensor:
        texts: list[str] = reader.to_data(decoded.tokens)  # type: ignore[attr-defined]
        return self.judge(Samples(Text(), texts)).to(decoded.log_p.device)

    def __repr__(self) -> str:
        return f"JudgeScore({self.judge.name})"


@dataclass(frozen=True)
class MeanLogLikelihood:
    """The model's own log-probability of what is new, in nats a token (an empty continuation is the worst)."""

    def __call__(self, decoded: Decoded, reader: Reader) -> Tensor:
        worst = torch.full_like(decoded.log_p, -torch.inf)
        return torch.where(decoded.count > 0, decoded.log_p / decoded.count.clamp(min=1), worst)


@dataclass(frozen=True)
class BestOf(TokenSampler):
    """Samples each item n times and keeps the one of the highest score; the first of them is the plain sample.

    Args:
        n: samples an item.
        score: (Decoded of B rows, the model) -> float [B]. A score of one's own is a class; the texts are
            `model.to_data(decoded.tokens)`.
    """

    n: Annotated[int, "gt 0"] = 8
    score: Score = MeanLogLikelihood()

    streams: ClassVar[bool] = False

    @property
    def nfe(self) -> int:
        return self.n * self.max_new_tokens

    def record(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"score": repr(self.score)}

    def decode(self, reader: Reader, prompt: Tensor, seeds: Tensor, show: Show | None = None) -> Decoded:
        """See TokenSampler.decode; nothing is shown before the end."""
        roots = [seeds, *(noise.fold_in(seeds, k) for k in range(1, self.n))]
        drawn = [TokenSampler.decode(self, reader, prompt, root) for root in roots]
        scores = torch.stack([self.score(candidate, reader).double() for candidate in drawn])
        best, rows = scores.argmax(0), torch.arange(len(seeds), device=seeds.device)
        longest = max(candidate.tokens.shape[1] for candidate in drawn)
        tokens = [F.pad(candidate.tokens, (0, longest - candidate.tokens.shape[1]), value=ENDED) for candidate in drawn]
        log_p, count = (torch.stack([getattr(c, name) for c in drawn])[best, rows] for name in ("log_p", "count"))
        return Decoded(torch.stack(tokens)[best, rows], log_p, count)
