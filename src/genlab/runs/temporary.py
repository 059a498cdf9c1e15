"""A folder for what libraries put into $TMPDIR, which goes with the command however its processes end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genlab.files import take_lock

PREFIX = "genlab-tmp-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[dict[str, str]]:
    """The variables that send a worker's temporary files into a folder of this command, removed at the end.

    Folders of commands that were killed are removed first: their locks are free. The cache of torch.compile stays
    outside, where the next run looks for it.
    """
    outer = Path(tempfile.gettempdir())
    for folder in outer.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), _locked(folder):  # in use, or another user's
            shutil.rmtree(folder)
    mine = Path(tempfile.mkdtemp(prefix=PREFIX))
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(outer / f"torchinductor_{os.getuid()}")
    try:
        with _locked(mine):
            yield {"TMPDIR": str(mine), "TORCHINDUCTOR_CACHE_DIR": cache}
    finally:
        shutil.rmtree(mine, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises OSError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not take_lock(descriptor):
            raise BlockingIOError(errno.EWOULDBLOCK, "in use")
        yield
    finally:
        os.close(descriptor)
