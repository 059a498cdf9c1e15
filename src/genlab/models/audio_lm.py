"""Language models of sound: next-code prediction over codes of a frozen audio codec (AudioGen, arXiv 2209.15352)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.conditions import Label
from genlab.data.computed import computed_rows
from genlab.data.manifest import digest
from genlab.errors import ConfigError
from genlab.modality import Audio, Modality
from genlab.models.audio_codec import AudioCodec, check_rate
from genlab.models.base import GenerativeModel, Rows
from genlab.networks.frozen import Frozen


class AudioLM(GenerativeModel):
    """p(codes | label), code by code: the levels of a frame after each other, then the next frame (the "flattening
    pattern" of MusicGen, Copet et al. 2023, arXiv 2306.05284, section 2.2, which is exact).

    The sequence is the label, then frames x levels codes; each level has tokens of its own, and only those of the level
    whose turn it is are predicted. Codes of a data set are computed once and kept in the cache.

    Args:
        network: a causal network of transformers over `tokens`, with room for `context`.
        codec: a frozen part, a run of model=audio_codec.
        samples: T of the sounds.
        levels: of the codec, the coarsest ones; fewer are a lower bit rate and a shorter sequence.
        tokens: asserted; levels times the codes of a codebook, and the classes.
        context: asserted; 1 + levels times frames.
        num_classes: labels, which the sounds are told by.
        chunk_size: sounds sampled at a time (see GenerativeModel).

    Raises:
        ConfigError: the part is no codec, has fewer levels, does not take such sounds; tokens or context do not fit.
    """

    reads = ("audio", "label")
    modality: Modality = Audio(8000)  # of the codec's rate
    tokenizer: Any = None
    sampled_by: ClassVar[str | None] = "tokens"

    def __init__(
        self,
        network: nn.Module,
        codec: Frozen,
        samples: Annotated[int, "gt 0"],
        levels: Annotated[int, "gt 0"],
        tokens: Annotated[int, "gt 0"],
        context: Annotated[int, "gt 0"],
        num_classes: Annotated[int, "gt 0"],
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        part = codec.on("cpu")
        if not isinstance(part, AudioCodec):
            raise ConfigError(
                f"model.codec: {codec.source} is a {type(part).__name__}; expected a run of model=audio_codec"
            )
        if levels > part.levels:
            raise ConfigError(f"model.levels={levels}: {codec.source} has {part.levels} levels; take at most so many")
        if samples % part.hop:
            raise ConfigError(f"data.samples={samples} is no multiple of the codec's {part.hop}; round it up to one")
        self.network, self.codec, self.levels, self.size = network, codec, levels, part.bottleneck.size
        self.frames, self.modality, self.conditions = samples // part.hop, part.modality, (Label(num_classes),)
        self.longest, self.context, self.chunk_size = levels * self.frames, context, chunk_size
        for key, value, needed in (
            ("context", context, self.longest + 1),
            ("tokens", tokens, levels * self.size + num_classes),
        ):
            if value != needed:
                raise ConfigError(
                    f"model.{key}={value}: {codec.source} and data.samples={samples} need {needed}; set it"
                )
        level = torch.arange(self.longest).remainder(levels) * self.size
        first = torch.tensor([levels * self.size])  # tokens of labels come last
        self.register_buffer("offsets", torch.cat([first, level]), persistent=False)

    offsets: Tensor

    def bitrate(self) -> float:
        """Bits a second of the codes."""
        return self.codec.on("cpu").bitrate(self.levels)

    # ---- before training

    def check_items(self, data: Any) -> None:
        super().check_items(data)
        check_rate(data, self.codec.on("cpu").sample_rate, f"model.codec, {self.codec.source},")

    def prepare(self, data: Any, device: torch.device) -> None:
        key = digest([self.codec.sha256, data.seed])  # longer clips are cut by the seed
        for split in ("train", "val"):
            data.attach(split, "codes", computed_rows(data, split, "codes", key, self._codes, device)["codes"])

    def _codes(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All levels, int64 [B, levels, frames]."""
        return {"codes": self.codec.on(batch["audio"].device).to_codes(batch["audio"])}

    # ---- training

    def rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Label and codes in their order, int64 [B, 1 + frames levels]."""
        codes = batch["codes"] if "codes" in batch else self._codes(batch)["codes"]
        flat = codes[:, : self.levels].transpose(1, 2).flatten(1)
        return torch.cat([batch["label"][:, None], flat], 1)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats a code."""
        rows = self.rows(batch)
        logits = self.network(input_ids=(rows + self.offsets)[:, :-1], use_cache=False).logits
        return {"loss": F.cross_entropy(self._own(logits, 0).flatten(0, 1).float(), rows[:, 1:].flatten())}

    def _own(self, logits: Tensor, start: int) -> Tensor:
        """Of logits [B, n, tokens] those of the level that each of n places predicts, [B, n, size].

        Args:
            start: place of the first of them in the sequence.
        """
        places = self.offsets[start + 1 : start + 1 + logits.shape[1], None]
        index = places + torch.arange(self.size, device=logits.device)
        return logits.gather(2, index.expand(len(logits), -1, -1))

    # ---- sampling: see genlab.decoding.reading.Reader

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        start = 0 if state is None else state.get_seq_length()
        places = self.offsets[start : start + tokens.shape[1]]
        output = self.network(input_ids=tokens + places, cache=state, use_cache=True)
        last = start + tokens.shape[1] - 1
        return self._own(output.logits[:, -1:], last)[:, 0], output.cache

    def select(self, state: Any, rows: Tensor) -> Any:
        state.reorder_cache(rows)  # in place
        return state

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Any) -> Tensor:
        """Sounds [B, C, T] in about [-1, 1]; a sampler that is told to write fewer codes leaves the rest silent.

        Raises:
            ConfigError: the sampler writes less than a frame.
        """
        label = (condition or {})["label"]
        codes = sampler.decode(self, label[:, None], seeds).tokens[:, 1:]
        frames = codes.shape[1] // self.levels
        if not frames:
            raise ConfigError(f"sampler.max_new_tokens={codes.shape[1]}: a frame is {self.levels} codes; give as many")
        codes = codes[:, : frames * self.levels].unflatten(1, (frames, self.levels)).transpose(1, 2)
        codec = self.codec.on(seeds.device)
        return F.pad(codec.from_codes(codes), (0, (self.frames - frames) * codec.hop))
