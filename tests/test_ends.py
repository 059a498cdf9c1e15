"""Row 37 of the faults: a session that is told to end, late or by its terminal, and what killed processes leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import Begun, command, train_arguments
from test_faults_runs import ALLOW, arguments, children, long_run, seen, status

from genlab.runs.temporary import temporary_folder


def _sigterm_at_the_end() -> None:
    """In the place of the loggers' end, the last that a session does after the run is finished."""
    from genlab.cli import session

    def close_loggers(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    session.close_loggers = close_loggers  # type: ignore[assignment]


@pytest.mark.faults(37)
def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    done = command(*train_arguments(tmp_path), folder=tmp_path, before=_sigterm_at_the_end)
    assert done.code == 0, done.output
    assert status(tmp_path)["state"] == "finished"


@pytest.mark.faults(37)
@pytest.mark.parametrize("to", ["command", "worker"])
def test_a_terminal_that_goes(tmp_path: Path, to: str) -> None:
    """SIGHUP is answered as SIGTERM is; where it is ignored, as under nohup, nothing happens."""
    begun = long_run(tmp_path)
    begun.until(lambda: seen(tmp_path) >= 64)
    os.kill(begun.process.pid or 0 if to == "command" else children(begun.process.pid or 0)[0], signal.SIGHUP)
    done = begun.end()
    assert done.code == 143, done.output
    assert status(tmp_path)["state"] == "preempted"


def _as_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.faults(37)
def test_nohup(tmp_path: Path) -> None:
    endless = arguments(tmp_path, "schedule.max_samples=200000", "schedule.eval_every=0")
    begun = Begun(endless, tmp_path, ALLOW, before=_as_nohup)
    begun.until(lambda: seen(tmp_path) >= 64)
    begun.signal(signal.SIGHUP)
    reached = seen(tmp_path)
    begun.until(lambda: seen(tmp_path) > reached)
    begun.signal(signal.SIGTERM)
    assert begun.end().code == 143


HOLDS = """
import sys, time
from genlab.runs.temporary import temporary_folder
with temporary_folder() as variables:
    open(variables["TMPDIR"] + "/socket", "w").close()
    print(variables["TMPDIR"], flush=True)
    time.sleep(600)
"""


@pytest.mark.faults(37)
def test_temporaries_of_killed_commands_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next command; those of one that lives stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    begun = [subprocess.Popen([sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, alive = (Path((process.stdout or sys.stdin).readline().strip()) for process in begun)
        begun[0].kill()
        begun[0].wait()
        assert (killed / "socket").exists()
        with temporary_folder() as variables:
            assert {path.name for path in tmp_path.iterdir()} == {alive.name, Path(variables["TMPDIR"]).name}
        assert [path.name for path in tmp_path.iterdir()] == [alive.name]
    finally:
        for process in begun:
            process.kill()
            process.wait()


@pytest.mark.faults(7)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_others_soon(tmp_path: Path, rank: int) -> None:
    """Rank 0 holds the store of the process group: the other would wait for it in a library."""
    begun = long_run(tmp_path, "trainer.devices=2")
    begun.until(lambda: seen(tmp_path) >= 64)
    os.kill(children(begun.process.pid or 0)[rank], signal.SIGKILL)
    began = time.monotonic()
    begun.end().line(1, f"rank {rank} was killed by signal 9")
    assert time.monotonic() - began < 15, "more than twice what it has"
