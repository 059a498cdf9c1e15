"""Pairs of texts, for translation and summaries: one vocabulary for both sides, batches of pairs of like length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.corpus import tokens_of
from genlab.data.documents import count_units
from genlab.data.fetch import fetch, find
from genlab.data.manifest import Manifest
from genlab.data.module import SPLITS, Common, DataModule, Positive, Split
from genlab.data.parallel import WHERE, Parallel
from genlab.data.prepare import REPORT
from genlab.data.registry import DATASETS
from genlab.data.sources import Batch, Source
from genlab.data.token_files import Encoding, TokenFiles, records
from genlab.data.vocabulary import PAD, Kind, vocabulary_digest
from genlab.data.windows import IGNORED, widened
from genlab.errors import ConfigError
from genlab.files import read_json
from genlab.settings import check_settings

ENDED = -1  # as genlab.decoding.reading.ENDED
Fraction = Annotated[float, "ge 0, lt 1"]


class PairSource(Source):
    """Pairs of token files, whose documents 2i and 2i + 1 are a source and its target.

    A batch has "source", int64 [B, S], a source's ids and -1 after them, and "labels", int64 [B, T], a target's ids
    with the end of text, and -100 after them. S and T are the longest of the batch.

    Args:
        tokens: as of `genlab.data.windows.Windows`.
        spans: int64 [4, N]: first token of each source, the one after its last, and the same of the target.
        file: JSON Lines of the texts, two a pair.
        ids: int64 [N], places of the pairs in it.
        origin: what messages call it.
    """

    def __init__(self, tokens: Tensor, spans: Tensor, file: Path, ids: Tensor, origin: str) -> None:
        self.tokens, self.spans, self.file, self.ids, self.origin = tokens, spans, file, ids, origin

    def __len__(self) -> int:
        return self.spans.shape[1]

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        source, source_end, target, target_end = self.spans[:, ids]
        return {"source": self._rows(source, source_end, ENDED), "labels": self._rows(target, target_end, IGNORED)}

    def _rows(self, start: Tensor, end: Tensor, fill: int) -> Tensor:
        at = start[:, None] + torch.arange(int((end - start).max()), device=start.device)
        return widened(self.tokens[at.clamp(max=len(self.tokens) - 1)]).masked_fill(at >= end[:, None], fill)

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor:
        return self.spans[3, ids] - self.spans[2, ids]

    @cached_property
    def texts(self) -> list[str]:
        """Sources and targets in turn, of all pairs of the file."""
        return [record["text"] for record in records(self.file)]

    def references(self, ids: Tensor) -> list[list[str]]:
        return [[self.texts[2 * place + 1]] for place in self.ids[ids].tolist()]

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.spans.nbytes

    def to(self, device: torch.device) -> PairSource:
        other = copy.copy(self)
        other.tokens, other.spans = self.tokens.to(device), self.spans.to(device)
        return other

    def select(self, ids: np.ndarray) -> PairSource:
        other, chosen = copy.copy(self), torch.from_numpy(ids)
        other.spans, other.ids = self.spans[:, chosen], self.ids[chosen]
        other.lengths = None if self.lengths is None else self.lengths[chosen]
        return other


class Pairs(DataModule):
    """Pairs of texts; the batch is that of `PairSource`. Files and splits: `genlab.data.parallel.Parallel`.

    A pair with a side beyond its bound is left out of its split; how many is said, and stands in the manifest.

    Args:
        vocab_size: tokens of the vocabulary of both sides, special ones included; asserted.
        path: a folder or a file; None: the registry's set of this name, fetched at first use.
        source, target: languages (suffixes of files of lines), or names of fields of records.
        group, test, empty, val_fraction, test_fraction: see Parallel.
        tokenizer: see `genlab.data.vocabulary`; trained on both sides of train.
        vocabulary: of a pretrained model, in the place of a made one, see `genlab.data.text.Text`.
        max_source: tokens of a source at most.
        max_target: tokens of a target at most, the end of text included.
        by_length: training batches are of pairs of like length, so that little is padding.

    Raises:
        ConfigError: options that do not go together.
    """

    modality = "text"

    def __init__(
        self,
        name: str,
        *,
        vocab_size: Positive,
        path: str | None = None,
        source: str = "source",
        target: str = "target",
        group: str | None = None,
        test: str = "test",
        tokenizer: Kind = "byte_bpe",
        vocabulary: str | None = None,
        max_source: Positive = 256,
        max_target: Positive = 256,
        empty: Literal["refuse", "drop"] = "refuse",
        val_fraction: Fraction = 0.05,
        test_fraction: Fraction = 0.05,
        by_length: bool = True,
        modality: Literal["text"] = "text",
        **common: Unpack[Common],
    ) -> None:
        check_settings(Pairs.__init__, locals(), "data.")
        super().__init__(name, **common)
        if source == target:
            raise ConfigError(f"data.source and data.target are both {source!r}; name the two sides of a pair")
        self.path, self.max_source, self.max_target, self.by_length = path, max_source, max_target, by_length
        self.rule = (source, target), test, group, empty, val_fraction, test_fraction
        self.vocab_size, self.encoding = vocab_size, Encoding(tokenizer, vocab_size, (PAD,), vocabulary=vocabulary)

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        if self.path is None and self.name not in DATASETS:
            raise ConfigError(f"data.path: {self.name} is not fetched; {WHERE}")
        path = fetch(self.name) / find(self.name).files[0].name if self.path is None else Path(self.path).expanduser()
        folder = Parallel(path, *self.rule).prepared()
        report = read_json(folder / REPORT) or {}
        stored = tokens_of(self.name, folder, folder.name, self.encoding)
        self.tokenizer = stored.tokenizer
        facts = {
            "vocab_size": self.vocab_size,
            "vocabulary_sha256": vocabulary_digest(self.tokenizer),
            "unit": "pretrained token" if self.encoding.vocabulary else self.encoding.kind,
            "max_source": self.max_source,
            "max_target": self.max_target,
        }
        sources: dict[Split, Source] = {}
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            sources[split], splits[split] = self._part(split, stored, folder / f"{split}.jsonl")
            splits[split]["from"] = report["kept"][split]["from"]
        dropped = {cause: row["documents"] for cause, row in report["dropped"].items()}
        return sources, Manifest(self.name, self.modality, facts, splits, {**report["options"], "dropped": dropped})

    def _part(self, split: Split, stored: TokenFiles, file: Path) -> tuple[PairSource, dict[str, Any]]:
        ends = stored.ends(split)
        starts = torch.cat([torch.ones(1, dtype=torch.int64), ends[:-1]])
        spans = torch.stack([starts[0::2], ends[0::2] - 1, starts[1::2], ends[1::2]])
        source, target = spans[1] - spans[0], spans[3] - spans[2]
        long = {"max_source": source > self.max_source, "max_target": target > self.max_target}
        fit = ((source > 0) & ~long["max_source"] & ~long["max_target"]).nonzero()[:, 0]
        words = ", ".join(f"{int(too.sum())} for data.{name}={getattr(self, name)}" for name, too in long.items())
        if not len(fit):
            raise ConfigError(f"{self.name} ({split}): all {len(source)} pairs are too long ({words}); raise it")
        if len(fit) < len(source):
            tqdm.write(f"{self.name} ({split}): {len(source) - len(fit)} of {len(source)} pairs are left out ({words})")
        items = PairSource(stored.tokens(split), spans[:, fit], file, fit, f"{self.name} ({split})")
        if self.by_length:  # in bands of three of the source's lengths the target's go up and down: both differ little
            band = source // 3
            items.lengths = (band * (2 * target.max() + 1) + torch.where(band % 2 == 0, target, -target))[fit]
        left_out = {f"longer_than_{name}": int(too.sum()) for name, too in long.items()}
        return items, {"count": len(fit), **stored.meta["splits"][split], **left_out}

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """The sources and targets of a split in turn, those that are too long among them."""
        source: Any = self.source(split)
        yield from ((record["source"], record["text"]) for record in records(source.file))

    def units_per_token(self, split: Split) -> dict[str, float] | None:
        """Of the targets, whose tokens and ends are what is predicted; None where some of them are [UNK]."""
        source: Any = self.source(split)
        ids = torch.arange(len(source))
        units = count_units(text for (text,) in source.references(ids))
        tokens = int(source.counted(ids, ids).sum())
        unknown = self.manifest.splits[split]["unknown"]
        return None if unknown else {unit: count / tokens for unit, count in units.items()}
