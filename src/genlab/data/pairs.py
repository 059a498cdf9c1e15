"""Pairs of texts, for translation and summaries: one vocabulary for both sides, batches of pairs of like length."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.functions import FUNCTIONS
from genlab.data.manifest import Manifest
from genlab.data.module import Common, Positive, Split
from genlab.data.sources import Batch, Source
from genlab.data.splits import Part
from genlab.data.text import Text
from genlab.data.token_files import records
from genlab.data.vocabulary import PAD, Kind
from genlab.data.windows import IGNORED, widened
from genlab.errors import ConfigError
from genlab.settings import check_settings

ENDED = -1  # as genlab.decoding.reading.ENDED
Fraction = Annotated[float, "ge 0, lt 1"]


class PairSource(Source):
    """Pairs of token files. A batch has "source", int64 [B, S], a source's ids and -1 after them, and "labels", int64
    [B, T], a target's ids with the end of text, and -100 after them; S and T are the longest of the batch.

    Args:
        tokens: as of `genlab.data.windows.Windows`.
        spans: int64 [4, N]: first token of each source, the one after its last, and the same of the target.
        file: JSON Lines of the texts, the sources and targets in turn.
        pairs: int64 [N], places of the pairs in it.
        origin: what messages call it.
    """

    def __init__(
        self, tokens: Tensor, spans: Tensor, file: Path, pairs: Tensor, origin: str, by_length: bool = False
    ) -> None:
        self.tokens, self.spans, self.file, self.pairs, self.origin = tokens, spans, file, pairs, origin
        if by_length:  # in bands of three of the source's lengths the target's go up and down: both differ little
            band, target = (spans[1] - spans[0]) // 3, spans[3] - spans[2]
            self.lengths = band * (2 * target.max() + 1) + torch.where(band % 2 == 0, target, -target)

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        source, source_end, target, target_end = self.spans[:, ids]
        return {"source": self._rows(source, source_end, ENDED), "labels": self._rows(target, target_end, IGNORED)}

    def _rows(self, start: Tensor, end: Tensor, fill: int) -> Tensor:
        at = start[:, None] + torch.arange(int((end - start).max()), device=start.device)
        return widened(self.tokens[at.clamp(max=len(self.tokens) - 1)]).masked_fill(at >= end[:, None], fill)

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor:
        return self.spans[3, ids] - self.spans[2, ids]

    @cached_property
    def targets(self) -> list[str]:
        """Targets of all pairs of the file, as they stand there."""
        return [record["text"] for record in records(self.file)][1::2]

    def references(self, ids: Tensor) -> list[list[str]]:
        return [[self.targets[place]] for place in self.pairs[ids].tolist()]

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.spans.nbytes

    def to(self, device: torch.device) -> PairSource:
        return PairSource(self.tokens.to(device), self.spans.to(device), self.file, self.pairs, self.origin)

    def select(self, ids: np.ndarray) -> PairSource:
        chosen, by_length = torch.from_numpy(ids), self.lengths is not None
        return PairSource(self.tokens, self.spans[:, chosen], self.file, self.pairs[chosen], self.origin, by_length)


class Pairs(Text):
    """Pairs of texts; the batch is that of `PairSource`. Files and splits: `genlab.data.parallel`.

    A pair with a side beyond its bound is left out of its split; how many is said, and stands in the manifest.

    Args:
        vocab_size: tokens of the vocabulary of both sides, special ones included; asserted.
        path: a folder or a file; python:functions, those of Python's standard library (`genlab.data.functions`); None:
            the standard set of this name, fetched at first use.
        source: a language (the suffix of files of lines), or a field of records.
        target: likewise.
        group: field of the records of one file: one group falls in one split.
        test: the test files' name without suffix.
        tokenizer: see `genlab.data.vocabulary`; trained on both sides of train.
        vocabulary: of a pretrained model, see `genlab.data.text.Text`.
        max_source: tokens of a source at most.
        max_target: tokens of a target at most, the end of text included.
        empty: "refuse": a pair with an empty side is an error; "drop": it is left out and counted.
        val_fraction: of the groups, or of the sources, of one file.
        test_fraction: likewise.
        by_length: training batches are of pairs of like length, so that little is padding.

    Raises:
        ConfigError: options that do not go together.
    """

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
        if source == target:
            raise ConfigError(f"data.source and data.target are both {source!r}; name the two sides of a pair")
        super().__init__(
            name, split="lines", vocab_size=vocab_size, block_size=max_target, path=path, tokenizer=tokenizer,
            vocabulary=vocabulary, windows="epoch", documents="single", by_length=by_length, special_tokens=(PAD,),
            **common,
        )  # fmt: skip
        self.rule, self.longest = ((source, target), test, group, empty, val_fraction, test_fraction), sys.maxsize
        self.most = {"max_source": max_source, "max_target": max_target}

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        sources, manifest = super().load()
        facts = {key: manifest.facts[key] for key in ("vocab_size", "vocabulary_sha256", "unit")}
        python = {"python": platform.python_version()} if self.path == FUNCTIONS else {}  # another has other sources
        return sources, replace(manifest, facts={**facts, **self.most, **python})

    def _windows(self, split: Split, part: Part, condition_ids: tuple[int, int] | None) -> Source:
        assert part.documents is not None
        starts, ends = part.documents
        spans = torch.stack([starts[0::2], ends[0::2] - 1, starts[1::2], ends[1::2]])
        source, target = spans[1] - spans[0], spans[3] - spans[2]
        over = {"max_source": source > self.most["max_source"], "max_target": target > self.most["max_target"]}
        pairs = ((source > 0) & ~over["max_source"] & ~over["max_target"]).nonzero()[:, 0]
        words = ", ".join(f"{int(over[name].sum())} for data.{name}={most}" for name, most in self.most.items())
        if not len(pairs):
            raise ConfigError(f"{part.origin}: all {len(source)} pairs are too long ({words}); raise it")
        if len(pairs) < len(source):
            tqdm.write(f"{part.origin}: {len(source) - len(pairs)} of {len(source)} pairs are left out ({words})")
        file = Path(str(self.documents.path)) / f"{split}.jsonl"
        items = PairSource(part.tokens, spans[:, pairs], file, pairs, part.origin, self.by_length)
        del part.facts["documents"], part.facts["longer_than_block_size"]
        part.facts.update({f"longer_than_{name}": int(beyond.sum()) for name, beyond in over.items()})
        texts = part.predicted_texts and (lambda: [text for (text,) in items.references(torch.arange(len(pairs)))])
        self._parts[split] = replace(part, predicted=int(target[pairs].sum()), predicted_texts=texts)
        return items
