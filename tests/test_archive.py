"""Unpacking: attacks are refused before a byte is written; truncated archives."""

from __future__ import annotations

import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from data_files import tgz

from genlab.data.archive import unpack
from genlab.errors import DataError


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.faults(20)
def test_attacks_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    outside = tmp_path / "evil"
    archives: list[tuple[Path, str]] = []
    for i, (members, match) in enumerate(
        (
            ({"ok": b"1", "../evil": b"2"}, "outside"),
            ({"ok": b"1", str(outside): b"2"}, "outside"),
            ({"ok": b"1", "a/../../evil": b"2"}, "outside"),
            ({"ok": b"1", "l": link("l", "../evil")}, "link"),
            ({"ok": b"1", "l": link("l", str(outside)), "l/x": b"2"}, "link"),
            ({"ok": b"1", "l": link("l", "ok", tarfile.LNKTYPE)}, "link"),
            ({"ok": b"1", "d": link("d", "", tarfile.CHRTYPE)}, "device"),
            ({"ok": b"1", "big": b"\0" * 10**6}, "more than 1000 bytes"),
            ({"ok": b"1", **{f"f{k}": b"\0" * 400 for k in range(3)}}, "more than 1000 bytes"),
        )
    ):
        archives.append((tgz(tmp_path / f"{i}.tgz", members), match))  # type: ignore[arg-type]
    for i, (name, data, mode, match) in enumerate(
        (
            ("../evil", b"2", 0, "outside"),
            ("..\\evil", b"2", 0, "outside"),
            ("/evil", b"2", 0, "outside"),
            ("l", b"../evil", stat.S_IFLNK | 0o777, "link"),
            ("big", b"\0" * 10**6, 0, "more than 1000 bytes"),
        )
    ):
        path = tmp_path / f"{i}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("ok", b"1")
            info = zipfile.ZipInfo(name)
            info.filename = name  # ZipInfo would clean it
            info.external_attr = mode << 16
            file.writestr(info, data)
        archives.append((path, match))
    for path, match in archives:
        with pytest.raises(DataError, match=match):
            unpack(path, target, None, 1000)
        assert list(target.iterdir()) == []
        assert not outside.exists()


def test_only_what_is_wanted_is_unpacked(tmp_path: Path) -> None:
    path = tgz(tmp_path / "x.tgz", {"p/a": b"12", "p/b": b"3" * 10**5, "p/l": link("p/l", "a")})
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out", {"p/a"}, 2)
    assert [p.name for p in (tmp_path / "out" / "p").iterdir()] == ["a"]
    with pytest.raises(DataError, match="has no member 'p/c'"):
        unpack(path, tmp_path / "out", {"p/c"}, 2)


def test_patterns_are_unpacked(tmp_path: Path) -> None:
    """Each must match; what none matches stays where it is."""
    path = tgz(tmp_path / "x.tgz", {"p/a.mxl": b"1", "p/b.mxl": b"2", "p/a.py": b"3", "q/a.mxl": b"4", "q/c": b"5"})
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out", ["p/*.mxl", "q/c"], 3)
    unpacked = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert unpacked == {"p/a.mxl", "p/b.mxl", "q/c"}
    for wanted, missing in ((["p/*.mxl", "p/*.xml"], "p/*.xml"), (["p/*.mxl", "q/d"], "q/d")):
        with pytest.raises(DataError, match=f"has no member '{re.escape(missing)}'"):
            unpack(path, tmp_path / "out", wanted, 3)


@pytest.mark.faults(19)
def test_truncated_archives(tmp_path: Path) -> None:
    data = os.urandom(5000)
    tar = tgz(tmp_path / "x.tgz", {"a": data})
    tar.write_bytes(tar.read_bytes()[:-2000])
    zipped = tmp_path / "x.zip"
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("a", data)
    raw = bytearray(zipped.read_bytes())
    raw[100] ^= 1
    zipped.write_bytes(raw)
    (tmp_path / "empty.tgz").write_bytes(b"")
    (tmp_path / "junk.whl").write_bytes(b"junk")
    for name in ("x.tgz", "x.zip", "empty.tgz", "junk.whl"):
        (tmp_path / "out" / name).mkdir(parents=True)
        with pytest.raises(DataError, match="corrupt or truncated") as caught:
            unpack(tmp_path / name, tmp_path / "out" / name, {"a"}, 10_000)
        assert "\n" not in str(caught.value)


@pytest.mark.faults(20)
def test_a_deb_is_bounded_and_its_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "toy.deb").write_bytes(b"junk")
    client = tmp_path / "dpkg-deb"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for script, match in (("cat /dev/zero", "more than 67110864 bytes"), ("echo no deb >&2; exit 2", "'no deb'")):
        client.write_text(f"#!/bin/sh\n{script}\n")
        client.chmod(0o755)
        with pytest.raises(DataError, match=rf"toy.deb: dpkg-deb cannot unpack it \({match}\)"):
            unpack(tmp_path / "toy.deb", tmp_path / "out", {"a"}, 1000)
    assert not list((tmp_path / "out").iterdir())
