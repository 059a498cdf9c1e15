"""Where evaluation keeps what it may compute again, and how it writes: whole files or none."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from genlab.errors import StorageError


def cache_root() -> Path:
    """$GENLAB_DATA, or ~/.cache/genlab: the same folder as the data sets'."""
    return Path(os.environ.get("GENLAB_DATA") or "~/.cache/genlab").expanduser()


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success it becomes `path` in one step, on failure it goes.

    Raises:
        StorageError: the folder cannot be made or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}. Free space or check the folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
