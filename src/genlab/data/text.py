"""Text data modules: one UTF-8 file, a token a character or in the vocabulary of a pretrained model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from tokenizers import Tokenizer

from genlab.data.characters import Alphabet, read_tokens, text_blocks
from genlab.data.documents import count_units
from genlab.data.fetch import data_root, fetch, find
from genlab.data.manifest import Manifest, digest
from genlab.data.module import Common, DataModule, Loader, Split
from genlab.data.sources import Source, Tokens, widened
from genlab.data.streams import ContiguousTokens, Windows, windowed
from genlab.data.vocabulary import read_vocabulary, vocabulary_digest
from genlab.errors import ConfigError


class WholeText(DataModule):
    """Splits that are one text each. A subclass asserts its vocabulary in `load`.

    Raises:
        ConfigError: block_size is no positive integer.
    """

    modality = "text"
    tokenizer: Tokenizer

    def __init__(self, name: str, vocab_size: int, block_size: int, windows: Windows, **common: Unpack[Common]) -> None:
        super().__init__(name, **common)
        if not isinstance(block_size, int) or block_size < 1:
            raise ConfigError(f"data.block_size={block_size!r} must be a positive integer")
        self.vocab_size, self.block_size, self.windows = vocab_size, block_size, windows

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """The whole split: the file is one document."""
        yield self.name, self.text(split)

    def text(self, split: Split) -> str:
        """The whole text of a split."""
        source = self.source(split)
        assert isinstance(source, Tokens | ContiguousTokens)
        return self.tokenizer.decode(widened(source.tokens).tolist(), skip_special_tokens=False)


class CharacterText(WholeText):
    """A text file as characters. A batch has "input_ids" and "labels", int64 [B, block_size]; labels are shifted.

    train is the first `train_fraction` of the characters and val the rest, as nanoGPT splits; test is an alias of val.

    Args:
        path: of the file, UTF-8; None = the standard set of this name, fetched at first use.
        vocab_size: number of distinct characters of the whole file; asserted (the right number is answered to a wrong
            one).
        block_size: T, tokens a window.
        train_fraction: of the characters.
        windows: "random": at random offsets by (seed, epoch, id) in training, one after another in val and test;
            "contiguous": all splits in batch_size (val_batch_size) rows that go on from batch to batch, for
            model.carried_state.
    """

    def __init__(
        self,
        name: str,
        *,
        vocab_size: int,
        block_size: int,
        path: str | None = None,
        train_fraction: float = 0.9,
        windows: Windows = "random",
        modality: Literal["text"] = "text",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(name, vocab_size, block_size, windows, **common)
        if not 0 < train_fraction < 1:
            raise ConfigError(f"data.train_fraction={train_fraction} must lie between 0 and 1")
        self.path, self.train_fraction = path, train_fraction
        self._tokens: dict[str, torch.Tensor] = {}
        self._alphabet: Alphabet

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        path = fetch(self.name) / find(self.name).files[0].name if self.path is None else Path(self.path).expanduser()
        tokens, alphabet, sha256 = read_tokens(path, data_root() / "tokens")
        if len(alphabet) != self.vocab_size:
            raise ConfigError(
                f"{path} has {len(alphabet)} distinct characters, data.vocab_size is {self.vocab_size}; "
                f"set data.vocab_size={len(alphabet)}"
            )
        self.tokenizer = alphabet.tokenizer()
        n = len(tokens)
        cut = int(n * self.train_fraction)
        train = windowed(tokens[:cut], self.block_size, self.windows, self.batch_size, self.seed, f"{path} (train)")
        val = windowed(tokens[cut:], self.block_size, self.windows, self.val_batch_size, None, f"{path} (val)")
        splits: dict[str, dict[str, Any]] = {}
        parts: tuple[tuple[Split, Source, int, int], ...] = (("train", train, 0, cut), ("val", val, cut, n))
        for split, source, lo, hi in parts:
            self._tokens[split] = tokens[lo:hi]
            note = f"characters {lo} to {hi}"
            splits[split] = {"count": len(source), "tokens": hi - lo, "sha256": digest([sha256, lo, hi]), "from": note}
        self._tokens["test"], self._alphabet = self._tokens["val"], alphabet
        splits["test"] = {**splits["val"], "from": "alias of val"}
        vocabulary = {"vocab_size": len(alphabet), "vocabulary_sha256": vocabulary_digest(self.tokenizer)}
        facts = {**vocabulary, "block_size": self.block_size, "unit": "character"}
        return {"train": train, "val": val, "test": val}, Manifest(self.name, self.modality, facts, splits)

    def bytes_per_token(self, split: Split) -> float:
        self.setup()
        return self._alphabet.utf8_bytes(self._tokens[split]) / len(self._tokens[split])

    def units_per_token(self, split: Split) -> dict[str, float]:
        return {unit: n / len(self.text(split)) for unit, n in count_units([self.text(split)]).items()}


class TokenizedText(WholeText):
    """A text file in the vocabulary of a pretrained model. A batch as that of `CharacterText`.

    The text is split by characters, each split is then encoded whole (nanoGPT's data/shakespeare), nothing added. It
    is encoded at every start, so this is for texts of some MB; `genlab.data.corpus.Corpus` is for larger ones.

    Args:
        tokenizer: a tokenizer.json, a folder with one, or a name that scripts/fetch_data.py knows.
        path: as of `CharacterText`.
        vocab_size: tokens of the vocabulary; asserted.
        block_size: T, tokens a window.
        train_fraction: of the characters; 0: all are val, and train an alias that is refused in training.
        characters: only the first so many of the file; None: all.
        windows: as of `CharacterText`.
    """

    def __init__(
        self,
        name: str,
        *,
        tokenizer: str,
        vocab_size: int,
        block_size: int,
        path: str | None = None,
        train_fraction: float = 0.9,
        characters: int | None = None,
        windows: Windows = "random",
        modality: Literal["text"] = "text",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(name, vocab_size, block_size, windows, **common)
        if not 0 <= train_fraction < 1:
            raise ConfigError(f"data.train_fraction={train_fraction} must lie between 0 and 1; 0: nothing to train on")
        if characters is not None and characters < 1:
            raise ConfigError(f"data.characters={characters} must be positive, or null")
        self.path, self.given = path, tokenizer
        self.train_fraction, self.characters = train_fraction, characters
        self._units: dict[str, dict[str, float]] = {}

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        path = fetch(self.name) / find(self.name).files[0].name if self.path is None else Path(self.path).expanduser()
        self.tokenizer = read_vocabulary(self.given, self.vocab_size)
        text = "".join(text_blocks(path))[: self.characters]
        if not text:
            raise ConfigError(f"{path}: empty, 0 characters")
        cut = int(len(text) * self.train_fraction)
        sources: dict[Split, Source] = {}
        splits: dict[str, dict[str, Any]] = {}
        parts: tuple[tuple[Split, int, int], ...] = (("train", 0, cut), ("val", cut, len(text)))
        for split, lo, hi in parts:
            if lo == hi:
                continue
            ids = np.array(self.tokenizer.encode(text[lo:hi], add_special_tokens=False).ids, dtype=np.int64)
            wide = self.vocab_size > 1 << 16
            stored = torch.from_numpy(ids.astype(np.int32) if wide else ids.astype(np.uint16).view(np.int16))
            rows, seed = (self.batch_size, self.seed) if split == "train" else (self.val_batch_size, None)
            source = windowed(stored, self.block_size, self.windows, rows, seed, f"{path} ({split})")
            sources[split] = source
            predicted = self.tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False)
            self._units[split] = {unit: n / max(len(ids) - 1, 1) for unit, n in count_units([predicted]).items()}
            note = f"characters {lo} to {hi}"
            facts = {"tokens": len(ids), "sha256": digest(ids.tobytes()), "from": note}
            splits[split] = {"count": len(source), **facts}
        aliases: tuple[Split, ...] = ("train", "test")
        for split in aliases:
            if split not in sources:
                sources[split], splits[split] = sources["val"], {**splits["val"], "from": "alias of val"}
                self._units[split] = self._units["val"]
        vocabulary = {"vocab_size": self.vocab_size, "vocabulary_sha256": vocabulary_digest(self.tokenizer)}
        facts = {**vocabulary, "block_size": self.block_size, "unit": "pretrained token"}
        return sources, Manifest(self.name, self.modality, facts, splits)

    def train_loader(self, *args: Any, **options: Any) -> Loader:
        """See DataModule.train_loader.

        Raises:
            ConfigError: all of the text is held out.
        """
        if not self.train_fraction:
            raise ConfigError("data.train_fraction=0: this text is for evaluation only; there is nothing to train on")
        return super().train_loader(*args, **options)

    def bytes_per_token(self, split: Split) -> float:
        return self.units_per_token(split)["byte"]

    def units_per_token(self, split: Split) -> dict[str, float]:
        self.setup()
        return self._units[split]
