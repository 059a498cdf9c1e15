"""A judge of pictures by what they are to show: an encoder of images and texts that was trained elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from genlab.data.manifest import digest
from genlab.data.vocabulary import encode
from genlab.decoding.reading import padded
from genlab.errors import ConfigError
from genlab.evaluation.extractors import exact_float32, load_extractor
from genlab.evaluation.likelihood import PairFeatures
from genlab.files import folder_or_cached, read_json
from genlab.folders import load_folder
from genlab.judges import CaptionJudge
from genlab.modality import to_float
from genlab.networks.frozen import weights_sha256
from genlab.networks.text_encoder import TextEncoder
from genlab.samples import Samples

CLIP_PREFIX = "A photo depicts "  # Hessel et al. 2021, section 3


class Encoder(NamedTuple):
    """Two functions into one space, float [B, E], and the hash of what they are."""

    images: Callable[[Tensor], Tensor]  # uint8 [B, C, H, W]
    texts: Callable[[Sequence[str]], Tensor]
    sha256: str


class DualJudge(CaptionJudge):
    """Cosine of a picture and its caption by a run of a DualEncoder; or CLIPScore, 2.5 max(cosine, 0), by a folder of
    transformers' CLIP (Hessel et al. 2021, arXiv 2104.08718, section 3). Nothing is fetched.

    Where it is to judge a model, neither may have been trained with the other.

    Args:
        path: a run (path, name or "last") or an export; or a folder with config.json, model.safetensors and
            tokenizer.json of a CLIPModel.
        weights: of a run.
        prefix: before each caption; None: "A photo depicts " of CLIP, as in the paper, and nothing of a run.
        batch: pictures or captions in one call.
        device: "auto", "cpu" or "cuda".

    Attributes:
        kind: "dual" or "clip".
    """

    def __init__(
        self,
        path: str | None = None,
        weights: Literal["ema", "raw"] = "ema",
        prefix: str | None = None,
        batch: Annotated[int, "gt 0"] = 100,
        device: str = "auto",
    ) -> None:
        self.path, self.weights, self.batch, self.wanted = path, weights, batch, device
        facts = None if path is None else read_json(folder_or_cached(path) / "config.json")
        self.kind = "clip" if isinstance(facts, dict) and facts.get("model_type") == "clip" else "dual"
        self.prefix = prefix if prefix is not None else CLIP_PREFIX if self.kind == "clip" else ""

    @property
    def name(self) -> str:
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"{self.kind} encoder, sha256 {self.encoder.sha256}{prefix}"

    @cached_property
    def device(self) -> torch.device:
        """Where it works."""
        from genlab.cli.build import choose_device  # which may build a judge

        return choose_device(self.wanted)

    @cached_property
    def encoder(self) -> Encoder:
        """Loaded when it is first asked for.

        Raises:
            ConfigError: nothing there, or no encoder of images and texts.
        """
        if self.path is None:
            raise ConfigError(
                "a judge of pictures and captions needs its encoder: set judge.path to a run of a dual encoder (python "
                "train.py experiment=dual_emoji), or to a folder of CLIP"
            )
        return self._clip(self.path) if self.kind == "clip" else self._run(self.path)

    def _run(self, path: str) -> Encoder:
        from genlab.cli.load import load_run
        from genlab.runs.directory import find_run

        try:
            find_run(path, Path(os.environ.get("GENLAB_RUNS", "runs")))
        except ConfigError as error:
            raise ConfigError(
                f"{str(error).rstrip('.')}; set judge.path to a run of a dual encoder (python train.py "
                "experiment=dual_emoji), or to a folder of CLIP"
            ) from None
        loaded = load_run(path, self.weights, device=str(self.device))
        if not isinstance(loaded.model, PairFeatures):
            raise ConfigError(
                f"judge.path={path}: {type(loaded.model).__name__} has no vectors of images and texts; name a run of a "
                "dual encoder (python train.py experiment=dual_emoji), or a folder of CLIP"
            )
        model: Any = loaded.model
        shape = OmegaConf.select(loaded.config, "data.shape")

        def images(part: Tensor) -> Tensor:
            if list(part.shape[1:]) != list(shape):
                raise ConfigError(
                    f"judge.path={path} reads images {list(shape)}, these are {list(part.shape[1:])}: take a judge "
                    "that was trained on such images"
                )
            return model.image_features(to_float(part).to(self.device))

        def texts(part: Sequence[str]) -> Tensor:
            return model.text_features(self._ids(part, model.tokenizer))

        return Encoder(images, texts, digest([weights_sha256(model.state_dict()), model.frozen()]))

    def _clip(self, path: str) -> Encoder:
        from transformers import CLIPTextModelWithProjection

        from genlab.cli.pretrained import read_tokenizer

        folder = folder_or_cached(path)
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError(f"judge.path={path}: no tokenizer.json there; save CLIP's fast tokenizer in the folder")
        tokenizer = read_tokenizer(folder / "tokenizer.json")
        extractor = load_extractor("clip", batch=self.batch, device=self.device, path=str(folder))
        network: Any = load_folder(folder, CLIPTextModelWithProjection, f"judge.path={path}").to(self.device)
        width, longest = network.config.hidden_size, network.config.max_position_embeddings
        encoder = TextEncoder(network.text_model, width, "end", normalise=False, longest=longest)

        def texts(part: Sequence[str]) -> Tensor:
            return network.text_projection(encoder(self._ids(part, tokenizer), tokenizer).pooled)

        return Encoder(lambda part: extractor.features(part)["features"], texts, extractor.sha256)

    def _ids(self, texts: Sequence[str], tokenizer: Any) -> Tensor:
        return padded([encode(tokenizer, self.prefix + text, False) for text in texts]).to(self.device)

    def image_features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, E] of length 1, on the CPU.

        Raises:
            ConfigError: images of another size or number of channels than the encoder reads.
        """
        return self._vectors(self.encoder.images, images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """N texts -> float32 [N, E] of length 1, on the CPU."""
        return self._vectors(self.encoder.texts, texts)

    def _vectors(self, vectors: Callable[[Any], Tensor], items: Any) -> Tensor:
        with exact_float32(self.device):
            parts = [vectors(items[at : at + self.batch]) for at in range(0, len(items), self.batch)]
            return F.normalize(torch.cat(parts).float(), dim=1).cpu()

    def scores(self, images: Tensor, texts: Tensor) -> Tensor:
        """Of vectors of N pictures and of their captions, float [N]."""
        cosine = (images * texts).sum(1)
        return 2.5 * cosine.clamp(min=0) if self.kind == "clip" else cosine

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor:
        """See Judge; what was asked for is the condition "caption".

        Raises:
            ConfigError: there is none.
        """
        captions = condition.get("caption")
        if captions is None or not all(isinstance(caption, str) for caption in captions):
            raise ConfigError(f"{self.path} judges pictures by their captions: these have none")
        return self.scores(self.image_features(samples.data), self.text_features(captions))
