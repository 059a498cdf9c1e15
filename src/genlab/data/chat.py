"""Conversations: rendered with a chat template, packed into rows; only answers are predicted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.chat_template import ChatTemplate, find_template, turns_of
from genlab.data.documents import HALF, find_files, fingerprint, name_of
from genlab.data.manifest import Manifest, digest
from genlab.data.module import SPLITS, Common, DataModule, Positive, Split
from genlab.data.parallel import lines
from genlab.data.prepare import REPORT
from genlab.data.sources import Batch, Source
from genlab.data.token_files import records
from genlab.data.vocabulary import PAD, end_token, read_vocabulary, vocabulary_digest
from genlab.data.windows import IGNORED
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, made_once, read_json, write_json
from genlab.settings import check_settings

FORMAT = 1  # of the cached files: raise it where they change
FIELDS = {"messages": "messages", "prompt": "prompt", "answer": "answer", "system": "system"}
Fraction = Annotated[float, "ge 0, lt 1"]


class ChatSource(Source):
    """Rows of one conversation or more. A batch has "input_ids", int64 [B, T]; "labels", int64 [B, T], the next token
    where it is an answer's or the end after one, else -100; and "position_ids", int64 [B, T], which begin again at 0
    with each conversation (and with what stands after the last): attention goes no further back.

    Args:
        arrays: int32 [3, L]: tokens, labels, and places in their conversations, of all rows in turn.
        spans: int64 [2, N]: the first place of each row, and the one after its last.
        width: T; None: the longest row of the batch.
        pad: id that stands after the end of a row.
        origin: what messages call it.
    """

    def __init__(self, arrays: Tensor, spans: Tensor, width: int | None, pad: int, origin: str) -> None:
        self.arrays, self.spans, self.width, self.pad, self.origin = arrays, spans, width, pad, origin
        self.lengths = spans[1] - spans[0] if width is None else None

    def __len__(self) -> int:
        return self.spans.shape[1]

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        start, end = self.spans[:, ids]
        width = self.width or int((end - start).max())
        at = start[:, None] + torch.arange(width, device=ids.device)
        outside = at >= end[:, None]
        tokens, labels, places = self.arrays[:, at.clamp(max=self.arrays.shape[1] - 1)].to(torch.int64)
        return {
            "input_ids": tokens.masked_fill(outside, self.pad),
            "labels": labels.masked_fill(outside, IGNORED),
            "position_ids": torch.where(outside, at - end[:, None], places),
        }

    def counted(self, ids: Tensor, epochs: Tensor) -> Tensor:
        return (self.batch(ids, epochs)["labels"] != IGNORED).sum(1)

    @property
    def nbytes(self) -> int:
        return self.arrays.nbytes + self.spans.nbytes

    def to(self, device: torch.device) -> ChatSource:
        return ChatSource(self.arrays.to(device), self.spans.to(device), self.width, self.pad, self.origin)

    def select(self, ids: np.ndarray) -> ChatSource:
        return ChatSource(self.arrays, self.spans[:, torch.from_numpy(ids)], self.width, self.pad, self.origin)


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Items into rows of at most `size`, the longest first, each into the fullest row that has room: best-fit
    decreasing (Ding et al. 2024, arXiv 2404.10830, section 3.2). A function of its arguments.

    Args:
        lengths: of each item, 1 .. size.

    Returns:
        The items of each row.
    """
    rows: list[list[int]] = []
    room: list[list[int]] = [[] for _ in range(size + 1)]  # rows by what is left in them
    filled = np.zeros(size + 1, dtype=bool)
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[item]
        left = length + int(filled[length:].argmax())
        if not filled[left]:
            rows.append([])
            left, row = size, len(rows) - 1
        else:
            row = room[left].pop()
            filled[left] = bool(room[left])
        rows[row].append(item)
        room[left - length].append(row)
        filled[left - length] = True
    return rows


class Chat(DataModule):
    """Conversations of JSON Lines; the batch is that of `ChatSource`. A line is {"messages": [{"role", "content"},
    ...]} with the roles system, user and assistant, or {"prompt", "answer"} and perhaps "system".

    Turns after the last answer of a conversation predict nothing and are left out. A conversation of more than
    block_size tokens is left out of its split. How many of both there are is said, and stands in the manifest.

    Args:
        vocabulary: of a pretrained model: a folder, its tokenizer.json, or a name that scripts/fetch_data.py knows.
        vocab_size: tokens of the vocabulary, special ones included; asserted.
        block_size: T, tokens of a row.
        path: a .jsonl, or a folder: with train.jsonl, val.jsonl and perhaps test.jsonl, or of any *.jsonl. What is not
            split already is split by a hash of what the user says first.
        template: a file, "chatml" or "plain", see `genlab.data.chat_template`; None: that of the vocabulary's folder.
        fields: names in the records, where they are others: {"messages", "prompt", "answer", "system"}.
        packing: whether a row holds as many conversations as there is room for; False: one, and rows of a batch are of
            like length.
        empty: "refuse": a turn without text, or a conversation without an answer, is an error; "drop": the conversation
            is left out and counted.
        val_fraction: of the conversations that are not split already.
        test_fraction: likewise.

    Raises:
        ConfigError: options that do not go together.
    """

    modality = "text"

    def __init__(
        self,
        name: str,
        *,
        path: str,
        vocabulary: str,
        vocab_size: Positive,
        block_size: Positive,
        template: str | None = None,
        fields: Mapping[str, str] | None = None,
        packing: bool = True,
        empty: Literal["refuse", "drop"] = "refuse",
        val_fraction: Fraction = 0.05,
        test_fraction: Fraction = 0.05,
        modality: Literal["text"] = "text",
        **common: Unpack[Common],
    ) -> None:
        check_settings(Chat.__init__, locals(), "data.")
        super().__init__(name, **common)
        self.path, self.vocabulary, self.vocab_size = Path(path).expanduser(), vocabulary, vocab_size
        self.block_size, self.template, self.packing, self.empty = block_size, template, packing, empty
        self.fields, self.fractions = {**FIELDS, **(fields or {})}, (val_fraction, test_fraction)
        if unknown := self.fields.keys() - FIELDS.keys():
            raise ConfigError(f"data.fields has no {min(unknown)}, only {', '.join(FIELDS)}")
        if sum(self.fractions) >= 1:
            raise ConfigError("data.val_fraction and data.test_fraction must be below 1 together")
        self._folder = Path()

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        self.tokenizer = read_vocabulary(self.vocabulary, self.vocab_size)
        template = find_template(self.template, self.vocabulary, self.tokenizer)
        files = self._files()
        stamps = fingerprint(self.path, [file for several in files.values() for file in several])
        options = {"fields": self.fields, "empty": self.empty, "fractions": [*self.fractions]}
        known = digest([template.facts(), self.tokenizer.to_str(), version("tokenizers")])
        key = digest([FORMAT, stamps, options, known])
        self._folder = made_once(
            cache_root() / "text" / f"chat-{key[:24]}", lambda folder: self._make(folder, files, template)
        )
        report = read_json(self._folder / REPORT)
        sources: dict[Split, Source] = {}
        splits: dict[str, dict[str, Any]] = {}
        for split in SPLITS:
            if report[split]["conversations"]:
                sources[split], facts = self._rows(split)
                splits[split] = {"count": len(sources[split]), **report[split], **facts}
            elif split != "test":
                raise ConfigError(
                    f"{self.path}: no conversation is left for {split}; give it some, or raise data.val_fraction"
                )
        if "test" not in sources:
            sources["test"], splits["test"] = sources["val"], {**splits["val"], "from": "alias of val"}
        common: dict[str, Any] = {
            "vocab_size": self.vocab_size, "vocabulary_sha256": vocabulary_digest(self.tokenizer),
            "unit": "pretrained token", "block_size": self.block_size, "packing": self.packing,
            "template": template.facts(),
        }  # fmt: skip
        return sources, Manifest(self.name, self.modality, common, splits, options)

    def _files(self) -> dict[Split | None, list[Path]]:
        """Files of each split; those that are to be split are of None."""
        files = find_files(self.path, (".jsonl",))
        names = {file.name: file for file in files if file.parent == self.path}
        if not {"train.jsonl", "val.jsonl"} <= names.keys():
            return {None: files}
        return {split: [names[f"{split}.jsonl"]] for split in SPLITS if f"{split}.jsonl" in names}

    def _split_of(self, turns: Sequence[Mapping[str, str]]) -> Split:
        first = next(turn["content"] for turn in turns if turn["role"] == "user")
        part = int.from_bytes(hashlib.sha256(first.encode()).digest()[:8]) / 2**64
        val, test = self.fractions
        return "test" if part < test else "val" if part < test + val else "train"

    def _make(self, folder: Path, files: Mapping[Split | None, Sequence[Path]], template: ChatTemplate) -> None:
        """Writes SPLIT.jsonl, the texts; SPLIT.tokens.npy, int32 [2, L], tokens and labels of all conversations in
        turn; SPLIT.ends.npy, int64 [N]; and what was read."""
        report: dict[str, dict[str, Any]] = {
            split: dict.fromkeys(("conversations", "empty", "cut_after_the_last_answer"), 0) for split in SPLITS
        }
        tokens: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
        with contextlib.ExitStack() as stack:
            outs = {s: stack.enter_context(open(folder / f"{s}.jsonl", "w", encoding="utf-8")) for s in SPLITS}
            for split, where, turns in self._conversations(files):
                into = split or self._split_of(turns)
                whole = len(turns)
                while turns and turns[-1]["role"] != "assistant":
                    turns.pop()
                if not turns or not all(turn["content"] for turn in turns):
                    if self.empty == "refuse":
                        what = "a turn is empty" if turns else "there is no answer"
                        raise DataError(f"{where}: {what}; data.empty=drop leaves such conversations out")
                    report[into]["empty"] += 1
                    continue
                report[into]["cut_after_the_last_answer"] += len(turns) < whole
                report[into]["conversations"] += 1
                ids, answered = template.encoded(turns, where)
                array = np.array([ids, np.where(answered, ids, IGNORED)], dtype=np.int32)
                last = int(np.flatnonzero(answered)[-1])
                tokens[into].append(np.stack([array[0, :last], array[1, 1 : last + 1]]))  # the next one is predicted
                outs[into].write(json.dumps({"text": template.render(turns), "source": where}, ensure_ascii=False))
                outs[into].write("\n")
        for split, parts in tokens.items():
            array = np.concatenate([np.zeros((2, 0), dtype=np.int32), *parts], axis=1)
            np.save(folder / f"{split}.tokens.npy", array)
            np.save(folder / f"{split}.ends.npy", np.cumsum([part.shape[1] for part in parts], dtype=np.int64))
            report[split]["predicted"] = int((array[1] != IGNORED).sum())
            report[split]["sha256"] = digest(array.tobytes())
            named = any(split in files for split in SPLITS)
            report[split]["from"] = f"{split}.jsonl" if named else "a hash of what the user says first"
        write_json(folder / REPORT, report)

    def _conversations(
        self, files: Mapping[Split | None, Sequence[Path]]
    ) -> Iterator[tuple[Split | None, str, list[dict[str, str]]]]:
        """(split, file and line, turns) of each line."""
        for split, several in files.items():
            for file in several:
                for number, line in enumerate(lines(file), 1):
                    where = f"{name_of(self.path, file)}:{number}"
                    if not line.strip():
                        continue
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        raise DataError(f"{where}: not JSON") from None
                    turns = list(turns_of(record, self.fields, where))
                    if any(HALF.search(turn["content"]) for turn in turns):
                        raise DataError(f"{where}: holds half a surrogate pair, which is no character")
                    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
                    if not spoken or spoken[0] != "user":
                        raise DataError(f"{where}: the first turn but the system's must be the user's")
                    yield split, where, turns

    def _rows(self, split: Split) -> tuple[ChatSource, dict[str, int]]:
        """The rows of a split, and how many conversations are too long."""
        array = np.load(self._folder / f"{split}.tokens.npy", mmap_mode="r")
        ends = np.load(self._folder / f"{split}.ends.npy")
        starts = np.concatenate([[0], ends[:-1]])
        lengths, origin = ends - starts, f"{self.name} ({split})"
        fit = np.flatnonzero(lengths <= self.block_size)
        over = len(ends) - len(fit)
        if not len(fit):
            raise ConfigError(
                f"{origin}: all {over} conversations have more than data.block_size={self.block_size} tokens (the "
                f"shortest {int(lengths.min())}); raise it"
            )
        if over:
            tqdm.write(
                f"{origin}: {over} of {len(ends)} conversations are left out, longer than "
                f"data.block_size={self.block_size}"
            )
        rows = pack(lengths[fit].tolist(), self.block_size) if self.packing else [[i] for i in range(len(fit))]
        order = fit[[i for row in rows for i in row]]
        flat = np.concatenate([array[:, starts[i] : ends[i]] for i in order], axis=1)
        places = np.concatenate([np.arange(lengths[i], dtype=np.int32) for i in order])
        last = np.cumsum([sum(lengths[fit[i]] for i in row) for row in rows])
        spans = torch.from_numpy(np.stack([np.concatenate([[0], last[:-1]]), last]))
        pad = self.tokenizer.token_to_id(PAD) or self.tokenizer.token_to_id(end_token(self.tokenizer) or PAD) or 0
        arrays = torch.from_numpy(np.concatenate([flat, places[None]]))
        source = ChatSource(arrays, spans, self.block_size if self.packing else None, pad, origin)
        return source, {"longer_than_block_size": over, "tokens": int(last[-1])}

    def texts(self, split: Split) -> Iterator[tuple[str, str]]:
        """Whole conversations as the template shows them, also those that are too long."""
        self.setup()
        name = split if (self._folder / f"{split}.jsonl").stat().st_size else "val"
        for record in records(self._folder / f"{name}.jsonl"):
            yield record["source"], record["text"]

    def units_per_token(self, split: Split) -> dict[str, float] | None:
        """None: of what is asked nothing is predicted."""
        return None
