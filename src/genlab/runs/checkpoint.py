"""Checkpoint files: written whole or not at all, each with its sha256, read without running code."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from genlab.errors import CheckpointError, ConfigError, OutOfMemory, StorageError, expected
from genlab.files import read_json, replacing, sha256_of, write_json


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint plugin, for its own callbacks too.

    Lightning's writes go through $TMPDIR and a move, which tears across file systems. Here: a temporary file in the
    same directory, fsync, a trial load, os.replace, fsync of the directory. `last.ckpt` becomes `previous.ckpt` first.
    The hash lies beside each file in NAME.sha256.json, written before the file takes its place; while a file is being
    replaced the hashes of both the old and the new one stand there, so a crash at any point leaves a valid pair.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises: StorageError (disk full, not writable): the old file stays."""
        target = Path(path)
        try:
            with replacing(target) as temporary:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # before anything else changes
                digest = sha256_of(temporary)
                torch.load(temporary, map_location="meta", weights_only=True, mmap=True)
                if target.exists() and target.name == "last.ckpt":
                    keep_as(target, "previous.ckpt")
                write_json(_sidecar(target), {"sha256": [*_hashes(target), digest]})
            write_json(_sidecar(target), {"sha256": [digest]})
            _sync_directory(target.parent)
        except (StorageError, RuntimeError) as error:
            # torch's writer answers a failed write with a RuntimeError of its own, raised while handling the OSError.
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            if reason is None:
                raise
            free, needed = shutil.disk_usage(target.parent).free, _tensor_bytes(checkpoint)
            raise StorageError(
                f"cannot save {target}: {reason.strerror}; {free:,} bytes free, about {needed:,} needed. "
                "Free space and run the same command again: it goes on from the last checkpoint."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Always with weights_only=True, whatever is asked."""
        return load_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        for file in (Path(path), _sidecar(Path(path))):
            file.unlink(missing_ok=True)


def load_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint as a dictionary of tensors and primitives.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: its hash differs, it is truncated, it holds something that is not plain data or would have code
            run, or it is no checkpoint of GenLab.
    """
    if not path.is_file():
        raise ConfigError(f"checkpoint {path} does not exist.")
    known = _hashes(path)
    try:
        if known:
            digest = sha256_of(path)
            if digest not in known:
                raise CheckpointError(
                    f"checkpoint {path}: sha256 mismatch, the file was altered or cut short (it is {digest[:16]}..., "
                    f"{known[-1][:16]}... was written)."
                )
        else:
            _check_sums(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # the unpickler raises many kinds; nearly all mean that the file is not one of ours
        if isinstance(error, OSError) and error.errno in (errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE):
            raise StorageError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
        if known and isinstance(exhausted := expected(error), OutOfMemory):  # the file is as it was written
            raise exhausted from error
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be loaded safely: {reason}") from error
    _check_content(checkpoint, path)
    return checkpoint


def _check_sums(path: Path) -> None:
    """The CRC-32 that torch's format keeps of each part, for a file without its sha256: torch.load does not look."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
        if bad is not None:
            raise CheckpointError(f"checkpoint {path}: CRC-32 mismatch in {bad}, the file was altered.")


def _check_content(checkpoint: Any, path: Path) -> None:
    """Refuses what is plain data and yet no checkpoint of GenLab."""
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(checkpoint).__name__}: it is not one of GenLab.")
    hyper = checkpoint.get("hyper_parameters")
    named = [k for k in hyper if k in ("_instantiator", "_class_path")] if isinstance(hyper, dict) else []
    if named:  # Lightning would import and call what these name
        raise CheckpointError(f"checkpoint {path}: hyper_parameters.{named[0]} would have code run; refused.")


def load_last(
    checkpoints: Path, map_location: Any = "cpu", set_aside: bool = False
) -> tuple[dict[str, Any], Path] | None:
    """The newest checkpoint that is valid: last, else previous with a warning; None where there is neither file.

    Args:
        checkpoints: folder of a run.
        map_location: as of torch.load.
        set_aside: give a bad last.ckpt the name last.ckpt.damaged-N, where `previous` takes its place. For whoever goes
            on to save: else the bad file would become `previous`, and the only good one would be gone.

    Raises:
        CheckpointError: files are there, but none is valid.
    """
    failures: list[str] = []
    for name in ("last.ckpt", "previous.ckpt"):
        path = checkpoints / name
        if not path.exists():
            continue
        try:
            found = load_checkpoint(path, map_location), path
        except CheckpointError as error:
            failures.append(str(error))
            warnings.warn(f"{error} It is kept; trying the one before.", stacklevel=2)
        else:
            if failures and set_aside:
                _set_aside(checkpoints / "last.ckpt")
            return found
    if failures:
        raise CheckpointError(
            f"no valid checkpoint in {checkpoints}: {' '.join(failures)} Put a good one there, or start anew with "
            "resume=never."
        )
    return None


def _set_aside(path: Path) -> None:
    number = next(n for n in range(1, 10**6) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    os.replace(path, path.with_name(f"{path.name}.damaged-{number}"))
    _sidecar(path).unlink(missing_ok=True)


def stored_sha256(path: Path) -> str | None:
    """The stored hash of a checkpoint."""
    known = _hashes(path)
    return known[-1] if known else None


def keep_as(path: Path, name: str) -> None:
    """Gives a checkpoint a second name in its directory (a hard link, no copy), replacing what had it."""
    target = path.with_name(name)
    with replacing(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        write_json(_sidecar(target), {"sha256": [*_hashes(target), *_hashes(path)]})
    write_json(_sidecar(target), {"sha256": _hashes(path)})


def sweep_temporaries(checkpoints: Path) -> None:
    """Removes what killed saves left; call it only while the run is locked."""
    for stale in checkpoints.glob(".*.tmp"):
        stale.unlink(missing_ok=True)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256.json")


def _hashes(path: Path) -> list[str]:
    stored = read_json(_sidecar(path))
    listed = stored.get("sha256") if isinstance(stored, dict) else None
    return [h for h in listed if isinstance(h, str)] if isinstance(listed, list) else []


def _sync_directory(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems do not allow it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_tensor_bytes(v) for v in value.values())
    return sum(_tensor_bytes(v) for v in value) if isinstance(value, list | tuple) else 0
