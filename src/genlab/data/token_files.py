"""A prepared text as token files, made once and then memory-mapped.

FOLDER/tokenizer.json       the vocabulary, trained on the train split
FOLDER/SPLIT.tokens         uint16 or uint32: END, then of each document its condition tokens, its text, END
FOLDER/SPLIT.ends           int64 [documents]: place after each document's END
FOLDER/tokens.json          counts and sha256 of the above, the conditions
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from genlab.data.manifest import digest
from genlab.data.prepare import SPLITS
from genlab.data.vocabulary import (
    END,
    UNKNOWN,
    Kind,
    condition_token,
    encoder,
    end_token,
    read_vocabulary,
    special_tokens,
    train_tokenizer,
    vocabulary_digest,
)
from genlab.errors import ConfigError, DataError
from genlab.files import read_json, write_json

META = "tokens.json"
REST = "other"  # stands for the values of a condition that are too rare for a token of their own
_BATCH = 512  # documents encoded at a time


@dataclass(frozen=True)
class Encoding:
    """How documents become tokens.

    Attributes:
        kind, vocab_size, special: see `genlab.data.vocabulary`.
        condition: fields whose values stand before the text, each as one token.
        condition_values: tokens a field at most: its most frequent values in train; the others are "other".
        select: field -> values; other documents are left out.
        vocabulary: of a pretrained model (`genlab.data.vocabulary.read_vocabulary`): nothing is trained, `kind` and
            `special` do not matter. It must have <|endoftext|> or </s>.
    """

    kind: Kind
    vocab_size: int
    special: tuple[str, ...] = ()
    condition: tuple[str, ...] = ()
    condition_values: int = 64
    select: Mapping[str, Sequence[str]] | None = None
    vocabulary: str | None = None

    def pretrained(self) -> Tokenizer | None:
        """The given vocabulary; None where one is to be trained.

        Raises:
            ConfigError: it lacks <|endoftext|> and </s>; or conditions are asked for, which are no tokens of it.
        """
        if self.vocabulary is None:
            return None
        tokenizer = read_vocabulary(self.vocabulary, self.vocab_size)
        if end_token(tokenizer) is None:
            raise ConfigError(f"data.vocabulary={self.vocabulary}: has no {END}, which stands between documents")
        if self.condition:
            raise ConfigError("data.condition: a pretrained vocabulary has no tokens for it; set data.condition=[]")
        return tokenizer

    def options(self) -> dict[str, Any]:
        """As primitives: what a cache is keyed by. The number of characters is found, so it is none of them."""
        found = {key: getattr(self, key) for key in ("kind", "special", "condition", "condition_values", "select")}
        found["select"] = {field: list(values) for field, values in (self.select or {}).items()}
        found["vocab_size"] = None if self.kind == "characters" else self.vocab_size
        if (given := self.pretrained()) is not None:
            found["vocabulary"] = digest(given.to_str())
        return found


def records(path: Path, select: Mapping[str, Sequence[str]] | None = None) -> Iterator[dict[str, Any]]:
    """Documents of one split of a prepared folder.

    Raises:
        DataError: a line that is no document.
    """
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                    raise DataError(f"{path}:{number}: not a document of a prepared folder")
                if all(str(record.get(field)) in values for field, values in (select or {}).items()):
                    yield record
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as a split of a prepared folder ({error})") from None


def make(prepared: Path, folder: Path, encoding: Encoding) -> None:
    """Trains the vocabulary and writes all files into `folder`, which is there.

    Raises:
        ConfigError: no document is selected, a condition that no document has.
        DataError: a broken prepared folder.
    """
    alphabet: set[str] = set()
    seen: dict[str, collections.Counter[str]] = {field: collections.Counter() for field in encoding.condition}
    everywhere: dict[str, set[str]] = {field: set() for field in encoding.condition}
    for split in SPLITS:
        for record in records(prepared / f"{split}.jsonl", encoding.select):
            alphabet.update(record["text"])
            for field in encoding.condition:
                if field not in record:
                    raise ConfigError(f"data.condition: {record.get('source', 'a document')} has no field {field!r}")
                everywhere[field].add(str(record[field]))
                if split == "train":
                    seen[field][str(record[field])] += 1
    if not alphabet:
        raise ConfigError(f"data.select={dict(encoding.select or {})}: selects no document")
    conditions: dict[str, list[str]] = {}
    for field, counts in seen.items():
        ranked = sorted(counts, key=lambda value: (-counts[value], value))[: encoding.condition_values]
        rest = everywhere[field] - set(ranked)
        conditions[field] = ranked + ([REST] if rest and REST not in ranked else [])
    tokenizer = encoding.pretrained()
    if tokenizer is None:
        special = special_tokens(encoding.kind, encoding.special, conditions)
        texts = (record["text"] for record in records(prepared / "train.jsonl", encoding.select))
        tokenizer = train_tokenizer(encoding.kind, encoding.vocab_size, texts, sorted(alphabet), special)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    dtype = np.dtype(np.uint16 if size <= 1 << 16 else np.uint32)
    meta = {
        "vocab_size": size,
        "vocabulary_sha256": vocabulary_digest(tokenizer),
        "dtype": dtype.name,
        "conditions": conditions,
        "splits": {s: _write(prepared / f"{s}.jsonl", folder / s, encoding, tokenizer, conditions) for s in SPLITS},
    }
    write_json(folder / META, meta)


def _write(
    source: Path, target: Path, encoding: Encoding, tokenizer: Tokenizer, conditions: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    encode = encoder(encoding.kind if encoding.vocabulary is None else "byte_bpe", tokenizer)
    ids_of = tokenizer.get_vocab()
    end, unknown = ids_of[end_token(tokenizer) or END], ids_of.get(UNKNOWN)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    ends: list[int] = []
    sha, total, size, unknowns = hashlib.sha256(), 1, 0, 0

    def prefix(record: Mapping[str, Any]) -> list[int]:
        values = [(f, str(record[f]) if str(record[f]) in known else REST) for f, known in conditions.items()]
        return [ids_of[condition_token(field, value)] for field, value in values]

    with open(target.with_suffix(".tokens"), "wb") as out:

        def put(tokens: np.ndarray) -> None:
            data = tokens.astype(dtype).tobytes()
            sha.update(data)
            out.write(data)

        put(np.array([end]))
        documents = records(source, encoding.select)
        while batch := list(itertools.islice(documents, _BATCH)):
            for record, ids in zip(batch, encode([record["text"] for record in batch]), strict=True):
                put(np.concatenate([np.array(prefix(record), dtype=np.uint32), ids, [end]]))
                total += len(conditions) + len(ids) + 1
                ends.append(total)
                size += len(record["text"].encode())
                unknowns += 0 if unknown is None else int((ids == unknown).sum())
    np.array(ends, dtype=np.int64).tofile(target.with_suffix(".ends"))
    return {
        "documents": len(ends),
        "tokens": total,
        "bytes": size,
        "unknown": unknowns,
        "sha256": sha.hexdigest(),
    }


class TokenFiles:
    """A folder made by `make`, opened without reading the tokens.

    Raises:
        DataError: a file is missing or has another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = read_json(folder / META) or {}
        if not self.meta:
            raise DataError(f"{folder}: token files without {META}; delete the folder, it is made again")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.conditions: dict[str, list[str]] = self.meta["conditions"]
        names = [condition_token(field, value) for field, values in self.conditions.items() for value in values]
        ids = [self.tokenizer.get_vocab()[name] for name in names[:1] + names[-1:]]
        self.condition_ids = (min(ids), max(ids) + 1) if ids else None  # [first, end)

    def tokens(self, split: str) -> Tensor:
        """int16 (that holds uint16) or int32 [L], memory-mapped."""
        wide = self.meta["dtype"] == "uint32"
        return self._map(f"{split}.tokens", np.int32 if wide else np.int16, self.meta["splits"][split]["tokens"])

    def ends(self, split: str) -> Tensor:
        """int64 [documents]."""
        return self._map(f"{split}.ends", np.int64, self.meta["splits"][split]["documents"])

    def _map(self, name: str, dtype: Any, count: int) -> Tensor:
        path = self.folder / name
        expected = count * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != expected:
            raise DataError(f"{path}: not the {expected} bytes it should have; delete {self.folder}, it is made again")
        if count == 0:
            return torch.zeros(0, dtype=torch.from_numpy(np.zeros(0, dtype)).dtype)
        return torch.from_numpy(np.memmap(path, dtype=dtype, mode="c"))
