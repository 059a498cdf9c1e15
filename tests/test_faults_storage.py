"""Rows 10, 11 and 12 of the faults: memory exhausted, disk full during a save, a run directory that is not writable."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import command, everything, runs_in, train_arguments
from processes import as_a_process, server
from runs import log, new_run, rows, small_run, work

from genlab.cli.worker import main as worker_main
from genlab.errors import OutOfMemory, StorageError, expected
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.directory import RunDirectory

# ---- 10: memory


def _little_memory(path: str, log_file: str) -> None:
    """A worker on the run that may have 300 MB more than it has."""
    as_a_process(log_file, {})
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (300 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os._exit(worker_main("train", path))


@pytest.mark.faults(10)
def test_exhausted_memory_ends_in_one_line_with_a_hint(tmp_path: Path) -> None:
    """A limit on the address space, and a batch that does not fit under it."""
    options = ("model.critic.width=256", "model.generator.width=256", "data.batch_size=48", "debug=null")
    run = new_run(small_run("model=gan", tmp_path, *options))
    process = server.Process(target=_little_memory, args=(str(run.path), str(run.path / "log")))
    process.start()
    process.join(120)
    assert process.exitcode == 1, log(run)
    lines = [line for line in log(run).splitlines() if line.startswith("genlab: error")]
    assert len(lines) == 1, log(run)
    assert "out of memory" in lines[0]
    assert "data.batch_size" in lines[0]
    assert "Traceback" not in log(run)
    assert run.status()["state"] == "failed"
    if run.last.exists():
        load_checkpoint(run.last)
    assert not list(run.checkpoints.glob(".*.tmp"))


@pytest.mark.faults(10)
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9.31 GiB for an array"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ..."),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda e: str(e)[:30] or type(e).__name__,
)
def test_every_kind_of_exhausted_memory_is_known(error: BaseException) -> None:
    known = expected(error)
    assert isinstance(known, OutOfMemory)
    assert known.exit_code == 1
    assert "data.batch_size" in str(known)
    assert "\n" not in str(known)


def test_faults_of_ours_are_not_taken_for_expected_ones() -> None:
    for error in (RuntimeError("shape mismatch"), ValueError("x"), FileNotFoundError(2, "no"), KeyError("a")):
        assert expected(error) is None
    full = expected(OSError(28, "No space left on device", "/nowhere/x"))
    assert isinstance(full, StorageError)
    assert "/nowhere/x" in str(full)


@pytest.mark.faults(10)
def test_a_killed_session_is_reported_at_the_next_start(tmp_path: Path) -> None:
    """As the kernel does it for want of memory: the command and its worker are killed, and nobody can say so."""
    more = ("schedule.max_samples=40000", "schedule.save_every=40", "schedule.eval_every=0", "schedule.log_every=20",
            "debug=null", "data.batch_size=4")  # fmt: skip
    arguments = train_arguments(tmp_path, *more)
    killed = server.Process(target=_in_background, args=(arguments, str(tmp_path)))
    killed.start()
    deadline = time.monotonic() + 60
    while not (runs_in(tmp_path) and runs_in(tmp_path)[0].status().get("samples", 0) >= 40):
        assert time.monotonic() < deadline, "no checkpoint in 60 s"
        time.sleep(0.02)
    (run,) = runs_in(tmp_path)
    holder = (run.path / "lock").read_text().strip()
    assert holder == str(killed.pid)
    os.kill(killed.pid or 0, signal.SIGKILL)  # its worker dies with it
    killed.join()
    deadline = time.monotonic() + 20
    while run.holder() is not None:
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)
    seen = run.status()["samples"]
    stopped = command(*arguments, folder=tmp_path, before=_stop_soon)
    assert f"(process {holder}) ended without saying why, saved at {seen:,} samples" in stopped.output
    assert "memory" in stopped.output
    assert stopped.code == 143, stopped.output
    with run.lock():
        assert run.left_by is None  # this one had said why


def _in_background(arguments: list[str], folder: str) -> None:
    from commands import _command

    _command(arguments, folder, f"{folder}/killed.log", {"GENLAB_RUNS": f"{folder}/runs"}, None)


def _stop_soon() -> None:
    """Preempts the command once its worker has trained for a moment."""
    import threading

    def stop() -> None:
        folder = Path.cwd()
        metrics = runs_in(folder)[0].metrics
        size = metrics.stat().st_size if metrics.exists() else 0
        while not metrics.exists() or metrics.stat().st_size <= size:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()


# ---- 11: disk full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB: a tmpfs where mounting is allowed; else a skip: the test with a limit stands for it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here ({made.stderr.strip()}); RLIMIT_FSIZE is tested instead")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def tiny_gan(folder: Path, *more: str) -> RunDirectory:
    """A run whose checkpoints have 0.4 MB."""
    small = ("model.generator.width=4", "model.critic.width=4", "model.generator.latent_dim=8", "debug=null",
             "callbacks.samples.count=0", "callbacks.final.count=0", "data.batch_size=4", "data.limit_val=8",
             "schedule.max_samples=60", "schedule.save_every=20", "schedule.eval_every=0",
             "schedule.log_every=20")  # fmt: skip
    return new_run(small_run("model=gan", folder, *small, *more))


@pytest.mark.faults(11)
def test_a_full_disk_ends_in_one_line_and_the_old_checkpoint_loads(tmp_path: Path, disk: Path) -> None:
    run = tiny_gan(tmp_path, f"runs_dir={disk / 'runs'}")
    assert work(run) == 0, log(run)
    before = load_checkpoint(run.last)["samples"]
    assert before == 60
    config = run.config.read_text()
    run.config.write_text(config.replace("max_samples: 60", "max_samples: 120"))
    with open(disk / "filler", "wb") as filler:
        filler.write(b"\0" * (shutil.disk_usage(disk).free - 300_000))  # a checkpoint needs 413 kB
    assert work(run) == 74, log(run)
    lines = [line for line in log(run).splitlines() if line.startswith("genlab: error")]
    assert len(lines) == 1
    assert str(run.last) in lines[0]
    assert "bytes free, about" in lines[0]
    assert "needed" in lines[0]
    assert "Traceback" not in log(run)
    assert load_checkpoint(run.last)["samples"] == before
    assert not list(run.checkpoints.glob(".*"))
    (disk / "filler").unlink()
    assert work(run) == 0, log(run)
    assert load_checkpoint(run.last)["samples"] == 120


@pytest.mark.faults(11)
def test_a_disk_full_to_the_last_byte_is_said_too(tmp_path: Path, disk: Path) -> None:
    """Not even a row of metrics.jsonl or a status can be written: the line on stderr is what is left."""
    run = tiny_gan(tmp_path, f"runs_dir={disk / 'runs'}")
    assert work(run) == 0, log(run)
    run.config.write_text(run.config.read_text().replace("max_samples: 60", "max_samples: 120"))
    whole = everything(run.checkpoints)
    (run.path / "log").unlink()
    (run.path / "log").symlink_to(tmp_path / "log")
    with open(disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"\0" * 4096)
    assert shutil.disk_usage(disk).free == 0
    assert work(run) == 74, log(run)
    lines = [line for line in log(run).splitlines() if line.startswith("genlab: error")]
    assert len(lines) == 1, log(run)
    assert "bytes free" in lines[0]
    assert str(run.path) in lines[0]
    assert "Traceback" not in log(run)
    assert everything(run.checkpoints) == whole


def _small_files(path: str, log_file: str) -> None:
    as_a_process(log_file, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    os._exit(worker_main("train", path))


@pytest.mark.faults(11)
def test_a_file_that_may_not_grow_is_a_full_disk(tmp_path: Path) -> None:
    """As the first of these, where nothing can be mounted."""
    run = tiny_gan(tmp_path)
    assert work(run) == 0, log(run)
    run.config.write_text(run.config.read_text().replace("max_samples: 60", "max_samples: 120"))
    process = server.Process(target=_small_files, args=(str(run.path), str(run.path / "log")))
    process.start()
    process.join(120)
    assert process.exitcode == 74, log(run)
    (line,) = [line for line in log(run).splitlines() if line.startswith("genlab: error")]
    assert f"cannot save {run.last}" in line
    assert "bytes free, about" in line
    assert load_checkpoint(run.last)["samples"] == 60
    assert not list(run.checkpoints.glob(".*"))
    assert run.status()["exit_code"] == 74
    assert rows(run)[-1]["samples"] >= 60


# ---- 12: not writable


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Capabilities(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def become_nobody() -> None:
    """An ordinary user, who may read all (the repository may lie in root's home) and write only what is allowed."""
    if os.getuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    header = _Header(0x20080522, 0)
    reading = (_Capabilities * 2)(_Capabilities(1 << 2, 1 << 2, 0), _Capabilities(0, 0, 0))  # CAP_DAC_READ_SEARCH
    if libc.capset(ctypes.byref(header), ctypes.byref(reading)):
        raise OSError(ctypes.get_errno(), "capset")


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that everyone may enter: pytest's are root's alone."""
    with tempfile.TemporaryDirectory(prefix="genlab-faults-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


@pytest.mark.faults(12)
def test_a_runs_folder_that_is_not_writable_is_refused_before_training(for_all: Path) -> None:
    arguments = train_arguments(for_all)
    runs = for_all / "closed"
    runs.mkdir(mode=0o555)
    done = command(*arguments, f"runs_dir={runs}", folder=for_all, before=become_nobody)
    done.line(2, "runs_dir", str(runs), "Permission denied")
    assert not list(runs.iterdir())


@pytest.mark.faults(12)
def test_a_run_that_is_not_writable_is_refused_before_training(for_all: Path) -> None:
    arguments = train_arguments(for_all)
    assert command(*arguments, folder=for_all, before=become_nobody).code == 0
    (run,) = runs_in(for_all)
    before = everything(run.path)
    longer = ("resume=last", "schedule.max_samples=32")
    for path in [run.path, *run.path.rglob("*")]:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    done = command("train.py", *longer, folder=for_all, before=become_nobody)
    done.line(2, str(run.path), "Permission denied")
    assert everything(run.path) == before
    os.chmod(run.path / "lock", 0o666)  # the lock alone does not make it writable
    command("train.py", *longer, folder=for_all, before=become_nobody).line(2, str(run.path))
    assert everything(run.path) == before


@pytest.mark.faults(12)
def test_samples_that_cannot_be_written(for_all: Path) -> None:
    assert command(*train_arguments(for_all), folder=for_all).code == 0
    closed = for_all / "closed"
    closed.mkdir(mode=0o555)
    done = command("sample.py", "run=last", "n=2", f"out={closed / 'x'}", folder=for_all, before=become_nobody)
    done.line(74, str(closed), "Permission denied")
