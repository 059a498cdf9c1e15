"""Pictures beside a record: samples and the real items that are nearest to them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from genlab.drawing import save_pairs
from genlab.evaluation.reference import at_rate
from genlab.modality import Audio, Modality


def save_closest(
    path: Path,
    samples: tuple[Tensor, Modality],
    real: tuple[Tensor, Modality],
    rows: Tensor,
    ids: Tensor,
    distances: Tensor,
) -> None:
    """Writes pairs, nearest first: of images a PNG; of sounds the spectrograms as PNG and, to be heard, STEM.html.

    Args:
        path: of the PNG.
        samples: N items and what they are.
        real: as many, each the nearest to its sample.
        rows: int64 [N], which samples these are.
        ids: int64 [N], which items of their split the real ones are.
        distances: float64 [N].
    """
    (data, modality), (beside, other) = samples, real
    if not isinstance(modality, Audio) or not isinstance(other, Audio):
        if data.shape == beside.shape:  # files of another size or number of channels have values, but no picture
            save_pairs(path, data, beside, distances)
        return
    sides = [x.mean(1, keepdim=True) for x in (data, at_rate(beside, other.sample_rate, modality.sample_rate))]
    longest = max(x.shape[2] for x in sides)
    pairs = torch.stack([pad(x, (0, longest - x.shape[2])) for x in sides], 1).flatten(0, 1)
    told = zip(rows.tolist(), ids.tolist(), distances.tolist(), strict=True)
    captions = chain.from_iterable((f"sample {row}", f"real {i}, at {far:.3g}") for row, i, far in told)
    modality.show(path.with_suffix(""), pairs, 4, {}, list(captions))
