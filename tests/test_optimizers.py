"""Optimizers of the shipped configs: fused, with the same steps as without; what cannot be fused; scaled gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from genlab.cli.targets import instantiate
from genlab.models.schedule import Schedule
from genlab.models.trained import Plan, TrainedModel

SHIPPED = sorted((Path(__file__).parent.parent / "conf" / "optimizer").glob("*.yaml"))


class Cubic(TrainedModel):
    """Parameters of one and two dimensions, of one dtype."""

    def __init__(self, optimizer: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(3, 5, dtype=dtype))
        self.b = nn.Parameter(torch.randn(5, dtype=dtype))
        self.plan = Plan(optimizer, Schedule(max_samples=8), batch_size=8)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.a @ self.b).abs().pow(3).sum()}


def stepped(model: Cubic, scaler: torch.amp.GradScaler | None = None) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """The optimizer and the parameters after five clipped steps, as Lightning takes them with a scaler."""
    optimizer = model.optimizer_of(model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.losses({})["loss"]
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler and not getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return optimizer, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_optimizers_are_fused_and_step_as_others(path: Path) -> None:
    make = instantiate(OmegaConf.load(path), torch.optim.Optimizer)
    optimizer, fused = stepped(Cubic(make))
    assert all(group["fused"] for group in optimizer.param_groups)
    plain, expected = stepped(Cubic(partial(make, fused=None)))
    assert not any(group["fused"] for group in plain.param_groups)
    torch.testing.assert_close(fused, expected)
    _, scaled = stepped(Cubic(make), torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert all(torch.equal(a, b) for a, b in zip(fused, scaled, strict=True))


def test_complex_parameters_are_stepped_without_fusing() -> None:
    make = partial(torch.optim.Adam, lr=0.1, fused=True)
    optimizer, found = stepped(Cubic(make, torch.complex64))
    assert not any(group["fused"] for group in optimizer.param_groups)
    _, expected = stepped(Cubic(partial(torch.optim.Adam, lr=0.1), torch.complex64))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_run_from_before_goes_on_unfused() -> None:
    """Its configuration has no `fused`; and its optimizer's state says so itself."""
    before, _ = stepped(Cubic(partial(torch.optim.AdamW, lr=0.1)))
    state = before.state_dict()
    for make in (partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.AdamW, lr=0.1, fused=True)):
        model = Cubic(make)
        optimizer = model.optimizer_of(model.parameters())
        optimizer.load_state_dict(state)
        assert not any(group["fused"] for group in optimizer.param_groups)
