"""Pairs of texts: files and splits, batches, the order by length, conditions, captions, bad input."""

from __future__ import annotations

import collections
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_files import cache as cache
from data_files import same
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tokenizers import Tokenizer, models, pre_tokenizers

from genlab.cli.condition_values import condition_rows
from genlab.cli.targets import instantiate
from genlab.conditions import Source as SourceText
from genlab.data.order import Order
from genlab.data.pairs import Pairs, PairSource
from genlab.data.text import Text
from genlab.errors import ConfigError, DataError, GenlabError

_GERMAN = "ein Hund läuft durch den Wald und zwei Kinder spielen am Strand im"
_ENGLISH = "a dog runs through the wood and two children play on the beach"
GERMAN, ENGLISH = _GERMAN.split(), _ENGLISH.split()


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Sentences of 1 to 14 words, and their word for word translations; no two are equal."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        words = rng.integers(0, len(GERMAN), rng.integers(1, 15))
        found.append((" ".join(GERMAN[w] for w in words) + f" {i}.", " ".join(ENGLISH[w] for w in words) + f" {i}."))
    return found


def folder_of(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    """Files of parallel lines, those of train packed."""
    folder.mkdir(exist_ok=True)
    for split, found in splits.items():
        for k, language in enumerate(("de", "en")):
            text = "".join(pair[k] + "\n" for pair in found)
            if split == "train":
                (folder / f"{split}.{language}.gz").write_bytes(gzip.compress(text.encode()))
            else:
                (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return folder


def parallel(folder: Path) -> Path:
    return folder_of(folder / "raw", train=pairs(90), val=pairs(9, 1), test=pairs(7, 2), test_2017=pairs(5, 3))


def data_of(path: Path, **options: Any) -> Pairs:
    defaults: dict[str, Any] = {"source": "de", "target": "en", "vocab_size": 300, "batch_size": 8, "seed": 3}
    return Pairs("mine", path=str(path), **{**defaults, **options})


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def words(data: Text, row: torch.Tensor) -> str:
    return data.tokenizer.decode([token for token in row.tolist() if token >= 0], skip_special_tokens=False)


def pairs_of(data: Pairs, split: Any) -> list[tuple[str, str]]:
    batches = list(data.batches(data.eval_loader(split)))
    return [(words(data, s), words(data, t)) for b in batches for s, t in zip(b["source"], b["labels"], strict=True)]


# ---- files, batches


def test_files_of_parallel_lines(tmp_path: Path) -> None:
    data = data_of(parallel(tmp_path), val_batch_size=4)
    data.setup()
    assert [data.tokenizer.token_to_id(token) for token in ("<|endoftext|>", "[PAD]")] == [0, 1]
    expected = {"train": pairs(90), "val": pairs(9, 1), "test": pairs(7, 2)}
    for split, found in expected.items():
        assert pairs_of(data, split) == [(source, f"{target}<|endoftext|>") for source, target in found]
        facts = data.manifest.splits[split]
        assert (facts["count"], facts["from"]) == (len(found), f"{split}.de, {split}.en")
        assert [text for _, text in data.texts(split)] == [text for pair in found for text in pair]  # type: ignore[arg-type]
    source = data.source("val")
    ids = torch.tensor([4, 0, 2])
    batch = source.batch(ids, ids)
    assert source.references(ids) == [[expected["val"][i][1]] for i in ids.tolist()]
    assert batch["source"].shape[1] == max((row >= 0).sum() for row in batch["source"])
    assert batch["labels"].shape[1] == max((row >= 0).sum() for row in batch["labels"])
    assert set(batch["source"][batch["source"] < 0].tolist()) == {-1}
    assert set(batch["labels"][batch["labels"] < 0].tolist()) == {-100}
    counts = source.counted(ids, ids)
    assert counts is not None
    assert counts.tolist() == (batch["labels"] >= 0).sum(1).tolist()
    assert same(
        source.select(np.array([3, 2, 0])).batch(torch.tensor([2, 0]), ids),
        source.batch(ids[[1, 1]] + torch.tensor([0, 3]), ids),
    )
    units = data.units_per_token("val")
    assert units is not None
    tokens = sum(len(row[row >= 0]) for b in data.batches(data.eval_loader("val")) for row in b["labels"])
    assert units["byte"] == sum(len(target.encode()) for _, target in expected["val"]) / tokens
    assert data.manifest.facts["max_source"] == 256
    other = data_of(tmp_path / "raw", test="test_2017", source="en", target="de")
    assert [pair[::-1] for pair in pairs(5, 3)] == [
        (s, t.removesuffix("<|endoftext|>")) for s, t in pairs_of(other, "test")
    ]


def test_records_are_read_as_lines_are(tmp_path: Path) -> None:
    """JSON Lines, tables with a header and without: the same tokens."""
    lines = data_of(parallel(tmp_path))
    lines.setup()
    found = {"train": pairs(90), "val": pairs(9, 1), "test": pairs(7, 2)}
    for kind in ("jsonl", "tsv", "bare"):
        (tmp_path / kind).mkdir()
        for split, several in found.items():
            if kind == "jsonl":
                jsonl(tmp_path / kind / f"{split}.jsonl", [{"en": t, "n": 1, "de": s} for s, t in several])
            else:
                rows = (
                    [f"{t}\t{i}\t{s}" for i, (s, t) in enumerate(several)] if kind == "tsv" else map("\t".join, several)
                )
                header = ["en\tnumber\tde"] if kind == "tsv" else []
                (tmp_path / kind / f"{split}.tsv").write_text("\r\n".join([*header, *rows]), encoding="utf-8")
        names = {"source": "source", "target": "target"} if kind == "bare" else {}
        data = data_of(tmp_path / kind, **names)
        data.setup()
        assert {s: data.manifest.splits[s]["sha256"] for s in found} == {
            s: lines.manifest.splits[s]["sha256"] for s in found
        }


def test_one_file_is_split_by_groups_or_sources(tmp_path: Path) -> None:
    records = [{"source": s, "target": t, "package": f"p{i // 3}"} for i, (s, t) in enumerate(pairs(300))]
    records += [{**records[i], "target": "another"} for i in range(0, 300, 5)]  # equal sources
    path = jsonl(tmp_path / "a.jsonl", records)
    backwards = jsonl(tmp_path / "b.jsonl", records[::-1])
    names = {"source": "source", "target": "target", "val_fraction": 0.2, "test_fraction": 0.1}
    for group in (None, "package"):
        splits = []
        for file in (path, backwards):
            data = data_of(file, group=group, **names)
            places: dict[str, set[str]] = collections.defaultdict(set)
            for split in ("train", "val", "test"):
                for source, _ in pairs_of(data, split):
                    places[source].add(split)
            splits.append(places)
            assert all(len(several) == 1 for several in places.values())
            assert data.manifest.filter["prepared"]["group"] == group
        assert splits[0] == splits[1]
        counts = collections.Counter(next(iter(several)) for several in splits[0].values())
        assert 30 < counts["val"] < 90
        assert 12 < counts["test"] < 50
        if group:
            of_group = collections.defaultdict(set)
            for record in records:
                of_group[record["package"]] |= splits[0][record["source"]]
            assert all(len(several) == 1 for several in of_group.values())


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_equals_loader_and_a_later_start(tmp_path: Path, workers: int) -> None:
    data = data_of(parallel(tmp_path))
    again = data_of(tmp_path / "raw", resident_max=0, num_workers=workers)
    for split in ("train", "val"):
        loaders = [d.train_loader(0, 90) if split == "train" else d.eval_loader("val") for d in (data, again)]
        left, right = (list(d.batches(loader)) for d, loader in zip((data, again), loaders, strict=True))
        assert len(left) == len(right)
        assert all(same(a, b) for a, b in zip(left, right, strict=True))
    assert len(list((tmp_path / "cache" / "text").glob("tokens-*"))) == 1


def test_a_pretrained_vocabulary_ends_texts_with_its_own_token(tmp_path: Path) -> None:
    """That of T5 and BART has </s>."""
    path = parallel(tmp_path)
    known = sorted({word for pair in pairs(90) + pairs(9, 1) + pairs(7, 2) for text in pair for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *known])}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = data_of(path, vocabulary=str(tmp_path), vocab_size=len(known) + 3)
    assert pairs_of(data, "val") == [(s, f"{t} </s>") for s, t in pairs(9, 1)]


# ---- the order


@pytest.mark.parametrize(("n", "batch"), [(1000, 10), (1003, 10), (29, 10), (10, 10), (1, 1), (12, 7), (997, 2)])
def test_an_order_by_length_has_every_item_once_an_epoch(n: int, batch: int) -> None:
    lengths = torch.from_numpy(np.random.default_rng(n).integers(1, 60, n))
    order = Order(n, 5, True, lengths, batch)
    whole = order.ids(0, 7 * n)
    for epoch in range(7):
        assert sorted(whole[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    if n > 100:
        assert not torch.equal(whole[:n], whole[n : 2 * n])
        assert not torch.equal(whole[:n], Order(n, 6, True, lengths, batch).ids(0, n))
    for start, count in ((0, 3), (n - 1, 2), (2 * n + n // 3, 2 * n)):  # in any order: a function of the position
        assert torch.equal(Order(n, 5, True, lengths, batch).ids(start, count), whole[start : start + count])
    if n < 100:
        return
    batches = lengths[whole[: 7 * n // batch * batch]].view(-1, batch)
    random = lengths[Order(n, 5).ids(0, 7 * n // batch * batch)].view(-1, batch)
    used, plain = (float(b.sum() / (batch * b.max(1).values.sum())) for b in (batches, random))
    assert used > (0.95 if batch > 2 else 0.98)
    assert plain < used - 0.1
    epochs = torch.arange(len(batches)) * batch // n != (torch.arange(1, len(batches) + 1) * batch - 1) // n
    spread = batches.max(1).values - batches.min(1).values
    assert spread[~epochs].max() <= 15  # a batch across two epochs alone is mixed
    assert not torch.equal(batches[:20, 0].sort().values, batches[:20, 0]), "the batches are shuffled"


def test_batches_of_pairs_have_little_padding_and_are_shared(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "raw", train=pairs(401), val=pairs(9, 1), test=pairs(7, 2))
    data, plain = data_of(path, batch_size=16), data_of(path, batch_size=16, by_length=False)

    def used(one: Pairs) -> float:
        batches = list(one.batches(one.train_loader(0, 3 * 401)))
        sides = [b[key] for b in batches for key in ("source", "labels")]
        return float(sum((side >= 0).sum() for side in sides)) / sum(side.numel() for side in sides)

    assert used(data) > 0.8
    assert used(plain) < 0.65
    whole = list(data.batches(data.train_loader(0, 3 * 401)))
    resumed = list(data.batches(data.train_loader(5 * 16, 3 * 401)))
    assert all(same(a, b) for a, b in zip(whole[5:], resumed, strict=True))
    ranks = [list(data.batches(data.train_loader(0, 3 * 401, accumulation=2, rank=r, world_size=2))) for r in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [ranks[r][2 * step + m] for m in (0, 1) for r in (0, 1)]
        assert torch.equal(torch.cat([part["id"] for part in parts]), batch["id"])
        counted = [(part["labels"] >= 0).sum() for part in parts]
        total = sum(float(part["weight"][0]) * int(count) for part, count in zip(parts, counts_of(parts), strict=True))
        assert total == pytest.approx(4), "the mean over the parts is that over all tokens of the step"
        assert sum(counted) == (batch["labels"] >= 0).sum()


def counts_of(parts: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int((part["labels"] >= 0).sum()) for part in parts]


# ---- conditions


def test_a_written_text_has_the_ids_of_the_drawn_one(tmp_path: Path) -> None:
    """Also where it looks like a special token."""
    odd = [("<|endoftext|> ist [PAD] 🌬️", "wind"), *pairs(8, 1)]
    data = data_of(folder_of(tmp_path / "raw", train=pairs(90), val=odd, test=pairs(7, 2)))
    data.setup()
    model: Any = SimpleNamespace(conditions=(SourceText(),), tokenizer=data.tokenizer)
    draw = SourceText().draw(9, data, SimpleNamespace(reference_split="val"), model)
    assert draw.shown == [source for source, _ in odd]
    assert draw.references == [[target] for _, target in odd]
    assert draw.rows is not None
    assert torch.equal(condition_rows(model, {"source": draw.shown}, 9)["source"], draw.rows)
    assert 0 not in draw.rows


# ---- captions


@pytest.mark.parametrize(("kind", "size"), [("byte_bpe", 290), ("words", 40)])
def test_captions_are_the_lines_of_one_language(tmp_path: Path, kind: Any, size: int) -> None:
    options: dict[str, Any] = {"path": str(parallel(tmp_path)), "vocab_size": size, "tokenizer": kind, "batch_size": 8}
    options |= {"split": "lines", "windows": "epoch", "documents": "single", "block_size": 64, "test": "test_2017"}
    plain, data = Text("captions", **options), Text("captions", by_length=True, language="en", **options)
    found = [words(data, b) for batch in data.batches(data.eval_loader("test")) for b in batch["labels"]]
    if kind == "byte_bpe":
        assert found == [f"{target}<|endoftext|>" for _, target in pairs(5, 3)]
    assert [text for _, text in data.texts("val")] == [target for _, target in pairs(9, 1)]
    assert data.manifest.splits["train"]["from"] == "train.en"
    wide, narrow = list(plain.batches(plain.train_loader(0, 180))), list(data.batches(data.train_loader(0, 180)))
    assert {batch["input_ids"].shape[1] for batch in wide} == {64}
    for batch in narrow:
        assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max()
        ids = batch["id"]
        padded = plain.source("train").batch(ids, ids)
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[key], padded[key][:, : batch[key].shape[1]])
    sizes = torch.stack([batch["attention_mask"].sum(1) for batch in narrow])
    assert (sizes.sum() / (sizes.max(1).values * 8).sum()) > 0.85


# ---- bad input


def lines_of(split: str, language: str, text: bytes) -> Any:
    return lambda folder: (folder / f"{split}.{language}").write_bytes(text)


def gone(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _lines(count: int) -> bytes:
    return b"x y\n" * count


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lines_of("val", "en", _lines(4) + b" \n" + _lines(4)), {}, r"val\.de:5: the en is empty; data\.empty=drop"),
        (lines_of("val", "en", _lines(8)), {}, r"raw: parallel files .* lines: val\.de 9, val\.en 8"),
        (lines_of("test", "de", _lines(6) + b"caf\xe9\n"), {}, r"test\.de: not UTF-8 at offset 27, line 7; convert"),
        (lambda folder: (folder / "train.de.gz").write_bytes(b"\x1f\x8b\x08cut"), {}, r"train\.de\.gz: corrupt"),
        (gone("val.en"), {}, r"raw has no val\.en and no val\.jsonl or \.tsv; .*github\.com/multi30k/dataset"),
        (None, {"target": "fr"}, r"raw has no train\.fr and no train\.jsonl"),
        (None, {"test": "test_2018"}, r"raw has no test_2018\.de"),
        (None, {"vocab_size": 5000}, r"mine: the byte_bpe vocabulary has \d+ tokens, data\.vocab_size is 5000; set"),
        (None, {"max_source": 1}, r"mine \(train\): all 90 pairs are too long \(\d+ for data\.max_source=1, 0 for "),
        (None, {"target": "de"}, r"data\.source and data\.target are both 'de'"),
        (None, {"val_fraction": 1.0}, r"data\.val_fraction is 1\.0: must be >= 0 and < 1"),
        (None, {"empty": "keep"}, r"data\.empty=keep: choose one of refuse, drop"),
        (None, {"path": None}, r"data\.path: mine is not fetched; give data\.path=FOLDER .*data/task1/raw"),
        (None, {"path": "nowhere"}, r"data\.path=nowhere: no folder, and no \.jsonl or \.tsv; give"),
    ],
)  # fmt: skip
def test_bad_folders(tmp_path: Path, change: Any, options: dict[str, Any], message: str) -> None:
    folder = parallel(tmp_path)
    if change is not None:
        change(folder)
    with pytest.raises(GenlabError, match=message) as caught:
        Pairs("mine", **{"vocab_size": 300, "source": "de", "target": "en", "path": str(folder), **options}).setup()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConfigError | DataError)


A, B = {"source": "a", "target": "b"}, {"source": "c", "target": ""}


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ([A, B], {}, r"x\.jsonl:2: the target is empty; data\.empty=drop leaves such items out"),
        ([A, {"source": "c"}], {}, r"x\.jsonl:2: no field 'target', only 'source'"),
        ([A], {"source": "text"}, r"x\.jsonl:1: no field 'text', only 'source', 'target'"),
        ([A], {"group": "package"}, r"x\.jsonl:1: no field 'package'"),
        ([A, 7], {}, r"x\.jsonl:2: expected a JSON object"),
        ([{"source": "a", "target": 3}], {}, r"x\.jsonl:1: source and target must be texts of whole characters"),
        (b'{"source": "a", "target": "\\ud83d"}\n', {}, r"x\.jsonl:1: source and target must be texts of whole"),
        (b"{broken\n", {}, r"x\.jsonl:1: expected a JSON object"),
        (b'{"source": "caf\xe9"}\n', {}, r"x\.jsonl: not UTF-8 at offset 15, line 1"),
        ([A], {}, r"x\.jsonl: no item is left for (val|train|test); give it some, or raise data\.val_fraction"),
    ],
)  # fmt: skip
def test_bad_records(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content) if isinstance(content, bytes) else jsonl(path, content)
    with pytest.raises(GenlabError, match=message):
        Pairs("mine", path=str(path), vocab_size=300, **options).setup()
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a\tb\nc\td\te\n", {}, r"x\.tsv:2: expected 2 columns, source, target"),
        ("a\tb\tc\n", {}, r"x\.tsv:1: expected 2 columns, source, target"),
        ("english\tgerman\na\tb\n", {"source": "germn", "target": "english"}, r"x\.tsv:2: no field 'germn', only 'en"),
        ("a\n", {}, r"x\.tsv:1: expected 2 columns"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(GenlabError, match=message):
        Pairs("mine", path=str(tmp_path / "x.tsv"), vocab_size=300, **options).setup()


def test_what_is_left_out_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = parallel(tmp_path)
    long = [*pairs(88), ("Regen " * 99, "rain"), ("Wald", "wood " * 99), ("Hund", " "), ("", "dog")]
    folder_of(folder, train=long)
    data = data_of(folder, empty="drop", max_source=90, max_target=90)
    data.setup()
    train = data.manifest.splits["train"]
    assert (train["count"], train["longer_than_max_source"], train["longer_than_max_target"]) == (88, 1, 1)
    assert data.manifest.filter["dropped"] == {"empty (train)": 2}
    assert pairs_of(data, "train")[-1][0] == long[87][0]
    source = data.source("train")
    assert isinstance(source, PairSource)
    assert source.references(torch.tensor([87])) == [[long[87][1]]]
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert said == ["mine (train): 2 of 90 pairs are left out (1 for data.max_source=90, 1 for data.max_target=90)"]


# ---- the shipped options


def shipped(root: Path, *options: str) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        return instantiate(compose("train", list(options)).data)


@pytest.mark.parametrize("option", ["multi30k", "pairs", "debian_synopsis", "captions"])
def test_the_shipped_options(option: str, tmp_path: Path, root: Path) -> None:
    given = [f"data={option}", f"data.path={parallel(tmp_path)}", "data.vocab_size=300", "data.batch_size=4"]
    names = {"multi30k": ["data.test=test_2017"], "captions": ["data.test=test_2017"],
             "pairs": ["data.source=de", "data.target=en"]}  # fmt: skip
    records = [{"source": s, "target": t, "group": s[:6]} for s, t in pairs(200)]
    if option == "debian_synopsis":
        given[1] = f"data.path={jsonl(tmp_path / 'p.jsonl', records)}"
    data = shipped(root, *given, *names.get(option, ()))
    batch = next(iter(data.batches(data.train_loader(0, 8))))
    assert set(batch) == {"id", "position", "weight", "labels"} | (
        {"input_ids", "attention_mask"} if option == "captions" else {"source"}
    )


@pytest.mark.parametrize("option", ["multi30k", "captions"])
def test_without_a_path_one_line_says_where_the_files_come_from(option: str, root: Path) -> None:
    data = shipped(root, f"data={option}")
    with pytest.raises(
        ConfigError, match=rf"data\.path: {option} is not fetched; .*github\.com/multi30k/dataset"
    ) as caught:
        data.setup()
    assert "\n" not in str(caught.value)
