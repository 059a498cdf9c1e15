"""Signals at any moment of a run: 143 with the state saved, and the same run ends as an undisturbed one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Begun, command, runs_in, train_arguments
from runs import assert_same_state, log, new_run, rows, small_run, start_ranks, work

from genlab.cli.ranks import Workers
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.directory import RunDirectory
from genlab.runs.pulse import Pulse

OPTIONS = ("debug=null", "data.batch_size=8", "data.limit_val=16", "data.val_batch_size=4", "schedule.max_samples=80",
           "schedule.log_every=8", "schedule.eval_every=40", "schedule.save_every=16", "callbacks.samples.count=4",
           "callbacks.final.count=0", "resume=never", "sampler.steps=2", "model.chunk_size=4")  # fmt: skip
# What is going on when the signal comes, as `ddp_parts.Wait` knows it.
MOMENTS = ["train", "validation_start", "validation", "samples", "evaluation"]


def run_of(folder: Path, moment: str, ranks: int, signs: Path, number: int | None = None) -> RunDirectory:
    config = small_run("model=ddpm", folder, *OPTIONS, f"trainer.devices={ranks}")
    config.callbacks.extra = [
        {"_target_": "ddp_parts.Wait", "moment": moment, "folder": str(signs), "number": number},
    ]
    if moment == "evaluation":
        config.callbacks.evaluate_every = 1
        config.callbacks.evaluate_n = 8
        config.evaluation = {
            "_target_": "genlab.evaluation.Protocol",
            "metrics": ["fid"],
            "n": 8,
            "reference_split": "train",
            "extractor": "mnist-cnn",
        }
    return new_run(config)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], RunDirectory]:
    """(moment, ranks) -> a run that nothing happens to; one serves all moments, but for the evaluation's."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "go").touch()  # it does not wait

    @functools.cache
    def whole(evaluated: bool, ranks: int) -> RunDirectory:
        run = run_of(folder, "evaluation" if evaluated else "train", ranks, folder)
        assert work(run, ranks=ranks, allow="ddp_parts") == 0, log(run)
        return run

    return lambda moment, ranks: whole(moment == "evaluation", ranks)


def stop_at(run: RunDirectory, folder: Path, ranks: int, waiting: int, number: int) -> list[int]:
    """Starts the run, sends the signal when `waiting` ranks are at the moment: exit codes."""
    processes = start_ranks(run, ranks, allow="ddp_parts")
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < waiting:
        assert time.monotonic() < deadline, log(run)
        assert all(process.exitcode is None for process in processes), log(run)
        time.sleep(0.01)
    os.kill(processes[-1].pid or 0, number)
    time.sleep(0.3)
    for process in processes:  # what the parent does to the others when one has left
        if process.is_alive():
            os.kill(process.pid or 0, number)
        process.join(60)
    return [int(process.exitcode or 0) for process in processes]


CASES = [(moment, ranks) for ranks in (1, 2) for moment in MOMENTS if (moment, ranks) != ("validation_start", 2)]


@pytest.mark.parametrize(("moment", "ranks"), [*CASES, pytest.param("validation_start", 2, marks=pytest.mark.soak)])
@pytest.mark.faults(3)
def test_a_signal_at_any_moment(
    moment: str, ranks: int, undisturbed: Callable[[str, int], RunDirectory], tmp_path: Path
) -> None:
    """A single rank signals itself, in this process; of two, the last is signalled from outside, then the other."""
    whole = undisturbed(moment, ranks)
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    number = {"samples": signal.SIGUSR1, "validation": signal.SIGHUP}.get(moment, signal.SIGTERM)
    broken = run_of(tmp_path, moment, ranks, waiting, int(number) if ranks == 1 else None)
    if ranks == 1:
        codes = [work(broken, allow="ddp_parts")]
    else:
        # Four samples are one chunk: the second rank has nothing to do and waits in the collective that follows.
        codes = stop_at(broken, waiting, ranks, 1 if moment in ("samples", "evaluation") else ranks, number)
    assert codes == [143] * ranks, log(broken)
    assert broken.status()["state"] == "preempted"
    state = load_checkpoint(broken.last)
    assert state["samples"] >= 40, "the state of the moment, not of the last checkpoint before"
    assert f"saved at {state['samples']} samples" in broken.status()["message"]
    assert state["validation_pending"] == (moment != "train")
    (waiting / "go").touch()
    assert work(broken, ranks=ranks, allow="ddp_parts") == 0, log(broken)
    assert_same_state(whole, broken)
    samples = [row["samples"] for row in rows(broken) if "val/loss" in row]
    assert samples == [40, 80]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.faults(3)
def test_sampling_stops_at_once(tmp_path: Path) -> None:
    """sample.py and evaluate.py have nothing to save: they leave with one line."""
    done = command(*train_arguments(tmp_path), folder=tmp_path)
    assert done.code == 0, done.output
    (run,) = runs_in(tmp_path)
    for given in (
        ("sample.py", f"run={run.path}", "n=1000000"),
        ("sample.py", f"run={run.path}", "n=1000000", "devices=2"),
        ("evaluate.py", f"run={run.path}", "evaluation=fid_50k_train", "evaluation.extractor=mnist-cnn"),
    ):
        begun = Begun(given, tmp_path)
        begun.until(lambda begun=begun: catches(begun.process.pid or 0, signal.SIGTERM))  # type: ignore[misc]
        time.sleep(1.0)
        assert begun.process.exitcode is None, begun.output()
        begun.signal(signal.SIGTERM)
        began = time.monotonic()
        done = begun.end()
        assert time.monotonic() - began < 60, "a million samples take hours"
        assert done.code == 143, done.output
        assert "Traceback" not in done.output
        assert done.output.count("genlab: preempted: ") == 1, done.output


IGNORES = "import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path('{0}').touch(); "


@pytest.mark.parametrize("marks", [0, 1, 2])
def test_who_has_not_begun_is_not_waited_for(tmp_path: Path, marks: int) -> None:
    """A rank that waits in a library for one that has gone hears no signal; with nothing to save, it is killed soon."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    workers = Workers(tmp_path, 0)
    code = IGNORES.format(ready) + f"time.sleep(3 if {marks} == 2 else 600); pathlib.Path('{saved}').touch()"
    workers.processes.append(subprocess.Popen([sys.executable, "-c", code]))
    while not ready.exists():
        time.sleep(0.02)
    if marks:
        pulse = Pulse(tmp_path, 0)
        for _ in range(1, marks):
            pulse.mark("saved at 64 samples")
        pulse.close()
    workers.processes.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(143)"]))
    with workers:
        assert workers.wait(grace_s=120, idle_grace_s=0.5) == 143
    assert saved.exists() == (marks == 2)
    assert workers.processes[0].returncode == (0 if marks == 2 else -signal.SIGKILL)
