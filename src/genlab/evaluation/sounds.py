"""The judges of spoken digits, their speakers and drum hits: classifiers of log-mels, and what hands them sounds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.evaluation.network_extractor import NetworkExtractor
from genlab.evaluation.small_cnn import Block, shipped
from genlab.networks.mel import LogMel


class SoundCNN(nn.Module):
    """Classifier of sounds whose penultimate layer serves as a feature space for metrics.

    Of recordings of 8 kHz it sees bands up to 4,000 Hz, so that what a vocoder adds above changes nothing; nothing
    below a magnitude of 1e-4 in any. Its last convolution spans all bands: pitch matters, time does not.

    Args:
        channels: widths at 64, 32 and 16 bands.
        features: width of the penultimate layer (the last convolution after its ReLU, averaged over time).
        classes: number of logits.
        dropout: on the features, in training only.
        high: in Hz, where its mel bands end.
    """

    sample_rate = 22050

    def __init__(
        self,
        channels: tuple[int, int, int] = (16, 32, 64),
        features: int = 128,
        classes: int = 10,
        dropout: float = 0.1,
        high: float = 4000.0,
    ) -> None:
        super().__init__()
        a, b, c = channels
        self.mel = LogMel(self.sample_rate, bands=64, low=50.0, high=high, floor=1e-4)
        self.blocks = nn.Sequential(
            Block(1, a), nn.MaxPool2d(2), Block(a, b), Block(b, b), nn.MaxPool2d(2), Block(b, c), Block(c, c),
            nn.MaxPool2d(2),
        )  # fmt: skip
        self.last = nn.Conv2d(c, features, (8, 1))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, classes)

    def forward(self, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, 1, T] in [-1, 1], T at least 2,048 -> features [B, features], logits [B, classes], float32."""
        return self.judge(self.mel(sounds))

    def judge(self, log_mels: Tensor) -> tuple[Tensor, Tensor]:
        """The same of `mel`'s log-mels, [B, 1, 64, frames]."""
        x = F.relu(self.last(self.blocks((log_mels + 5) / 2.5))).mean((2, 3))
        return x, self.head(self.dropout(x))


class SoundExtractor(NetworkExtractor):
    """An Extractor of sounds around a module in eval mode; its features have the same form as those of images.

    Attributes:
        sample_rate: of the sounds that it takes, in Hz.
    """

    shortest = 2048  # samples

    def __init__(
        self, name: str, network: nn.Module, sha256: str, labels: int, batch: int, device: torch.device | str
    ) -> None:
        super().__init__(name, network, sha256, channels=1, size=None, labels=labels, batch=batch, device=device)
        self.sample_rate = int(network.sample_rate)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Sounds, float32 [N, C, T] in [-1, 1] of `sample_rate` (of several channels the mean) -> "features" float32
        [N, D] and "logits" float32 [N, K], on the CPU.

        Raises:
            ConfigError: these are no sounds, or they are too short.
        """
        takes = f"evaluation.extractor={self.name} takes sounds, float32 [N, C, T] of {self.sample_rate} Hz"
        if images.ndim != 3 or images.dtype != torch.float32:
            form = f"{images.dtype} {list(images.shape)}".removeprefix("torch.")
            raise ConfigError(f"{takes}, these are {form}: choose another extractor")
        if images.shape[2] < self.shortest:
            raise ConfigError(f"{takes}, with T at least {self.shortest}; these have {images.shape[2]}: pad them")
        return self.outputs(images.mean(1, keepdim=True))


def sound_classifier(name: str, batch: int | None, device: torch.device | str, path: str | None) -> SoundExtractor:
    """A SoundCNN that scripts/train_sound_classifier.py trained: NAME.safetensors with NAME.json beside it.

    Raises:
        CheckpointError: the weights are not the ones that the JSON describes.
    """
    card, file = shipped(name, path)
    network = SoundCNN(**card["architecture"])
    network.load_state_dict(load_file(file))
    return SoundExtractor(name, network, card["sha256"], card["architecture"]["classes"], batch or 50, device)
