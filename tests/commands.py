"""Commands as a user gives them: in the process of the tests where they run to their end by themselves, in a child of
the fork server where they are several ranks, change themselves before they begin, or are to be killed."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from isolation import SIGNALS, isolated, own_workers, without_curves
from processes import as_a_process, server
from runs import ROOT, make_images

from genlab.runs.directory import RunDirectory

GAN = ("model=gan", "trainer=debug", "data=npz", "data.shape=[1,28,28]", "data.num_classes=10", "data.num_workers=0",
       "model.generator.width=4", "model.critic.width=4", "model.generator.latent_dim=8", "evaluation=none",
       "logger=none", "callbacks.samples.count=0", "callbacks.final.count=0")  # fmt: skip


@dataclass
class Done:
    """How a command ended: exit code, and what it printed to stdout and stderr together."""

    code: int
    output: str

    def line(self, code: int, *words: str) -> str:
        """The one line of an expected error: checks exit code and words, and that there is no traceback."""
        assert self.code == code, self.output
        assert "Traceback" not in self.output, self.output
        lines = [line for line in self.output.splitlines() if line.startswith("genlab: error")]
        assert len(lines) == 1, self.output
        for word in words:
            assert word in lines[0], f"{word!r} is not in: {lines[0]}"
        return lines[0]


def command(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], Any] | None = None,
    apart: bool = False,
    timeout: float = 300,
) -> Done:
    """`python ARGUMENTS` with `folder` as the working directory.

    Args:
        arguments: a script of the repository and its arguments.
        environment: variables to be added.
        before: a function of a module, called before the command, in a process of its own.
        apart: in a process of its own, since it will not leave it whole.
    """
    several = any(a.startswith(("trainer.devices=", "devices=")) and not a.endswith("=1") for a in arguments)
    if several or apart or before is not None:
        return Begun(arguments, folder, environment, before).end(timeout)
    log = folder / "command.log"
    log.unlink(missing_ok=True)
    variables = {"GENLAB_RUNS": str(folder / "runs"), **(environment or {})}
    with isolated(log, variables, folder), own_workers():
        code = _give(arguments)
    return Done(code, log.read_text(encoding="utf-8", errors="replace"))


class Begun:
    """A command that is going on; the arguments are those of `command`."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], Any] | None = None,
    ) -> None:
        self.log = folder / "command.log"
        self.log.unlink(missing_ok=True)
        variables = {"GENLAB_RUNS": str(folder / "runs"), **(environment or {})}
        self.process = server.Process(
            target=_command, args=(tuple(arguments), str(folder), str(self.log), variables, before)
        )
        self.process.start()

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def until(self, condition: Callable[[], Any], timeout: float = 300) -> Any:
        """Waits for a true value of `condition`, which it returns, while the command goes on."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert self.process.exitcode is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)
        return value

    def signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def end(self, timeout: float = 300) -> Done:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s: {self.output()}")
        return Done(self.process.exitcode, self.output())


def _command(
    arguments: Sequence[str], folder: str, log: str, variables: dict[str, str], before: Callable[[], Any] | None
) -> None:
    as_a_process(log, variables)
    os.chdir(folder)
    from genlab.cli import ranks

    ranks.subprocess = SimpleNamespace(Popen=Forked)  # type: ignore[attr-defined]
    code = _give(arguments, before)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _give(arguments: Sequence[str], before: Callable[[], Any] | None = None) -> int:
    """The exit code of `python ARGUMENTS`."""
    sys.argv = [str(ROOT / arguments[0]), *arguments[1:]]
    sys.orig_argv = [sys.executable, *arguments]
    if before is not None:
        before()
    try:
        with without_curves():
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as leave:
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


class Forked:
    """A worker in the place of subprocess.Popen's: forked, so that nothing is imported anew."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int], start_new_session: bool
    ) -> None:
        assert list(command[1:3]) == ["-m", "genlab.cli.worker"]
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            from genlab.cli.worker import main

            code = 1
            try:
                code = main(*command[3:])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class ForkedStage(Forked):
    """A stage of a chain in the place of subprocess.Popen's, likewise, and its worker."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: Any, preexec_fn: Any, **_: Any) -> None:
        self.returncode = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                preexec_fn()
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
                os.environ.update(env)
                code = _give(command[1:])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)


def fork_stages() -> None:
    """`before` of a command scripts/chain.py: its stages are forked, and not composed before the first one starts."""
    from genlab.cli import chain
    from genlab.cli.chains import work

    chain.check_stage = lambda *_: None  # type: ignore[assignment]
    work.subprocess = SimpleNamespace(Popen=ForkedStage, DEVNULL=None, STDOUT=None)  # type: ignore[attr-defined]


def train_arguments(folder: Path, *more: str) -> list[str]:
    """A training of a tiny GAN, seconds long, on images made in `folder`."""
    path = folder / "images.npz"
    if not path.exists():
        make_images(path, [1, 28, 28])
    return ["train.py", *GAN, f"data.path={path}", *more]


def runs_in(folder: Path) -> list[RunDirectory]:
    """Runs below `folder`, oldest first."""
    found = sorted((folder / "runs").glob("*/*/status.json"), key=lambda p: p.stat().st_ctime_ns)
    return [RunDirectory(path.parent) for path in found]


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
