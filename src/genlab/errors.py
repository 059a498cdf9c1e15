"""The errors a user can meet, each with its exit code. A message says in one line what, where and what to do.

An exception of any other class is a fault of ours and keeps its traceback (exit code 1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


class GenlabError(Exception):
    """Base of the expected errors. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(GenlabError):
    """Wrong key, type, range or choice; a path that is missing; a run that is in use; another architecture."""

    exit_code = 2


class OutOfMemory(GenlabError):
    """Memory of the machine or of the device did not suffice."""


class LoaderError(GenlabError):
    """A process that loads data has died.

    Args:
        worker: its process id, and how it ended where that is known; or several.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(
            f"DataLoader worker (pid {worker}) has died. If nobody killed it, memory ran out: lower data.num_workers. "
            "The last checkpoint is as it was."
        )


class DataError(GenlabError):
    """Corrupt, truncated or unreadable data, or a hash that does not match."""

    exit_code = 65


class NumericError(GenlabError):
    """A loss or gradient that is not finite."""

    exit_code = 70


class RewardError(NumericError, ValueError):
    """A judge that does not give one finite number an item."""


class StorageError(GenlabError):
    """A read or write that failed: disk full, permission, a vanished folder."""

    exit_code = 74


class CheckpointError(GenlabError):
    """A checkpoint that is truncated, altered or unsafe, or no checkpoint of GenLab at all."""

    exit_code = 76


class Stopped(BaseException):
    """The run was asked to end. As KeyboardInterrupt no Exception: nobody's `except Exception` may swallow it."""

    exit_code = 1


class Interrupted(Stopped):
    """Ctrl-C, after a save."""

    exit_code = 130


class Preempted(Stopped):
    """SIGTERM or SIGUSR1, after a save."""

    exit_code = 143


_NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "bad_alloc", "ALLOC_FAILED")
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


def expected(error: BaseException, folder: str | os.PathLike[str] = ".") -> GenlabError | None:
    """What an exception of Python or torch means to a user, where that is known; else None.

    Args:
        error: MemoryError, torch's kinds of it (known by name: this module is free of torch), or an OSError.
        folder: whose file system is meant where the error names no file.
    """
    if isinstance(error, GenlabError):
        return error
    first = str(error).strip().partition("\n")[0][:160] or type(error).__name__
    exhausted = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or exhausted
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        return OutOfMemory(
            f"out of memory ({first}). In training lower data.batch_size, or keep it and raise "
            "trainer.accumulate_grad_batches; in sampling lower n; data.resident_max=0 leaves the data on disk."
        )
    if type(error).__name__ == "PanicException":  # of pyo3; no Exception
        return CheckpointError(f"a library written in Rust gave up ({first}): is a tokenizer.json damaged or hostile?")
    if lost := _lost_workers(error):
        return LoaderError(lost)
    if isinstance(error, OSError) and error.errno in _STORAGE:
        path = Path(os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else folder)
        return StorageError(f"cannot write {path}: {error.strerror}; {free_bytes(path)}. Free space or choose a "
                            "folder of yours; the last checkpoint is as it was.")  # fmt: skip
    return None


def _lost_workers(error: BaseException | None) -> str | None:
    """Process ids of the loader workers that torch reports as dead, in `error` or in what it was raised from.

    torch raises from its handler of SIGCHLD, wherever the main thread happens to be: a library that is called just
    then may put an error of its own around it.
    """
    while error is not None:
        told = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if told and isinstance(error, RuntimeError):
            return told[1]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Around a library that reads a file: whatever it raises (on a broken file nearly anything) becomes a DataError."""
    try:
        yield
    except GenlabError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); repair or remove it") from error


def free_bytes(path: Path) -> str:
    """ "N bytes free" of the file system that `path` is or would be on."""
    try:
        there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
        return f"{shutil.disk_usage(there).free:,} bytes free"
    except (OSError, StopIteration):
        return "free space unknown"
