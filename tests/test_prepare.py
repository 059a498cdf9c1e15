"""Preparing text: filters, exact and near duplicates, a split that none straddles, one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genlab.data import near_duplicates
from genlab.data.documents import normalised, script_shares
from genlab.data.near_duplicates import clusters, signature
from genlab.data.prepare import Preparation, prepare, readable
from genlab.errors import ConfigError, DataError, GenlabError
from genlab.files import made_once

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "nrstl"]


def text_of(seed: int, words: int = 120) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, words)) + "\n"


def near(text: str, seed: int) -> str:
    """The text with two words replaced."""
    words = text.split()
    for place in np.random.default_rng(seed).choice(len(words), 2, replace=False):
        words[place] = "XYZZY"
    return " ".join(words)


def plant(folder: Path, names: str = "{:03d}.txt") -> dict[str, str]:
    """100 texts, of which 10 have an exact copy (other line ends) and 20 a near copy."""
    folder.mkdir()
    texts = [text_of(i) for i in range(100)]
    texts += [texts[i].replace("\n", "  \r\n") for i in range(10)]
    texts += [near(texts[i], i) for i in range(20, 40)]
    written = {names.format(i): text for i, text in enumerate(texts)}
    for name, text in written.items():
        (folder / name).write_bytes(text.encode())
    return written


def rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for split in ("train", "val", "test")
    }


def test_planted_duplicates_are_found(tmp_path: Path) -> None:
    plant(tmp_path / "in")
    report = prepare(tmp_path / "in", tmp_path / "out", Preparation(val_fraction=0.2, test_fraction=0.1))
    assert {cause: row["documents"] for cause, row in report["dropped"].items()} == {
        "exact duplicate": 10,
        "near duplicate": 20,
    }
    assert report["dropped"]["exact duplicate"]["first"] == [f"{i:03d}.txt" for i in range(100, 105)]
    found = rows(tmp_path / "out")
    counts = {split: len(part) for split, part in found.items()}
    assert sum(counts.values()) == 100
    assert counts == {split: row["documents"] for split, row in report["kept"].items()}
    assert 15 <= counts["val"] <= 25
    assert 7 <= counts["test"] <= 13
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    lines = readable(report)
    assert "near duplicate           20 documents" in lines


def test_near_duplicates_never_straddle(tmp_path: Path) -> None:
    written = plant(tmp_path / "in")
    preparation = Preparation(near_duplicates="together", val_fraction=0.3, test_fraction=0.3)
    prepare(tmp_path / "in", tmp_path / "out", preparation)
    split = {row["source"]: name for name, part in rows(tmp_path / "out").items() for row in part}
    assert len(split) == 120
    assert len(set(split.values())) == 3
    for i in range(20, 40):
        assert split[f"{i:03d}.txt"] == split[f"{i + 90:03d}.txt"], i
    loose = Preparation(near_duplicates="ignore", val_fraction=0.3, test_fraction=0.3)
    prepare(tmp_path / "in", tmp_path / "loose", loose)
    split = {row["source"]: name for name, part in rows(tmp_path / "loose").items() for row in part}
    straddling = sum(split[f"{i:03d}.txt"] != split[f"{i + 90:03d}.txt"] for i in range(20, 40))
    assert straddling > 4  # what the clusters are for
    assert len(written) == 130


def test_names_and_order_of_files_do_not_matter(tmp_path: Path) -> None:
    written = plant(tmp_path / "in")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for i, text in enumerate(reversed(written.values())):
        folder = tmp_path / "other" / ("deep" if i % 3 else ".")
        (folder / f"x{i}.txt").write_bytes(text.encode())
    lines = [json.dumps({"text": text, "n": name}) for name, text in written.items()]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines[::-1]))
    options = Preparation(val_fraction=0.2, test_fraction=0.2, seed=3)
    contents = []
    for place in ("in", "other", "lines.jsonl"):
        prepare(tmp_path / place, tmp_path / f"out-{place}", options)
        contents.append({s: {row["text"] for row in part} for s, part in rows(tmp_path / f"out-{place}").items()})
    assert contents[0] == contents[1] == contents[2]
    assert rows(tmp_path / "out-lines.jsonl")["train"][0]["n"].endswith(".txt")
    prepare(tmp_path / "in", tmp_path / "seed", Preparation(val_fraction=0.2, test_fraction=0.2, seed=4))
    assert {row["text"] for row in rows(tmp_path / "seed")["val"]} != contents[0]["val"]


def test_filters(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "tests").mkdir(parents=True)
    for name, data in {
        "a.txt": "好好学习，天天向上。abc".encode(),
        "b.txt": b"plain words in latin letters",
        "c.txt": b" \r\n\t",
        "d.txt": "短".encode(),
        "e.txt": "长".encode() * 60,
        "f.txt": b"\xff\xfe",
        "g.txt": "ひらがなと漢字".encode() * 2,
        "h.txt": b"x" * 5000,
        "i.md": b"not of the suffix",
        ".hidden.txt": b"hidden",
        "tests/j.txt": b"excluded",
    }.items():
        (source / name).write_bytes(data)
    options = Preparation(min_chars=3, max_chars=50, scripts={"han": 0.6}, val_fraction=0, test_fraction=0)
    report = prepare(source, tmp_path / "out", options, exclude=["tests"])
    assert {cause: row["first"] for cause, row in report["dropped"].items()} == {
        "not UTF-8": ["f.txt"],
        "empty": ["c.txt"],
        "too short": ["d.txt"],
        "too long": ["e.txt", "h.txt"],
        "script": ["b.txt", "g.txt"],
    }
    assert report["read"]["documents"] == 8
    assert [row["source"] for row in rows(tmp_path / "out")["train"]] == ["a.txt"]


def test_normalisation_and_scripts() -> None:
    assert normalised("\ufeffe\u0301\r\nb\x00\x1b[0m \t\rc\u202e\td\n\n") == "é\nb[0m\nc\td"
    shares = script_shares("abc 好 я 1,2。")
    assert shares["latin"] == pytest.approx(0.6)
    assert shares["han"] == shares["cyrillic"] == pytest.approx(0.2)
    assert sum(shares.values()) == pytest.approx(1)
    assert set(script_shares("12 。").values()) == {0.0}
    assert sum(script_shares("ᚠᚢ").values()) == 0  # runes: letters of a script without a name here


def test_minhash_estimates_the_jaccard_index(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text_of(0), near(text_of(0), 1), text_of(0, 60) + text_of(1, 60), text_of(2), "ab", text_of(3, 9000)]

    def shingles(text: str) -> set[str]:
        text = " ".join(text.split()).casefold().ljust(5, "\0")
        return {text[i : i + 5] for i in range(len(text) - 4)}

    estimates = []
    monkeypatch.setattr(near_duplicates, "_CHUNK", 1000)  # of the longest text there are 9
    for seed in range(8):
        found = np.stack([signature(text, 5, 128, seed) for text in texts])
        assert (found.dtype, found.shape) == (np.uint32, (6, 128))
        estimates.append((found[:1] == found).mean(1))
    for text, estimate in zip(texts, np.mean(estimates, 0), strict=True):
        one, two = shingles(texts[0]), shingles(text)
        assert estimate == pytest.approx(len(one & two) / len(one | two), abs=0.05)
    assert not np.array_equal(signature(texts[0], 5, 128, 0), signature(texts[0], 5, 128, 1))
    assert signature("a", 5, 8, 0).tolist() == signature(" A\n", 5, 8, 0).tolist()
    golden = signature("to be or not to be", 5, 4, 0)  # caches and records rest on it: see IMPLEMENTATION
    assert golden.tolist() == [15695901, 82663487, 830779618, 67928945]


def test_clusters_are_transitive_and_keep_the_rest_apart() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**32, (50, 128), dtype=np.uint32)
    chain = np.repeat(base[:1], 4, 0)
    for i in range(1, 4):
        chain[i:, 12 * (i - 1) : 12 * i] = rng.integers(0, 2**32, 12)  # 0.91 of its neighbour, 0.72 of the first
    many = np.repeat(base[1:2], 300, 0)
    signatures = np.concatenate([base[1:], chain, many])
    found = clusters(signatures, 0.85)
    assert found[:49].tolist() == list(range(49))
    assert found[49:53].tolist() == [49] * 4
    assert found[53:].tolist() == [0] * 300
    assert clusters(signatures[:0], 0.8).shape == (0,)


def test_a_large_cluster_does_not_fill_validation(tmp_path: Path) -> None:
    texts = [near(text_of(0), i) for i in range(40)] + [text_of(i) for i in range(1, 30)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for seed in range(5):
        options = Preparation(near_duplicates="together", val_fraction=0.1, test_fraction=0.1, threshold=0.6, seed=seed)
        report = prepare(tmp_path / "a.jsonl", tmp_path / f"out{seed}", options)
        assert all(1 <= report["kept"][split]["documents"] <= 11 for split in ("val", "test"))
    (tmp_path / "two.jsonl").write_text("\n".join(json.dumps({"text": text_of(i)}) for i in range(3)))
    report = prepare(tmp_path / "two.jsonl", tmp_path / "two", Preparation())
    assert [row["documents"] for row in report["kept"].values()] == [1, 1, 1]


def test_what_cannot_be_prepared_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad.jsonl"
    (tmp_path / "a.txt").write_text(" ")

    def refused(kind: type[GenlabError], match: str, source: str = "bad.jsonl", **options: Any) -> None:
        with pytest.raises(kind, match=match) as caught:
            prepare(tmp_path / source, tmp_path / "out", Preparation(**options))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused(ConfigError, "no such file or folder", "nowhere")
    refused(ConfigError, r"has no file \*\.txt; set data\.suffixes", "empty")
    refused(ConfigError, "no document is left of 1 \\(1 empty\\)", "a.txt")
    for line, match in (
        ("{'text': 1}", "bad.jsonl:2: not JSON"),
        ('{"text": 3}', "bad.jsonl:2: expected an object with a text under 'text'"),
        ('["x"]', "bad.jsonl:2: expected an object"),
        ("[" * 100000, "bad.jsonl:2: not JSON"),
    ):
        bad.write_text('{"text": "fine"}\n' + line)
        refused(DataError, match)
    refused(ConfigError, "no script 'latn'; known: latin", scripts={"latn": 1})
    refused(ConfigError, r"prepare\.permutations=10 must be a multiple of 4", permutations=10)
    refused(ConfigError, "below 1 together", val_fraction=0.5, test_fraction=0.5)
    refused(ConfigError, "drop, together or ignore", near_duplicates="remove")
    refused(ConfigError, r"prepare\.min_chars=0", min_chars=0)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there exists; delete it"):
        prepare(tmp_path / "a.txt", tmp_path / "there", Preparation())
    bad.write_text('{"text": "a\\ud800"}\n{"text": "fine"}\n')
    report = prepare(bad, tmp_path / "half", Preparation())
    assert report["dropped"]["not UTF-8"]["documents"] == 1


def test_a_folder_is_made_once_and_whole(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text("1")
        if len(made) == 1:
            raise DataError("half way")

    with pytest.raises(DataError):
        made_once(tmp_path / "a" / "b", make)
    assert not (tmp_path / "a" / "b").exists()
    for _ in range(2):
        assert (made_once(tmp_path / "a" / "b", make) / "x").read_text() == "1"
    assert len(made) == 2
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".b.lock", "b"]
    (tmp_path / "a" / ".c.1.tmp" / "x").mkdir(parents=True)  # left by a process that was killed
    made_once(tmp_path / "a" / "c", make)
    assert not (tmp_path / "a" / ".c.1.tmp").exists()


def test_the_script(tmp_path: Path) -> None:
    plant(tmp_path / "in")
    command = [sys.executable, "scripts/prepare_text.py", str(tmp_path / "in"), str(tmp_path / "out")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([*command, "--min-chars", "20"], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "exact duplicate          10 documents" in done.stdout
    again = subprocess.run([*command, "--script", "han"], cwd=root, capture_output=True, text=True, timeout=60)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "give NAME=SHARE" in again.stderr
