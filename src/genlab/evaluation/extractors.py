"""Feature extractors by name: small classifiers of our own, Inception; DINOv2, CLIP and CLAP of Hugging Face folders.

Nothing is ever downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.evaluation.clap import clap
from genlab.evaluation.inception import inception_v3
from genlab.evaluation.network_extractor import EXTRACTORS, Extractor, NetworkExtractor, exact_float32
from genlab.evaluation.small_cnn import WEIGHTS, SmallCNN, shipped
from genlab.evaluation.sounds import sound_classifier
from genlab.files import sha256_of
from genlab.folders import load_folder

__all__ = ["EXTRACTORS", "WEIGHTS", "Extractor", "NetworkExtractor", "SmallCNN", "exact_float32", "load_extractor"]

HUB_WEIGHTS = "model.safetensors"
DINOV2_SIZE = 224  # of Stein et al. 2023, whatever size the model was made for: DINOv2 interpolates its positions
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, deviation of pixels in [0, 1]
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def classifier(name: str, batch: int | None, device: torch.device | str, path: str | None = None) -> NetworkExtractor:
    """A SmallCNN that scripts/train_classifier.py trained: NAME.safetensors with NAME.json beside it.

    Raises:
        CheckpointError: the weights are not the ones that the JSON describes.
    """
    card, file = shipped(name, path)
    network = SmallCNN(**card["architecture"])
    network.load_state_dict(load_file(file))
    labels = card["architecture"]["classes"]
    return NetworkExtractor(
        name, network, card["sha256"], channels=1, size=SmallCNN.size, labels=labels, batch=batch or 100, device=device
    )


class _Vision(nn.Module):
    """uint8 [B, 3, H, W] -> (features float32 [B, D],): resize, normalise, network.

    Args:
        network: a model of transformers that takes pixel_values.
        output: which of its outputs, [B, D].
        size: height and width that it gets.
        crop: resize the shorter side and cut the middle out (CLIP), instead of both sides (DINOv2).
        moments: mean and deviation of each channel of pixels in [0, 1].
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, output: str, size: int, crop: bool, moments: tuple[tuple[float, ...], ...]
    ) -> None:
        super().__init__()
        self.network, self.output, self.size, self.crop = network, output, size, crop
        for name, values in zip(("mean", "deviation"), moments, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, 3, size, size], what the network gets.

        Resized as uint8, which torch does on the CPU only: nearest to Pillow, which the models' authors use.
        """
        height, width = images.shape[2:]
        target = (self.size, self.size)
        if self.crop:
            short = min(height, width)
            target = (self.size * height // short, self.size * width // short)
        x = images
        if target != (height, width):
            x = F.interpolate(images.cpu(), target, mode="bicubic", antialias=True, align_corners=False)
        top, left = (target[0] - self.size) // 2, (target[1] - self.size) // 2
        x = x[:, :, top : top + self.size, left : left + self.size].to(images.device)
        return (x.float() / 255 - self.mean) / self.deviation

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (getattr(self.network(pixel_values=self.pixels(images)), self.output),)


# Class of transformers, its model_type, which output is the features; size, crop and moments of _Vision.
KINDS: dict[str, tuple[str, tuple[str, ...], str, int | None, bool, Any]] = {
    "dinov2": ("Dinov2Model", ("dinov2",), "pooler_output", DINOV2_SIZE, False, IMAGENET),
    "clip": ("CLIPVisionModelWithProjection", ("clip", "clip_vision_model"), "image_embeds", None, True, CLIP),
}


def hub_extractor(name: str, batch: int | None, device: torch.device | str, path: str | None) -> NetworkExtractor:
    """ "dinov2": DINOv2's class token after the last layer norm, as in FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675;
    theirs is dinov2-large). Images of any size are resized to 224x224, bicubic and antialiased, and normalised as
    ImageNet's.

    "clip": CLIP's projected image embedding, not normalised (Radford et al. 2021, arXiv 2103.00020). The shorter side
    is resized to the model's size, bicubic and antialiased, and the middle cut out.

    Args:
        path: folder with config.json and model.safetensors of a Dinov2Model, a CLIPModel or its vision part.

    Raises:
        ConfigError: no folder is given, or it is not such a model.
    """
    import transformers

    kind, types, output, size, crop, moments = KINDS[name]
    if not path:
        raise ConfigError(
            f"evaluation.extractor={name}: set evaluation.extractor.path to the folder of a Hugging Face {kind} "
            f"(config.json and {HUB_WEIGHTS}); nothing is downloaded"
        )
    where = f"evaluation.extractor={name} evaluation.extractor.path={path}"
    network: Any = load_folder(Path(path), getattr(transformers, kind), where, types)
    size = size or int(network.config.image_size)
    resize = f"shorter side to {size}" if crop else f"to {size}x{size}"
    resize += f", bicubic, antialiased{', centre cut out' if crop else ''} (inside the extractor)"
    return NetworkExtractor(
        name, _Vision(network, output, size, crop, moments), sha256_of(Path(path) / HUB_WEIGHTS),
        channels=3, size=None, resize=resize, has_logits=False, batch=batch or 50, device=device,
    )  # fmt: skip


EXTRACTORS.update({
    "mnist-cnn": classifier,
    "fashion-cnn": classifier,
    "spoken-digits-cnn": sound_classifier,
    "spoken-speakers-cnn": sound_classifier,
    "drum-hits-cnn": sound_classifier,
    "clap": clap,
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
        path: file of weights, instead of the shipped or cached one; for dinov2, clip and clap the model's folder.

    Raises:
        ConfigError: no such extractor, or its weights are not here.
        CheckpointError: the weights are damaged.
    """
    if name not in EXTRACTORS:
        known = ", ".join(sorted(EXTRACTORS))
        raise ConfigError(f"evaluation.extractor={name}: no such extractor (there are: {known})")
    return EXTRACTORS[name](name, batch, device, path)
