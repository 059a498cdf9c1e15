"""Text as characters: the tokenizer, windows, large files, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import cache as cache
from data_files import module, same
from omegaconf import OmegaConf

from genlab.cli.targets import instantiate
from genlab.data import characters
from genlab.data.characters import Alphabet, read_tokens
from genlab.data.fetch import present
from genlab.data.module import Split
from genlab.data.text import Text
from genlab.data.vocabulary import encode
from genlab.data.windows import Windows
from genlab.errors import ConfigError, DataError

TEXT = "Wer reitet so spät,\r\n\tdurch Nacht 和 Wind? 🌬️\u0000e\u0301\n" * 40


def text_module(path: Path, text: str = TEXT, **options: Any) -> Text:
    path.write_bytes(text.encode())
    defaults: dict[str, Any] = {"vocab_size": len(set(text)), "block_size": 16, "batch_size": 4, "seed": 3}
    return Text("book", split="share", tokenizer="characters", path=str(path), **defaults | options)


def whole(data: Text, split: Split) -> str:
    """The text of a split that is one document."""
    ((_, text),) = data.texts(split)
    return text


def test_characters_decode_is_the_inverse(tmp_path: Path) -> None:
    data = text_module(tmp_path / "t.txt")
    data.setup()
    tokenizer = data.tokenizer
    assert tokenizer.decode(encode(tokenizer, TEXT)) == TEXT
    assert whole(data, "train") + whole(data, "val") == TEXT
    vocabulary = sorted(set(TEXT))
    assert encode(tokenizer, TEXT) == [vocabulary.index(c) for c in TEXT]  # nanoGPT's stoi
    train = whole(data, "train")
    assert data.units_per_token("train") == {
        "byte": len(train.encode()) / len(train),
        "character": 1,
        "word": len(train.split()) / len(train),
    }
    with pytest.raises(DataError, match=r"character 'x' \(U\+0078\) at 2 of 'Nax' is not in the vocabulary"):
        encode(tokenizer, "Nax")


def test_train_windows(tmp_path: Path) -> None:
    data = text_module(tmp_path / "t.txt", batch_size=50)
    source = data.source("train")
    assert isinstance(source, Windows)
    ids = torch.tensor(encode(data.tokenizer, whole(data, "train")))
    loader = data.train_loader(0, 4000)
    starts = []
    for batch in data.batches(loader):
        start = source.spans(batch["id"], batch["position"] // len(source))[0]
        starts += start.tolist()
        for row, at in enumerate(start.tolist()):
            assert torch.equal(batch["input_ids"][row], ids[at : at + 16])
            assert torch.equal(batch["labels"][row], ids[at + 1 : at + 17])
    last = len(ids) - 16
    assert min(starts) < 0.01 * last
    assert 0.99 * last < max(starts) < last  # randint(len - block_size)
    histogram = np.bincount(np.array(starts) * 10 // last, minlength=10) / len(starts)
    assert abs(histogram - 0.1).max() < 0.025
    one, two = (source.spans(torch.arange(40), torch.full((40,), epoch))[0] for epoch in (0, 1))
    assert (one == two).sum() < 4
    assert torch.equal(one[7:9], source.spans(torch.tensor([7, 8]), torch.tensor([0, 0]))[0])
    other = text_module(tmp_path / "t.txt", seed=4).source("train")
    assert isinstance(other, Windows)
    assert (one == other.spans(torch.arange(40), torch.zeros(40, dtype=torch.int64))[0]).sum() < 4


@pytest.mark.parametrize("length", [2, 16, 17, 18, 32, 33, 34, 100])
def test_validation_predicts_every_character_but_the_first_once(length: int) -> None:
    tokens = torch.randint(0, 60, (length,), dtype=torch.int16)
    source = Windows(tokens, 16, "x")
    n = len(source)
    batch = source.batch(torch.arange(n), torch.zeros(n, dtype=torch.int64))
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], tokens[1:].long())
    assert torch.equal(batch["input_ids"][kept], tokens[:-1].long())
    assert batch["input_ids"].shape == batch["labels"].shape == (n, 16)
    assert kept.any(1).all()
    assert (batch["input_ids"][~kept] == 0).all()


def test_ids_above_int16(tmp_path: Path) -> None:
    tokens = torch.from_numpy(np.array([40000, 65535, 1, 2], dtype=np.uint16).view(np.int16))
    batch = Windows(tokens, 3, "x").batch(torch.tensor([0]), torch.tensor([0]))
    assert batch["input_ids"].tolist() == [[40000, 65535, 1]]
    assert batch["labels"].tolist() == [[65535, 1, 2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_text_resident_equals_loader(tmp_path: Path, workers: int) -> None:
    a = text_module(tmp_path / "t.txt")
    b = text_module(tmp_path / "t.txt", resident_max=0, num_workers=workers)
    for x, y in ((a.train_loader(5, 400), b.train_loader(5, 400)), (a.eval_loader("val"), b.eval_loader("val"))):
        assert all(same(p, q) for p, q in zip(a.batches(x), b.batches(y), strict=True))


def test_a_large_text_is_memory_mapped_and_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(TEXT.encode())
    whole, alphabet, sha256 = read_tokens(path, tmp_path / "c")
    monkeypatch.setattr(characters, "BLOCK", 7)  # cuts characters in two
    monkeypatch.setattr(characters, "IN_MEMORY", 10)
    mapped, other, sha = read_tokens(path, tmp_path / "c")
    assert torch.equal(whole, mapped)
    assert alphabet.characters == other.characters
    assert sha == sha256
    with monkeypatch.context() as patch:  # a later start reads nothing of it

        def read(*_: object) -> None:
            raise AssertionError("the file was read")

        patch.setattr(characters, "text_blocks", read)
        assert torch.equal(read_tokens(path, tmp_path / "c")[0], mapped)
    (stored,) = (tmp_path / "c").glob("*/tokens.uint16")
    stored.write_bytes(stored.read_bytes()[:-2])
    with pytest.raises(DataError, match="not whole; delete it, it is made again"):
        read_tokens(path, tmp_path / "c")
    path.write_bytes(TEXT.encode() * 2)  # another file
    assert len(read_tokens(path, tmp_path / "c")[0]) == 2 * len(whole)
    path.write_bytes(TEXT.encode() + b"ab\xff")
    with pytest.raises(DataError, match=rf"not UTF-8 at offset {len(TEXT.encode()) + 2}, line 81"):
        read_tokens(path, tmp_path / "c")


@pytest.mark.faults(19)
def test_text_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "t{x}.txt"
    with pytest.raises(
        ConfigError, match=r"t\{x\}.txt has \d+ distinct characters, data.vocab_size is 7; set data.voc"
    ):
        text_module(path, vocab_size=7).setup()
    with pytest.raises(ConfigError, match="empty, 0 characters"):
        text_module(path, "", vocab_size=1).setup()
    with pytest.raises(ConfigError, match=r"too few for a window of data.block_size=16"):
        text_module(path, "abcd" * 4).setup()
    data = text_module(path)
    path.write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(DataError, match="not UTF-8 at offset 11, line 3") as caught:
        data.setup()
    assert str(path) in str(caught.value)
    path.write_bytes(b"cut \xf0\x9f\x8c")  # ends within a character
    with pytest.raises(DataError, match="not UTF-8 at offset 4, line 1"):
        data.setup()
    path.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        data.setup()
    node = {"_target_": "genlab.data.text.Text", "name": "x", "split": "share", "tokenizer": "characters",
            "vocab_size": 9, "block_size": 16}  # fmt: skip
    for options, match in (
        ({"block_size": 0}, r"data\.block_size must be an integer >= 1, is 0"),
        ({"train_fraction": 1.0}, r"data\.train_fraction must be a number >= 0 and < 1, is 1\.0"),
        ({"split": "shares"}, r"data\.split must be one of .*, is 'shares'\. Did you mean share\?"),
        ({"tokenizer": "byte_bpe"}, "data.tokenizer=byte_bpe: data.split=share makes characters only"),
        ({"select": {"a": ["b"]}}, "data.select: data.split=share has no such option, only train_fraction, characters"),
        ({"split": "files", "tokenizer": "words", "vocabulary": "x"}, "data.vocabulary: the words of data.split=files"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            instantiate(OmegaConf.create({"data": {**node, **options}}).data)  # type: ignore[dict-item]
        assert "\n" not in str(caught.value)
    held_out = text_module(path, train_fraction=0)
    with pytest.raises(ConfigError, match=r"data\.train_fraction=0: .* nothing to train on"):
        held_out.train_loader(0, 4)
    with pytest.raises(DataError, match="65537 distinct characters"):
        Alphabet([chr(i) for i in range(0x20000, 0x20000 + 65537)])
    with pytest.raises(ConfigError, match="it has no units of text"):
        module(tmp_path).units_per_token("val")


@pytest.mark.data
def test_real_shakespeare() -> None:
    if not present("shakespeare_char"):
        pytest.skip("python scripts/fetch_data.py shakespeare_char")
    data = Text("tiny_shakespeare", split="share", tokenizer="characters", vocab_size=65, block_size=64)
    splits = (data.source("train"), data.source("val"))
    assert all(isinstance(s, Windows) for s in splits)
    assert [len(s.tokens) for s in splits] == [1_003_854, 111_540]  # type: ignore[attr-defined]
    assert whole(data, "train").startswith("First Citizen:\nBefore we proceed any further")
    assert encode(data.tokenizer, "hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]  # from "Let's build GPT"
    assert data.units_per_token("val")["byte"] == 1.0  # type: ignore[index]
