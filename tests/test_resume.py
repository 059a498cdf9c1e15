"""A killed run continues bit for bit: each family, kills at random moments, temporary files on another file system."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from runs import assert_same_state, log, new_run, rows, small_run, start, work

from genlab.callbacks.conductor import seed_all
from genlab.networks.attention import attend_by_products

FAMILIES = ["ddpm", "gan", "gpt"]  # one of each kind: the contract test runs every config
ELSEWHERE = "/dev/shm" if os.path.isdir("/dev/shm") else None
LONGER = ("schedule.max_samples=96", "schedule.save_every=12", "schedule.eval_every=40", "schedule.log_every=8",
          "callbacks.samples.count=0", "callbacks.final.count=0", "debug=null", "data.batch_size=4",
          "data.limit_val=8")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.faults(1)
def test_killed_runs_end_in_the_uninterrupted_state(family: str, tmp_path: Path) -> None:
    """Kills by progress and a random moment more, so that they fall into steps, validations and saves alike."""
    whole = new_run(small_run(f"model={family}", tmp_path, *LONGER))
    assert work(whole) == 0, log(whole)
    broken = new_run(small_run(f"model={family}", tmp_path, *LONGER, "resume=never"))
    rng = random.Random(family)
    for seen in [0, *sorted(rng.sample(range(8, 76), 2))]:
        process = start(broken, ELSEWHERE)
        while process.exitcode is None and max((r["samples"] for r in rows(broken)), default=0) < seen:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.1) if seen else rng.uniform(0.0, 0.5))
        assert process.exitcode is None, log(broken)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert work(broken) == 0, log(broken)
    assert_same_state(whole, broken)
    samples = [row["samples"] for row in rows(broken) if "train/lr" in row]
    assert samples == sorted(set(samples)), "a row stands twice"
    assert broken.status()["state"] == "finished"


@pytest.mark.faults(3)
def test_sigterm_saves_and_the_same_run_goes_on(tmp_path: Path) -> None:
    options = (*LONGER, "schedule.max_samples=120", "schedule.save_every=0")
    whole = new_run(small_run("model=gan", tmp_path, *options))
    assert work(whole) == 0, log(whole)
    run = new_run(small_run("model=gan", tmp_path, *options, "resume=never"))
    for number, code, state in ((signal.SIGTERM, 143, "preempted"), (signal.SIGINT, 130, "interrupted")):
        seen = run.status().get("samples", 0)
        process = start(run)
        deadline = time.monotonic() + 60
        while len(rows(run)) <= seen // 8 + 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid or 0, number)
        process.join(60)
        assert process.exitcode == code, log(run)
        assert run.status()["state"] == state
        assert f"saved at {run.status()['samples']:,} samples" in log(run)
        assert run.status()["samples"] > seen
    assert work(run) == 0, log(run)
    assert_same_state(whole, run)


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    """Longer from the start or extended after the end: the same weights under a constant learning rate."""
    options = (*LONGER, "schedule.decay=constant", "schedule.eval_every=0")
    long = new_run(small_run("model=gan", tmp_path, *options))
    assert work(long) == 0, log(long)
    run = new_run(small_run("model=gan", tmp_path, *options, "schedule.max_samples=60"))
    assert work(run) == 0, log(run)
    text = run.config.read_text().replace("max_samples: 60", "max_samples: 96")
    run.config.write_text(text)
    assert work(run) == 0, log(run)
    from genlab.runs.checkpoint import load_checkpoint

    a, b = load_checkpoint(long.last), load_checkpoint(run.last)
    assert a["samples"] == b["samples"] == 96
    assert all((a["state_dict"][k] == b["state_dict"][k]).all() for k in a["state_dict"])
    assert any("val/loss" in row and row["samples"] == 60 for row in rows(run)), "rows of the first end are kept"


def test_a_batch_is_seeded_as_by_manual_seed() -> None:
    seed_all(3, 128, 0)
    state, word = torch.get_rng_state(), np.random.SeedSequence([3, 128, 0]).generate_state(3, np.uint64)[0]
    torch.manual_seed(int(word) & (2**63 - 1))
    assert torch.equal(state, torch.get_rng_state())


def test_data_that_has_changed_is_refused(tmp_path: Path) -> None:
    run = new_run(small_run("model=gpt", tmp_path, *LONGER, "schedule.max_samples=40"))
    assert work(run) == 0, log(run)
    data = Path(OmegaConf.load(run.config).data.path)
    before = data.read_text()
    data.write_text(before[:100] + before[100:][::-1])  # the same characters, in another order
    run.config.write_text(run.config.read_text().replace("max_samples: 40", "max_samples: 80"))
    assert work(run) == 2, log(run)
    assert "its data has changed since (splits.test.sha256: " in log(run)
    assert run.status()["samples"] == 40
    data.write_text(before)
    assert work(run) == 0, log(run)
    assert run.status()["samples"] == 80


@pytest.mark.faults(1)
@pytest.mark.parametrize("choice", ["model=seq2seq", "model=gpt"])
def test_half_precision_on_a_cpu(choice: str, tmp_path: Path) -> None:
    """Losses are those of float32 to the second digit, and a run that was stopped ends as if nothing had been."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        whole = new_run(small_run(choice, tmp_path / precision, f"trainer.precision={precision}"))
        assert work(whole) == 0, log(whole)
        losses[precision] = [row["train/loss"] for row in rows(whole) if "train/loss" in row]
    assert losses["32-true"] == pytest.approx(losses["bf16-mixed"], rel=0.02)
    assert losses["32-true"] != losses["bf16-mixed"]
    config = small_run(choice, tmp_path / "bf16-mixed", "trainer.precision=bf16-mixed", "resume=never")
    config.callbacks.extra = [
        {"_target_": "fault_parts.Signal", "number": 15, "samples": 4, "folder": str(tmp_path)}
    ]  # fmt: skip
    broken = new_run(config)
    assert work(broken, allow="fault_parts") == 143, log(broken)
    assert work(broken, allow="fault_parts") == 0, log(broken)
    assert_same_state(whole, broken)


def test_networks_attend_by_products() -> None:
    """Those of transformers, wherever they lie in a model; each gives the numbers that it gave."""
    from transformers.models.gpt2 import GPT2Config, GPT2Model

    torch.manual_seed(0)
    network = GPT2Model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=9, attn_implementation="sdpa")).eval()
    ids = torch.arange(8)[None]
    before = network(ids)[0]
    attend_by_products(torch.nn.ModuleDict({"inner": torch.nn.Sequential(network), "other": torch.nn.Linear(1, 1)}))
    assert network.config._attn_implementation == "eager"
    assert torch.allclose(network(ids)[0], before, atol=1e-5)
