"""What a feature extractor is, and one around a network: in float32, the same bits whatever the caller's batch size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError

# By name, from (name, batch or None, device, path or None); filled by `genlab.evaluation.extractors`.
EXTRACTORS: dict[str, Callable[[str, int | None, Any, str | None], NetworkExtractor]] = {}


@runtime_checkable
class Extractor(Protocol):
    """What a metric needs of a network.

    Attributes:
        name: as in conf/evaluation; goes into the record.
        sha256: of the file of weights; goes into the record and into the key of cached references.
        resize: what it does itself to the size of an image, in words.
        labels: how many of its logits are the data set's own labels, in order; 0 if they are not.
        has_logits: whether "logits" is there at all (Inception Score needs it).
        batch: images in one call of the network.
    """

    name: str
    sha256: str
    resize: str
    labels: int
    has_logits: bool
    batch: int

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 [N, C, H, W] -> "features" float32 [N, D] and, if it has any, "logits" float32 [N, K]; on the CPU."""


@contextlib.contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no TF32, no choice of kernels by timing."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False), cudnn:
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class NetworkExtractor:
    """An Extractor around a module in eval mode.

    Args:
        name: see Extractor; likewise sha256, resize, labels, has_logits and batch.
        network: uint8 [batch, channels, H, W] -> (features [batch, D], logits [batch, K]).
        channels: 1 or 3. Grey images are repeated for 3; colour images are refused for 1.
        size: the only height and width it takes, or None for any.
        device: where it runs.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        sha256: str,
        *,
        channels: int,
        size: int | None,
        resize: str = "none",
        labels: int = 0,
        has_logits: bool = True,
        batch: int = 100,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.sha256, self.resize, self.labels, self.has_logits = name, sha256, resize, labels, has_logits
        self.channels, self.size, self.batch, self.device = channels, size, batch, torch.device(device)
        self.network = network.to(self.device).float().eval().requires_grad_(False)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """See Extractor.features.

        Raises:
            ConfigError: the images' size or number of channels is not what the network takes.
        """
        assert images.dtype == torch.uint8, f"expected uint8 [N, C, H, W], got {images.dtype}"
        assert images.ndim == 4, f"expected uint8 [N, C, H, W], got {tuple(images.shape)}"
        channels, height, width = images.shape[1:]
        takes, other = f"evaluation.extractor={self.name} takes", f"another extractor ({', '.join(sorted(EXTRACTORS))})"
        if channels not in (self.channels, 1):
            raise ConfigError(f"{takes} images of {self.channels} channel(s), these have {channels}: choose {other}")
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ConfigError(
                f"{takes} {self.size}x{self.size} images, these are {height}x{width}: "
                f"set evaluation.extractor.resize={self.size} or choose {other}"
            )
        return self.outputs(images.expand(-1, self.channels, -1, -1))

    def outputs(self, items: Tensor) -> dict[str, Tensor]:
        """What the network gives for items [N, ...] that it takes. Every call of it has `batch` rows; the last one is
        padded with zeros."""
        parts: list[tuple[Tensor, ...]] = []
        with exact_float32(self.device):
            for part in items.split(self.batch):
                full = torch.zeros(self.batch, *items.shape[1:], dtype=items.dtype)
                full[: len(part)] = part.cpu()
                parts.append(tuple(out[: len(part)].float().cpu() for out in self.network(full.to(self.device))))
        names = ("features", "logits") if self.has_logits else ("features",)
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(names)}
