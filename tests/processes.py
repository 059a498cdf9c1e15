"""Processes for tests, with all loaded that a worker needs: a fork server, and ranks that stand ready."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tests_preload  # noqa: F401  before the fork server is forked
import torch
from isolation import isolated

from genlab.cli.ranks import free_port, worker_environment


class Server:
    """multiprocessing's fork server, which is itself forked: from these tests, before the first of them has begun.

    Started as usual, it would import all anew, which takes as long as a hundred tiny runs.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        resource_tracker.ensure_running()
        gc.collect()
        gc.freeze()  # else a child's collector would write to, and so copy, every page
        before = util.spawnv_passfds
        util.spawnv_passfds = _forked  # type: ignore[assignment]
        try:
            forkserver.ensure_running()
        finally:
            util.spawnv_passfds = before

    def Process(self, *args: Any, **kwargs: Any) -> BaseProcess:
        return self._context.Process(*args, **kwargs)


def _forked(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """In the place of multiprocessing.util.spawnv_passfds, for `python ... -c CODE`: the process id."""
    if pid := os.fork():
        return pid
    kept = {*passed, resource_tracker.getfd()}
    null = os.open(os.devnull, os.O_RDWR)
    # What is open here leads nowhere there; closed, its number would be another file's, and who still has it (a handler
    # of logging, whose stream is pytest's) would write into that.
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept and number != null:
            with contextlib.suppress(OSError):  # the one by which the folder was read
                os.fstat(number)
                os.dup2(null, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    for name, module in list(sys.modules.items()):  # half imported: this one is, and whoever imports it
        if name != __name__ and getattr(getattr(module, "__spec__", None), "_initializing", False):
            del sys.modules[name]
    try:
        exec(arguments[-1], {})
    finally:
        os._exit(0)


def as_a_process(log: str | Path, variables: Mapping[str, str]) -> None:
    """Makes a child of the fork server what a process of its own would be, with its output in a file."""
    os.environ.update(variables)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as a shell begins it, also where these tests run under nohup
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loaders: Linux's own before Python 3.14


def together(ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(*args)` in a gloo group of `ranks` processes with one thread each: what each rank returns, or its
    exit code where it leaves (SystemExit).

    Raises:
        AssertionError: a rank of several raised, died or is not ready in time.
    """
    if ranks == 1:
        with isolated(Path(os.devnull), {}):
            return [function(*args)]
    group = standing.get(ranks) or standing.setdefault(ranks, Ranks(ranks))
    return group.do(function, *args)


class Ranks:
    """Processes that stand ready as the ranks of a gloo group, and take one job after another."""

    def __init__(self, count: int) -> None:
        self.pipes: list[connection.Connection] = []
        self.processes: list[BaseProcess] = []
        port = free_port()
        for rank in range(count):
            ours, theirs = multiprocessing.Pipe()
            process = server.Process(target=_serve, args=(theirs, rank, count, port))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)
        atexit.register(self.end)

    def do(self, function: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
        """As `together`; a group that a rank has left is ended."""
        for pipe in self.pipes:
            pipe.send((function, args))
        results: dict[int, Any] = {}
        whole = True
        deadline = time.monotonic() + timeout
        try:
            while len(results) < len(self.pipes):
                waiting = {pipe: rank for rank, pipe in enumerate(self.pipes) if rank not in results}
                ready = connection.wait(list(waiting), max(0.0, deadline - time.monotonic()))
                assert ready, f"ranks {sorted(waiting.values())} are still at work after {timeout} s"
                for pipe in ready:
                    rank = waiting[pipe]  # type: ignore[index]
                    kind, data = _received(pipe)  # type: ignore[arg-type]
                    assert kind != "error", f"rank {rank}: {data}"
                    results[rank] = data
                    whole = whole and kind == "result"
        except AssertionError:
            whole = False
            raise
        finally:
            if not whole:
                self.end()
        return [results[rank] for rank in range(len(self.pipes))]

    def end(self) -> None:
        atexit.unregister(self.end)
        standing.pop(len(self.processes), None)
        for process in self.processes:
            process.kill()
            process.join()


standing: dict[int, Ranks] = {}  # by their number


def _received(pipe: connection.Connection) -> tuple[str, Any]:
    """What a rank has sent: "result" and the value, "left" and the exit code, or "error" and a text."""
    try:
        kind, data = pipe.recv()
    except EOFError:
        return "error", "it has died"
    return kind, torch.load(io.BytesIO(data), weights_only=True) if kind == "result" else data


def _serve(pipe: connection.Connection, rank: int, ranks: int, port: int) -> None:
    os.environ.clear()
    as_a_process(os.devnull, worker_environment(rank, ranks, port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:  # the tests have ended
            os._exit(0)
        try:
            with isolated(Path(os.devnull), {}):
                data = io.BytesIO()
                torch.save(function(*args), data)
        except SystemExit as leave:
            pipe.send(("left", leave.code))
            os._exit(0)  # its sockets close, which tells the others
        except Exception:
            pipe.send(("error", traceback.format_exc()))
        else:
            pipe.send(("result", data.getvalue()))


server: Any = None  # for the children, which are forked in the midst of the next line
server = Server()
