"""A modality, a condition, a data set and two models that GenLab does not know: used by test_seams."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genlab import noise
from genlab.conditions import Condition, Draw
from genlab.data.manifest import Manifest
from genlab.data.module import DataModule, Split
from genlab.data.sources import Batch, Source
from genlab.errors import ConfigError
from genlab.evaluation.metrics.base import Metric
from genlab.modality import Media, Meta, Modality
from genlab.models.base import GenerativeModel
from genlab.models.trained import TrainedModel
from genlab.networks.frozen import Frozen

POINTS = 16


@dataclass(frozen=True)
class Curve(Modality):
    """float32 [N, POINTS]. A file is JSON."""

    name = "curve"

    def check(self, data: Any) -> None:
        if tuple(data.shape[1:]) != (POINTS,):
            raise ValueError(f"curve: expected [N, {POINTS}], got {list(data.shape)}")

    def to_data(self, raw: Tensor) -> Tensor:
        return raw.float()

    def save(self, stem: Path, item: Tensor, meta: Meta) -> Path:
        path = stem.with_name(stem.name + ".json")
        path.write_text(json.dumps({"curve": item.tolist(), "meta": dict(meta)}))
        return path

    def read(self, path: Path) -> Tensor:
        return torch.tensor(json.loads(path.read_text())["curve"])

    def show(self, stem: Path, data: Tensor, columns: int, meta: Meta, captions: Sequence[str] = ()) -> Path:
        path = stem.with_name(stem.name + ".csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"{c};{row.tolist()}" for c, row in zip(captions, data, strict=True)))
        return path

    def log(self, media: Media, data: Any, shown: Path, samples: int, columns: Mapping[str, Sequence[Any]]) -> None:
        table = {**columns, "mean": data.mean(1).tolist()}
        media.table("curves", list(table), [list(row) for row in zip(*table.values(), strict=True)], samples)


@dataclass(frozen=True)
class Turn(Condition):
    """A share of a whole turn, float32 in [0, 1)."""

    name = "turn"

    def rows(self, values: Sequence[Any], model: Any) -> Tensor:
        try:
            rows = torch.tensor([float(value) for value in values])
        except (TypeError, ValueError):
            raise ConfigError(f"condition.turn={values[0]}: expected a number from 0 to 1.") from None
        if not ((rows >= 0) & (rows < 1)).all():
            raise ConfigError(f"condition.turn={float(rows[0])}: expected a number from 0 to 1.")
        return rows

    def default(self, seeds: Tensor, model: Any) -> Tensor:
        return seeds.remainder(4) / 4

    def draw(self, n: int, data: Any, protocol: Any, model: Any) -> Draw:
        ids = torch.arange(n) % len(data.source(protocol.reference_split))
        return Draw(data.source(protocol.reference_split).batch(ids, ids)["turn"], {"turns": "of the split, in order"})


def wave(turn: Tensor) -> Tensor:
    """[B] -> [B, POINTS]: a cosine that begins at so much of a turn."""
    return torch.cos(2 * math.pi * (torch.arange(POINTS) / POINTS + turn[:, None]))


class Waves(Source):
    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, ids: Tensor, epochs: Tensor) -> Batch:
        turn = self.ids[ids] * 0.618 % 1
        return {"curve": wave(turn), "turn": turn}

    def select(self, ids: np.ndarray) -> Source:
        return Waves(self.ids[torch.from_numpy(ids)])


class Curves(DataModule):
    modality = "curve"

    def load(self) -> tuple[dict[Split, Source], Manifest]:
        sizes: dict[Split, range] = {"train": range(256), "val": range(256, 320), "test": range(320, 384)}
        sources: dict[Split, Source] = {split: Waves(torch.tensor(ids)) for split, ids in sizes.items()}
        splits = {split: {"n": len(ids), "sha256": split} for split, ids in sizes.items()}
        return sources, Manifest(self.name, self.modality, {"points": POINTS}, splits)


class CurveModel(GenerativeModel):
    """A wave is linear in the sine and cosine of its turn: least squares, and noise of a hundredth on what is made."""

    modality = Curve()
    conditions = (Turn(),)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, POINTS)

    def mean(self, turn: Tensor) -> Tensor:
        return self.linear(torch.stack([torch.cos(2 * math.pi * turn), torch.sin(2 * math.pi * turn)], 1))

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.mean(batch["turn"]) - batch["curve"]).square().mean()}

    def generate(self, seeds: Tensor, condition: dict[str, Tensor] | None, sampler: Any) -> Tensor:
        assert condition is not None
        return self.mean(condition["turn"]) + 0.01 * noise.normal(seeds, noise.Stream.INITIAL, (POINTS,))


class Checked(CurveModel):
    """A CurveModel that also has to convince a frozen regressor of the turn that it was asked for."""

    def __init__(self, regressor: Frozen) -> None:
        super().__init__()
        self.regressor = regressor

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        angle = 2 * math.pi * batch["turn"]
        read = self.regressor.on(batch["turn"].device)(self.mean(batch["turn"]))
        agreed = (read - torch.stack([torch.cos(angle), torch.sin(angle)], 1)).square().mean()
        return {"loss": super().losses(batch)["loss"] + 0.1 * agreed, "agreed": agreed}


class WaveError(Metric):
    """Mean distance of curves from the waves that they were asked to be.

    Args:
        start: first point that counts.
    """

    modality = "curve"
    outputs = ("wave_error",)
    split_in_name = False

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.keep(start=start)

    def compute(self) -> dict[str, float]:
        asked = wave(self.judged.condition["turn"])[:, self.start :]
        return {"wave_error": float((self.judged.data[:, self.start :] - asked).abs().mean())}


class TurnRegressor(TrainedModel):
    """Reads the turn off a wave, as its sine and cosine: trained, but it generates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(POINTS, 2)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        angle = 2 * math.pi * batch["turn"]
        target = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
        return {"loss": (self.linear(batch["curve"]) - target).square().mean()}
