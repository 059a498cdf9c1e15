"""Diffusion and flow matching on log-mels, told a label and a speaker, or a caption; a vocoder makes sounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from genlab.conditions import Condition, Label, Speaker
from genlab.data.computed import CHUNK
from genlab.data.order import subset
from genlab.diffusion.guidance import Told
from genlab.diffusion.parameterisation import Prediction, Weighting
from genlab.diffusion.processes import Process
from genlab.diffusion.samplers import Sampler
from genlab.errors import ConfigError
from genlab.modality import Audio, Modality
from genlab.models.base import Rows
from genlab.models.captioned_diffusion import CaptionedDiffusion
from genlab.networks.mel import LogMel
from genlab.networks.text_encoder import TextEncoder
from genlab.networks.vocoder import Vocoder

MEASURED = 10_000  # clips of train, at most, that mean and deviation are measured of


class MelDiffusion(CaptionedDiffusion):
    """A diffusion model of log-mels, each a picture [channels, bands, frames], brought to mean 0 and deviation 1 over
    the training set; what it ends with is made a sound by a vocoder, which is not trained (as Grad-TTS, Popov et al.
    2021, arXiv 2105.06337, section 3, from text; DDPM's or flow matching's loss).

    Label and speaker have an embedding each; the network is told their sum (`class_labels`, beside its time), with a
    row for each that is not said. They are dropped together. With a text encoder it is told captions in their place.

    Args:
        network: diffusers' UNet2DModel with class_embed_type=identity, or in a Patch; with captions
            UNet2DConditionModel.
        process: VP or Flow.
        mel: what log-mels are made by; of the rate of the data.
        vocoder: of the same rate, hop and bands.
        samples: T, of every sound.
        channels: of the sounds; each has its own log-mel.
        num_classes: number of labels; 0 or None: it is told none.
        num_speakers: likewise.
        text: TextEncoder; or null.
        prediction: see DiffusionModel, as the rest.
        condition_drop: share of training items that the network is told nothing of, which guidance needs.

    Attributes:
        mel_mean, mel_std: float32 [], part of the state. One number each: bands above what a recording holds are
            nearly constant, and would become noise if each were brought to deviation 1.
        mel_top: float32 [bands, 1], the loudest of each band in train, likewise: to it `sampler.clip` clips.

    Raises:
        ConfigError: a combination without meaning.
    """

    modality: Modality = Audio(22050)  # of the rate of `mel`
    mel_mean: Tensor
    mel_std: Tensor
    mel_top: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        mel: LogMel,
        vocoder: Vocoder,
        samples: Annotated[int, "gt 0"],
        channels: Annotated[int, "ge 1, le 2"] = 1,
        num_classes: int | None = None,
        num_speakers: int | None = None,
        text: TextEncoder | None = None,
        prediction: Prediction = "velocity",
        weighting: Weighting = "own",
        condition_drop: Annotated[float, "ge 0, lt 1"] = 0.1,
        channels_last: bool = False,
        chunk_size: int = 16,
    ) -> None:
        _check_frames(network, mel, samples)
        shape = (channels, mel.bands, samples // mel.hop)
        super().__init__(
            network, process, shape, text, prediction, weighting, num_classes, condition_drop, channels_last, chunk_size
        )
        _check_vocoder(vocoder, mel)
        if text is not None and num_speakers:
            raise ConfigError("model.text and model.num_speakers: with captions a speaker is not told; set it to null")
        speakers = (Speaker(num_speakers, num_classes or 1),) if num_speakers else ()
        self.conditions = (*self.conditions, *speakers)
        self.classes = tuple(known for known in self.conditions if isinstance(known, Label))
        self.reads = ("audio", *(known.name for known in self.conditions if known.drawn))
        self.modality = Audio(mel.sample_rate)
        self.mel, self.vocoder, self.samples = mel, vocoder, samples
        if text is None:
            self.width = _time_width(network)
            self.embeddings = nn.ModuleList(nn.Embedding(known.classes + 1, self.width) for known in self.classes)
        self.register_buffer("mel_mean", torch.tensor(0.0))
        self.register_buffer("mel_std", torch.tensor(1.0))
        self.register_buffer("mel_top", torch.full((mel.bands, 1), math.inf))

    @staticmethod
    def edits(shape: Any) -> tuple[Condition, ...]:
        """None: a sound begins from noise."""
        return ()

    # ---- log-mels

    def log_mel(self, audio: Tensor) -> Tensor:
        """Sounds float32 [B, C, T] in [-1, 1] -> [B, C, bands, frames], of about mean 0 and deviation 1."""
        with torch.autocast(audio.device.type, enabled=False):  # half precision is heard in silence
            return (self.mel(audio.float()) - self.mel_mean) / self.mel_std

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """From silence to the loudest of each band in train."""
        ends = torch.full_like(self.mel_top, math.log(self.mel.floor)), self.mel_top
        return tuple((end - self.mel_mean) / self.mel_std for end in ends)  # type: ignore[return-value]

    def sound(self, x_0: Tensor, seeds: Tensor) -> Tensor:
        """The way back: sounds float32 [B, C, T] in [-1, 1]; seeds int64 [B], for a vocoder that draws something."""
        log_mel = (x_0.float() * self.mel_std + self.mel_mean).clamp(min=math.log(self.mel.floor))
        each = seeds.repeat_interleave(x_0.shape[1])
        with torch.autocast(x_0.device.type, enabled=False):
            return self.vocoder(log_mel.flatten(0, 1), each).view(*x_0.shape[:2], self.samples)

    def clean(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.log_mel(batch["audio"])

    def prepare(self, data: Any, device: torch.device) -> None:
        """Measures the scale of log-mels over train, unless the weights that training begins with have them."""
        if data.sample_rate != self.mel.sample_rate:
            rates = self.mel.sample_rate, data.sample_rate
            raise ConfigError("model.mel.sample_rate={}: data.sample_rate is {}; set model.mel so".format(*rates))
        if self.mel_std == 1:
            source = data.source("train")
            sums = torch.zeros(3, dtype=torch.float64, device=device)
            top = torch.full((self.mel.bands,), -math.inf, dtype=torch.float64, device=device)
            for ids in torch.from_numpy(subset(len(source), MEASURED)).split(CHUNK):
                rows = self.mel(source.batch(ids, torch.zeros_like(ids))["audio"].to(device)).double()
                sums += torch.stack([rows.sum(), rows.square().sum(), rows.new_tensor(rows.numel())])
                top = torch.maximum(top, rows.amax((0, 1, 3)))
            mean, square = sums[:2] / sums[2]
            self.mel_mean.copy_(mean)
            self.mel_std.copy_((square - mean**2).sqrt())
            self.mel_top.copy_(top[:, None])
        for split in ("train", "val"):
            for name, values in self.computed_texts(data, split, device).items():
                data.attach(split, name, values)

    # ---- what the network is told

    def told(self, rows: Mapping[str, Tensor], count: int) -> tuple[Told, Told]:
        """Of labels and speakers int64 [B, 1 or 2], with the number of classes for what is not said."""
        if self.text is not None or not self.classes:
            return super().told(rows, count)
        null = torch.tensor([known.classes for known in self.classes], device=self.device).expand(count, -1)
        if not any(known.name in rows for known in self.classes):
            return null, null
        columns = [rows.get(known.name, null[:, i]) for i, known in enumerate(self.classes)]
        return torch.stack(columns, 1), null

    def forward(self, x_t: Tensor, t: Tensor, told: Told = None) -> Tensor:
        if self.text is None:
            vectors = x_t.new_zeros(len(x_t), self.width)
            for i, embedding in enumerate(self.embeddings):
                vectors = vectors + embedding(told[:, i])
            told = vectors
        return super().forward(x_t, t, told)

    # ---- sampling

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Sampler) -> Tensor:
        """Sounds [B, C, T] in [-1, 1]."""
        if sampler.strength < 1:
            raise ConfigError(f"sampler.strength={sampler.strength:g}: a sound begins from noise alone; take 1")
        return self.sound(super().generate(seeds, condition, sampler), seeds)


def _time_width(network: nn.Module) -> int:
    """Numbers of the vector that the network makes of its time, to which labels are added."""
    embedding = next((part for part in network.modules() if isinstance(part, TimestepEmbedding)), None)
    kind = getattr(network, "config", {}).get("class_embed_type")
    if embedding is None or kind != "identity":
        raise ConfigError(
            f"model.network: its class_embed_type is {kind}; a model of sounds takes diffusers' UNet2DModel with "
            "class_embed_type=identity"
        )
    return embedding.linear_2.out_features


def _check_frames(network: nn.Module, mel: LogMel, samples: int) -> None:
    """Refuses sounds whose log-mels do not halve as often as the network halves them."""
    levels = len(getattr(network, "config", {}).get("block_out_channels", [0]))
    unit = getattr(network, "patch", 1) * 2 ** (levels - 1)
    if mel.bands % unit:
        raise ConfigError(f"model.mel.bands={mel.bands}: the network needs a multiple of {unit}; take fewer levels")
    if samples % (mel.hop * unit):
        near = max(1, round(samples / (mel.hop * unit))) * mel.hop * unit
        raise ConfigError(
            f"data.samples={samples}: the network needs frames of {mel.hop} samples in multiples of {unit}; set "
            f"data.samples={near}"
        )


def _check_vocoder(vocoder: Vocoder, mel: LogMel) -> None:
    own, wanted = ((part.sample_rate, part.hop, part.bands) for part in (vocoder, mel))
    if own != wanted:
        named = [f"{rate} Hz, hop {hop}, {bands} bands" for rate, hop, bands in (own, wanted)]
        raise ConfigError(
            f"model.vocoder: {vocoder.name} takes log-mels of {named[0]}, model.mel makes {named[1]}; set data "
            "and model.mel so, or take model/vocoder=griffin_lim"
        )
