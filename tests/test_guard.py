"""Gradients that are not finite: left out on all ranks alike, then the end of the run, with nothing bad on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import leaves, log, new_run, rows, small_run, work

from genlab.runs.checkpoint import load_checkpoint

SHORT = ("debug=null", "data.batch_size=8", "data.limit_val=8", "schedule.max_samples=64", "schedule.log_every=8",
         "schedule.eval_every=0", "schedule.save_every=8", "callbacks.samples.count=0", "callbacks.final.count=0",
         "resume=never")  # fmt: skip


def poisoned(family: str, folder: Path, batches: list[int], *overrides: str, ranks: int = 2) -> Any:
    """A run whose last rank has a loss that is not a number at some batches."""
    config = small_run(f"model={family}", folder, *SHORT, *overrides, f"trainer.devices={ranks}")
    config.callbacks.extra = [
        {"_target_": "ddp_parts.Poison", "rank": ranks - 1, "batches": batches},
        {"_target_": "ddp_parts.Dump", "folder": str(folder / "states")},
    ]
    return new_run(config)


@pytest.mark.parametrize("family", ["ddpm", "gan"])
@pytest.mark.faults(13)
def test_a_bad_step_is_left_out_on_all_ranks(family: str, tmp_path: Path) -> None:
    run = poisoned(family, tmp_path, [2, 3, 6])
    assert work(run, ranks=2, allow="ddp_parts") == 0, log(run)
    assert log(run).count("this step is left out") == 3
    first, second = (torch.load(tmp_path / "states" / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    found = [row for row in rows(run) if "train/lr" in row]
    players = 2 if family == "gan" else 1
    assert [row.get("train/skipped", 0) / players for row in found] == [0, 0, 1, 2, 2, 2, 3, 3]
    values = [value for row in found for value in row.values()]
    assert all(value == value for value in values), "what is left out of training is left out of the losses"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.faults(13)
def test_a_run_that_stays_bad_ends_with_the_batch_kept(ranks: int, tmp_path: Path) -> None:
    run = poisoned("ddpm", tmp_path, [3, 4, 5, 6], "callbacks.guard.skips=2", ranks=ranks)
    assert work(run, ranks=ranks, allow="ddp_parts") == 70, log(run)
    said = run.status()["message"]
    assert "the 3. step in a row" in said
    assert (f"of rank {ranks - 1}" in said) == (ranks > 1), said
    batch = torch.load(run.path / "not_finite" / f"{ranks - 1}.pt", weights_only=True)
    ids = [int(i) for i in batch[-1]["id"]]
    assert len(ids) == 8 // ranks
    assert f"(ids {', '.join(map(str, ids))}" in said
    state = load_checkpoint(run.last)
    assert state["samples"] == 40  # saved after a step that was left out, as it was before
    assert all(v.isfinite().all() for v in leaves(state).values() if isinstance(v, torch.Tensor))
    before = load_checkpoint(run.checkpoints / "previous.ckpt")
    assert all(torch.equal(value, before["state_dict"][name]) for name, value in state["state_dict"].items())


@pytest.mark.faults(13)
def test_a_learning_rate_that_is_too_large_ends_with_70(tmp_path: Path) -> None:
    run = new_run(small_run("model=ddpm", tmp_path, *SHORT, "optimizer.lr=1e30", "callbacks.guard.skips=2"))
    assert work(run) == 70, log(run)
    assert "lower optimizer.lr" in log(run).lower()
    assert all(v.isfinite().all() for v in leaves(load_checkpoint(run.last)).values() if isinstance(v, torch.Tensor))
