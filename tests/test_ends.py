"""Rows 33 and 35 to 37 of the faults: locks, links, late signals, terminals that go, what killed processes leave."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Begun, command, runs_in, train_arguments
from test_faults_runs import ALLOW, arguments, children, long_run, seen, status

from genlab import files, load_run
from genlab.errors import ConfigError
from genlab.runs.directory import create_run, find_unfinished
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
from genlab import files, load_run
from genlab.errors import ConfigError
from genlab.runs.directory import create_run, find_unfinished
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


@pytest.mark.faults(35)
def test_a_kill_with_loader_workers_and_the_same_command_at_once(tmp_path: Path) -> None:
    """The loaders live for seconds after their parent; they do not hold the run, and the command goes on with it."""
    loaders = ("data.num_workers=2", "data.resident_max=0", "schedule.save_every=32")
    begun = long_run(tmp_path, *loaders)
    begun.until(lambda: seen(tmp_path) >= 64)
    begun.process.kill()
    begun.process.join()
    again = long_run(tmp_path, *loaders)
    again.until(lambda: "continues" in again.output())
    again.signal(signal.SIGTERM)
    assert again.end().code == 143
    assert len(runs_in(tmp_path)) == 1


@pytest.mark.faults(26)
def test_a_run_in_use_is_named(tmp_path: Path) -> None:
    """A second command of the same configuration begins a run of its own, and says why."""
    first = long_run(tmp_path)
    first.until(lambda: seen(tmp_path) >= 8)
    second = tmp_path / "second"
    second.mkdir()
    begun = Begun(
        arguments(tmp_path, "schedule.max_samples=200000", "schedule.eval_every=0"),
        second,
        ALLOW | {"GENLAB_RUNS": str(tmp_path / "runs")},
    )
    begun.until(lambda: f"is in use by process {first.process.pid}" in begun.output())
    begun.until(lambda: len(runs_in(tmp_path)) == 2)
    for process in (begun, first):
        process.signal(signal.SIGTERM)
        assert process.end().code == 143


@pytest.mark.faults(33)
@pytest.mark.parametrize("name", ["lock", "metrics.jsonl", "samples"])
def test_links_in_a_run(name: str, tmp_path: Path) -> None:
    """Nothing is written through them; what they lead to stays as it is."""
    run = create_run(tmp_path / "runs", "x", "0" * 16)
    run.config.write_text("name: x\n")
    target = tmp_path / "target"
    target.write_text("mine\n")
    if (run.path / name).is_dir():
        (run.path / name).rmdir()
    (run.path / name).symlink_to(target)
    with pytest.raises(ConfigError, match=rf"{name} is a symbolic link"), run.lock():
        raise AssertionError("not reached")
    with pytest.raises(ConfigError, match=rf"{name} is a symbolic link"):
        load_run(run.path)
    assert target.read_text() == "mine\n"


@pytest.mark.faults(36)
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    files._say_unlocked.cache_clear()
    monkeypatch.setattr(fcntl, "flock", flock)
    run = create_run(tmp_path, "x", "digest")
    with run.lock():
        assert run.left_by is None
    found = find_unfinished(tmp_path, "digest")
    assert found is not None
    assert capsys.readouterr().err.count("has no locks") == 1
    files._say_unlocked.cache_clear()


def _sigterm_in_a_library() -> None:
    """A signal in the midst of OmegaConf, which makes another error of what the handler raises."""
    from genlab.cli import train

    def create(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        finally:
            raise AttributeError("_flags_cache")

    train.literal = create  # type: ignore[assignment]


def _sigterm_in_a_worker() -> None:
    from genlab.cli import session

    def build(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except BaseException as error:
            raise RuntimeError("a library's own") from error

    session.build_model = build  # type: ignore[assignment]


@pytest.mark.faults(37)
@pytest.mark.parametrize("before", [_sigterm_in_a_library, _sigterm_in_a_worker])
def test_a_signal_in_the_midst_of_a_library(tmp_path: Path, before: Callable[[], None]) -> None:
    done = command(*train_arguments(tmp_path), folder=tmp_path, before=before)
    assert done.code == 143, done.output
    assert "Traceback" not in done.output
    assert done.output.count("genlab: preempted: ") == 1, done.output


def _sigterm_to_the_command() -> None:
    """As the first job of a sweep is finished, while its worker no longer hears signals."""
    from genlab.cli import session

    def close_loggers(*_: object) -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.5)

    session.close_loggers = close_loggers  # type: ignore[assignment]


@pytest.mark.faults(37)
def test_a_sweep_that_is_stopped_begins_no_other_job(tmp_path: Path) -> None:
    done = command(*train_arguments(tmp_path), "-m", "seed=1,2", folder=tmp_path, before=_sigterm_to_the_command)
    assert done.code == 143, done.output
    assert "the sweep's other jobs were not begun" in done.output
    assert [run.status()["state"] for run in runs_in(tmp_path)] == ["finished"]
