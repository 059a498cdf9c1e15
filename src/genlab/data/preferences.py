"""Two answers to one source, of which one is preferred."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.documents import fingerprint
from genlab.data.fetch import fetch, find
from genlab.data.manifest import digest
from genlab.data.pairs import ENDED, Pairs, PairSource
from genlab.data.parallel import lines
from genlab.data.sources import Batch, Source
from genlab.data.splits import Part
from genlab.data.text import Parts
from genlab.data.token_files import records
from genlab.data.windows import IGNORED
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once

LEADS = "leads.jsonl"


class PreferenceSource(PairSource):
    """Triples of token files. A batch has "source", int64 [B, S], ids and -1 after them, "chosen" and "rejected",
    int64 [B, T], ids with the end of text, and -100 after them.

    Args:
        spans: int64 [6, N]: first token of each source and the one after its last, the same of the chosen and of the
            rejected answer.
    """

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        source, source_end, *answers = self.spans[:, ids]
        sides = {"chosen": answers[:2], "rejected": answers[2:]}
        rows = {name: self._rows(start, end, IGNORED) for name, (start, end) in sides.items()}
        return {"source": self._rows(source, source_end, ENDED), **rows}

    @cached_property
    def targets(self) -> list[str]:
        """Chosen answers of all items of the file, as they stand there."""
        return [record["text"] for record in records(self.file)][1::3]

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor:
        return torch.ones_like(ids)  # a preference is one item, however long

    def to(self, device: torch.device) -> PreferenceSource:
        return PreferenceSource(self.tokens.to(device), self.spans.to(device), self.file, self.pairs, self.origin)

    def select(self, ids: Any) -> PreferenceSource:
        chosen, by_length = torch.from_numpy(ids), self.lengths is not None
        return PreferenceSource(
            self.tokens, self.spans[:, chosen], self.file, self.pairs[chosen], self.origin, by_length
        )


class Preferences(Pairs):
    """Records of a source and two answers, `target` and `rejected`; files and splits as of Pairs.

    Args:
        rejected: field of the answer that is not preferred; `target` is that of the chosen one.
        name: see Pairs.
        common: likewise.

    Raises:
        ConfigError: one field is both answers.
    """

    def __init__(self, name: str, *, target: str = "chosen", rejected: str = "rejected", **common: Any) -> None:
        super().__init__(name, target=target, **common)
        fields, *rest = self.rule
        if rejected in fields:
            raise ConfigError(f"data.rejected={rejected}: that field is the source or the chosen answer")
        self.rule = ((*fields, rejected), *rest)

    def _windows(self, split: str, part: Part, condition_ids: tuple[int, int] | None) -> Source:
        assert part.documents is not None
        starts, ends = part.documents
        spans = torch.stack([starts[0::3], ends[0::3] - 1, starts[1::3], ends[1::3], starts[2::3], ends[2::3]])
        lengths = spans[1::2] - spans[0::2]
        most = torch.tensor([self.most["max_source"], *[self.most["max_target"]] * 2])[:, None]
        places = ((lengths <= most).all(0)).nonzero()[:, 0]
        if not len(places):
            raise ConfigError(
                f"{part.origin}: all {lengths.shape[1]} items are too long; raise data.max_source or data.max_target"
            )
        if len(places) < lengths.shape[1]:
            tqdm.write(
                f"{part.origin}: {lengths.shape[1] - len(places)} of {lengths.shape[1]} items are too long and left out"
            )
        file = Path(str(self.documents.path)) / f"{split}.jsonl"
        self._refuse_equal(file, part.origin)
        del part.facts["documents"], part.facts["longer_than_block_size"]
        part.facts["longer"] = lengths.shape[1] - len(places)
        self._parts[split] = replace(part, predicted=int(lengths[1:, places].sum()), predicted_texts=None)  # type: ignore[index]
        return PreferenceSource(part.tokens, spans[:, places], file, places, part.origin, self.by_length)

    @staticmethod
    def _refuse_equal(file: Path, origin: str) -> None:
        """DataError for an item whose sides are one text: nothing could be learned of it."""
        texts = [record["text"] for record in records(file)]
        for number, (source, chosen, rejected) in enumerate(zip(texts[0::3], texts[1::3], texts[2::3], strict=True), 1):
            if chosen == rejected:
                raise DataError(
                    f"{origin}, item {number}: chosen and rejected are both {chosen[:60]!r} (source {source[:40]!r}); "
                    "leave it out"
                )


class LeadPreferences(Preferences):
    """Pairs as preferences: the target is chosen, and rejected are as many words as it has from the beginning of the
    source, which a lazy summary would be.

    Args:
        name: of data that scripts/fetch_data.py knows, or of one's own where `path` is given.
        path: one file of records with "source", "target" and perhaps a group; null: the fetched one.
        common: see Preferences.
    """

    def __init__(self, name: str, *, path: str | None = None, group: str | None = None, **common: Any) -> None:
        super().__init__(name, path=path, group=group, **common)
        self.file, self.group = path, group

    def _read(self) -> Parts:
        file = Path(self.file).expanduser() if self.file else fetch(self.name) / find(self.name).files[0].name
        if not file.is_file():
            raise ConfigError(f"data.path={file}: no such file")

        def make(folder: Path) -> None:
            with open(folder / LEADS, "w", encoding="utf-8") as out:
                for line in lines(file):
                    pair = json.loads(line)
                    words = pair["source"].split()[: len(pair["target"].split())]
                    if (lead := " ".join(words)) != pair["target"].strip():
                        kept = {} if self.group is None else {self.group: pair[self.group]}
                        record = {"source": pair["source"], "chosen": pair["target"], "rejected": lead, **kept}
                        out.write(json.dumps(record, ensure_ascii=False) + "\n")

        key = digest([fingerprint(file, [file]), self.group])[:24]
        self.path = str(made_once(cache_root() / "text" / f"leads-{key}", make) / LEADS)
        return super()._read()
