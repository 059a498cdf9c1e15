"""The registry's text sets: what is made of a package's files, and the real ones where they are present."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import pytest

from genlab.data import corpora
from genlab.data.corpora import (
    OTHER,
    chinese_poetry,
    clean,
    debian_synopsis,
    form_of,
    shakespeare_works,
    stem_of,
)
from genlab.data.fetch import fetch, present
from genlab.errors import DataError
from genlab.files import cache_root


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。", "五言绝句"),
        ("故人西辭黃鶴樓，煙花三月下揚州。\n孤帆遠影碧山盡，唯見長江天際流。", "七言绝句"),
        ("\n".join(["秦川雄帝宅，函谷壯皇居。"] * 4), "五言律诗"),
        ("\n".join(["昔人已乘黃鶴去，此地空餘黃鶴樓。"] * 4), "七言律诗"),
        ("\n".join(["秦川雄帝宅，函谷壯皇居。"] * 3), OTHER),
        ("牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故。", OTHER),
        ("牀前□月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。", OTHER),
        ("牀前看月光？疑是地上霜！\n舉頭望𤃩月，低頭思故鄉。", "五言绝句"),
        ("", OTHER),
    ],
)
def test_forms_by_line_lengths(text: str, form: str) -> None:
    assert form_of(text) == form


def test_clean() -> None:
    assert clean("\r\n\ne\u0301a  \r\nb\t\rc\n\n") == "éa\nb\nc"


def poem(**fields: Any) -> dict[str, Any]:
    return {"paragraphs": ["牀前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。"], "author": "李白", **fields}


def test_poetry_is_made_of_the_packages_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "POETRY", {"tang.jsonl": ("唐", ("a", "b")), "ci.jsonl": ("宋", ("c",))})
    (tmp_path / "a").write_text(json.dumps([poem(title="靜夜思"), poem(title="空", paragraphs=[])]), encoding="utf-8")
    (tmp_path / "b").write_text(json.dumps([poem(title="x", author="\uf91c\r\n")]), encoding="utf-8")
    (tmp_path / "c").write_text(json.dumps([poem(rhythmic="江城子")]), encoding="utf-8")
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        chinese_poetry(tmp_path, tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in ("tang.jsonl", "ci.jsonl")])
    assert contents[0] == contents[1]
    tang = [json.loads(line) for line in contents[0][0].splitlines()]
    assert tang[0] == {
        "text": "牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。",
        "title": "靜夜思",
        "author": "李白",
        "form": "五言绝句",
        "dynasty": "唐",
    }
    assert [record["author"] for record in tang] == ["李白", "卵"]  # a compatibility ideograph, normalised
    (ci,) = (json.loads(line) for line in contents[0][1].splitlines())
    assert (ci["title"], ci["form"], ci["dynasty"]) == ("江城子", "词", "宋")
    for wrong in ("{", json.dumps([{"title": "x"}]), json.dumps([poem(title=3)]), "3"):
        (tmp_path / "b").write_text(wrong)
        with pytest.raises(DataError):
            chinese_poetry(tmp_path, tmp_path / "one")


def test_works_are_made_of_the_packages_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "WORKS", ["lear", "sonnets"])
    monkeypatch.setattr(corpora, "WORKS_MEMBERS", ("lear.txt", "sonnets.txt"))
    (tmp_path / "lear.txt").write_bytes(b"KING LEAR \r\n\r\nAct I\r\n")
    (tmp_path / "sonnets.txt").write_bytes(b"\nTHE SONNETS\nI\n")
    shakespeare_works(tmp_path, tmp_path)
    found = [json.loads(line) for line in (tmp_path / "works.jsonl").read_text().splitlines()]
    assert found == [
        {"text": "KING LEAR\n\nAct I", "title": "KING LEAR", "work": "lear"},
        {"text": "THE SONNETS\nI", "title": "THE SONNETS", "work": "sonnets"},
    ]
    (tmp_path / "lear.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"lear\.txt: not the expected text"):
        shakespeare_works(tmp_path, tmp_path)


def test_pairs_are_made_of_an_index_of_descriptions(tmp_path: Path) -> None:
    long = "A program that " + "does much, and " * 6 + "ends."
    packages = {
        "foo": ("does  much", f" {long[:44]}\n {long[44:]}\n .\n Another paragraph.\n"),
        "foo-doc": ("does much (documentation)", f" {long}\n This package has the documentation.\n"),
        "libfoo1": ("does much", f" {long}\n"),  # the first paragraph was there before
        "short": ("is short", " Too short.\n"),
        "longer": ("is long", " " + "word " * 121 + "\n"),
        "bare": ("has no description", ""),
    }
    stanzas = [f"Package: {name}\nDescription-md5: 0\nDescription-en: {s}\n{d}" for name, (s, d) in packages.items()]
    (tmp_path / "Translation-en").write_text("\n".join(stanzas), encoding="utf-8")
    debian_synopsis(tmp_path, tmp_path)
    found = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found == [
        {"source": long, "target": "does much", "group": "foo"},
        {
            "source": f"{long} This package has the documentation.",
            "target": "does much (documentation)",
            "group": "foo",
        },
    ]
    alike = ("foo", "foo-dev", "foo-doc", "libfoo1", "libfoo-1.2-0", "python3-foo", "libfoo-perl", "foo-common-dbg")
    assert {stem_of(package) for package in alike} == {"foo"}
    assert [stem_of(package) for package in ("python3", "foo-bar-dev", "0ad")] == ["python3", "foo-bar", "0ad"]


@pytest.mark.data
def test_real_sets() -> None:
    for name in ("shakespeare_works", "chinese_poetry"):
        if not present(name, cache_root()):
            pytest.skip(f"python scripts/fetch_data.py {name}")
    works = (fetch("shakespeare_works") / "works.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(works) == 42
    assert sum(len(json.loads(line)["text"]) for line in works) > 5_000_000
    forms: collections.Counter[str] = collections.Counter()
    with open(fetch("chinese_poetry") / "tang.jsonl", encoding="utf-8") as lines:
        forms.update(json.loads(line)["form"] for line in lines)
    assert forms == {"other": 20561, "五言律诗": 14514, "七言绝句": 10570, "七言律诗": 7982, "五言绝句": 3976}
