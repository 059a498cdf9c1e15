"""Near duplicates by MinHash and locality-sensitive hashing (Broder, "On the resemblance and containment of documents",
1997; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", 3.3 and 3.4). The signatures are rensa's."""

from __future__ import annotations

import re

import numpy as np
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Kept in the report of a prepared folder; another implementation draws other hash functions.
IMPLEMENTATION = f"rensa.RMinHash {RMinHash.ALGORITHM_VERSION}"
_CHUNK = 1 << 16  # shingles hashed at a time: a long document's are never all in memory
_NEIGHBOURS = 8  # places in a bucket that are compared with one another, beside its first
_SPACE = re.compile(r"\s+")


def signature(text: str, shingle: int = 9, permutations: int = 128, seed: int = 0) -> np.ndarray:
    """uint32 [permutations], a function of the set of a text's shingles and of the seed.

    The share of equal words of two signatures estimates the Jaccard index of the two sets of shingles, with a standard
    error of at most sqrt(J (1 - J) / permutations).

    Args:
        text: compared without case and with every run of spaces as one space.
        shingle: characters.
        permutations: words of the signature.
        seed: of the hash functions.
    """
    text = _SPACE.sub(" ", text).strip().casefold().ljust(shingle, "\0")
    sketch, count = RMinHash(permutations, seed), len(text) - shingle + 1
    for first in range(0, count, _CHUNK):
        sketch.update([text[i : i + shingle] for i in range(first, min(first + _CHUNK, count))])
    return np.array(sketch.digest(), dtype=np.uint32)


def clusters(signatures: np.ndarray, threshold: float, rows: int = 4) -> np.ndarray:
    """Clusters of near duplicates: int64 [n], the least member of each document's cluster.

    Two documents are candidates if all words of one band of `rows` words agree (with J = 0.7 and 32 bands of 4 words:
    99.98 % of pairs), and are joined if the share of equal words of their signatures is at least `threshold`. Clusters
    are transitive. Within a bucket of more than 9 documents not every pair is compared, so that a bucket of n costs
    O(n): rensa's own LSH would give n candidates to each.

    Args:
        signatures: uint32 [n, permutations].
        threshold: of the Jaccard index, as the signatures estimate it.
    """
    n, permutations = signatures.shape
    joined = [np.zeros((2, 0), dtype=np.int64)]
    for band in range(0, permutations - rows + 1, rows):
        words = signatures[:, band : band + rows]
        order = np.lexsort(words.T)  # the documents of a bucket lie side by side
        new = np.append(True, (words[order[1:]] != words[order[:-1]]).any(1))[:n]
        bucket = np.cumsum(new) - 1
        pairs = [(order[np.flatnonzero(new)[bucket]], order)]  # each with the first of its bucket
        for step in range(1, _NEIGHBOURS + 1):
            near = bucket[step:] == bucket[:-step]
            pairs.append((order[:-step][near], order[step:][near]))
        for a, b in pairs:
            a, b = a[a != b], b[a != b]
            for first in range(0, len(a), 1 << 16):
                i, j = a[first : first + (1 << 16)], b[first : first + (1 << 16)]
                same = (signatures[i] == signatures[j]).mean(1) >= threshold
                joined.append(np.stack([i[same], j[same]]))
    edges = np.concatenate(joined, axis=1)
    graph = coo_array((np.ones(edges.shape[1], dtype=bool), tuple(edges)), shape=(n, n))
    label = connected_components(graph, directed=False)[1] if n else np.zeros(0, dtype=np.int64)
    return np.unique(label, return_index=True)[1][label]
