"""The manifest: what identifies the data of a run, everywhere (records, caches of statistics, comparisons)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any


def digest(value: Any) -> str:
    """sha256 in hex of bytes, or of the canonical JSON of anything else."""
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(value).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """Facts of the data; primitives only, no paths of this machine.

    Attributes:
        name: of the data set.
        modality: 'image', 'text' or 'audio'.
        facts: image: shape [C,H,W], num_classes; audio: shape [C,T], sample_rate, num_classes; text: vocab_size,
            block_size, vocabulary's sha256.
        splits: 'train', 'val', 'test' -> {count, sha256, from}: sha256 identifies the content; `from` says how the
            split was made (e.g. 'alias of test').
        filter: what was done to the items: resize, crop, subset of classes, ...
    """

    name: str
    modality: str
    facts: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    filter: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self, split: str | None = None) -> str:
        """sha256 in hex of the whole manifest, or of what concerns one split (content, filter and facts)."""
        if split is None:
            return digest(self.to_dict())
        return digest([self.facts, self.filter, self.splits[split]["count"], self.splits[split]["sha256"]])
