"""Rewards of pictures: which steps have a gradient, what is learned, how far it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab.diffusion.processes import VP
from genlab.diffusion.samplers import DDIM, DPMSolverPP
from genlab.feedback import DDPO, DRaFT
from genlab.judges import DifferentiableJudge
from genlab.models.diffusion import DiffusionModel
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan
from genlab.samples import Samples


class Bright(DifferentiableJudge):
    """Mean of the pixels."""

    def score(self, images: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        return images.flatten(1).mean(1)

    def judge(self, samples: Samples, condition: Mapping[str, Sequence[Any]]) -> Tensor:
        assert set(condition) == {"label"}
        return samples.data.float().flatten(1).mean(1)


class Shift(nn.Module):
    """Expects the picture that it sees, half as strong, and what it has learned for a label."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Embedding(4, 16)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.value(labels).view(-1, 1, 4, 4) + 0.5 * x


def painter() -> DiffusionModel:
    model = DiffusionModel(Shift(), VP(100, "cosine"), (1, 4, 4), prediction="x0", num_classes=3)
    model.plan = Plan(lambda groups: torch.optim.AdamW(groups, lr=1e-3), Schedule(100), 4, seed=5)
    return model.train()


def shown() -> dict[str, Tensor]:
    places = torch.arange(4)
    return {"image": torch.zeros(4, 1, 4, 4), "label": places % 3, "position": places, "id": places}


def learn(ours: Any, steps: int, rate: float) -> list[float]:
    model = painter()
    ours.attach(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    seen = []
    for step in range(steps):
        losses = ours.losses(model, shown() | {"position": torch.arange(4) + 4 * step})
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(float(model.network.value.weight[:3].detach().mean()))  # how bright the pictures have become
    return seen


@pytest.mark.parametrize("last", [1, 3])
def test_draft_takes_the_gradient_of_the_last_steps_only(last: int) -> None:
    model, ours = painter(), DRaFT(Bright(), DPMSolverPP(steps=4, guidance_scale=1.0), last=last)
    ours.attach(model)
    kept: list[bool] = []
    forward = model.network.forward

    def watched(*arguments: Any) -> Tensor:
        out = forward(*arguments)
        kept.append(out.requires_grad)
        return out

    model.network.forward = watched  # type: ignore[method-assign]
    ours.losses(model, shown())["loss"].backward()
    assert kept == [False] * (4 - last) + [True] * last
    assert model.network.value.weight.grad is not None


@pytest.mark.parametrize("make", [
    lambda distance: DRaFT(Bright(), DPMSolverPP(steps=4, guidance_scale=1.0), distance=distance),
    lambda distance: DDPO(Bright(), DDIM(steps=4, eta=1.0), group=8, distance=distance),
    lambda distance: DDPO(Bright(), DDIM(steps=4, eta=1.0), group=8, trained_steps=2, distance=distance),
])  # fmt: skip
def test_rewards_of_pictures_teach_and_the_distance_holds(make: Any) -> None:
    free, held = learn(make(0.0), 20, 0.05), learn(make(100.0), 20, 0.05)
    assert free[-1] > 0.08, free
    assert held[-1] < 0.6 * free[-1], (held, free)
