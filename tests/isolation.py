"""What a process of its own would give a command, within this one: so that nothing is imported or forked anew."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from genlab import signals
from genlab.cli import targets

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Environment and signal handlers are afterwards what they were. Within, SIGHUP is obeyed, also under nohup."""
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    if handlers[signal.SIGHUP] is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def without_curves() -> Iterator[None]:
    """Draws no curves.png, which would be most of the time of a tiny run; does where $CURVES is set."""
    from genlab.cli import session

    curves = session.curves
    if "CURVES" not in os.environ:
        session.curves = lambda *_: None
    try:
        yield
    finally:
        session.curves = curves


@contextlib.contextmanager
def isolated(log: Path, variables: Mapping[str, str], folder: Path | None = None) -> Iterator[None]:
    """Environment, working directory, signal handlers and warnings are afterwards what they were.

    Args:
        log: file to which standard output and error are added.
        variables: added to the environment.
        folder: the working directory meanwhile; None leaves it.
    """
    directory, arguments, words = os.getcwd(), (sys.argv, sys.orig_argv), warnings.formatwarning

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with (
        open(log, "a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        warnings.catch_warnings(),
        restored(),
    ):
        warnings.showwarning = show  # pytest's would keep them to itself
        os.environ.update(variables)
        if folder is not None:
            os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(directory)
            targets._settled = None
            sys.argv, sys.orig_argv = arguments
            warnings.formatwarning = words


def worker(task: str, target: str) -> int:
    """A worker's exit code, without its wish to die when the process that started it does."""
    from genlab.cli import worker as module

    die, signals.die_with_parent = signals.die_with_parent, lambda: None
    try:
        return module.main(task, target)
    finally:
        signals.die_with_parent = die


class Worker:
    """In the place of subprocess.Popen's worker: it has ended when it has been started."""

    pid = os.getpid()

    def __init__(self, command: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        assert list(command[1:3]) == ["-m", "genlab.cli.worker"]
        assert env.get("WORLD_SIZE", "1") == "1", "several ranks are several processes"
        with restored():
            os.environ.clear()
            os.environ.update(env)
            os.environ.pop("GENLAB_LOCKS", None)  # this process is none that ends with the run
            self.returncode = worker(*command[3:])

    def poll(self) -> int:
        return self.returncode

    wait = poll


@contextlib.contextmanager
def own_workers() -> Iterator[None]:
    """Commands do their workers' part themselves; what they change in Hydra is taken back."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins

    from genlab.cli import ranks

    subprocess, ranks.subprocess = ranks.subprocess, SimpleNamespace(Popen=Worker)  # type: ignore[attr-defined]
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        ranks.subprocess = subprocess  # type: ignore[attr-defined]
        vars(Plugins.instance()).pop("instantiate_launcher", None)
        GlobalHydra.instance().clear()
