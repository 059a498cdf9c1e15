"""The parts of a metric record that every evaluation has, and how it is written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genlab import files
from genlab.evaluation.reference import key_of
from genlab.evaluation.sharding import world

FORMAT = 2  # of the record: 2 since metrics have their own settings
PACKAGES = ("genlab", "torch", "torch-fidelity", "torchmetrics", "numpy", "scipy", "diffusers", "transformers",
            "pocketsphinx")  # fmt: skip


def identity(record: Mapping[str, Any]) -> str:
    """A hash of all that decides the values but the weights' own numbers, the machine and the libraries."""
    decisive = {key: record.get(key) for key in ("protocol", "reference", "extractor", "resize", "model")}
    decisive["generated"] = {k: v for k, v in record.get("generated", {}).items() if k not in ("seconds", "per_second")}
    return key_of(decisive)


def write_record(record: Mapping[str, Any], path: str | Path) -> None:
    """Writes a record as JSON, whole or not at all. Call it on one rank."""
    files.write_json(Path(path), record)


def machine(device: torch.device) -> dict[str, Any]:
    """Where it ran, and the precision of its float32 products."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "device_type": device.type,
        "ranks": world()[1],
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": cuda and (torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32),
        "autocast": torch.is_autocast_enabled(device.type),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that decide a value."""
    return files.versions(PACKAGES)
