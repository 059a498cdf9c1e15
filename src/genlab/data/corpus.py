"""The split of a text by documents: prepared, encoded and stored once, in the cache.

A later start compares names, sizes and times of change of the files, and reads none of them.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from genlab.data import token_files
from genlab.data.documents import find_files, fingerprint
from genlab.data.fetch import fetch, find, present
from genlab.data.manifest import digest
from genlab.data.module import Split
from genlab.data.prepare import REPORT, SPLITS, Preparation, prepare_into, readable
from genlab.data.splits import Part, Parts
from genlab.data.token_files import Encoding, TokenFiles
from genlab.data.vocabulary import check_size
from genlab.errors import ConfigError
from genlab.files import cache_root, made_once, read_json

FORMAT = 1  # of the cached files: raise it where they change
PYTHON = "python:stdlib"  # the path of what every machine has: Python's own standard library


@dataclass(frozen=True)
class Documents:
    """Where documents lie and what is done to them before they are tokens.

    Attributes:
        name: of the data set.
        path: a folder of text files, a file, a .jsonl of {text, ...}, a folder made by scripts/prepare_text.py, or
            PYTHON, whose version is in the manifest: another one has other sources. None: the registry's set of this
            name.
        prepare: what is done to documents that are not prepared.
        suffixes: of the files of a folder that are read.
        exclude: names of folders and files that are not.
        text_field: of JSON Lines.
    """

    name: str
    path: str | None
    prepare: Preparation
    suffixes: Sequence[str]
    exclude: Sequence[str]
    text_field: str

    def prepared(self) -> tuple[Path, str]:
        """The prepared folder and a key of its content; made at first use.

        Raises:
            ConfigError: nothing is there, or a part of a prepared folder is missing.
        """
        facts: dict[str, Any] = {}
        if self.path is None:
            root = cache_root() / find(self.name).name
            if not present(self.name):
                fetch(self.name)
        elif self.path == PYTHON:
            root, facts = Path(sysconfig.get_path("stdlib")), {"python": platform.python_version()}
        else:
            root = Path(self.path).expanduser()
        if (root / REPORT).is_file():
            parts = [root / REPORT, *(root / f"{split}.jsonl" for split in SPLITS)]
            if missing := [part.name for part in parts if not part.is_file()]:
                raise ConfigError(f"{root}: a prepared folder without {missing[0]}; prepare it again")
            return root, digest(fingerprint(root, parts))
        suffixes, exclude = [*self.suffixes], [*self.exclude]
        options = [self.prepare.options(), suffixes, exclude, self.text_field, facts]
        key = digest([FORMAT, fingerprint(root, find_files(root, suffixes, exclude)), options])

        def make(folder: Path) -> None:
            if self.path is None:
                fetch(self.name)  # checks the hashes
            report = prepare_into(root, folder, self.prepare, suffixes, exclude, self.text_field, facts)
            tqdm.write(f"{self.name}: prepared\n{readable(report)}")

        return made_once(cache_root() / "text" / f"prepared-{key[:24]}", make), key

    def encoded(self, encoding: Encoding, longest: int | None = None) -> Parts:
        """The tokens of each split: <|endoftext|> stands between documents, before the first and after the last.

        Args:
            longest: where each document is an item, the tokens of the longest with the boundary before it; others are
                left out and counted in the manifest.

        Raises:
            ConfigError: no document in train or val, or none short enough; another size of the vocabulary.
        """
        folder, key = self.prepared()
        key = digest([FORMAT, key, encoding.options(), version("tokenizers")])

        def make(target: Path) -> None:
            tqdm.write(f"{self.name}: {encoding.kind} tokens are made, once")
            token_files.make(folder, target, encoding)

        stored = TokenFiles(made_once(cache_root() / "text" / f"tokens-{key[:24]}", make))
        check_size(stored.tokenizer, encoding.vocab_size, f"{self.name}: the {encoding.kind} vocabulary", "tokens")
        report = read_json(folder / REPORT)
        parts: dict[Split, Part] = {}
        for split in ("train", "val", "test"):
            if stored.meta["splits"][split]["documents"]:
                parts[split] = self._part(split, folder, stored, encoding, longest)
                parts[split].facts["from"] = report["kept"][split].get("from", "whole clusters of documents")
            elif split != "test":
                raise ConfigError(
                    f"the {split} split of data {self.name!r} has no document; give it more of them, or raise "
                    "data.prepare.val_fraction (data=text_file splits one long text by characters)"
                )
        facts = {
            "unit": "pretrained token" if encoding.vocabulary else encoding.kind,
            "documents": "packed" if longest is None else "single",
            "conditions": stored.conditions,
            **report["facts"],
        }
        dropped = {cause: row["documents"] for cause, row in report["dropped"].items()}
        done = {"prepared": report["options"], "dropped": dropped, "select": encoding.options()["select"]}
        return Parts(stored.tokenizer, parts, facts, done, stored.condition_ids)

    def _part(self, split: Split, folder: Path, stored: TokenFiles, encoding: Encoding, longest: int | None) -> Part:
        origin, meta = f"{self.name} ({split})", stored.meta["splits"][split]
        facts = {**meta}
        counted = meta["tokens"] - 1 - len(stored.conditions) * meta["documents"]  # no first boundary, no condition
        ends, fit, chosen = stored.ends(split), None, None
        if longest is not None:
            starts = torch.cat([torch.ones(1, dtype=torch.int64), ends[:-1]])
            fit = ends - starts <= longest
            if not fit.any():
                raise ConfigError(
                    f"{origin}: no document has at most data.block_size={longest} tokens (the shortest has "
                    f"{int((ends - starts).min())}); raise it, or set data.documents=packed"
                )
            chosen = starts[fit], ends[fit]
            counted = int((chosen[1] - chosen[0]).sum()) - len(stored.conditions) * len(chosen[0])
            facts["longer_than_block_size"] = len(ends) - len(chosen[0])

        def texts() -> Iterator[tuple[str, str]]:
            for record in token_files.records(folder / f"{split}.jsonl", encoding.select):
                yield str(record.get("source", self.name)), record["text"]

        def predicted() -> Iterator[str]:
            kept = [True] * len(ends) if fit is None else fit.tolist()
            return (text for (_, text), keep in zip(texts(), kept, strict=True) if keep)

        # Of the bytes of [UNK] nothing is predicted.
        return Part(stored.tokens(split), origin, facts, texts, None if meta["unknown"] else predicted, counted, chosen)
