"""Panels of what a latent means: reconstructions, interpolations, traversals, classes, maps of two dimensions.

Each is drawn where the model has the capability it needs: `reconstruct`, `encode`, or `decode` with `latent_shape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from genlab import noise
from genlab.conditions import Label
from genlab.drawing import guarded, save_attention, save_attention_over, save_map
from genlab.evaluation.likelihood import Reconstructs
from genlab.evaluation.reference import read_items, real_items
from genlab.modality import Image, Modality

STEPS = 10  # items of an interpolation or a traversal
REACH = 2.5  # how far a traversal goes to either side, in standard deviations of the prior
POINTS = 2000  # real items on a map
SIDE = 20  # images along each side of a map


@runtime_checkable
class Decodes(Protocol):
    """A capability of a model: items from latents whose prior is N(0, 1)."""

    latent_shape: tuple[int, ...]

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, *latent_shape] (and labels int64 [B], where it is conditional) -> items as the model's `to_data` takes
        them: images [B, C, H, W] in [-1, 1]; token ids."""


@runtime_checkable
class Encodes(Protocol):
    """A capability of a model: latents of given items."""

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, *latent_shape]: one latent an item, without noise."""


@runtime_checkable
class Attends(Protocol):
    """A capability of a model: where it looks in a source while it writes a target."""

    tokenizer: Any

    def attention(self, batch: Mapping[str, Tensor]) -> list[tuple[Tensor, list[int], Any]]:
        """Of each pair the weights, float [T, S], and the token ids of their rows and columns; where the source is a
        picture, weights [T, rows, columns] over it, and its pixels, uint8 [C, H, W]."""


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """From a to b along the sphere (Shoemake 1985; White 2016, arXiv 1609.04468): [D], [D], [N] -> [N, D].

    Normal latents lie near a sphere, whose chord a straight line would take. Nearly parallel ones go straight.
    """
    angle = torch.acos((a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1))
    t = share[:, None]
    if angle.sin() < 1e-4:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


class Panels:
    """The panels of one model on one data set: of images pictures, of texts pages.

    Args:
        model: on its device, holding the weights that are to be looked at; nothing here draws from a global generator.
        data: a DataModule that has been set up, or None: then nothing real is shown.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self.model, self.data, self.device = model, data, torch.device(model.device)
        self.modality: Modality = getattr(model, "modality", Image())
        self.to_data = getattr(model, "to_data", self.modality.to_data)

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes all that the model is capable of; file by name."""
        drawn: dict[str, Path] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for name in ("reconstructions", "interpolation", "traversal", "classes", "map", "attention"):
                    with guarded(folder / name):
                        if (path := getattr(self, name)(folder / name)) is not None:
                            drawn[name] = path
        finally:
            self.model.train(was_training)
        return drawn

    def batch(self, count: int) -> dict[str, Tensor]:
        """The same validation items each time."""
        source, ids = real_items(self.data, "val", count)
        return read_items(self.data, source, ids, self.device)

    # ---- the panels: paths without suffix -> files; None: there is none

    def reconstructions(self, stem: Path, count: int = 16) -> Path | None:
        """What the model was shown and what came back: of images eight a row, of texts a row each."""
        if self.data is None or not isinstance(self.model, Reconstructs):
            return None
        with torch.no_grad():
            both = [self.to_data(raw) for raw in self.model.reconstruct(self.batch(count))]
        abreast = min(self.modality.abreast, len(both[0]))
        parts = [self.modality.cut(d, slice(i, i + abreast)) for i in range(0, len(both[0]), abreast) for d in both]
        meta = {"rows": "shown, reconstructed, ..."}
        return self.modality.panel(stem, self.modality.join(parts), max(2, abreast), meta)

    def interpolation(self, stem: Path, rows: int = 10) -> Path | None:
        """From one real item's latent to another's where there is an encoder, else from one draw to another."""
        if not isinstance(self.model, Decodes):
            return None
        ends, label, _ = self._latents(2 * rows)
        rows = len(ends) // 2  # of few items fewer
        if not rows:
            return None
        share = torch.linspace(0, 1, STEPS, device=ends.device)
        pairs = zip(ends[:rows], ends[rows : 2 * rows], strict=True)
        paths = [slerp(a.flatten(), b.flatten(), share).view(STEPS, *a.shape) for a, b in pairs]
        items = self._items(torch.cat(paths), self._label(label, rows, STEPS))
        return self.modality.panel(stem, items, STEPS, {"rows": "interpolations on the sphere"})

    def traversal(self, stem: Path, rows: int = 10) -> Path | None:
        """One dimension of z at a time from -2.5 to 2.5, the others those of one real item (or draw); a row each.

        The dimensions whose encodings vary most over the data come first.
        """
        if not isinstance(self.model, Decodes) or len(self.model.latent_shape) != 1:
            return None
        latents, label, encoded = self._latents(500)
        order = latents.var(0, correction=0).argsort(descending=True) if encoded else torch.arange(latents.shape[1])
        dimensions, start = order[:rows].cpu(), latents[0]
        z = start.repeat(len(dimensions), STEPS, 1)
        for row, dimension in enumerate(dimensions.tolist()):
            z[row, :, dimension] = torch.linspace(-REACH, REACH, STEPS)
        labels = self._label(label, 1, len(dimensions) * STEPS)
        meta = {"rows": "one dimension of z each", "dimensions": dimensions.tolist()}
        return self.modality.panel(stem, self._items(z.flatten(0, 1), labels), STEPS, meta)

    def classes(self, stem: Path, rows: int = 8) -> Path | None:
        """A column a class, a row a latent."""
        if not isinstance(self.model, Decodes) or not (classes := self._classes()):
            return None
        count = min(classes, 20)
        z = self._draw(rows).repeat_interleave(count, 0)
        labels = torch.arange(count, device=z.device).repeat(rows)
        return self.modality.panel(
            stem, self._items(z, labels), count, {"rows": "one latent each", "columns": "classes"}
        )

    def map(self, stem: Path) -> Path | None:
        """Of a latent of two dimensions: images at the quantiles of the prior (arXiv 1312.6114, figure 4), and where
        real images lie, coloured by their labels."""
        if not isinstance(self.model, Decodes) or tuple(self.model.latent_shape) != (2,):
            return None
        ticks = torch.special.ndtri((torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE).float()
        z = torch.stack(torch.meshgrid(-ticks, ticks, indexing="ij")[::-1], -1).flatten(0, 1).to(self.device)
        images = self._items(z, self._label(None, len(z)))
        if not isinstance(images, Tensor):
            return self.modality.panel(stem, images, SIDE, {"rows": "quantiles of the prior"})
        points, labels, encoded = self._latents(POINTS)
        path = stem.with_name(f"{stem.name}.png")
        save_map(path, images, SIDE, points.cpu() if encoded else None, None if labels is None else labels.cpu())
        return path

    def attention(self, stem: Path, pairs: int = 3) -> Path | None:
        """From the words of real targets to those of their sources, or to places of their pictures."""
        if self.data is None or not isinstance(self.model, Attends):
            return None
        tokenizer = self.model.tokenizer

        def words(ids: list[int]) -> list[str]:
            return [tokenizer.decode([i], skip_special_tokens=False) for i in ids]

        path, maps = stem.with_name(f"{stem.name}.png"), self.model.attention(self.batch(pairs))
        if isinstance(maps[0][2], Tensor):
            save_attention_over(path, [(weights, words(rows), picture) for weights, rows, picture in maps])
        else:
            save_attention(path, [(weights, words(rows), words(columns)) for weights, rows, columns in maps])
        return path

    # ----

    def _draw(self, count: int) -> Tensor:
        seeds = torch.arange(count, device=self.device)
        return noise.normal(seeds, noise.Stream.INITIAL, self.model.latent_shape)

    def _latents(self, count: int) -> tuple[Tensor, Tensor | None, bool]:
        """Latents of real items with their labels, where there is an encoder, else draws; whether they are real."""
        if self.data is None or not isinstance(self.model, Encodes):
            return self._draw(count), None, False
        batch = self.batch(count)
        return self.model.encode(batch), batch.get("label"), True

    def _label(self, label: Tensor | None, count: int, times: int = 1) -> Tensor | None:
        """Labels for a conditional model, each `times` times: the first of `label`, else i modulo the classes."""
        if not (classes := self._classes()):
            return None
        label = torch.arange(count, device=self.device) % classes if label is None else label[:count]
        return label.repeat_interleave(times)

    def _classes(self) -> int:
        """How many classes the model is told; 0: it is told none."""
        return next((known.classes for known in self.model.conditions if isinstance(known, Label)), 0)

    def _items(self, z: Tensor, labels: Tensor | None) -> Any:
        """What the model makes of latents, as its modality has it."""
        parts = zip(z.split(100), labels.split(100) if labels is not None else [None] * len(z.split(100)), strict=True)
        items = [self.to_data(self.model.decode(part, label)) for part, label in parts]
        return self.modality.join([item.cpu() if isinstance(item, Tensor) else item for item in items])
