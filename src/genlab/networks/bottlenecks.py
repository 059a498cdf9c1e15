"""What stands between encoder and decoder of a first stage: a Gaussian, a codebook or several, or rounded numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from genlab import noise
from genlab.errors import ConfigError
from genlab.noise import Stream


class Bottleneck(nn.Module, ABC):
    """Encoder's output -> latent. In training it may gather what `moved` then takes up, once an optimizer step."""

    @abstractmethod
    def forward(self, h: Tensor, keys: Tensor, gather: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """The latent, and losses: "bottleneck" is added to what is minimised, the others are reported.

        Args:
            h: of the encoder, [B, D, h, w].
            keys: of the noise, int64 [B].
            gather: whether, in training, anything is gathered for `moved`.

        Returns:
            z [B, C, h, w], scalars by name.
        """

    @abstractmethod
    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """A latent [B, *shape] without an encoder, independent over positions."""

    def snap(self, h: Tensor) -> Tensor:
        """What is decoded, from what a latent model makes in the place of the encoder's output (a Gaussian's mean)."""
        return self(h, torch.zeros(len(h), dtype=torch.int64, device=h.device), gather=False)[0]

    def moved(self, finite: bool) -> None:
        """After a step of the autoencoder; `finite` says whether it was taken."""


class KL(Bottleneck):
    """z ~ N(mu, exp(logvar)), held near N(0, 1) by a small weight (arXiv 2112.10752, appendix G).

    Args:
        weight: of the KL, which is summed over the latent and divided by the number of pixels and channels, as the
            reconstruction is.
        shape: [C, H, W] of the images.
    """

    def __init__(self, shape: list[int], weight: Annotated[float, "ge 0"] = 1e-6) -> None:
        super().__init__()
        self.pixels, self.weight = math.prod(shape), weight

    def forward(self, h: Tensor, keys: Tensor, gather: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        mu, logvar = h.float().chunk(2, 1)
        logvar = logvar.clamp(-30, 20)  # as diffusers' DiagonalGaussianDistribution
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
        z = mu
        if self.training:  # else the mode
            z = mu + (0.5 * logvar).exp() * noise.normal(keys, (Stream.POSTERIOR, 0), mu.shape[1:])
        return z.to(h.dtype), {"bottleneck": self.weight * kl / self.pixels, "kl": kl}

    def snap(self, h: Tensor) -> Tensor:
        return h

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        return noise.normal(seeds, Stream.INITIAL, shape)


class VectorQuantiser(Bottleneck):
    """The nearest vector of a codebook (van den Oord et al. 2017, arXiv 1711.00937), which follows the encoder as a
    moving average (appendix A.1); vectors hardly used begin anew from the data (arXiv 2005.00341, section 3.2).

    Counts and sums are gathered over micro-batches and ranks, so that a step is that of one large batch.

    Args:
        codes: K, vectors in the codebook.
        dim: of each; the channels of z.
        commitment: beta of equation 3, weight of |h - sg(z)|^2.
        decay: gamma of the averages, an optimizer step.
        restart_below: average uses a step below which a vector begins anew; 0: never.

    Attributes:
        codebook: float32 [K, dim].
    """

    OFFERED = 8  # vectors that each item offers for a new beginning

    codebook: Tensor
    uses: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        codes: Annotated[int, "gt 1"],
        dim: Annotated[int, "gt 0"],
        commitment: Annotated[float, "ge 0"] = 0.25,
        decay: Annotated[float, "ge 0, lt 1"] = 0.99,
        restart_below: Annotated[float, "ge 0"] = 0.1,
    ) -> None:
        super().__init__()
        self.commitment, self.decay, self.restart_below = commitment, decay, restart_below
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("uses", torch.ones(codes))  # N_i; the first step takes its vectors from the data
        self.register_buffer("sums", torch.zeros(codes, dim))  # m_i
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._gathered: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(self, h: Tensor, keys: Tensor, gather: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        rows = h.float().permute(0, 2, 3, 1)
        flat = rows.flatten(0, 2)
        codes = self.nearest(flat)
        z = self.vectors(codes.view(rows.shape[:-1]))
        uses = F.one_hot(codes, len(self.codebook)).float()
        if self.training and gather:
            places = (noise.uniform(keys, Stream.CODES, (self.OFFERED,)) * rows[0, :, :, 0].numel()).long()
            offered = torch.gather(rows.flatten(1, 2), 1, places[:, :, None].expand(-1, -1, rows.shape[-1]))
            self._gathered.append((uses.sum(0), uses.T @ flat.detach(), keys, offered.detach()))
        perplexity = _perplexity(uses.sum(0))
        commitment = (h.float() - z.detach()).square().mean()
        z = h + (z.to(h.dtype) - h).detach()  # the straight-through estimator
        return z, {"bottleneck": self.commitment * commitment, "commitment": commitment, "perplexity": perplexity}

    def nearest(self, flat: Tensor) -> Tensor:
        """Rows [N, dim] -> int64 [N]."""
        with torch.autocast(flat.device.type, enabled=False):
            return (self.codebook.square().sum(1) - 2 * flat @ self.codebook.T).argmin(1)

    def codes(self, h: Tensor) -> Tensor:
        """[B, dim, h, w] -> places in the codebook, int64 [B, h, w]."""
        rows = h.float().permute(0, 2, 3, 1)
        return self.nearest(rows.flatten(0, 2)).view(rows.shape[:-1])

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] -> float32 [B, dim, h, w]."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    @torch.no_grad()
    def moved(self, finite: bool) -> None:
        gathered, self._gathered = self._gathered, []
        if not finite or not gathered:
            return
        uses, sums = (torch.stack([part[i] for part in gathered]).sum(0) for i in (0, 1))
        keys, offered = (_of_all_ranks(torch.cat([part[i] for part in gathered])) for i in (2, 3))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(uses)
            dist.all_reduce(sums)
        self.uses.lerp_(uses, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        dead = (self.uses < self.restart_below) | (self.steps == 0)
        # In the order of the keys, which is that of no rank; then an item's offers lie far apart.
        choice = offered[keys.argsort()].transpose(0, 1).flatten(0, 1)
        rank = (dead.cumsum(0) - 1).clamp(min=0) % len(choice)
        self.uses.copy_(torch.where(dead, max(self.restart_below, 1.0), self.uses))
        self.sums.copy_(torch.where(dead[:, None], choice[rank] * self.uses[:, None], self.sums))
        self.codebook.copy_(self.sums / self.uses[:, None].clamp(min=1e-6))
        self.steps += 1

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """Codes as often as they are used."""
        edges = (self.uses / self.uses.sum()).cumsum(0)
        places = noise.uniform(seeds, Stream.CODES, shape[1:])
        codes = torch.searchsorted(edges, places.flatten()).clamp(max=len(edges) - 1)
        return F.embedding(codes, self.codebook).view(len(seeds), *shape[1:], shape[0]).permute(0, 3, 1, 2)


class ResidualQuantiser(Bottleneck):
    """Several codebooks, each of what those before it have left over (SoundStream, arXiv 2107.03312, algorithm 1): z is
    the sum of their vectors, and fewer levels are a coarser z of fewer bits.

    In training each item is decoded from a number of levels drawn from `kept` (quantizer dropout, section III-C), so
    that one model is one of several bit rates; codebooks of levels that are left out learn all the same. A level begins
    a step after the one before, so that what it takes from the data is what that one leaves.

    Args:
        levels: number of codebooks.
        kept: numbers of levels that training decodes from, each as often.
        codes: vectors in each; see VectorQuantiser, as the others.

    Raises:
        ConfigError: a number of levels that there is not.
    """

    def __init__(
        self,
        levels: Annotated[int, "gt 0"],
        codes: Annotated[int, "gt 1"],
        dim: Annotated[int, "gt 0"],
        kept: Sequence[int] = (),
        commitment: Annotated[float, "ge 0"] = 0.25,
        decay: Annotated[float, "ge 0, lt 1"] = 0.99,
        restart_below: Annotated[float, "ge 0"] = 0.1,
    ) -> None:
        super().__init__()
        self.levels, self.size = levels, codes
        if wrong := [n for n in kept if not 1 <= n <= levels]:
            raise ConfigError(
                f"model.bottleneck.kept={list(kept)}: {wrong[0]} of {levels} levels; expected 1 to {levels}"
            )
        self.register_buffer("kept", torch.tensor(list(kept) or [levels]), persistent=False)
        books = [VectorQuantiser(codes, dim, commitment, decay, restart_below) for _ in range(levels)]
        for book in books:
            book.codebook.zero_()  # leaves all to the next until it has begun
        self.books: Any = nn.ModuleList(books)

    kept: Tensor

    def forward(self, h: Tensor, keys: Tensor, gather: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        drawn = (noise.uniform(keys, (Stream.CODES, 1), ()) * len(self.kept)).long()
        count = self.kept[drawn] if self.training else self.kept.new_full((len(h),), self.levels)
        rest, z, parts = h.float(), torch.zeros_like(h, dtype=torch.float32), []
        for level, book in enumerate(self.books):
            vectors, part = book(rest, keys, gather)
            vectors = vectors.detach()
            z = z + vectors * (level < count).view(-1, 1, 1, 1)
            rest = rest - vectors
            parts.append(part)
        report = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return h + (z.to(h.dtype) - h).detach(), report

    def codes(self, h: Tensor) -> Tensor:
        """[B, dim, h, w] -> places in the codebooks, int64 [B, levels, h, w]."""
        rest, codes = h.float(), []
        for book in self.books:
            codes.append(book.codes(rest))
            rest = rest - book.vectors(codes[-1])
        return torch.stack(codes, 1)

    def vectors(self, codes: Tensor) -> Tensor:
        """int64 [B, n, h, w] of the first n levels -> z, float32 [B, dim, h, w].

        Raises:
            ConfigError: more levels than there are, or none.
        """
        if not 1 <= codes.shape[1] <= self.levels:
            raise ConfigError(f"codes of {codes.shape[1]} levels: expected 1 to {self.levels}")
        parts = [book.vectors(codes[:, i]) for i, book in enumerate(self.books) if i < codes.shape[1]]
        return torch.stack(parts).sum(0)

    def moved(self, finite: bool) -> None:
        begun = [True, *(bool(book.steps > 0) for book in self.books[:-1])]  # whether the level before has begun
        for book, ready in zip(self.books, begun, strict=True):
            book.moved(finite and ready)

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """Codes as often as they are used, those of different levels independent."""
        parts = [book.draw(noise.fold_in(seeds, level), shape) for level, book in enumerate(self.books)]
        return torch.stack(parts).sum(0)


class FSQ(Bottleneck):
    """Each channel rounded to a few levels (Mentzer et al. 2023, arXiv 2309.15505, section 3.1 and appendix A.1): a
    codebook of prod(levels) that is not learned.

    Args:
        levels: of each channel of z, e.g. [8, 5, 5, 5] for 1,000 codes.
    """

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.codes = math.prod(levels)

    levels: Tensor

    def forward(self, h: Tensor, keys: Tensor, gather: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        levels = self.levels.view(-1, 1, 1)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = (h.float() + (offset / half).atanh()).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        digits = (rounded.detach().long() + levels // 2).movedim(1, -1).flatten(0, -2)
        basis = torch.cat([self.levels.new_ones(1), self.levels.cumprod(0)[:-1]])
        perplexity = _perplexity(torch.bincount((digits * basis).sum(1), minlength=self.codes))
        z = rounded / (levels // 2)
        return z.to(h.dtype), {"bottleneck": h.new_zeros(()), "perplexity": perplexity}

    def draw(self, seeds: Tensor, shape: Sequence[int]) -> Tensor:
        """All codes equally often."""
        levels = self.levels.view(-1, 1, 1)
        digits = (noise.uniform(seeds, Stream.CODES, shape) * levels).floor()
        return (digits - levels // 2) / (levels // 2)


def _perplexity(uses: Tensor) -> Tensor:
    """exp(entropy) of how often codes are used, [K] -> scalar: K if all equally often."""
    share = uses / uses.sum()
    return torch.exp(-torch.special.xlogy(share, share).sum())


def _of_all_ranks(rows: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks, each of which has as many."""
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
