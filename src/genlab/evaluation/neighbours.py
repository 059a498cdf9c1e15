"""Nearest neighbours among features: exact in float64, in blocks, and what is measured by them.

A float32 matrix product says which pairs can matter, with a proven bound on its rounding; the distances of these pairs
are then computed directly in float64. So results do not depend on the size of the blocks, the distance of equal
features is exactly 0, and memory stays below 1 GB for 50,000 x 50,000 features of 2,048 dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genlab.evaluation.network_extractor import exact_float32

CPU = torch.device("cpu")
ROWS, COLUMNS = 1024, 8192  # of a block of pairs
DIRECT = 1 << 23  # numbers in one direct computation: 64 MB of float64
DUPLICATE = 0.5  # see Memorisation.near_duplicates


@dataclass(frozen=True)
class Memorisation:
    """How near samples are to single items of the reference.

    r(g) is the item nearest to sample g, d(r) the distance of item r to its nearest other item.

    Attributes:
        nearest_distance: median over g of |g - r(g)|.
        authenticity: share of samples with |g - r(g)| > d(r(g)) (Alaa et al. 2022, arXiv 2102.08921, in this
            feature space). Less where items are copied; of new real items it was 0.59 (MNIST, mnist-cnn, 10,000 of
            each) and 0.86 (CIFAR-10, Inception, 2,000 against 5,000), so compare with the floor.
        near_duplicates: share of samples with |g - r(g)| <= d(r(g)) / 2. Half is the largest factor for which the balls
            of two items cannot overlap, so such a sample points to a single item. Items that have duplicates
            themselves have d = 0: only exact copies of those count.
    """

    nearest_distance: float
    authenticity: float
    near_duplicates: float


@exact_float32(CPU)
def nearest(
    queries: Tensor, items: Tensor, k: int = 1, own: Tensor | None = None, block: tuple[int, int] = (ROWS, COLUMNS)
) -> tuple[Tensor, Tensor]:
    """The k nearest items of each query, by Euclidean distance; of equally near ones the first.

    Args:
        queries: float [N, D], finite.
        items: float [M, D], finite.
        k: how many.
        own: int64 [N]: the item that each query is itself, which does not count; None: none does.
        block: queries and items compared at a time; does not change the result.

    Returns:
        Distances float64 [N, k], ascending, and indices int64 [N, k], on the CPU.

    Raises:
        ValueError: there are fewer than k items.
    """
    if k > len(items) - (own is not None):
        raise ValueError(f"{k} nearest neighbours of {len(items)} items: too few")
    rows, columns = block
    distances, indices = torch.empty(len(queries), k, dtype=torch.float64), torch.empty(len(queries), k).long()
    for start in range(0, len(queries), rows):
        part = queries[start : start + rows]
        best = torch.full((len(part), k), torch.inf, dtype=torch.float64)  # squared, exact, among the items so far
        index = torch.full((len(part), k), -1)
        for first, low, high in _bounds(part, items, columns):
            if own is not None:
                mine = own[start : start + rows] - first
                hit = (mine >= 0) & (mine < low.shape[1])
                low[hit, mine[hit]] = high[hit, mine[hit]] = torch.inf
            limit = best[:, -1:]
            if high.shape[1] >= k and limit.isinf().any():  # the first block
                limit = limit.minimum(high.topk(k, largest=False).values[:, -1:].double())
            pairs = ((low <= limit) & low.isfinite()).nonzero()
            best, index = _merge(best, index, pairs, first, _direct(part, items, pairs, first))
        distances[start : start + rows], indices[start : start + rows] = best.sqrt(), index
    return distances, indices


@exact_float32(CPU)
def density_coverage(
    generated: Tensor, real: Tensor, k: int = 5, block: tuple[int, int] = (ROWS, COLUMNS)
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, arXiv 2002.09797).

    With B_i the open ball around real item x_i that reaches to its k-th nearest other real item, over M samples y_j:
    density = 1/(k M) sum_j sum_i [y_j in B_i], coverage = 1/N sum_i [some y_j in B_i]. Balls are open as in the
    authors' code, so that the density of the real set itself is exactly 1.

    Args:
        generated: features [M, D], finite.
        real: features [N, D], finite, N > k.
    """
    radii = nearest(real, real, k, own=torch.arange(len(real)), block=block)[0][:, -1]
    rows, columns = block
    inside, covered = 0, 0
    for start in range(0, len(real), rows):
        part, radius = real[start : start + rows], radii[start : start + rows, None]
        counts = torch.zeros(len(part), dtype=torch.int64)
        for first, low, high in _bounds(part, generated, columns):
            sure = high.double() < radius.square() * (1 - 1e-12)
            counts += sure.sum(1)
            pairs = ((low.double() <= radius.square() * (1 + 1e-12)) & ~sure).nonzero()
            near = _direct(part, generated, pairs, first).sqrt() < radius[pairs[:, 0], 0]
            counts += torch.bincount(pairs[near, 0], minlength=len(part))
        inside += int(counts.sum())
        covered += int((counts > 0).sum())
    return inside / (k * len(generated)), covered / len(real)


def memorisation(generated: Tensor, real: Tensor) -> Memorisation:
    """See Memorisation. generated, real: features [M, D], [N, D], finite, N at least 2."""
    distance, own = distances(generated, real)
    return Memorisation(
        nearest_distance=distance.quantile(0.5).item(),
        authenticity=(distance > own).double().mean().item(),
        near_duplicates=(distance <= DUPLICATE * own).double().mean().item(),
    )


def distances(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """|g - r(g)| of each sample, and d(r(g)) of the item that is nearest to it, float64 [M] each; see Memorisation."""
    distance, index = (values[:, 0] for values in nearest(generated, real))
    hit, place = index.unique(return_inverse=True)
    return distance, nearest(real[hit], real, own=hit)[0][place, 0]


def closest_pairs(generated: Tensor, real: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The samples that are nearest to an item of the reference, nearest first, each with that item.

    Args:
        generated: features [M, D], finite.
        real: features [N, D], finite.
        count: how many pairs; at most M are there.

    Returns:
        Indices of samples int64 [count], of reference items int64 [count], distances float64 [count].
    """
    distance, index = (values[:, 0] for values in nearest(generated, real))
    chosen = distance.argsort(stable=True)[:count]
    return chosen, index[chosen], distance[chosen]


def _bounds(queries: Tensor, items: Tensor, columns: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first, low, high): squared distances to items[first : first + columns] lie between low and high, [n, columns].

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b in float32, whatever the order of its sums, is off by at most
    (D + 8) u (|a| + |b|)^2 (Higham 2002, section 3.1), u = 2^-24; twice that also covers the norms' own rounding.
    Features are moved by the first item, which leaves distances and makes |a| and |b| smaller.
    """
    slack = 2 * (items.shape[1] + 8) * 2.0**-24
    a = (queries - items[0]).float()
    a_norm = a.norm(dim=1, keepdim=True)
    for first in range(0, len(items), columns):
        b = (items[first : first + columns] - items[0]).float()
        b_norm = b.norm(dim=1)
        middle = torch.addmm(b_norm.square(), a, b.T, alpha=-2).add_(a_norm.square())
        error = (a_norm + b_norm).square_().mul_(slack)
        yield first, middle - error, middle.add_(error)


def _direct(queries: Tensor, items: Tensor, pairs: Tensor, first: int) -> Tensor:
    """Squared distances float64 [P] of queries[i] and items[first + j] for each row (i, j) of pairs, [P, 2]."""
    parts = [
        (queries[part[:, 0]].double() - items[first + part[:, 1]].double()).square_().sum(1)
        for part in pairs.split(max(1, DIRECT // items.shape[1]))
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def _merge(best: Tensor, index: Tensor, pairs: Tensor, first: int, squared: Tensor) -> tuple[Tensor, Tensor]:
    """The k nearest of those so far, [n, k], and of the new pairs; of equally near ones the lowest index."""
    counts = torch.bincount(pairs[:, 0], minlength=len(best))
    place = torch.arange(len(pairs)) - (counts.cumsum(0) - counts)[pairs[:, 0]]  # pairs are sorted by their rows
    fresh = torch.full((len(best), int(counts.max())), torch.inf, dtype=torch.float64)
    which = torch.full(fresh.shape, -1)
    fresh[pairs[:, 0], place], which[pairs[:, 0], place] = squared, first + pairs[:, 1]
    order = torch.cat([best, fresh], 1).argsort(dim=1, stable=True)[:, : best.shape[1]]
    return torch.cat([best, fresh], 1).gather(1, order), torch.cat([index, which], 1).gather(1, order)
