"""The commands as a user gives them, one of each kind in a process of its own, started cold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from PIL import Image
from runs import ROOT, make_images

from genlab.runs.directory import RunDirectory


class Shell:
    """Runs the entry points on a small data set, in a folder with a space and Chinese characters in its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "数 据"
        self.folder.mkdir()
        data = make_images(self.folder / "images.npz", [1, 28, 28])
        self.train = [
            *("train.py", "model=gan", "trainer=debug", "data=npz", f"data.path={data}", "data.shape=[1,28,28]"),
            *("data.num_classes=10", "data.num_workers=0", "evaluation=none"),
        ]

    def __call__(self, *arguments: str, code: int = 0, cold: bool = False) -> str:
        """stdout and stderr of `python ARGUMENTS`, which must end with `code`; with `cold`, of a new Python."""
        if cold:
            environment = {**os.environ, "GENLAB_RUNS": str(self.folder / "runs")}
            line = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
            done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=240)
            ended, output = done.returncode, done.stdout + done.stderr
        else:
            here = command(*arguments, folder=self.folder)
            ended, output = here.code, here.output
        assert ended == code, output
        if code:
            assert "Traceback" not in output
            lines = [line for line in output.splitlines() if line.startswith("genlab: error")]
            assert len(lines) == 1, output
        return output

    def runs(self) -> list[RunDirectory]:
        return sorted(
            (RunDirectory(p.parent) for p in self.folder.glob("runs/*/*/status.json")), key=lambda r: str(r.path)
        )

    def copy(self) -> RunDirectory:
        """The first run once more, for a test that changes it."""
        first = self.runs()[0].path
        return RunDirectory(shutil.copytree(first, first.with_name(f"{first.name}-{len(self.runs())}")))

    def trained(self) -> list[RunDirectory]:
        return [run for run in self.runs() if run.last.exists()]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """With one finished run, logged to W&B offline."""
    made = Shell(tmp_path_factory.mktemp("cli"))
    made(*made.train, cold=True)
    return made


def test_a_run_leaves_its_record_and_an_offline_wandb_run(shell: Shell) -> None:
    (run,) = [r for r in shell.runs() if "gan-npz" in r.path.name][:1]
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["command"][1:] == shell.train[1:]  # as it was typed
    assert list(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert not (shell.folder / "outputs").exists(), "Hydra left a folder of its own"


def test_sampling_writes_a_grid_and_single_files_that_name_their_origin(shell: Shell) -> None:
    run = shell.runs()[0]
    output = shell("sample.py", f"run={run.path.name}", "n=5", "seed=7", "condition.label=3", cold=True)
    folder = run.path / "samples" / "seed-7-label-3"
    assert str(folder) in output
    assert sorted(p.name for p in folder.iterdir()) == [*(f"{i:06d}.png" for i in range(7, 12)), "grid.png"]
    image = Image.open(folder / "000009.png")
    assert image.size == (28, 28)
    assert image.info["seed"] == "9"
    assert image.info["label"] == "3"
    assert image.info["run"] == run.path.name
    error = shell("sample.py", f"run={run.path.name}", "condition.label=12", code=2)
    assert "0 to 9" in error


def test_one_item_is_made_alone_where_the_chunk_is_one(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from genlab.models.gan import GAN

    run, rows, generate = shell.runs()[0], [], GAN.generate

    def counted(self: GAN, seeds: torch.Tensor, *rest: Any) -> Any:
        rows.append(len(seeds))
        return generate(self, seeds, *rest)

    monkeypatch.setattr(GAN, "generate", counted)
    shell("sample.py", f"run={run.path.name}", "n=1", "chunk_size=1", "out=one")
    assert rows == [1]
    assert Image.open(shell.folder / "one" / "000000.png").info["chunk_size"] == "1"
    protocol = ("evaluation=debug", "evaluation.extractor=mnist-cnn", "evaluation.reference_split=train")
    output = shell("evaluate.py", f"run={run.path.name}", "chunk_size=3", *protocol)
    assert set(rows[1:]) == {3}
    record = next(run.path.glob("evaluation/*-chunk3-*.json"))
    assert record.name in output
    assert json.loads(record.read_text())["generated"]["chunk_size"] == 3
    record.unlink()  # the next tests look for their own
    assert "chunk_size" in shell("sample.py", f"run={run.path.name}", "chunk_size=0", code=2)


def test_a_finished_run_is_extended_but_not_changed(shell: Shell) -> None:
    run = shell.copy()
    error = shell("train.py", f"resume={run.path.name}", code=2, cold=True)
    assert "finished at 16 samples" in error
    error = shell("train.py", f"resume={run.path.name}", "model.n_critic=2", "schedule.max_samples=32", code=2)
    assert "model.n_critic" in error
    output = shell("train.py", f"resume={run.path.name}", "schedule.max_samples=32", "logger=csv")
    assert "continues" in output
    assert run.status()["samples"] == 32
    assert list(run.path.glob("csv/*/metrics.csv")), "another option of a group that may change"


def test_weights_of_another_run(shell: Shell) -> None:
    run = shell.runs()[0]
    shell(*shell.train, f"init_from={run.path.name}", "weights=raw", "optimizer.lr=1e-30", "seed=1", "logger=none")
    from genlab.runs.checkpoint import load_checkpoint

    started = load_checkpoint(shell.trained()[-1].last)["state_dict"]
    source = load_checkpoint(run.last)["state_dict"]
    learned = [k for k in source if "running_" not in k and "num_batches" not in k]  # batch statistics move
    assert learned
    assert all(torch.allclose(started[k], source[k], rtol=0, atol=1e-20) for k in learned)


def test_bad_input_is_answered_in_one_line(shell: Shell, tmp_path: Path) -> None:
    cases = [
        ((*shell.train, "data.batch_sise=4"), 2, "batch_size"),
        ((*shell.train, "debug.data.batch_size=1000"), 2, "1000"),
        (("sample.py", "run=nowhere"), 2, "nowhere"),
        (("train.py", "model=gann"), 2, "gan"),
        ((*shell.train, "runs_dir=/proc/none"), 2, "runs_dir"),
    ]
    for arguments, code, word in cases:
        assert word in shell(*arguments, code=code), arguments
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 not an archive")
    arguments = [a if not a.startswith("data.path=") else f"data.path={broken}" for a in shell.train]
    assert "broken.npz" in shell(*arguments, code=65)


def test_every_checkpoint_and_foreign_samples_are_evaluated(shell: Shell) -> None:
    run = shell.trained()[0]
    protocol = ("evaluation=debug", "evaluation.extractor=mnist-cnn", "evaluation.reference_split=train")
    output = shell("evaluate.py", f"run={run.path.name}", "checkpoint=all", "weights=both", *protocol)
    assert "about 0." in output.splitlines()[0], "the time that it will take comes first"
    records = [json.loads(p.read_text()) for p in (run.path / "evaluation").glob("fid_32*.json")]
    told = sorted((r["context"]["checkpoint"], r["model"]["weights"], r["model"]["samples_seen"]) for r in records)
    seen = {name: samples for name, _, samples in told}
    assert {name for name, _, _ in told} == {"last.ckpt", "previous.ckpt"}
    assert seen["last.ckpt"] > seen["previous.ckpt"]
    assert [weights for _, weights, _ in told] == ["ema", "raw"] * 2
    other = make_images(shell.folder / "other.npz", [1, 28, 28], count=200)
    shell("evaluate.py", f"run={run.path.name}", *protocol, "data=npz", f"data.path={other}", "data.shape=[1,28,28]",
          "data.num_classes=10", "data.name=other")  # fmt: skip
    (path,) = (run.path / "evaluation").glob("fid_32*-data-*.json")
    assert json.loads(path.read_text())["reference"]["data"] == "other", "beside the record of the run's own data"
    shell("sample.py", f"run={run.path.name}", "n=32", "seed=0", "out=made")
    (shell.folder / "made" / "grid.png").unlink()
    output = shell("evaluate.py", "samples=made", "reference=images.npz", *protocol[:2])
    record = json.loads((shell.folder / "made-fid_32_folder64.proxy.json").read_text())
    assert record["generated"]["data"] == "made"
    assert "fid_32_folder64.proxy" in output
    error = shell("evaluate.py", "samples=made", *protocol[:2], code=2)
    assert "data=NAME" in error


@pytest.mark.faults(26)
def test_a_run_in_use_is_refused(shell: Shell) -> None:
    run = shell.runs()[0]
    with run.lock():
        error = shell("train.py", f"resume={run.path.name}", "schedule.max_samples=64", code=2)
    assert f"in use by process {os.getpid()}" in error


@pytest.mark.faults(14)
def test_damaged_checkpoint_is_refused(shell: Shell) -> None:
    run = shell.copy()
    for name in ("last.ckpt", "previous.ckpt"):
        path = run.checkpoints / name
        path.write_bytes(path.read_bytes()[:-50])
    assert "sha256 mismatch" in shell("sample.py", f"run={run.path.name}", code=76)
