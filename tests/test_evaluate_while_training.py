"""The proxy while training: averaged weights, a row and a record, a share of the time; a failure costs a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from runs import log, new_run, rows, small_run, work

from genlab.callbacks.ema import EMA
from genlab.callbacks.evaluate import EvaluateWhileTraining
from genlab.runs.directory import RunDirectory

OPTIONS = ("evaluation=debug", "evaluation.reference_split=train", "evaluation.reference_n=20",
           "callbacks.evaluate_every=1", "callbacks.evaluate_n=8")  # fmt: skip


def test_a_proxy_at_every_validation(tmp_path: Path) -> None:
    run = new_run(small_run("model=ddpm", tmp_path, *OPTIONS, "evaluation.extractor=mnist-cnn"))
    assert work(run) == 0, log(run)
    name = "fid_8_train20.proxy"
    row, last = [row for row in rows(run) if f"val/{name}" in row]
    assert (row["samples"], last["samples"]) == (8, 16), "at the end, too: the final evaluation has more samples"
    record = json.loads((run.path / "evaluation" / f"{name}-000000008.json").read_text())
    assert record["model"]["weights"] == "ema"
    assert record["model"]["samples_seen"] == 8
    assert record["values"][name] == row[f"val/{name}"]
    assert "floor" not in record
    assert "evaluation while training took" in log(run)
    assert (run.path / "evaluation" / "fid_32_train20.proxy.json").exists(), "the run's own protocol, at the end"


@pytest.mark.faults(29)
def test_a_failing_evaluation_costs_a_warning(tmp_path: Path) -> None:
    path = "evaluation.extractor.path=/nowhere"
    run = new_run(small_run("model=ddpm", tmp_path, *OPTIONS, "evaluation.extractor.name=inception-v3-compat", path))
    assert work(run) == 0, log(run)
    assert "evaluation fid_8_train20.proxy failed, its value is missing" in log(run)
    assert "not evaluated" in log(run)
    assert run.status()["state"] == "finished"
    assert not any("fid" in key for row in rows(run) for key in row)


def test_the_order_is_asserted(tmp_path: Path) -> None:
    callback: Any = EvaluateWhileTraining(None, None, RunDirectory(tmp_path))  # type: ignore[arg-type]
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, callbacks=[EMA(), callback], accelerator="cpu")
    with pytest.raises(AssertionError, match="EMA stands before"):
        callback.on_train_start(trainer, None)
