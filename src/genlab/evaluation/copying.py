"""What texts have in common with the training set: the longest passage, n-grams, the nearest document.

One pass over the documents, a block of them at a time, so memory does not grow with the training set. Tokens and
n-grams are 64-bit hashes in numpy; the judged texts' n-grams are a sorted set that the block's are looked up in. A run
of n + 1 tokens can only match where its first n do, so from the few places where the shortest n-gram matches, matches
grow a token at a time until none is left. Whatever is reported has then been compared token by token, as text, so no
collision of hashes can be reported as a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy import sparse

from genlab.data.documents import SCRIPTS

NEAREST = 3  # tokens of the n-grams by which documents are near
NEAR_COPY = 0.5  # see Copied.near_copy
PHRASE = 8  # see Copied.near_copy
PASSAGE = 64  # tokens at least of the passages that long documents are compared by
_BLOCK = 1 << 20  # characters read at a time
_FILTER = np.uint64((1 << 22) - 1)  # bits of a hash that are looked up before the hash itself
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_TEXT_END, _DOCUMENT_END = "\1", "\0"  # differ, so that no match goes across either
_SPACE, _WORD, _SINGLE = 0, 1, 2


def mixed(x: np.ndarray) -> np.ndarray:
    """A permutation of 64-bit words that leaves no structure (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Copied:
    """One text beside the training set.

    Attributes:
        tokens: of the text.
        length: tokens of its longest passage that stands in a training document too.
        passage: that passage, as it stands in the text.
        origin, offset: the document, and its character there at which the passage begins; None where length is 0.
        seen: n -> (its n-grams that stand in the training set, its n-grams), places, not kinds.
        jaccard: distinct trigrams of tokens in common with the nearest document / those of both; 0: none in common.
        nearest, nearest_origin: that document, or the passage of it (see copying), and where it is from.
    """

    tokens: int
    length: int = 0
    passage: str = ""
    origin: str | None = None
    offset: int | None = None
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    jaccard: float = 0.0
    nearest: str = ""
    nearest_origin: str | None = None

    @property
    def near_copy(self) -> bool:
        """Whether at least half of it is one passage of a training document, or half of the trigrams are shared; of
        texts of at least 8 tokens, as less is a phrase that anybody may write."""
        return self.tokens >= PHRASE and max(self.length / self.tokens, self.jaccard) >= NEAR_COPY


@cache
def _kinds() -> np.ndarray:
    """uint8 [0x110000]: white space, part of a word, or a token of its own."""
    kinds = np.full(0x110000, _SINGLE, dtype=np.uint8)
    for point in range(0x110000):
        character = chr(point)
        if character.isalnum() or character == "_" or 0x300 <= point < 0x370:
            kinds[point] = _WORD
        elif character.isspace():
            kinds[point] = _SPACE
    for script in ("han", "kana", "thai"):  # nothing stands between their words
        for first, last in SCRIPTS[script]:
            kinds[first : last + 1] = _SINGLE
    return kinds


class _Stream:
    """Texts one after another as tokens, each followed by the token `end`.

    Hashes of the tokens, uint64 [T], and where each begins and ends in `text`, int64 [T].
    """

    def __init__(self, texts: Sequence[str], end: str) -> None:
        self.text = "".join(text.replace(_TEXT_END, " ").replace(_DOCUMENT_END, " ") + end for text in texts)
        points = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        kind = _kinds()[points]
        word = kind == _WORD
        first = (kind == _SINGLE) | (word & ~np.concatenate([[False], word[:-1]]))
        last = (kind == _SINGLE) | (word & ~np.concatenate([word[1:], [False]]))
        self.starts, self.ends = np.flatnonzero(first), np.flatnonzero(last) + 1
        # A token's hash: the sum of its characters' hashes, each turned by its place in the token.
        place = np.arange(len(points))
        place -= np.maximum.accumulate(np.where(first, place, 0))
        turned = mixed(points.astype(np.uint64) + _FACTOR * (place + 1).astype(np.uint64))
        turned[kind == _SPACE] = 0
        self.hashes = mixed(np.add.reduceat(turned, self.starts))

    def words(self, at: int, n: int) -> list[str]:
        return [self.text[a:b] for a, b in zip(self.starts[at : at + n], self.ends[at : at + n], strict=True)]


def tokens_of(text: str) -> list[str]:
    """Runs of letters and digits; each Chinese, Japanese or Thai character; each other mark. White space is no token.
    In case, so only what was written alike is a copy."""
    stream = _Stream([text], _TEXT_END)
    return stream.words(0, len(stream.hashes) - 1)


def _grown(hashes: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Hashes of n-grams, each with one more token."""
    return mixed(hashes * _FACTOR + token)


def _ngrams(tokens: np.ndarray, n: int) -> np.ndarray:
    """Hashes of the n-gram at each place, uint64 [T - n + 1]."""
    count = max(0, len(tokens) - n + 1)
    hashes = tokens[:count]
    for j in range(1, n):
        hashes = _grown(hashes, tokens[j : j + count])
    return hashes


def _filtered(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Places whose hash is among `known`, which is sorted; int64."""
    table = np.zeros(int(_FILTER) + 1, dtype=bool)
    table[known & _FILTER] = True
    places = np.flatnonzero(table[hashes & _FILTER])
    return places[_among(hashes[places], known)]


def _among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool [len(hashes)]: which are among `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(hashes), dtype=bool)
    return known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes


def _longer(places: np.ndarray, hashes: np.ndarray, tokens: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and hashes of n-grams, from those of one token less, where there is one more."""
    inside = places + n <= len(tokens)
    places = places[inside]
    return places, _grown(hashes[inside], tokens[places + n - 1])


class _Judged:
    """The texts, as far as the documents up to now tell."""

    def __init__(self, texts: Sequence[str], ngrams: Sequence[int]) -> None:
        self.stream = _Stream(texts, _TEXT_END)
        hashes = self.stream.hashes
        end = hashes == hashes[-1]
        self.owner = np.cumsum(end) - end  # of each token
        counts = np.bincount(self.owner, minlength=len(texts)) - 1
        self.found = [Copied(int(count)) for count in counts]
        self.best = np.zeros(len(texts), dtype=np.int64)
        self.seen = {n: np.zeros(len(hashes), dtype=bool) for n in ngrams}
        self.passage = max(PASSAGE, int(counts.max()))
        last = np.arange(NEAREST - 1, len(hashes))  # of the n-grams that lie within a text
        inside = last[(self.owner[last] == self.owner[last - NEAREST + 1]) & ~end[last]] - NEAREST + 1
        kinds, index = np.unique(_ngrams(hashes, NEAREST)[inside], return_inverse=True)
        pairs = np.unique(np.stack([self.owner[inside], index]), axis=1)
        ones = np.ones(pairs.shape[1], dtype=np.int32)
        self.trigrams, shape = kinds, (len(texts), len(kinds))
        self.texts_by_trigrams = sparse.csr_array((ones, (pairs[0], pairs[1])), shape=shape)
        self.trigram_counts = np.bincount(pairs[0], minlength=len(texts))

    # ---- the longest passages and the n-grams

    def grow(self, block: _Block, places: np.ndarray, n: int, until: int | None = None) -> None:
        """Matches of at least n tokens that begin at `places` of the texts; shorter than `until`."""
        own, other = self.stream.hashes, block.stream.hashes
        places = places[places + n <= len(own)]
        mine, theirs = _ngrams(own, n)[places], _ngrams(other, n)
        there = _filtered(theirs, np.unique(mine))
        theirs = theirs[there]
        while n != until:
            order = np.argsort(theirs, kind="stable")
            known = theirs[order]
            kept = _among(mine, known)
            places, mine = places[kept], mine[kept]
            if not len(places):
                return
            self._note(block, places, there[order[np.searchsorted(known, mine)]], n)
            n += 1
            places, mine = _longer(places, mine, own, n)
            there, theirs = _longer(there, theirs, other, n)
            kept = _among(theirs, np.unique(mine))
            there, theirs = there[kept], theirs[kept]

    def _note(self, block: _Block, places: np.ndarray, matched: np.ndarray, n: int) -> None:
        """n tokens at `places` of the texts stand at `matched` of the block, if hashes do not deceive."""
        if n in self.seen:
            new = ~self.seen[n][places]
            for place, there in zip(places[new].tolist(), matched[new].tolist(), strict=True):
                self.seen[n][place] = self.stream.words(place, n) == block.stream.words(there, n)
        owners, first = np.unique(self.owner[places], return_index=True)
        for text, i in zip(owners.tolist(), first.tolist(), strict=True):
            place, there = int(places[i]), int(matched[i])
            if n > self.best[text] and self.stream.words(place, n) == block.stream.words(there, n):
                self.best[text] = n
                copied, stream = self.found[text], self.stream
                copied.length = n
                copied.passage = stream.text[stream.starts[place] : stream.ends[place + n - 1]]
                copied.origin, copied.offset = block.place(there)

    # ---- the nearest document

    def compare(self, block: _Block) -> None:
        """Shared trigrams with each passage of a block."""
        owner = block.passages(self.passage)
        hashes = _ngrams(block.stream.hashes, NEAREST)
        inside = np.flatnonzero((owner[: len(hashes)] == owner[NEAREST - 1 :]) & (owner[: len(hashes)] >= 0))
        if not len(inside) or not len(self.trigrams):
            return
        hashes, owner = hashes[inside], owner[inside]
        _, first = np.unique(mixed(hashes ^ mixed(owner.astype(np.uint64))), return_index=True)
        hashes, owner = hashes[first], owner[first]  # each trigram of a passage once
        sizes = np.bincount(owner)
        hits = _filtered(hashes, self.trigrams)
        rows, ones = np.searchsorted(self.trigrams, hashes[hits]), np.ones(len(hits), dtype=np.int32)
        by_passages = sparse.csr_array((ones, (rows, owner[hits])), shape=(len(self.trigrams), len(sizes)))
        shared = (self.texts_by_trigrams @ by_passages).tocsr()
        shared.sort_indices()
        for text, copied in enumerate(self.found):
            part = slice(shared.indptr[text], shared.indptr[text + 1])
            both, passages = shared.data[part], shared.indices[part]
            if len(both):
                jaccard = both / (self.trigram_counts[text] + sizes[passages] - both)
                best = int(jaccard.argmax())
                if jaccard[best] > copied.jaccard:
                    copied.jaccard = float(jaccard[best])
                    copied.nearest, copied.nearest_origin = block.passage(int(passages[best]))


class _Block:
    """Some of the documents, or a piece of a long one."""

    def __init__(self, documents: Sequence[tuple[str, int, str]]) -> None:
        self.origins = [(origin, offset) for origin, offset, _ in documents]
        self.stream = _Stream([text for _, _, text in documents], _DOCUMENT_END)
        end = self.stream.hashes == self.stream.hashes[-1]
        self.end, self.document = end, np.cumsum(end) - end
        last = np.flatnonzero(end)[:-1]
        self.first = np.concatenate([[0], last + 1])  # token of each document
        self.begins = np.concatenate([[0], self.stream.ends[last]])  # its first character

    def place(self, token: int) -> tuple[str, int]:
        document = int(self.document[token])
        origin, offset = self.origins[document]
        return origin, offset + int(self.stream.starts[token] - self.begins[document])

    def passages(self, length: int) -> np.ndarray:
        """Number of each token's passage, int64, -1 for the marks of the end. A document of more than twice `length`
        tokens is cut into passages of so many."""
        counts = np.bincount(self.document)
        parts = np.where(counts > 2 * length, -(-counts // length), 1)
        place = np.arange(len(self.end)) - self.first[self.document]
        numbers = (np.cumsum(parts) - parts)[self.document] + np.where(
            counts[self.document] > 2 * length, place // length, 0
        )
        numbers[self.end] = -1
        self._numbers = numbers
        return numbers

    def passage(self, number: int) -> tuple[str, str]:
        at = np.flatnonzero(self._numbers == number)
        text = self.stream.text[self.stream.starts[at[0]] : self.stream.ends[at[-1]]]
        return text, self.origins[int(self.document[at[0]])][0]


def _blocks(documents: Iterable[tuple[str, str]], overlap: int) -> Iterator[_Block]:
    waiting: list[tuple[str, int, str]] = []
    size = 0
    for origin, text in documents:
        for offset, piece in _pieces(text, overlap):
            waiting.append((origin, offset, piece))
            size += len(piece)
            if size >= _BLOCK:
                yield _Block(waiting)
                waiting, size = [], 0
    if waiting:
        yield _Block(waiting)


def _pieces(text: str, overlap: int) -> Iterator[tuple[int, str]]:
    """A long document in parts that overlap, so that every passage of `overlap` characters is whole in one of them;
    cut where no word is."""
    start = 0
    while len(text) - start > 2 * (_BLOCK + overlap):
        end = _between_words(text, start + _BLOCK + overlap)
        yield start, text[start:end]
        start = _between_words(text, start + _BLOCK)
    yield start, text[start:]


def _between_words(text: str, at: int) -> int:
    while at < len(text) and _kinds()[ord(text[at])] == _WORD:
        at += 1
    return at


def copying(texts: Sequence[str], documents: Iterable[tuple[str, str]], ngrams: Sequence[int] = (4, 8)) -> list[Copied]:
    """Each text beside the training set.

    Args:
        texts: at least one.
        documents: (where it is from, text) of each training document. One of more than twice the tokens of the longest
            text is compared in passages of so many, by which the nearest is told; longest passages and n-grams go
            across them.
        ngrams: lengths in tokens, see tokens_of.

    Raises:
        ValueError: no text.
    """
    if not texts:
        raise ValueError("there are no texts to judge")
    judged = _Judged(texts, ngrams)
    least = min(4, *ngrams)
    overlap = 4 * max(len(text) for text in texts)  # a passage may have more white space in the document
    everywhere = np.arange(len(judged.stream.hashes))
    for block in _blocks(documents, overlap):
        judged.grow(block, everywhere, least)
        short = everywhere[judged.best[judged.owner] < least]
        judged.grow(block, short, 1, least)
        judged.compare(block)
    for i, (text, copied) in enumerate(zip(texts, judged.found, strict=True)):
        mine, theirs = _kinds_of_trigrams(text), _kinds_of_trigrams(copied.nearest)
        copied.jaccard = len(mine & theirs) / max(1, len(mine | theirs))  # by the tokens themselves, not their hashes
        own = judged.owner == i
        copied.seen = {n: (int(seen[own].sum()), max(0, copied.tokens - n + 1)) for n, seen in judged.seen.items()}
    return judged.found


def _kinds_of_trigrams(text: str) -> set[tuple[str, ...]]:
    tokens = tokens_of(text)
    return {tuple(tokens[i : i + NEAREST]) for i in range(len(tokens) - NEAREST + 1)}
