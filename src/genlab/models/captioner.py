"""Captions: p(caption | picture), by an encoder-decoder whose source is a picture.

Vinyals et al. 2015 (arXiv 1411.4555); attention to places of the picture: Xu et al. 2015 (arXiv 1502.03044).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.data.computed import SEEN, computed_rows
from genlab.data.windows import IGNORED
from genlab.decoding.reading import ENDED, lengths_of
from genlab.errors import ConfigError
from genlab.modality import to_uint8
from genlab.models.seq2seq import Seq2Seq
from genlab.networks.image_states import GridStates
from genlab.picture_conditions import Picture


class Captioner(Seq2Seq):
    """An image encoder, to whose states the decoder of an encoder-decoder of the transformers library attends.

    A batch has "image", float32 [B, C, H, W] in [-1, 1], and "caption", int64 [B, L], token ids with -1 after the end
    of a row, which may be empty; the token that ends a caption is the network's, not the data's.

    What a frozen network sees in pictures that are not changed (GridStates) is computed once, before training.

    Args:
        encoder: images -> states [B, S, D], D of the network; the last are row by row those of `encoder.grid`, rows and
            columns.
        network: see Seq2Seq; its own encoder is not used, and may have no layers.
        shape: C, H, W of the pictures.
        context: most tokens of a caption, its end included.
        label_smoothing: see Seq2Seq, as word_dropout.
        augment: (images, int64 keys [B]) -> images, in training, such as genlab.data.augment.Augment; None: none.
        chunk_size: captions made at a time (see GenerativeModel).

    Raises:
        ConfigError: the end of a caption is a token that captions are made of, or one is beyond the context.
    """

    reads = ("image", "caption")
    needs = "an image: condition.image=FILE, or conditions=FILE, the path of an image a line"

    def __init__(
        self,
        encoder: nn.Module,
        network: Any,
        shape: Sequence[int],
        context: Annotated[int, "gt 1"],
        label_smoothing: Annotated[float, "ge 0, lt 1"] = 0.0,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
        chunk_size: int = 32,
        word_dropout: Annotated[float, "ge 0, lt 1"] = 0.0,
    ) -> None:
        super().__init__(network, context, label_smoothing, chunk_size=chunk_size, word_dropout=word_dropout)
        channels, height, width = shape
        self.encoder, self.augment, self.conditions = encoder, augment, (Picture((channels, height, width)),)

    def check_items(self, data: Any) -> None:
        super().check_items(data)
        special = data.tokenizer.get_added_tokens_decoder()
        if self.end not in special:
            raise ConfigError(
                f"model.network.config.eos_token_id={self.end} is {data.tokenizer.id_to_token(self.end)!r}, of which "
                f"captions may be made; name one of {', '.join(f'{i} ({t.content})' for i, t in special.items())}"
            )

    def prepare(self, data: Any, device: torch.device) -> None:
        """Measures what a frozen network sees in the pictures, and attaches it where they are not changed."""
        if not isinstance(self.encoder, GridStates):
            return
        seen, once = self.encoder.seen, self.augment is None and not getattr(data, "random_flip", False)
        for split in ("train", "val") if once else ("train",) if not seen.fitted else ():
            rows = computed_rows(data, split, "pictures", seen.key, self._seen, device)[SEEN]
            if not seen.fitted:
                seen.fit(rows)
            if once:
                data.attach(split, SEEN, rows)

    def _seen(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoder: Any = self.encoder
        return {SEEN: encoder.seen.features(batch["image"]).half()}

    # ---- what it reads

    def encode_source(self, rows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See Seq2Seq; all states of a picture count."""
        image, shape = rows["image"], self.conditions[0].shape  # type: ignore[attr-defined]
        if tuple(image.shape[1:]) != shape:
            raise ConfigError(f"pictures are {list(image.shape[1:])}, model.shape is {list(shape)}: take other data")
        states = self.encoder.states(rows[SEEN]) if SEEN in rows else self.encoder(image)  # type: ignore[operator]
        return states, torch.ones(states.shape[:2], dtype=torch.int64, device=states.device)

    def limits(self, rows: Mapping[str, Tensor]) -> Tensor:
        return torch.full((len(rows["image"]),), self.context or 0, device=rows["image"].device)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        states, mask = self.encode_source(batch)
        return {"encoder_outputs": (states,), "attention_mask": mask, "decoder_input_ids": self.before(batch)}

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The captions with what ends them, as wide as the longest of the batch."""
        ends = lengths_of(batch["caption"])[:, None]
        longest = int(ends.max()) + 1
        if self.context is not None and longest > self.context:
            raise ConfigError(f"a caption of {longest} tokens, its end included: raise model.context={self.context}")
        labels = F.pad(batch["caption"], (0, 1), value=ENDED).scatter(1, ends, self.end)[:, :longest]
        return labels.masked_fill(labels == ENDED, IGNORED)

    # ---- training

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats a caption: a mean over captions, so that micro-batches of unequal lengths add up to their batch."""
        image = batch["image"]
        if self.training and self.augment is not None:
            image = self.augment(image, self.keys(batch))
        weight = image.new_full((len(image),), 1 / len(image))
        return super().losses({**batch, "image": image, "weight": weight})

    def attention(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, list[int], Any]]:
        """See genlab.evaluation.latents.Attends: weights [T, rows, columns] over the picture, uint8 [C, H, W]."""
        labels, pictures = self.labels(batch), to_uint8(batch["image"])
        rows, columns = self.encoder.grid  # type: ignore[misc]  # the last states are those of places
        weights = self.cross_attention(batch)[:, :, -rows * columns :].unflatten(2, (rows, columns))
        lengths = (labels != IGNORED).sum(1).tolist()
        return [(weights[i, :t], labels[i, :t].tolist(), pictures[i]) for i, t in enumerate(lengths)]
