"""Signals that end a session after a save, and the terminal that may have gone with one of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import sys
from collections.abc import Iterator
from typing import NoReturn

PREEMPTING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STOPPING = (*PREEMPTING, signal.SIGINT)
PR_SET_PDEATHSIG = 1


def caught(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those that are to be handled: SIGHUP is not where it is ignored, as under nohup."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


_raised: BaseException | None = None


def raise_in_handler(error: BaseException) -> NoReturn:
    """Ends what is going on, from the handler of a signal.

    A library that is in the midst of something may make another error of it on the way: `cause` still knows.
    """
    global _raised
    _raised = error
    raise error


def cause(error: BaseException) -> BaseException:
    """What a failure is to be told as: itself where it is an error of GenLab's (a save for the signal has failed, say),
    else the signal that came in the midst of it, if one did."""
    return error if _raised is None or hasattr(error, "exit_code") else _raised


def forget() -> None:
    """At the beginning of a command or a worker: no signal has come."""
    global _raised
    _raised = None


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals wait meanwhile, here and in processes that are started, until these call `let_through`: else one that
    comes while Python starts would end it without a word."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Now that their handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it dies: no orphans, whatever happens."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def ignore_all() -> None:
    """From here on there is nothing to stop: also while the interpreter ends, which puts its own handlers back."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def leave_terminal(number: int) -> None:
    """After SIGHUP nothing can be written to the terminal: what still is goes nowhere, where it would raise."""
    if number == signal.SIGHUP:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            with contextlib.suppress(OSError):  # it is closed
                if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # isatty says no of one that has gone
                    os.dup2(null, descriptor)
        os.close(null)
