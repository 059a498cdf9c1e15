"""Corpus: vocabularies, token files, windows and documents, conditions, the cache, bad input."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_files import cache as cache
from data_files import same
from omegaconf import OmegaConf
from tokenizers import Tokenizer

from genlab.cli.compose import compose_config
from genlab.cli.condition_values import condition_rows
from genlab.cli.targets import instantiate
from genlab.conditions import Prompt
from genlab.data import corpus, token_files
from genlab.data.corpus import PYTHON
from genlab.data.fetch import present
from genlab.data.module import Split
from genlab.data.prepare import Preparation, prepare
from genlab.data.text import Text
from genlab.data.vocabulary import KINDS, LOSSLESS, Kind, encode, encoder, special_tokens, train_tokenizer
from genlab.data.windows import Windows
from genlab.errors import ConfigError, DataError
from genlab.models.autoregressive import AutoregressiveModel
from genlab.networks.awd_lstm import AWDLSTM

_WORDS = "der Vater mit seinem Kind, er hat den Knaben wohl in dem Arm; 谁 夜 风\n\t  "
WORDS = _WORDS.split(" ")
ODD = "<|endoftext|> e\u0301 🌬️\x07 [UNK]  \n\n x"


def texts(count: int = 60, words: int = 40, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)).strip() + f" {i}" for i in range(count)]


def write(path: Path, found: list[str], **fields: Any) -> Path:
    """JSON Lines; a field is a function of the place."""
    lines = [{"text": text, **{key: value(i) for key, value in fields.items()}} for i, text in enumerate(found)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


def data_of(folder: Path, found: list[str] | None = None, fields: dict[str, Any] | None = None, **options: Any) -> Text:
    path = folder / "in.jsonl"
    if not path.exists():
        write(path, found or texts(), **fields or {})
    defaults: dict[str, Any] = {
        "vocab_size": 300,
        "block_size": 16,
        "batch_size": 4,
        "seed": 3,
        "prepare": Preparation(near_duplicates="ignore", val_fraction=0.2, test_fraction=0.1),
        "suffixes": [".jsonl"],
    }
    return Text("mine", split="documents", **{"path": str(path), **defaults, **options})


def decoded(data: Text, ids: torch.Tensor) -> str:
    """Text of token ids, special tokens included."""
    return data.tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def bytes_per_token(data: Text, split: Split) -> float:
    return (data.units_per_token(split) or {})["byte"]


def size_of(folder: Path, **options: Any) -> int:
    """The vocabulary's size, from the answer to a wrong one."""
    if not (folder / "in.jsonl").exists():
        write(folder / "in.jsonl", texts())
    with pytest.raises(ConfigError, match=r"set data.vocab_size=(\d+)$") as caught:
        data_of(folder, **{**options, "vocab_size": options.get("vocab_size", 1)}).setup()
    return int(str(caught.value).rpartition("=")[2])


# ---- vocabularies


@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies(kind: Kind) -> None:
    found = texts()
    alphabet = sorted(set("".join(found) + ODD))
    special = special_tokens(kind, ["[PAD]"], {"form": ["a", "好"]})
    made = [train_tokenizer(kind, 330, order, alphabet, special) for order in (found, found, found[::-1])]
    contents = [json.loads(tokenizer.to_str()) for tokenizer in made]
    assert contents[0] == contents[1] == contents[2]
    tokenizer = made[0]
    assert [tokenizer.token_to_id(token) for token in special] == list(range(len(special)))
    whole = tokenizer.get_vocab_size()
    assert whole == (len(alphabet) + len(special) if kind == "characters" else min(whole, 330))
    ids = encoder(kind, tokenizer)([*found, ODD])
    for text, row in zip([*found, ODD], ids, strict=True):
        assert row.dtype == np.uint32
        assert row.min() >= 0 if kind == "words" else row.min() >= len(special)  # "<|endoftext|>" in a text is text
        if kind in LOSSLESS:
            assert tokenizer.decode(row.tolist(), skip_special_tokens=False) == text
    if kind in ("byte_bpe", "bpe"):
        assert sum(len(row) for row in ids) < 0.8 * sum(len(text) for text in found)
    prompt = "<|endoftext|><|form=好|>er hat"
    assert encode(tokenizer, prompt)[:2] == [0, special.index("<|form=好|>")]
    assert tokenizer.decode(encode(tokenizer, prompt)) == "er hat"
    if kind == "byte_bpe":
        assert tokenizer.decode(encode(tokenizer, "né𝄞")) == "né𝄞"
    elif kind == "words":
        assert special.index("[UNK]") in encode(tokenizer, "né𝄞")
    else:
        with pytest.raises(DataError, match=r"character '𝄞' \(U\+1D11E\) at 14 of "):
            encode(tokenizer, "<|endoftext|>e𝄞")


def test_a_prompt_of_a_run(tmp_path: Path) -> None:
    data = data_of(tmp_path, tokenizer="characters", vocab_size=size_of(tmp_path, tokenizer="characters"))
    data.setup()
    model = SimpleNamespace(conditions=(Prompt(),), tokenizer=data.tokenizer)
    rows = condition_rows(model, {"prompt": "<|endoftext|>er"}, 2)["prompt"]
    assert rows.tolist() == [[0, *encode(data.tokenizer, "er")]] * 2
    with pytest.raises(ConfigError, match=r"condition.prompt: character 'q' \(U\+0071\) at 1 of 'eq' is not"):
        condition_rows(model, {"prompt": "eq"}, 1)


@pytest.mark.parametrize("kind", ["byte_bpe", "bpe", "unigram", "words"])
def test_a_vocabulary_that_is_too_small(kind: Kind) -> None:
    with pytest.raises(ConfigError, match=r"data.vocab_size=2 is too small for .* set at least \d+") as caught:
        train_tokenizer(kind, 2, ["abc"], list("abc "), ["<|endoftext|>", "[UNK]"])
    least = int(str(caught.value).rpartition(" ")[2])
    assert train_tokenizer(kind, least, ["abc abc abc"] * 9, list("abc "), ["<|endoftext|>", "[UNK]"]).get_vocab_size()


# ---- the packed stream


@pytest.mark.parametrize("kind", KINDS)
def test_packed_stream_and_bytes_per_token(tmp_path: Path, kind: Kind) -> None:
    write(tmp_path / "in.jsonl", texts())
    data = data_of(tmp_path, tokenizer=kind, vocab_size=size_of(tmp_path, tokenizer=kind, vocab_size=2000))
    data.setup()
    report = json.loads(next((tmp_path / "cache" / "text").glob("prepared-*/report.json")).read_text())
    for split in ("train", "val", "test"):
        meta = data.manifest.splits[split]
        folder = next((tmp_path / "cache" / "text").glob("prepared-*"))
        kept = [json.loads(line)["text"] for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        assert len(kept) == meta["documents"] == report["kept"][split]["documents"]
        if meta["unknown"] == 0:
            assert decoded(data, data.source(split).tokens) == "<|endoftext|>" + "".join(
                f"{text}<|endoftext|>" for text in kept
            )
            stream = data.source(split).tokens
            assert bytes_per_token(data, split) == pytest.approx(
                sum(len(text.encode()) for text in kept) / (len(stream) - 1)
            )
        else:
            assert (kind, split) in (("words", "val"), ("words", "test"))
            assert data.units_per_token(split) is None
    assert data.manifest.facts["unit"] == kind
    assert str(tmp_path) not in json.dumps(data.manifest.to_dict())


def test_bits_per_byte_do_not_depend_on_the_vocabulary(tmp_path: Path) -> None:
    """A model that gives each byte of text the same probability has the same bits a byte by all vocabularies."""
    write(tmp_path / "in.jsonl", texts())
    for kind, size in (("byte_bpe", 270), ("byte_bpe", 300), ("characters", size_of(tmp_path, tokenizer="characters"))):
        data = data_of(tmp_path, tokenizer=kind, vocab_size=size)
        source = data.source("val")
        batch = source.batch(torch.arange(len(source)), torch.zeros(len(source), dtype=torch.int64))
        labels = batch["labels"][batch["labels"] != -100]
        length = len(decoded(data, labels).replace("<|endoftext|>", "").encode())
        nats_per_token = 2.5 * math.log(2) * length / len(labels)  # 2.5 bits a byte of text, none at the ends
        assert nats_per_token / math.log(2) / bytes_per_token(data, "val") == pytest.approx(2.5)


def test_windows(tmp_path: Path) -> None:
    data = data_of(tmp_path, windows="epoch")
    source = data.source("train")
    assert isinstance(source, Windows)
    stream = data.source("train").tokens.to(torch.int64)
    got = []
    for batch in data.batches(data.train_loader(0, len(source))):  # an epoch and what fills its last batch
        labels = batch["labels"]
        for i, row in zip(batch["id"].tolist(), labels, strict=True):
            if len(got) < len(source):
                got.append((i, row))
    assert sorted(i for i, _ in got) == list(range(len(source)))
    assert [i for i, _ in got] != list(range(len(source)))
    predicted = torch.cat([row[row != -100] for _, row in sorted(got, key=lambda pair: pair[0])])
    assert torch.equal(predicted, stream[1:])  # each token once an epoch
    loose = data_of(tmp_path, windows="random")
    starts = loose.source("train").spans(torch.arange(20), torch.zeros(20, dtype=torch.int64))[0]  # type: ignore[attr-defined]
    assert (starts % 16 != 0).any()
    for position in (0, 7, 23):  # a place is found without what was before it
        first = next(iter(loose.batches(loose.train_loader(position, 100))))
        assert first["position"][0] == position
        again = next(iter(data_of(tmp_path, windows="random").batches(loose.train_loader(position, 100))))
        assert same(first, again)


@pytest.mark.parametrize("documents", ["packed", "single"])
def test_resident_equals_loader(tmp_path: Path, documents: Any) -> None:
    options = {"documents": documents, "windows": "epoch", "block_size": 200}
    a = data_of(tmp_path, **options)
    b = data_of(tmp_path, **options, resident_max=0, num_workers=1)
    for x, y in ((a.train_loader(5, 40), b.train_loader(5, 40)), (a.eval_loader("val"), b.eval_loader("val"))):
        assert all(same(p, q) for p, q in zip(a.batches(x), b.batches(y), strict=True))


# ---- a document an item, conditions


def poems(folder: Path, **options: Any) -> Text:
    rng = np.random.default_rng(0)
    found = ["".join(rng.choice(list("春花秋月何时了"), 5 + i % 9)) + str(i) for i in range(90)]
    fields = {"form": lambda i: "abc"[i % 3], "author": lambda i: f"n{int(math.sqrt(i))}"}
    settings = {
        "tokenizer": "characters",
        "documents": "single",
        "windows": "epoch",
        "vocab_size": 21,
        "block_size": 18,
    }
    return data_of(folder, found, fields, **{**settings, "condition": ["form"], **options})


def test_single_documents(tmp_path: Path) -> None:
    data = poems(tmp_path)
    source = data.source("val")
    assert isinstance(source, Windows)
    batch = source.batch(torch.arange(len(source)), torch.zeros(len(source), dtype=torch.int64))
    folder = next((tmp_path / "cache" / "text").glob("prepared-*"))
    kept = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    assert len(kept) == len(source)
    for record, ids, labels, mask in zip(
        kept, *(batch[k] for k in ("input_ids", "labels", "attention_mask")), strict=True
    ):
        n = int(mask.sum())
        assert n == len(record["text"]) + 2  # the boundary, the form, the text
        assert mask.tolist() == [1] * n + [0] * (18 - n)
        assert decoded(data, ids[:n]) == f"<|endoftext|><|form={record['form']}|>{record['text']}"
        assert labels[0] == -100  # the form is given, not predicted
        assert decoded(data, labels[1:n]) == record["text"] + "<|endoftext|>"
        assert (labels[n:] == -100).all()
        assert (ids[n:] == 0).all()
    counted = int((batch["labels"] != -100).sum())
    assert bytes_per_token(data, "val") == pytest.approx(sum(len(r["text"].encode()) for r in kept) / counted)
    assert data.manifest.facts["conditions"].keys() == {"form"}
    assert set(data.manifest.facts["conditions"]["form"]) == {"a", "b", "c"}
    half = source.select(np.array([4, 1]))
    assert torch.equal(half.batch(torch.arange(2), torch.zeros(2))["input_ids"], batch["input_ids"][[4, 1]])


@pytest.mark.parametrize("options", [{}, {"documents": "packed", "windows": "random"}])
def test_every_token_of_a_step_weighs_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    data = poems(tmp_path, batch_size=12, **options)
    network = AWDLSTM(21, embedding=6, layers=1)
    model = AutoregressiveModel(network, None)

    def gradient(accumulation: int, world: int) -> torch.Tensor:
        """Of the second step: the mean over micro-batches and ranks, as Lightning and DDP form it."""
        network.zero_grad()
        for rank in range(world):
            loader = data.train_loader(12, 24, accumulation=accumulation, rank=rank, world_size=world)
            for batch in data.batches(loader):
                (model.losses(batch)["loss"] / accumulation / world).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    (whole,) = data.batches(data.train_loader(12, 24))
    assert len((whole["labels"] != -100).sum(1).unique()) > 1
    logits = network(whole["input_ids"]).logits
    network.zero_grad()
    F.cross_entropy(logits.flatten(0, 1), whole["labels"].flatten()).backward()
    plain = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    for accumulation, world in ((1, 1), (3, 1), (1, 2), (2, 3)):
        torch.testing.assert_close(gradient(accumulation, world), plain, rtol=1e-5, atol=1e-7)


def test_long_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    data = poems(tmp_path, block_size=12)
    source = data.source("train")
    batch = source.batch(torch.arange(len(source)), torch.zeros(len(source), dtype=torch.int64))
    assert batch["input_ids"].shape[1] == 12
    assert batch["attention_mask"].sum(1).max() == 12  # one of exactly this length is in
    meta = data.manifest.splits["train"]
    assert meta["longer_than_block_size"] == meta["documents"] - len(source) > 0
    with pytest.raises(ConfigError, match=r"no document has at most data.block_size=3 tokens \(the shortest has \d+\)"):
        poems(tmp_path, block_size=3).setup()


def test_conditions_in_the_packed_stream_are_no_labels(tmp_path: Path) -> None:
    data = poems(tmp_path, documents="packed", condition=["form", "author"], condition_values=4, vocab_size=26)
    data.setup()
    assert len(data.manifest.facts["conditions"]["author"]) == 5
    assert data.manifest.facts["conditions"]["author"][-1] == "other"
    assert len(data.manifest.facts["conditions"]["form"]) == 3
    source = data.source("val")
    batch = source.batch(torch.arange(len(source)), torch.zeros(len(source), dtype=torch.int64))
    first, end = source.condition_ids or (0, 0)
    assert end - first == 8
    inputs, labels = batch["input_ids"], batch["labels"]
    assert ((inputs >= first) & (inputs < end)).sum() >= 2 * data.manifest.splits["val"]["documents"] - 1
    assert not ((labels >= first) & (labels < end)).any()
    meta = data.manifest.splits["val"]
    counted = int((labels != -100).sum())
    assert counted == meta["tokens"] - 1 - 2 * meta["documents"]
    assert bytes_per_token(data, "val") == pytest.approx(meta["bytes"] / counted)


def test_select_and_pad(tmp_path: Path) -> None:
    data = poems(tmp_path, select={"form": ["a", "c"]}, special_tokens=["[PAD]", "[MASK]"], vocab_size=22)
    data.setup()
    assert sorted(data.manifest.facts["conditions"]["form"]) == ["a", "c"]
    assert data.manifest.filter["select"] == {"form": ["a", "c"]}
    batch = next(iter(data.batches(data.eval_loader("val"))))
    assert (batch["input_ids"][batch["attention_mask"] == 0] == data.tokenizer.token_to_id("[PAD]")).all()
    with pytest.raises(ConfigError, match="selects no document"):
        poems(tmp_path, select={"form": ["x"]}).setup()
    with pytest.raises(ConfigError, match="has no field 'style'"):
        poems(tmp_path, condition=["style"]).setup()


# ---- the cache


def test_a_later_start_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data_of(tmp_path)
    first.setup()

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("read again")

    for module, name in ((corpus, "prepare_into"), (token_files, "records"), (token_files, "train_tokenizer")):
        monkeypatch.setattr(module, name, forbidden)
    second = data_of(tmp_path)
    second.setup()
    assert second.manifest == first.manifest
    tokens = second.source("train").tokens
    assert tokens.sum() != 0
    assert (
        str(next((tmp_path / "cache" / "text").glob("tokens-*")) / "train.tokens")
        in Path("/proc/self/maps").read_text()
    )
    data_of(tmp_path, block_size=8, windows="epoch").setup()  # other windows of the same tokens
    monkeypatch.undo()
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    path = tmp_path / "in.jsonl"
    write(path, texts(seed=1))
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1))
    third = data_of(tmp_path)
    third.setup()
    assert third.manifest.identity("train") != first.manifest.identity("train")


def test_what_was_prepared_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", texts())
    prepare(tmp_path / "in.jsonl", tmp_path / "made", Preparation(near_duplicates="ignore", val_fraction=0.2))
    data = data_of(tmp_path, path=str(tmp_path / "made"))
    data.setup()
    assert not list((tmp_path / "cache" / "text").glob("prepared-*"))
    assert data.manifest.filter["prepared"]["val_fraction"] == 0.2
    (tmp_path / "made" / "val.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"a prepared folder without val\.jsonl"):
        data_of(tmp_path, path=str(tmp_path / "made")).setup()
    (tmp_path / "made" / "val.jsonl").write_text("[]\n")
    with pytest.raises(DataError, match=r"val\.jsonl:1: not a document"):
        data_of(tmp_path, path=str(tmp_path / "made")).setup()


def test_broken_token_files_are_said(tmp_path: Path) -> None:
    data_of(tmp_path).setup()
    folder = next((tmp_path / "cache" / "text").glob("tokens-*"))
    whole = (folder / "val.tokens").read_bytes()
    (folder / "val.tokens").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"val\.tokens: not the \d+ bytes .* it is made again"):
        data_of(tmp_path).setup()
    (folder / "tokens.json").write_text("{")
    with pytest.raises(DataError, match=r"without tokens\.json"):
        data_of(tmp_path).setup()


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    whole = [chr(0x10000 + i) for i in range(65530)]
    found = ["".join(whole[j::3]) for j in range(3)] * 4
    found = [text[i:] + text[:i] for i, text in enumerate(found)]
    options: dict[str, Any] = {"tokenizer": "characters", "condition": ["n"], "vocab_size": 65530 + 1 + 9}
    options["prepare"] = Preparation(near_duplicates="ignore", val_fraction=0.2, normalise=False)
    data = data_of(tmp_path, found, {"n": str}, **options)
    batch = next(iter(data.batches(data.eval_loader("val"))))
    assert data.source("val").tokens.dtype == torch.int32
    assert data.source("val").tokens.max() > 1 << 16
    assert decoded(data, batch["input_ids"][0][2:]) in "".join(found)
    predicted = torch.cat([b["labels"].flatten() for b in data.batches(data.eval_loader("val"))])
    assert predicted.max() > 1 << 16
    (tmp_path / "more").mkdir()
    found.append("".join(map(chr, range(500, 513))))
    with pytest.raises(DataError, match="65543 distinct characters; at most 65536 fit"):
        data_of(tmp_path / "more", found, **options | {"condition": []}).setup()


@pytest.mark.faults(19)
def test_corpus_bad_input(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", texts())
    for options, match in (
        ({"documents": "single", "windows": "random"}, "set data.windows=epoch"),
        ({"special_tokens": ["[CLS]"]}, r"no token '\[CLS\]'; known: \[PAD\], \[MASK\]"),
        ({"vocab_size": 100}, "too small for 256 bytes and 1 special tokens; set at least 258"),
        (
            {"vocab_size": 9000},
            r"the byte_bpe vocabulary has \d+ tokens, data.vocab_size is 9000; set data.vocab_size=",
        ),
        ({"path": str(tmp_path / "none")}, "no such file or folder"),
        ({"path": None}, "no data set 'mine' to fetch"),
        ({"prepare": Preparation(val_fraction=0)}, "the val split of data 'mine' has no document"),
        ({"batch_size": 10**6}, "data.batch_size=1000000 is larger"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            data_of(tmp_path, **options).setup()  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    node = {"_target_": "genlab.data.text.Text", "name": "x", "split": "documents", "vocab_size": 9, "block_size": 16}
    for key, value, match in (
        ("tokenizer", "sentencepiece", r"must be one of byte_bpe, bpe, .*, is 'sentencepiece'"),
        ("windows", "some", "must be one of random, epoch, contiguous, is 'some'"),
        ("block_size", 0, "must be an integer >= 1, is 0"),
        ("condition_values", 0, "must be an integer >= 1, is 0"),
    ):
        with pytest.raises(ConfigError, match=rf"data\.{key} {match}"):
            instantiate(OmegaConf.create({"data": {**node, key: value}}).data)


def test_pythons_own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lib"
    (folder / "test").mkdir(parents=True)
    for i, text in enumerate(texts()):
        (folder / f"m{i}.py").write_text(text, encoding="utf-8")
    (folder / "test" / "x.py").write_text("left out")
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(folder))
    options = {"suffixes": [".py"], "exclude": ["test"], "prepare": Preparation(near_duplicates="ignore")}
    data = Text("code", split="documents", path=PYTHON, vocab_size=300, block_size=8, batch_size=4, **options)  # type: ignore[arg-type]
    data.setup()
    assert data.manifest.facts["python"].count(".") == 2
    assert sum(data.manifest.splits[split]["documents"] for split in ("train", "val", "test")) == 60


@pytest.mark.data
def test_real_poetry_and_works() -> None:
    for name in ("shakespeare_works", "chinese_poetry"):
        if not present(name):
            pytest.skip(f"python scripts/fetch_data.py {name}")
    conf = Path(__file__).resolve().parent.parent / "conf"
    sizes = {}
    for option in ("poetry", "shakespeare_works_bpe"):
        data = instantiate(compose_config(conf, "train", [f"data={option}", "model=gpt"]).data)
        data.setup()
        sizes[option] = [data.manifest.splits[split]["documents"] for split in ("train", "val", "test")]
        batch = next(iter(data.batches(data.eval_loader("val"))))
        assert batch["input_ids"].shape[1] == data.block_size
    assert sizes == {"poetry": [202228, 11301, 11282], "shakespeare_works_bpe": [38, 2, 2]}
    assert isinstance(data.tokenizer, Tokenizer)
