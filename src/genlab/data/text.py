"""The data module of text: a split rule, a vocabulary and a rule of windows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

from genlab.data.corpus import Documents
from genlab.data.documents import count_units
from genlab.data.fetch import fetch, find
from genlab.data.functions import FUNCTIONS, python_functions
from genlab.data.manifest import Manifest
from genlab.data.module import Common, DataModule, Loader, Positive, Split
from genlab.data.parallel import WHERE, prepared
from genlab.data.prepare import Preparation
from genlab.data.registry import DATASETS
from genlab.data.sources import Source
from genlab.data.splits import Part, Parts, files, share
from genlab.data.token_files import Encoding
from genlab.data.vocabulary import ENDS, KINDS, PAD, Kind, vocabulary_digest
from genlab.data.windows import Windows
from genlab.errors import ConfigError
from genlab.files import cache_root
from genlab.settings import check_settings

# Of each split rule: the vocabularies that can be made of it, and the options that are its alone.
RULES: dict[str, tuple[tuple[Kind, ...], tuple[str, ...]]] = {
    "share": (("characters",), ("train_fraction", "characters")),
    "files": (("words",), ("verify",)),
    "lines": (KINDS, ("language", "test", "documents", "by_length", "special_tokens")),
    "documents": (KINDS, ("documents", "by_length", "condition", "condition_values", "select", "special_tokens",
                          "prepare", "suffixes", "exclude", "text_field")),
}  # fmt: skip


class Text(DataModule):
    """A text as tokens. A batch has "input_ids" and "labels", int64 [B, block_size]; labels are shifted, -100 where
    nothing is predicted; what else it has, and the rules of windows, see `genlab.data.windows.Windows`.

    A split that the rule does not give is an alias of val. Attention is not cut at the end of a document (as GPT-2).

    Args:
        split: "share": of the characters of one file, train the first, val the rest; "files": three files of words, see
            `genlab.data.splits.files`; "lines": each line of files of parallel lines is a document, see
            `genlab.data.parallel`; "documents": whole documents, see `genlab.data.corpus`.
        vocab_size: tokens of the vocabulary, special ones included; asserted (the right number is answered to a wrong
            one).
        block_size: T, tokens a window.
        path: of the file; of the folder of files; of documents see `genlab.data.corpus.Documents`. None: the standard
            set of this name, fetched at first use (files: the folder of this name in the cache).
        tokenizer: see `genlab.data.vocabulary`. A share makes "characters" only; of files "words" are those between
            spaces, and <eos>.
        vocabulary: of a pretrained model, in the place of a made one: a tokenizer.json, a folder with one, or a name
            that scripts/fetch_data.py knows. `tokenizer` and `special_tokens` then do not matter.
        windows: "random": in training at random offsets by (seed, epoch, id), nanoGPT's protocol; "epoch": one after
            another, each token once an epoch. val and test are always the latter, but for "contiguous": all splits in
            batch_size (val_batch_size) rows that go on from batch to batch, for model.carried_state.
        train_fraction: of the characters of a share; 0: all are val, and there is nothing to train on.
        characters: of a share: only the first so many of the file; None: all.
        language: of the lines, which is the files' suffix.
        test: name of the lines' test file without suffix.
        verify: hold the files against the md5 of Penn Treebank's.
        documents: "packed": one stream of all documents is cut into windows; "single": a document an item, padded; one
            of more than block_size tokens is left out and counted in the manifest.
        by_length: of single documents: training batches are of like length, and all as wide as their longest.
        condition: fields of the records whose values stand before the text as one token each, <|field=value|>. They
            are never a label.
        condition_values: tokens a field at most; rarer values become "other".
        select: field -> values: documents of other values are left out, after the split.
        special_tokens: of [PAD], [MASK], for models that need them.
        prepare: see `genlab.data.corpus.Documents`, as the next three.

    Raises:
        ConfigError: options that do not go together.
    """

    modality = "text"

    def __init__(
        self,
        name: str,
        *,
        split: Literal["share", "files", "lines", "documents"],
        vocab_size: Positive,
        block_size: Positive,
        path: str | None = None,
        tokenizer: Kind = "byte_bpe",
        vocabulary: str | None = None,
        windows: Literal["random", "epoch", "contiguous"] = "random",
        train_fraction: Annotated[float, "ge 0, lt 1"] = 0.9,
        characters: Positive | None = None,
        language: str = "en",
        test: str = "test",
        verify: bool = False,
        documents: Literal["packed", "single"] = "packed",
        by_length: bool = False,
        condition: Sequence[str] = (),
        condition_values: Positive = 64,
        select: Mapping[str, Sequence[str]] | None = None,
        special_tokens: Sequence[str] = (),
        prepare: Preparation | None = None,
        suffixes: Sequence[str] = (".txt",),
        exclude: Sequence[str] = (),
        text_field: str = "text",
        modality: Literal["text"] = "text",
        **common: Unpack[Common],
    ) -> None:
        options = dict(locals())
        check_settings(Text.__init__, options, "data.")
        super().__init__(name, **common)
        kinds, own = RULES[split]
        for key in (key for rule in RULES.values() for key in rule[1] if key not in own):
            if options[key] != inspect.signature(Text).parameters[key].default:
                raise ConfigError(f"data.{key}: data.split={split} has no such option, only {', '.join(own)}")
        if vocabulary is None and tokenizer not in kinds:
            raise ConfigError(f"data.tokenizer={tokenizer}: data.split={split} makes {', '.join(kinds)} only")
        if vocabulary is not None and split == "files":
            raise ConfigError("data.vocabulary: the words of data.split=files are their own; leave it null")
        if documents == "single" and windows != "epoch":
            raise ConfigError(f"data.documents=single has no {windows} windows; set data.windows=epoch")
        self.split, self.vocab_size, self.block_size, self.windows = split, vocab_size, block_size, windows
        self.path, self.vocabulary, self.verify = path, vocabulary, verify
        self.train_fraction, self.characters, self.by_length = train_fraction, characters, by_length
        self.longest = block_size if documents == "single" else None
        self.rule: tuple[Any, ...] = ((language,), test)  # of lines, see `genlab.data.parallel.prepared`
        self.encoding = Encoding(
            tokenizer, vocab_size, tuple(special_tokens), tuple(condition), condition_values, select, vocabulary
        )
        self.documents = Documents(name, path, prepare or Preparation(), suffixes, exclude, text_field)
        self._parts: dict[Split, Part] = {}

    def _read(self) -> Parts:
        path = None if self.path is None else Path(self.path).expanduser()
        if self.split == "share":
            path = path or fetch(self.name) / find(self.name).files[0].name
            return share(self.name, path, self.train_fraction, self.characters, self.vocabulary, self.vocab_size)
        if self.split == "lines":
            path = python_functions() if self.path == FUNCTIONS else path
            if path is None and self.name not in DATASETS:
                raise ConfigError(f"data.path: {self.name} is not fetched; {WHERE}")
            path = path or fetch(self.name) / find(self.name).files[0].name
            self.documents = replace(self.documents, path=str(prepared(path, *self.rule)))
        if self.split == "files":
            return files(self.name, path or cache_root() / self.name, self.verify, self.vocab_size)
        return self.documents.encoded(self.encoding, self.longest)

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        read = self._read()
        self.tokenizer, self._parts = read.tokenizer, read.parts
        vocabulary = {"vocab_size": self.vocab_size, "vocabulary_sha256": vocabulary_digest(self.tokenizer)}
        facts = {**vocabulary, "block_size": self.block_size, **read.facts}
        if self.split != "share":
            facts["windows"] = self.windows
        sources: dict[Split, Source] = {s: self._windows(s, part, read.condition_ids) for s, part in read.parts.items()}
        splits: dict[str, dict[str, Any]] = {
            s: {"count": len(sources[s]), **part.facts} for s, part in read.parts.items()
        }
        aliases: tuple[Split, ...] = ("train", "test")
        for alias in aliases:
            if alias not in sources:
                sources[alias], self._parts[alias] = sources["val"], self._parts["val"]
                splits[alias] = {**splits["val"], "from": "alias of val"}
        return sources, Manifest(self.name, self.modality, facts, splits, read.filter)

    def _windows(self, split: Split, part: Part, condition_ids: tuple[int, int] | None) -> Source:
        pads = [self.tokenizer.token_to_id(token) for token in (PAD, *ENDS)]
        rule: dict[str, Any] = {}
        if part.documents is not None:
            pad = next(pad for pad in pads if pad is not None)
            rule = {"documents": part.documents, "pad": pad, "by_length": self.by_length}
        elif self.windows == "contiguous":
            rule = {"rows": self.batch_size if split == "train" else self.val_batch_size}
        elif self.windows == "random" and split == "train":
            rule = {"seed": self.seed}
        return Windows(part.tokens, self.block_size, part.origin, condition_ids=condition_ids, **rule)

    def train_loader(self, *args: Any, **options: Any) -> Loader:
        """See DataModule.train_loader.

        Raises:
            ConfigError: all of the text is held out.
        """
        if self.source("train") is self.source("val"):
            raise ConfigError(
                f"data.train_fraction={self.train_fraction}: this text is for evaluation only; there is nothing to "
                "train on"
            )
        return super().train_loader(*args, **options)

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """The documents of a split, those too long for documents="single" among them; a file is one document."""
        self.setup()
        yield from self._parts[split].texts()

    def units_per_token(self, split: Split) -> dict[str, float] | None:
        """Of the documents that are read; a token is one that is predicted (texts and their ends, not the conditions).
        None where words are [UNK] or <unk>: of their bytes nothing is predicted."""
        self.setup()
        part = self._parts[split]
        return (
            None
            if part.predicted_texts is None
            else {u: n / part.predicted for u, n in count_units(part.predicted_texts()).items()}
        )
