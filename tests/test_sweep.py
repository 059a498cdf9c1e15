"""Sweeps as a user gives them: jobs of two ranks, some of which fail; SLURM's launcher on this machine; pruning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Begun, command
from runs import ROOT, log, make_images, new_run, small_run, work


def sweep(folder: Path, *arguments: str) -> list[str]:
    """The command line of a sweep on a small data set."""
    data = make_images(folder / "images.npz", [1, 28, 28])
    return [
        "train.py", "-m", "model=gan", "trainer=debug", "data=npz", f"data.path={data}", "data.shape=[1,28,28]",
        "data.num_classes=10", "data.num_workers=0", "evaluation=none", "logger=none",
        "callbacks.checkpoint.monitor=val/loss", *arguments,
    ]  # fmt: skip


def statuses(folder: Path) -> dict[str, Any]:
    """Status by the name of each run."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/*/status.json")}


def left_over(folder: Path) -> list[str]:
    """Processes at work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return found


def rows_of(output: str) -> list[list[str]]:
    lines = output.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith("job  status")]
    return [line.split() for line in lines[head + 1 :] if line[:1].isdigit()]


@pytest.mark.faults(28)
def test_jobs_of_two_ranks_fail_alone(tmp_path: Path) -> None:
    """One run and one result a job, whatever the others do, and no process is left."""
    given = sweep(tmp_path, "seed=2,3,4", "trainer.devices=2", "trainer.accelerator=cpu",
                  "callbacks.extra=[{_target_:ddp_parts.BySeed}]")  # fmt: skip
    begun = Begun(given, tmp_path, {"GENLAB_ALLOW": "ddp_parts"})
    assert begun.until(lambda: left_over(tmp_path)), "they can be seen"
    done = begun.end()
    output = done.output
    assert done.code == 1, output
    table = rows_of(output)
    assert [row[1] for row in table] == ["exit", "exit", "finished"], output
    found = statuses(tmp_path)
    assert len(found) == 3
    for row, seed in zip(table, (2, 3, 4), strict=True):
        name, overrides = row[-2], row[-1]
        assert overrides == f"seed={seed}", "only what differs"
        assert found[name]["state"] == ("failed" if seed in (2, 3) else "finished")
        result = next(tmp_path.glob(f"runs/*/{name}")) / "result.json"
        assert result.exists() == (seed == 4)
        if seed == 4:
            assert float(row[2]) == pytest.approx(json.loads(result.read_text())["value"], rel=1e-5)
    assert "RuntimeError: seed 2 has failed" in output
    assert "sys.exit(0) was called by" in output
    assert not left_over(tmp_path)


def test_the_launcher_for_slurm_on_this_machine(tmp_path: Path) -> None:
    """submitit starts each job in a process of its own, from a pickle; its local executor needs no SLURM."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install -e '.[sweep]'")
    given = sweep(tmp_path, "hydra/launcher=submitit_local", "init_from=null,nowhere")
    path = {"PYTHONPATH": str(ROOT / "src")}  # of the jobs, which are started cold
    done = command(*given, folder=tmp_path, environment=path, apart=True)
    output = done.output
    assert done.code == 2, output
    assert [row[1] for row in rows_of(output)] == ["finished", "exit"], output
    assert [status["state"] for status in statuses(tmp_path).values()] == ["finished"]


def test_a_trial_that_falls_behind_is_pruned(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="pip install -e '.[sweep]'")
    storage = tmp_path / "study.db"
    study = optuna.create_study(storage=f"sqlite:///{storage}", study_name="s", direction="minimize")
    for _ in range(4):
        trial = study.ask()
        for samples in (8, 16):
            trial.report(-1000.0, step=samples)
        study.tell(trial, -1000.0)
    settings = {"storage": str(storage), "study": "s", "number": study.ask().number, "pruner": "median"}
    run = new_run(small_run("model=ddpm", tmp_path))
    assert work(run, GENLAB_TRIAL=json.dumps(settings)) == 0, log(run)
    assert "pruned at 8 samples" in log(run)
    assert run.status()["state"] == "pruned"
    result = json.loads((run.path / "result.json").read_text())
    assert result["pruned"]
    assert study.trials[4].intermediate_values == {8: result["value"]}
