"""Files and folders written whole or not at all, their locks and hashes, and what is installed. Free of torch."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from genlab.errors import StorageError, free_bytes


def cache_root(root: str | os.PathLike[str] | None = None) -> Path:
    """`root`, else $GENLAB_DATA, else ~/.cache/genlab: data sets, weights, reference features."""
    return Path(root or os.environ.get("GENLAB_DATA") or "~/.cache/genlab").expanduser()


def folder_or_cached(name: str) -> Path:
    """A path, or the folder in the cache of what scripts/fetch_data.py calls so."""
    path = Path(name).expanduser()
    return cache_root() / name if not path.exists() and Path(name).name == name else path


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: OSError) -> StorageError:
    """What a failed write means to a user."""
    where = "set GENLAB_DATA to another folder" if path.is_relative_to(cache_root()) else "choose another folder"
    return StorageError(
        f"cannot write {path}: {error.strerror or error}; {free_bytes(path.parent)}. Free space or {where}."
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, for a file, or for a folder where `path` is not there; on success it
    becomes `path` in one step, on failure it goes.

    A reader sees the old file or the new one, whole, also after a crash.

    Raises:
        StorageError: the folder cannot be made or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if not temporary.is_dir():
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # does not remove a file
        with contextlib.suppress(OSError):
            temporary.unlink()


def take_lock(descriptor: int) -> bool:
    """Whether this process holds the lock of an open file now; it never waits.

    True as well on a file system without locks (some network file systems): a line says so, once.

    Raises:
        OSError: the file cannot be locked for another reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        _say_unlocked()
    return True


@functools.cache
def _say_unlocked() -> None:
    words = "this file system has no locks: see to it that no two commands work on one run or data set"
    print(f"genlab: warning: {words}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock file, one process at a time; the system releases it if the holder dies.

    Args:
        path: of the lock file, which stays.
        waiting: called once if another process holds it.

    Raises:
        StorageError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            stack.callback(os.close, descriptor)
            if not take_lock(descriptor):
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder, made by `make(folder)` if it is not there: by one process at a time, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    if target.is_dir():
        return target
    with locked(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            for stale in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            with replacing(target) as folder:
                folder.mkdir()
                make(folder)
    return target


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `replacing` does; NaN and infinities are refused (ValueError): JSON has none."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no readable JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, [] where there is none; what is no row (cut short by a crash, damaged) is left out."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("samples"), int):
            rows.append(row)
    return rows


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of Python and of each package, "not installed" where it is not."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
