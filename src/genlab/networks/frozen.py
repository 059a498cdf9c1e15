"""Frozen parts: networks that are used and not trained (a text encoder, a first stage, a reference, a reward)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import ConfigError, DataError
from genlab.files import cache_root, sha256_of


def cached_weights(name: str, file: str, sha256: str) -> dict[str, Tensor]:
    """Weights that `python scripts/fetch_data.py NAME` has put into the cache, by name, on the CPU.

    Raises:
        ConfigError: they are not there.
        DataError: the file is not the one with this sha256.
    """
    path, command = cache_root() / name / file, f"`python scripts/fetch_data.py {name}`"
    if not path.is_file():
        raise ConfigError(f"{name}: no weights at {path}: run {command}")
    if (actual := sha256_of(path)) != sha256:
        raise DataError(f"{path}: sha256 {actual[:12]}..., expected {sha256[:12]}...: delete it and run {command}")
    return load_file(path)


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Hex digest of tensors by name: their names, dtypes, shapes and bytes, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Frozen:
    """A network beside a model's own: no part of its parameters, so neither optimizer, EMA nor state_dict see it.

    As an argument of a model it comes from `genlab.parts.FrozenPart`. A run records its sha256 with the checkpoint,
    and goes on only with the same.

    Args:
        network: in eval mode from now on, without gradients of its weights; gradients flow to its inputs.
        source: where the weights are from, for messages and records.

    Attributes:
        sha256: of the weights.
    """

    def __init__(self, network: nn.Module, source: str) -> None:
        self._network, self.source = network.eval().requires_grad_(False), source
        self.sha256 = weights_sha256(network.state_dict())
        self._device: torch.device | None = None

    @property
    def name(self) -> str:
        """In records: where the weights are from, and which they are."""
        return f"{Path(self.source).name}, sha256 {self.sha256}"

    @torch.compiler.disable
    def on(self, device: torch.device | str) -> Any:
        """The network on a device, where it stays."""
        if self._device != (wanted := torch.device(device)):  # a comparison a step, not a walk through the network
            self._network.to(wanted)
            self._device = wanted
        return self._network


def frozen_parts(model: nn.Module, prefix: str = "model") -> dict[str, Any]:
    """Frozen parts of a model and of the modules in it, by the names of the attributes that hold them: what has a
    `sha256` and a `source`, such as Frozen and LPIPS."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        held = {"": module, **vars(module)}
        for name, value in held.items():
            if hasattr(value, "sha256") and hasattr(value, "source"):
                found[".".join(filter(None, (prefix, path, name)))] = value
    return found
