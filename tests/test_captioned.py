"""Images with words: emoji from a small package of the same format, folders, captions by epoch, bad input."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import EMOJI, cache, emoji_package, raw_images, same  # noqa: F401
from PIL import Image
from runs import compose_train, make_captioned, small_data
from tokenizers import Tokenizer, models, pre_tokenizers

from genlab.cli.build import build_data
from genlab.data.captioned import CaptionedFolder
from genlab.data.convert import emoji
from genlab.data.emoji import HEARTS, Emoji
from genlab.data.fetch import fetch, present
from genlab.data.module import SPLITS, DataModule
from genlab.data.registry import DATASETS, Entry, File
from genlab.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"shape": [3, 64, 64], "tokenizer": "characters", "batch_size": 4, "val_names": 0.3}


def said(data: DataModule, row: torch.Tensor) -> str:
    """A row of tokens as text."""
    return data.tokenizer.decode([token for token in row.tolist() if token >= 0], skip_special_tokens=False)


def captions_of(data: DataModule, split: Any) -> list[str]:
    return [said(data, row) for b in data.batches(data.eval_loader(split)) for row in b["caption"]]


# ---- emoji


@pytest.fixture
def drawings(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Both sets in the cache, as if they had been fetched."""
    for drawing in ("google", "twitter"):
        name, folder = f"emoji_{drawing}", cache / f"emoji_{drawing}"
        folder.mkdir(parents=True)
        emoji(emoji_package(tmp_path / drawing, drawing), folder)
        contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        files = tuple(File(n, len(data), hashlib.sha256(data).hexdigest()) for n, data in contents.items())
        monkeypatch.setitem(DATASETS, name, Entry(name, files, (), "", ""))


def emoji_of(**options: Any) -> Emoji:
    data = Emoji("emoji", **{"vocab_size": 39, **SMALL, **options})
    data.setup()
    return data


def test_emoji_are_cut_from_the_sheet_and_named(tmp_path: Path, drawings: None) -> None:
    with Image.open(tmp_path / "google" / "package" / "img" / "google" / "sheets" / "64.png") as file:
        sheet = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file).convert("RGB")
    images = np.load(tmp_path / "cache" / "emoji_google" / "images.npy")
    lines = (tmp_path / "cache" / "emoji_google" / "names.jsonl").read_text().splitlines()
    assert images.shape == (len(EMOJI) + 5 * 5, 3, 64, 64)  # five have tones; those of two tones are left out
    assert len(lines) == len(images)
    assert json.loads(lines[1]) == {
        "name": "waving hand sign", "tone": "light", "other": ["waving hand sign", "x sign"],
        "category": "People & Body", "subcategory": "hand-fingers-open",
    }  # fmt: skip
    for place, cell in ((0, 0), (1, 1), (5, 5), (6, 7)):  # the seventh cell has two tones
        left, top = 66 * (cell // 10) + 1, 66 * (cell % 10) + 1
        expected = np.asarray(sheet.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)
        assert np.abs(images[place].astype(int) - expected).max() <= 1
    assert (images[:, :, :32] == 255).all()
    assert len(np.load(tmp_path / "cache" / "emoji_twitter" / "images.npy")) == len(images) - 1  # it has no apple


def test_a_batch_of_emoji(drawings: None, capsys: pytest.CaptureFixture[str]) -> None:
    data = emoji_of()
    facts, source = data.facts("train"), data.source("train")
    first = data.manifest.facts
    assert first == {
        "shape": [3, 64, 64], "num_classes": None, "vocab_size": 39, "vocabulary_sha256": first["vocabulary_sha256"],
        "longest_caption": len("waving hand sign, medium-light skin tone"),
    }  # fmt: skip
    batch = next(iter(data.batches(data.train_loader(0, 4))))
    assert {key: (value.dtype, *value.shape[1:]) for key, value in batch.items()} == {
        "id": (torch.int64,), "position": (torch.int64,), "label": (torch.int64,), "image": (torch.float32, 3, 64, 64),
        "caption": (torch.int64, data.manifest.splits["train"]["longest_caption"]),
    }  # fmt: skip
    for i, row in zip(batch["id"].tolist(), batch["caption"], strict=True):
        fact = facts[i]
        assert said(data, row) == fact["name"] + (f", {fact['tone']} skin tone" if fact["tone"] else "")
        assert (row < 0).sum() == len(row) - len(said(data, row))
    place = next(i for i, fact in enumerate(facts) if fact["name"] == "red heart")
    assert source.references(torch.tensor([place])) == [["red heart", "heavy black heart", "x heart"]]
    assert facts[place]["group"] == "heart"
    counts = {split: data.manifest.splits[split] for split in SPLITS}
    assert sum(count["same_pictures"] for count in counts.values()) == 1  # faces 3 and 4
    assert capsys.readouterr().out.count("pictures are equal to one before them") == 1
    assert {count["same_captions"] for count in counts.values()} == {0}
    assert {count["cut"] for count in counts.values()} == {0}
    assert data.manifest.filter["drawing"] == "google"


def test_emoji_hold_out_compositions_and_names(drawings: None) -> None:
    data, twitter = emoji_of(), emoji_of(drawing="twitter")
    items = {split: [(fact["name"], fact["tone"]) for fact in data.facts(split)] for split in SPLITS}
    gestures = [
        n.lower() for n, kind in EMOJI.items() if kind[1] in ("hand-fingers-open", "body-parts") if n != "BRAIN"
    ]
    held = [item for item in items["test"] if item[0] not in HEARTS]
    assert sorted(name for name, _ in held) == sorted(gestures)
    assert all(tone for _, tone in held)
    assert {name for name, _ in items["test"]} - {*gestures} == {*HEARTS}
    for name in gestures:  # each gesture and tone is in train
        assert len([tone for other, tone in items["train"] if other == name]) == 5
    assert {tone for _, tone in items["train"]} >= {tone for _, tone in held}
    assert not {name for name, _ in items["val"]} & {name for name, _ in items["train"] + items["test"]}
    assert not {*items["train"]} & {*items["test"]}
    assert sum(map(len, items.values())) == len({*items["train"], *items["val"], *items["test"]}) == len(EMOJI) + 25
    assert {("norway flag", ""), ("spain flag", ""), ("family: man, girl", "")} <= {
        *items["train"]
    }  # their hashes say val
    colours = {name.split()[1] for name, _ in items["train"] if name.startswith("large")}
    assert {"orange", "green", "purple"} <= colours
    for split in SPLITS:
        other = [(fact["name"], fact["tone"]) for fact in twitter.facts(split)]
        assert other == [item for item in items[split] if item[0] != "red apple"]
        assert not torch.equal(raw_images(data, split)[0], raw_images(twitter, split)[0])
        assert data.manifest.identity(split) != twitter.manifest.identity(split)
    assert data.manifest.splits["test"]["from"].startswith("held-out compositions")


def test_groups_of_emoji(drawings: None) -> None:
    whole, data = emoji_of(), emoji_of(groups=["hand", "smiley"], vocab_size=36)
    for split in SPLITS:
        expected = [fact for fact in whole.facts(split) if fact["group"] in ("hand", "smiley")]
        assert data.facts(split) == expected
    assert data.source("train").labels.unique().tolist() == [0, 2]  # type: ignore[union-attr]
    smileys = emoji_of(groups=["smiley"], vocab_size=22)
    assert smileys.manifest.splits["test"]["from"] == "alias of val"
    assert smileys.source("test") is smileys.source("val")
    with pytest.raises(ConfigError, match=r"data\.groups: no group 'hands'; choose from hand, body, smiley"):
        emoji_of(groups=["hands"])
    with pytest.raises(ConfigError, match=r"data\.drawing=apple: choose one of google, twitter"):
        emoji_of(drawing="apple")
    with pytest.raises(DataError, match=r"images are \[3, 64, 64\], data\.shape is \[3, 32, 32\]"):
        emoji_of(shape=[3, 32, 32])
    with pytest.raises(ConfigError, match=r"emoji: the characters vocabulary has 39 tokens.*set data\.vocab_size=39"):
        emoji_of(vocab_size=40)


def test_a_frozen_encoders_vocabulary_neither_cuts_nor_pads(tmp_path: Path, drawings: None) -> None:
    words = sorted({word for name in EMOJI for word in name.lower().split()} - {"apple"})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = emoji_of(vocabulary=str(tmp_path), vocab_size=len(words) + 2, groups=["smiley", "heart", "food"])
    assert {len(text.split()) for text in captions_of(data, "train")} == {2, 3}
    assert data.manifest.facts["longest_caption"] == 3
    assert sum(data.manifest.splits[split]["unknown"] for split in SPLITS) == 1  # "apple"
    assert data.tokenizer.encode("", add_special_tokens=False).ids == []
    with pytest.raises(ConfigError, match=r"fetch it \(python scripts/fetch_data\.py minilm\)"):
        emoji_of(vocabulary="minilm")


@pytest.mark.data
@pytest.mark.parametrize("drawing", ["google", "twitter"])
def test_real_emoji(drawing: Any) -> None:
    if not present(f"emoji_{drawing}"):
        pytest.skip("not fetched")
    fetch(f"emoji_{drawing}")  # checks the hashes
    data = Emoji("emoji", shape=[3, 64, 64], drawing=drawing, vocab_size=1024)
    counts = {split: len(data.source(split)) for split in SPLITS}
    assert counts == {"train": 3141, "val": 298, "test": 52}
    assert {data.manifest.splits[split]["same_pictures"] for split in ("val", "test")} == {0}  # nothing of train


# ---- folders


def picture(path: Path, level: int, size: tuple[int, int] = (6, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 255 - level, 7)).save(path)
    return path


WORDS = [[f"thing {i}", f"das Ding {i}", f"chose {i}"][: 1 + i % 3] for i in range(20)]  # one to three captions


def folder_of(folder: Path) -> Path:
    for i, several in enumerate(WORDS):
        path = picture(folder / f"{i % 2}" / f"{i:02}.png", 10 * i)
        path.with_suffix(".txt").write_text("\n\n".join(several) + "\n", encoding="utf-8")
    return folder


def data_of(folder: Path, **options: Any) -> CaptionedFolder:
    defaults = {"shape": [3, 6, 6], "tokenizer": "characters", "vocab_size": 25, "batch_size": 5, "seed": 3}
    data = CaptionedFolder("mine", root=str(folder), **{"val_fraction": 0.2, **defaults, **options})
    data.setup()
    return data


def test_one_of_the_captions_is_drawn_in_each_epoch(tmp_path: Path) -> None:
    data = data_of(folder_of(tmp_path / "a"))
    source, n = data.source("train"), len(data.source("train"))
    references = source.references(torch.arange(n))
    assert references is not None
    drawn: list[set[str]] = [set() for _ in range(n)]
    batches = list(data.batches(data.train_loader(0, 60 * n)))
    for batch in batches:
        for i, row in zip(batch["id"].tolist(), batch["caption"], strict=True):
            drawn[i].add(said(data, row))
    assert drawn == [{*several} for several in references]
    assert {len(several) for several in references} == {1, 2, 3}
    held = data.source("val").references(torch.arange(n and len(data.source("val"))))
    assert captions_of(data, "val") == [several[0] for several in held or []]
    resumed = list(data.batches(data.train_loader(35, 60 * n)))
    assert all(same(a, b) for a, b in zip(batches[7:], resumed, strict=True))
    other = next(iter(data_of(tmp_path / "a", seed=4).batches(data.train_loader(0, 60))))
    again = next(iter(data_of(tmp_path / "a").batches(data.train_loader(0, 60))))
    assert same(again, batches[0])
    assert not torch.equal(other["caption"], again["caption"])
    some = source.select(np.array([7, 2]))
    assert some.references(torch.tensor([1])) == [references[2]]
    assert torch.equal(
        some.batch(torch.tensor([1]), torch.tensor([0]))["image"],
        source.batch(torch.tensor([2]), torch.tensor([0]))["image"],
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_equals_loader(tmp_path: Path, workers: int) -> None:
    folder = folder_of(tmp_path / "a")
    resident = data_of(folder)
    loaders = data_of(folder, resident_max=0, num_workers=workers), data_of(folder, cache_max=0)  # decoded when drawn
    assert (
        resident.manifest.splits["train"]["same_pictures"],
        loaders[0].manifest.splits["train"]["same_pictures"],
    ) == (
        0,
        None,
    )
    for other in loaders:
        assert not other.resident("train")
        for split in ("train", "val"):
            a, b = (d.train_loader(7, 70) if split == "train" else d.eval_loader("val") for d in (resident, other))
            assert all(same(x, y) for x, y in zip(resident.batches(a), other.batches(b), strict=True))


def test_tables_say_the_same_as_files_beside_the_images(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    names = [f"{i % 2}/{i:02}.png" for i in range(len(WORDS))]
    rows = [(name, text) for name, several in zip(names, WORDS, strict=True) for text in several]
    with open(folder / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("caption", "file"), *((text, name) for name, text in rows)])
    one = [{"file_name": name, "text": text} for name, text in rows]
    lists = [{"file_name": n, "text": s if i % 2 else s[0]} for i, (n, s) in enumerate(zip(names, WORDS, strict=True))]
    rest = [
        {"file_name": n, "text": t}
        for i, (n, s) in enumerate(zip(names, WORDS, strict=True))
        if not i % 2
        for t in s[1:]
    ]
    for stem, records in (("one", one), ("lists", lists + rest)):
        (folder / f"{stem}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8"
        )
    beside, fields = data_of(folder), {"file_field": "file_name", "caption_field": "text"}
    tables = (
        data_of(folder, captions="a.csv"),
        *(data_of(folder, captions=f"{s}.jsonl", **fields) for s in ("one", "lists")),
    )
    for data in tables:
        assert data.manifest.splits == beside.manifest.splits
        assert data.facts("train") == beside.facts("train")
        batch = next(iter(data.batches(data.train_loader(0, 5))))
        assert same(batch, next(iter(beside.batches(beside.train_loader(0, 5)))))


def test_folders_of_splits_long_captions_and_equal_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, levels in (("train", [1, 2, 3, 3]), ("val", [4, 2]), ("test", [5])):
        for i, level in enumerate(levels):
            picture(tmp_path / "a" / split / f"{i}.png", level).with_suffix(".txt").write_text(f"abcdefg{level}")
    data = data_of(tmp_path / "a", val_fraction=0.0, batch_size=2, max_caption=7, vocab_size=14)
    assert captions_of(data, "val") == ["abcdefg", "abcdefg"]
    assert data.source("val").references(torch.arange(2)) == [["abcdefg4"], ["abcdefg2"]]
    keys = ("count", "cut", "same_pictures", "same_captions", "longest_caption")
    assert [[data.manifest.splits[split][key] for key in keys] for split in SPLITS] == [
        [4, 4, 1, 1, 7], [2, 2, 1, 1, 7], [1, 1, 0, 0, 7]
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "mine (val): 2 of 2 captions have more than data.max_caption=7 tokens and are cut" in lines
    assert "mine (val): 1 of 2 pictures are equal to one before them, of this split or of one before it" in lines
    assert data.facts("test") == [{"file": "0.png"}]


def at(name: str, content: str | bytes | None) -> Callable[[Path], None]:
    """What writes or removes a file."""

    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def rows_of(*rows: str) -> Callable[[Path], None]:
    """What writes a table of all images, with these rows at its end."""
    whole = [json.dumps({"file": f"{i % 2}/{i:02}.png", "caption": several}) for i, several in enumerate(WORDS)]
    return at("a.jsonl", "\n".join([*whole, *rows]))


FAULTS: dict[str, tuple[Callable[[Path], None], str, str, int]] = {  # what is wrong, the line, the cause, images left
    "broken": (at("0/02.png", b"\x89PNG"), r"0/02\.png: cannot be read \(not an image\); repair", "broken image", 19),
    "no text": (at("0/02.txt", None), r"0/02\.png: no 02\.txt beside it; write it", "no caption", 19),
    "empty text": (at("0/02.txt", " \n\n"), r"0/02\.txt: empty, no caption", "empty caption", 19),
    "not UTF-8": (at("0/02.txt", b"caf\xe9"), r"0/02\.txt: not UTF-8 at offset 3, line 1", "broken text", 19),
    "twice": (at("0/02.txt", "a\n a"), r"0/02\.txt:2: 02\.png has this caption already", "same caption", 20),
    "two images": (
        lambda folder: picture(folder / "0" / "02.jpg", 3) and None,
        r"0/02\.png: 02\.txt is that of 02\.jpg already; rename one of the two",
        "same .txt",
        20,
    ),
    "row": (rows_of("{"), r"a\.jsonl:21: expected a JSON object", "broken row", 20),
    "no list": (
        rows_of('{"file": "0/02.png", "caption": 3}'),
        r"a\.jsonl:21: the caption is no text",
        "broken row",
        20,
    ),
    "half": (
        rows_of(r'{"file": "0/02.png", "caption": "\ud800"}'),
        r"a\.jsonl:21: the capt.* no text",
        "broken row",
        20,
    ),
    "missing": (rows_of('{"file": "9.png", "caption": "a"}'), r"a\.jsonl:21: no file '9\.png' in ", "no file", 20),
    "outside": (rows_of('{"file": "../b.png", "caption": "a"}'), r"21: no file '\.\./b\.png'", "no file", 20),
    "empty": (
        rows_of('{"file": "0/02.png", "caption": " "}'),
        r"21: the caption of 02\.png is empty",
        "empty caption",
        20,
    ),
    "double": (
        rows_of('{"file": "0/02.png", "caption": "thing 2"}'),
        r"21: 02\.png has this caption al",
        "same caption",
        20,
    ),
}


@pytest.mark.faults(21)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_refused_or_left_out(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, line, cause, left = FAULTS[fault]
    picture(tmp_path / "b.png", 1)
    change(folder := folder_of(tmp_path / "a"))
    options = {"captions": "a.jsonl"} if (folder / "a.jsonl").exists() else {}
    with pytest.raises(DataError, match=line) as refusal:
        data_of(folder, **options)
    assert "\n" not in str(refusal.value)
    for _ in range(2):  # what is broken is remembered
        data = data_of(folder, faulty="drop", **options)
        assert data.manifest.filter["dropped"] == {cause: 1}
        assert len(data.source("train")) + len(data.source("val")) == left
        assert f"mine: left out of {folder}: {cause} 1" in capsys.readouterr().out


def test_bad_tables_and_folders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    (folder / "a.csv").write_text('file,caption\n0/00.png,a,b\n"', encoding="utf-8")
    (folder / "b.csv").write_text("file,caption\n0/00.png\n", encoding="utf-8")
    (folder / "c.csv").write_text("file,text\n0/00.png,a\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for error, options, line in (
        (DataError, {"captions": "a.csv"}, r"a\.csv:2: expected as many cells as the header has; data\.faulty=drop"),
        (DataError, {"captions": "b.csv"}, r"b\.csv:2: expected as many cells"),
        (
            ConfigError,
            {"captions": "c.csv"},
            r"c\.csv:2: no field 'caption', only 'file', 'text'; set data\.file_field",
        ),
        (ConfigError, {"captions": "d.csv"}, r"d\.csv: no such file"),
        (ConfigError, {"captions": "d.tsv"}, r"data\.captions=d\.tsv: give a \.jsonl or a \.csv"),
        (ConfigError, {"faulty": "keep"}, r"data\.faulty=keep: choose one of refuse, drop"),
        (ConfigError, {"max_caption": 0}, r"data\.max_caption is 0: must be >= 1"),
        (ConfigError, {"shape": [2, 6, 6]}, r"data\.shape=\[2, 6, 6\]: an image has 1 \(grey\), 3"),
        (ConfigError, {"root": str(tmp_path / "none")}, r"none: no such folder \(data\.root\)"),
        (ConfigError, {"root": str(tmp_path / "empty")}, r"empty: holds 0 images with a caption"),
    ):
        with pytest.raises(error, match=line) as refusal:
            data_of(**{"folder": folder, **options} if "root" not in options else {"folder": Path(options["root"])})
        assert "\n" not in str(refusal.value)


def test_the_shipped_configurations_build(tmp_path: Path, drawings: None) -> None:
    chosen = compose_train(["data=emoji", "data.tokenizer=characters", "data.vocab_size=39", "data.batch_size=8"])
    data = build_data(chosen)
    data.setup()
    assert len(data.source("test")) == 7
    small = compose_train(["data=emoji", *small_data(chosen, tmp_path / "small"), "data.batch_size=8"])
    other = build_data(small)
    other.setup()
    assert small.data._target_.endswith("CaptionedFolder")
    assert make_captioned(tmp_path / "more", [1, 28, 28]).is_dir()
    assert next(iter(other.batches(other.eval_loader("val"))))["caption"].shape[1] == len("square 0")
