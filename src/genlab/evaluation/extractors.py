"""Feature extractors by name."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation.classifier import SmallCNN
from genlab.evaluation.hub_extractors import KINDS, hub_extractor
from genlab.evaluation.inception import inception_v3
from genlab.evaluation.network_extractor import EXTRACTORS, Extractor, NetworkExtractor, exact_float32
from genlab.files import sha256_of

__all__ = ["EXTRACTORS", "WEIGHTS", "Extractor", "NetworkExtractor", "classifier", "exact_float32", "load_extractor"]

WEIGHTS = Path(__file__).parent / "weights"


def classifier(name: str, batch: int | None, device: torch.device | str, path: str | None = None) -> NetworkExtractor:
    """A SmallCNN that scripts/train_classifier.py trained: NAME.safetensors with NAME.json beside it.

    Raises:
        CheckpointError: the weights are not the ones that the JSON describes.
    """
    file = Path(path) if path else WEIGHTS / f"{name}.safetensors"
    try:
        card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        digest = sha256_of(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot read the weights or their .json ({error}): reinstall genlab") from error
    if digest != card["sha256"]:
        raise CheckpointError(
            f"{file}: sha256 is {digest[:12]}..., its .json says {card['sha256'][:12]}...: reinstall genlab or train "
            f"it again with scripts/train_classifier.py"
        )
    network = SmallCNN(**card["architecture"])
    network.load_state_dict(load_file(file))
    labels = card["architecture"]["classes"]
    return NetworkExtractor(
        name, network, digest, channels=1, size=SmallCNN.size, labels=labels, batch=batch or 100, device=device
    )


EXTRACTORS.update({
    "mnist-cnn": classifier,
    "fashion-cnn": classifier,
    "inception-v3-compat": inception_v3,
    "inception-v3-compat-fast": inception_v3,
    **dict.fromkeys(KINDS, hub_extractor),
})  # fmt: skip


def load_extractor(
    name: str, *, batch: int | None = None, device: torch.device | str = "cpu", path: str | None = None
) -> NetworkExtractor:
    """An extractor by name.

    Args:
        name: a key of EXTRACTORS.
        batch: images in one call of the network; None: the extractor's own choice.
        device: where the network runs.
        path: file of weights, instead of the shipped or cached one; for dinov2 and clip the model's folder.

    Raises:
        ConfigError: no such extractor, or its weights are not here.
        CheckpointError: the weights are damaged.
    """
    if name not in EXTRACTORS:
        raise ConfigError(
            f"evaluation.extractor={name}: no such extractor (there are: {', '.join(sorted(EXTRACTORS))})"
        )
    return EXTRACTORS[name](name, batch, device, path)
