"""Contrastive losses: an image and its text lie nearer to each other than to those of other pairs of the batch.

The batch is a micro-batch over all ranks, whose vectors are gathered with their gradients: on any number of ranks
losses and gradients are those of one process. Micro-batches that are accumulated are no negatives of each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from genlab import noise

Positive = Annotated[float, "gt 0"]


class Similarity(NamedTuple):
    """Cosines of b pairs, a rank's own, with all N pairs of the batch.

    Attributes:
        image: of each own image with all texts, float32 [b, N].
        text: of each own text with all images, float32 [b, N].
        own: which of the N each is, int64 [b].
        ignored: which others are no negatives of it, bool [b, N].
    """

    image: Tensor
    text: Tensor
    own: Tensor
    ignored: Tensor

    def recall(self) -> dict[str, Tensor]:
        """R@1 in the batch both ways: shares of images and texts that have no negative as near as their own."""
        out = {}
        for name, rows in (("image_to_text_r1", self.image), ("text_to_image_r1", self.text)):
            others = rows.masked_fill(self.ignored, -torch.inf).scatter(1, self.own[:, None], -torch.inf)
            out[name] = (others.amax(1) < rows.gather(1, self.own[:, None])[:, 0]).float().mean()
        return out


def compare(image: Tensor, text: Tensor, keys: Tensor, even: bool = True) -> Similarity:
    """The pairs of this rank with those of all ranks. Every rank must call it.

    Args:
        image: float [b, E], of length 1.
        text: likewise; row i of both is a pair.
        keys: int64 [b]; pairs of equal keys (one caption, two pictures) are no negatives of each other.
        even: whether all ranks have as many pairs.
    """
    with torch.autocast(image.device.type, enabled=False):
        own = torch.stack([image.float(), text.float()], 1)
        (vectors, names), first = _of_all_ranks(own, keys, even=even)
        place = first + torch.arange(len(keys), device=keys.device)
        ignored = (keys[:, None] == names).scatter(1, place[:, None], False)
        return Similarity(own[:, 0] @ vectors[:, 1].T, own[:, 1] @ vectors[:, 0].T, place, ignored)


def keys_of(rows: Tensor) -> Tensor:
    """Keys of rows of token ids, int64 [B, L] with -1 after the end -> int64 [B]: equal for equal rows, whatever L; two
    others are equal by a chance of about 2^-63."""
    words = noise.bits(torch.arange(rows.shape[1], device=rows.device), noise.Stream.FOLD, 2)
    return ((rows + 1) * ((words[:, 0] << 32) | words[:, 1])).sum(1)


class Contrastive(nn.Module, ABC):
    """Similarity -> a scalar, whose mean over ranks is the loss of the batch.

    Args:
        temperature: by which cosines are divided at first; it is learned.
        largest_scale: what the learned factor is clipped at (arXiv 2103.00020, section 2.5).

    Attributes:
        logit_scale: the logarithm of that factor.
    """

    def __init__(self, temperature: Positive, largest_scale: Positive = 100.0) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.highest = math.log(largest_scale)

    def scale(self) -> Tensor:
        """The factor; after a step that took it beyond its bound, back at that."""
        if self.training:
            with torch.no_grad():  # in place, so that its gradient does not vanish there
                self.logit_scale.clamp_(max=self.highest)
        return self.logit_scale.exp()

    @abstractmethod
    def forward(self, similarity: Similarity) -> Tensor: ...


class InfoNCE(Contrastive):
    """Symmetric cross-entropy of which text belongs to an image and the reverse (Radford et al. 2021, CLIP, arXiv
    2103.00020, figure 3).

    Args:
        temperature: see Contrastive; the paper begins with 0.07.
        largest_scale: see Contrastive.
    """

    def __init__(self, temperature: Positive = 0.07, largest_scale: Positive = 100.0) -> None:
        super().__init__(temperature, largest_scale)

    def forward(self, similarity: Similarity) -> Tensor:
        """See Contrastive."""
        scale, losses = self.scale(), []
        for rows in (similarity.image, similarity.text):
            logits = (scale * rows).masked_fill(similarity.ignored, -torch.inf)  # I T^t exp(t)
            losses.append(F.cross_entropy(logits, similarity.own))
        return (losses[0] + losses[1]) / 2


class SigLIP(Contrastive):
    """Each pair of an image and a text for itself: do they belong together? (Zhai et al. 2023, arXiv 2303.15343,
    equation 1 and algorithm 1.)

    Args:
        temperature: see Contrastive; the paper begins with 0.1.
        bias: of the logits at first; it is learned (section 3.2: -10, since nearly all pairs are negatives).
        largest_scale: see Contrastive.

    Attributes:
        logit_bias: the bias.
    """

    def __init__(self, temperature: Positive = 0.1, bias: float = -10.0, largest_scale: Positive = 100.0) -> None:
        super().__init__(temperature, largest_scale)
        self.logit_bias = nn.Parameter(torch.tensor(bias))

    def forward(self, similarity: Similarity) -> Tensor:
        """See Contrastive."""
        logits = self.scale() * similarity.image + self.logit_bias
        sign = torch.full_like(logits, -1.0).scatter(1, similarity.own[:, None], 1.0)  # z_ij
        return -F.logsigmoid(sign * logits).masked_fill(similarity.ignored, 0).sum() / len(logits)


class _Gathered(torch.autograd.Function):
    """Rows of all ranks in their order; a rank's rows get the sum of the gradients that they have on all ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def _of_all_ranks(*rows: Tensor, even: bool) -> tuple[list[Tensor], int]:
    """Rows of all ranks, and where this rank's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return list(rows), 0
    counts = [len(rows[0])] * dist.get_world_size()
    if not even:
        dist.all_gather_object(counts, len(rows[0]))
    most, whole = max(counts), []
    for part in rows:
        padded = F.pad(part, (0, 0) * (part.ndim - 1) + (0, most - len(part)))
        shares = _Gathered.apply(padded).split(most)
        whole.append(torch.cat([share[:count] for share, count in zip(shares, counts, strict=True)]))
    return whole, sum(counts[: dist.get_rank()])
