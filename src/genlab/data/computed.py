"""What frozen parts make of the items of a data set: computed once, and kept in the cache under all that decides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from genlab.data.manifest import digest
from genlab.data.vocabulary import vocabulary_digest
from genlab.files import cache_root, made_once

SEEN = "features"  # what a frozen network sees in images, in a batch and in a file of them
CHUNK = 64  # items that are read at a time: the same on any machine
Rows = dict[str, Tensor]


def text_key(encoder: Any, tokenizer: Any) -> str:
    """Hash of all that decides the states of a text by a frozen TextEncoder."""
    return digest([encoder.network.sha256, vocabulary_digest(tokenizer), *encoder.settings])


def computed_rows(
    data: Any, split: str, what: str, key: str, rows_of: Callable[[Rows], Rows], device: torch.device
) -> Rows:
    """Rows of all items of a split, on the CPU, from the cache or into it.

    Args:
        data: a DataModule that has been set up.
        what: name of what is computed.
        key: hash of what computes it.
        rows_of: a batch as a model is given it, never augmented -> tensors of as many rows.
        device: where the batches are.
    """

    def make(folder: Path) -> None:
        source, parts = data.source(split), []
        for ids in tqdm(torch.arange(len(source)).split(CHUNK), f"{what} of {split}", leave=False):
            raw = {"id": ids, "position": ids, **source.batch(ids, torch.zeros_like(ids))}
            with torch.no_grad():
                rows = rows_of(data.finish({name: value.to(device) for name, value in raw.items()}, "test"))
            parts.append({name: value.cpu() for name, value in rows.items()})
        whole = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        safetensors.torch.save_file(whole, folder / "rows.safetensors")

    identity = digest([what, key, data.manifest.identity(split)])
    folder = made_once(cache_root() / "computed" / f"{what}-{identity[:24]}", make)
    return safetensors.torch.load_file(folder / "rows.safetensors")
