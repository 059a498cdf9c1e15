"""Unpacking what came from outside: nothing leaves the target folder, no links, bounded sizes, checked beforehand."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from genlab.data.registry import File
from genlab.errors import DataError
from genlab.files import replacing

CHUNK = 1 << 20
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile)
Member = tuple[str, int, bool, Any]  # name, size in bytes, whether a regular file, what the library calls it


def install(source: Path, target: Path, file: File) -> None:
    """Copies `source`, uncompressed if it is a .gz, to `target`, atomically, if it has the size and sha256 of `file`.

    At most `file.size` + 1 bytes are read, so a decompression bomb stops there. Raises DataError otherwise.
    """
    digest, size = hashlib.sha256(), 0
    opener = gzip.open if source.suffix == ".gz" else open
    with opener(source, "rb") as data, replacing(target) as temporary, open(temporary, "wb") as out:
        try:
            while block := data.read(min(CHUNK, file.size + 1 - size)):
                digest.update(block)
                size += len(block)
                out.write(block)
        except BROKEN as error:
            raise DataError(
                f"{source.name}: corrupt after {size} uncompressed bytes ({error}); fetch it again"
            ) from None
        if size != file.size:
            more = "more than " if size > file.size else ""
            raise DataError(f"{source.name}: {more}{min(size, file.size)} bytes, expected {file.size} of {file.name}")
        if digest.hexdigest() != file.sha256:
            raise DataError(f"{source.name}: sha256 is {digest.hexdigest()}, expected {file.sha256} of {file.name}")


def unpack(archive: Path, target: Path, wanted: Collection[str] | None, limit: int) -> None:
    """Unpacks members of a tar (also compressed), zip, whl or deb archive under `target`, or one file, plain or .xz.

    Args:
        archive: the file; its kind is taken from its name.
        target: an existing folder.
        wanted: paths of the members to unpack, or patterns such as "a/*.b"; None = all regular files.
        limit: upper bound of their uncompressed size together, in bytes.

    Raises:
        DataError: before anything is written: a path outside the target, a link, a device, too many bytes, a missing
            member; while writing: truncated or corrupt data.
    """
    bound = 2 * limit + (64 << 20)  # bytes of a whole tar, with what is not wanted of it and must be read over
    try:
        if archive.suffix in ("", ".xz") and ".tar" not in archive.suffixes:
            with (lzma.open if archive.suffix else open)(archive, "rb") as data:
                content = data.read(limit + 1)
            if len(content) > limit:
                raise DataError(f"{archive.name}: would unpack to more than {limit} bytes; nothing was written")
            (target / archive.stem).write_bytes(content)
            return
        if archive.suffix in (".zip", ".whl"):
            with zipfile.ZipFile(archive) as file:
                file.extractall(target, _chosen(archive.name, _zip_members(file), wanted, limit))
            return
        plain = archive
        if archive.suffix == ".deb":
            plain = archive.with_suffix(".tar")
            _deb_to_tar(archive, plain, bound)
        with tarfile.open(plain) as tar:
            members = _chosen(archive.name, _tar_members(tar, archive.name, bound), wanted, limit)
            tar.extractall(target, members, filter="data")
    except BROKEN as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise DataError(f"{archive.name}: corrupt or truncated archive ({reason}); fetch it again") from None


def _chosen(archive: str, members: Iterable[Member], wanted: Collection[str] | None, limit: int) -> list[Any]:
    """The members to unpack. The libraries would make a path that points outside a harmless one, and tar's filter lets
    links pass that stay inside: here each is a reason to trust nothing of the archive."""
    chosen: dict[str, Any] = {}
    patterns = [name for name in wanted or () if "*" in name]
    unmatched = set(patterns)
    total = 0
    for name, size, regular, info in members:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise DataError(f"{archive}: member {name!r} points outside the archive; nothing was written")
        matching = [pattern for pattern in patterns if fnmatchcase(str(path), pattern)]
        if wanted is not None and str(path) not in wanted and not matching:
            continue
        unmatched.difference_update(matching)
        total += size
        if not regular or str(path) in chosen:
            problem = "comes twice" if regular else "is a link or a device"
            raise DataError(f"{archive}: member {name!r} {problem}; nothing was written")
        if total > limit:
            raise DataError(f"{archive}: would unpack to more than {limit} bytes at {name!r}; nothing was written")
        chosen[str(path)] = info
    if missing := sorted({*(wanted or ())} - chosen.keys() - {*patterns} | unmatched):
        raise DataError(f"{archive}: has no member {missing[0]!r}")
    return list(chosen.values())


def _zip_members(file: zipfile.ZipFile) -> Iterator[Member]:
    for info in file.infolist():
        if not info.is_dir():
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            yield info.filename, info.file_size, regular, info


def _tar_members(file: tarfile.TarFile, archive: str, bound: int) -> Iterator[Member]:
    for info in file:  # headers first: a bomb is seen where its header is read
        if info.offset_data + info.size > bound:
            raise DataError(f"{archive}: would unpack to more than {bound} bytes; nothing was written")
        if not info.isdir():
            yield info.name, info.size, info.isreg(), info


def _deb_to_tar(archive: Path, plain: Path, bound: int) -> None:
    """The data part of a .deb as a plain tar file of at most `bound` bytes."""
    command = ["prlimit", f"--fsize={bound}", "dpkg-deb", "--fsys-tarfile", str(archive)]
    with open(plain, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        why = f"more than {bound} bytes" if plain.stat().st_size >= bound else f"{done.stderr.strip()[-200:]!r}"
        raise DataError(f"{archive.name}: dpkg-deb cannot unpack it ({why}); fetch it again")
