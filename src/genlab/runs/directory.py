"""The run directory: its name, its lock, its status. See docs/runs.md for what each file holds. Free of torch."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from genlab.errors import ConfigError, StorageError
from genlab.files import folder_or_cached, read_json, take_lock, write_json
from genlab.runs.keys import EXECUTION, without

PIPELINE = "model_index.json"  # of a pipeline of diffusers

State = Literal["starting", "running", "finished", "failed", "preempted", "interrupted", "pruned"]


def config_hash(config: Mapping[str, Any], others: Sequence[str] = ()) -> str:
    """16 hex digits that name what a run computes: sha256 of the resolved config without EXECUTION and `others`."""
    left = without(config, {*EXECUTION, *others})
    return hashlib.sha256(json.dumps(left, sort_keys=True, default=str).encode()).hexdigest()[:16]


class RunDirectory:
    """One run's folder.

    Attributes:
        path: absolute; the others are what lies in it.
        left_by: after `lock`: the process that held the run before and ended without giving it back, or None. It was
            killed (by the kernel for want of memory, say), or the machine went down.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.metrics = self.path / "metrics.jsonl"
        self.config = self.path / "config.yaml"
        self.left_by: str | None = None

    def status(self) -> dict[str, Any]:
        found = read_json(self.path / "status.json")
        return found if isinstance(found, dict) else {}

    def set_status(self, state: State, **facts: Any) -> None:
        """Replaces the state; facts given before stay unless given again (None removes one)."""
        merged = {**self.status(), "state": state, "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts}
        write_json(self.path / "status.json", {k: v for k, v in merged.items() if v is not None})

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Holds the run for this process and the children that inherit the descriptor it yields.

        The kernel frees the lock when the last of them is gone, however they died: it cannot be left stale.

        Raises:
            ConfigError: another process holds it, and is named; or the run cannot be written, or not in its place.
        """
        self.refuse_links()
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            if not os.access(self.path, os.W_OK | os.X_OK):
                os.close(descriptor)
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self._not_writable(error) from error
        before = _holder(descriptor)
        if not _take(descriptor):
            os.close(descriptor)
            raise ConfigError(
                f"run {self.path} is in use by process {before or 'unknown'}. Wait for it, stop it, or start anew with "
                "resume=never."
            )
        self.left_by = before or None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)  # what is left standing was killed
            os.close(descriptor)

    def refuse_links(self) -> None:
        """Refuses a run in which a symbolic link stands where files are written: they would land outside of it.

        Raises:
            ConfigError: one does.
        """
        for name in ("lock", "metrics.jsonl", "samples", "evaluation", "ranks"):
            if (path := self.path / name).is_symlink():
                raise ConfigError(f"{path} is a symbolic link, through which a run is not written: remove it.")

    def _not_writable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"run {self.path} cannot be written: {error.strerror}. Make it writable, or start anew with resume=never."
        )

    def holder(self) -> str | None:
        """The process that holds the run now, or is about to; None where none does.

        Raises:
            ConfigError: the run cannot be written.
        """
        self.refuse_links()
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR)
        except FileNotFoundError:  # its command has just made it, or was killed before it began
            begun_by = str(self.status().get("begun_by", ""))
            return begun_by if begun_by != str(os.getpid()) and _alive(begun_by) else None
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            return None if _take(descriptor) else _holder(descriptor) or "unknown"
        finally:
            os.close(descriptor)


def _holder(descriptor: int) -> str:
    """The process id in an open lock file, or ""."""
    return os.pread(descriptor, 64, 0).decode(errors="replace").strip()


def _alive(pid: str) -> bool:
    """Whether a process of this machine works: one that has ended and is not yet waited for does not."""
    try:
        os.kill(int(pid), 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except PermissionError:  # another user's
        return True
    except (ValueError, ProcessLookupError):
        return False
    except OSError:  # no /proc
        return True


def _take(descriptor: int, patience_s: float = 10.0) -> bool:
    """Whether the lock is held by this process now; waits for a holder that is dead, whose children may yet end."""
    deadline = time.monotonic() + patience_s
    while not take_lock(descriptor):
        if _alive(_holder(descriptor)) or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def create_run(runs_dir: Path, name: str, digest: str) -> RunDirectory:
    """Makes runs_dir/DATE/NAME-TIME-XXXX; what would be a path in NAME (experiment=mine/small) becomes dashes.

    Raises:
        ConfigError: the folder cannot be written.
    """
    flat = re.sub(r"[/\\\x00-\x1f]+", "-", name).lstrip(".-") or "run"
    folder = runs_dir / time.strftime("%Y-%m-%d") / f"{flat}-{time.strftime('%H%M%S')}-{secrets.token_hex(2)}"
    run = RunDirectory(folder)
    try:
        folder.mkdir(parents=True)
        for part in ("checkpoints", "samples", "evaluation"):
            (folder / part).mkdir()
        run.set_status("starting", config_hash=digest, samples=0, begun_by=os.getpid())
    except (OSError, StorageError) as error:
        raise ConfigError(
            f"runs_dir: cannot write {folder}: {error}. Choose a folder of yours with runs_dir=DIR."
        ) from error
    return run


def list_runs(runs_dir: Path) -> list[RunDirectory]:
    """Runs under runs_dir, oldest first (by the time of their last status)."""
    found = [(path.stat().st_mtime, path.parent) for path in runs_dir.glob("*/*/status.json")]
    return [RunDirectory(path) for _, path in sorted(found)]


def find_unfinished(
    runs_dir: Path, digest: str, in_use: Callable[[RunDirectory, str], None] = lambda run, holder: None
) -> RunDirectory | None:
    """The latest run with this config hash that is neither finished nor pruned nor in use, or None.

    Args:
        in_use: told of each later one that is in use, and by which process.

    Raises:
        ConfigError: there is one, but it cannot be written.
    """
    for run in reversed(list_runs(runs_dir)):
        status = run.status()
        if status.get("config_hash") == digest and status.get("state") not in ("finished", "pruned"):
            holder = run.holder()
            if holder is None:
                return run
            in_use(run, holder)
    return None


def find_run(run: str, runs_dir: Path) -> RunDirectory:
    """A run by path (or an export), by folder name, or the newest one by the word "last" or by what it is named in its
    configuration (an experiment); then weights of the cache.

    Raises:
        ConfigError: there is no such run; names the newest ones.
    """
    if any((Path(run) / name).is_file() for name in ("config.yaml", "config.json", PIPELINE)):
        return RunDirectory(Path(run))
    runs = [r for r in list_runs(runs_dir) if r.config.is_file()]
    if run == "last" and runs:
        return runs[-1]
    named = [r for r in runs if re.fullmatch(re.escape(run) + r"(-\d{6}-\w{4})?", r.path.name)]
    if named:
        return named[-1]
    cached = folder_or_cached(run)
    if any((cached / name).is_file() for name in ("config.json", PIPELINE)):
        return RunDirectory(cached)
    newest = ", ".join(r.path.name for r in runs[-3:]) or "none"
    raise ConfigError(f"run={run}: no run directory there, nor of that name in {runs_dir} (newest: {newest}).")
