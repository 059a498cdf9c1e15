"""The processes of a job: which one this is, who started them, and how GenLab starts several itself. Free of torch.

One worker a rank does the work (genlab.cli.worker). GenLab starts the workers of one machine itself; under torchrun and
srun each task is a rank already and starts one worker. Then rank 0 decides on the run directory and tells the others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from genlab.cli.problem import say
from genlab.cli.targets import user_packages
from genlab.errors import ConfigError
from genlab.files import read_json, write_bytes
from genlab.runs.pulse import begun, stalled
from genlab.runs.temporary import temporary_folder
from genlab.signals import STOPPING, caught, held_back, leave_terminal

OWN = "GENLAB_WORKER"  # set in the environment of workers that GenLab has started as ranks
WAIT_S = 120.0  # for rank 0 to say which run it is


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank, world: of all processes of the job.
        local, local_world: of those on this machine.
        launcher: "own" (GenLab, or a single process), "torchrun" or "slurm".
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    launcher: Literal["own", "torchrun", "slurm"] = "own"

    @property
    def external(self) -> bool:
        """Whether each rank has been started by something else than GenLab."""
        return self.launcher != "own"


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place, from the variables of GenLab's own workers, torchrun or srun."""

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name) or default)

    if OWN in environment or "TORCHELASTIC_RUN_ID" in environment:
        counts = number("RANK"), number("WORLD_SIZE", 1), number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE", 1)
        return Place(*counts, "own" if OWN in environment else "torchrun")
    # A batch script without srun has SLURM_NTASKS too, but no step; a single task starts its own workers.
    if "SLURM_STEP_ID" in environment and number("SLURM_NTASKS", 1) > 1:
        world, nodes = number("SLURM_NTASKS"), number("SLURM_NNODES", 1)
        if world % nodes:
            raise ConfigError(f"SLURM: {world} tasks on {nodes} nodes: ask for the same --ntasks-per-node on each.")
        return Place(number("SLURM_PROCID"), world, number("SLURM_LOCALID"), world // nodes, "slurm")
    return Place()


# ---- which run: rank 0 tells the others


def announce(here: Place, runs_dir: Path, path: str) -> None:
    """Rank 0 of an external launcher: the run directory, or "" where there is none (the others then leave, too)."""
    if here.launcher == "torchrun":
        _store().set(_key(), path)
    elif here.launcher == "slurm":
        write_bytes(_file(runs_dir), path.encode())


def learn(here: Place, runs_dir: Path) -> Path:
    """The other ranks: the run directory that rank 0 has announced.

    Raises:
        ConfigError: it did not within WAIT_S, or the folder cannot be seen from here.
        SystemExit: rank 0 has refused the command, and has said why.
    """
    text: str | None = None
    if here.launcher == "torchrun":
        from datetime import timedelta

        store = _store()
        try:
            store.wait([_key()], timedelta(seconds=WAIT_S))
            text = store.get(_key()).decode()
        except Exception as error:
            raise ConfigError(f"rank {here.rank}: rank 0 did not say which run it is: {error}") from error
    else:
        deadline = time.monotonic() + WAIT_S
        while text is None:
            if _file(runs_dir).is_file():
                text = _file(runs_dir).read_text(encoding="utf-8")
            elif time.monotonic() > deadline:
                raise ConfigError(
                    f"rank {here.rank}: rank 0 did not say in {WAIT_S:.0f} s which run it is: is {runs_dir} on a file "
                    "system that all nodes share?"
                )
            else:
                time.sleep(0.2)
    if not text:
        raise SystemExit(ConfigError.exit_code)
    if not (Path(text) / "config.yaml").is_file():
        raise ConfigError(f"rank {here.rank} cannot see {text}: put runs_dir on a file system that all nodes share.")
    return Path(text)


def forget(here: Place, runs_dir: Path) -> None:
    """Rank 0, at the end: takes the announcement back, where it is a file."""
    if here.launcher == "slurm":
        _file(runs_dir).unlink(missing_ok=True)


def _key() -> str:
    return f"genlab/run/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _store() -> Any:
    """The store that torchrun's agent keeps for the whole job."""
    from torch.distributed import TCPStore

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def _file(runs_dir: Path) -> Path:
    parts = [os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    return runs_dir / f".slurm-{'-'.join(parts)}"


# ---- workers


def start_workers(task: str, target: Path, ranks: int, here: Place, pass_fds: Sequence[int] = ()) -> Workers:
    """Starts `python -m genlab.cli.worker TASK TARGET` once a rank; under an external launcher once, for this rank.

    Args:
        task: "train" (target: the run directory), "evaluate" or "sample" (target: a folder with config.yaml).
        ranks: how many; ignored under an external launcher.
        pass_fds: descriptors that the workers inherit.
    """
    count, port = (1, 0) if here.external else (ranks, free_port() if ranks > 1 else 0)
    workers = Workers(target, here.rank)
    try:
        temporary = workers.leftovers.enter_context(temporary_folder())
        locks = {"GENLAB_LOCKS": ",".join(map(str, pass_fds))}
        for rank in range(count):
            variables = _inherited() if here.external else worker_environment(rank, ranks, port)
            with held_back():
                worker = subprocess.Popen(
                    [sys.executable, "-m", "genlab.cli.worker", task, str(target)],
                    env={**variables, **temporary, **locks},
                    pass_fds=tuple(pass_fds),
                    start_new_session=True,  # a Ctrl-C reaches the workers once, through `Workers.forward`
                )
            workers.processes.append(worker)
    except BaseException:
        workers.end()
        raise
    return workers


class Workers:
    """Running workers; as a context, signals are passed on to them, and none outlives it.

    Args:
        target: the folder they work on, with their reports and pulses in `ranks/`.
        first: rank of the first of them.
    """

    def __init__(self, target: Path, first: int) -> None:
        self.target, self.first = target, first
        self.processes: list[subprocess.Popen[bytes]] = []
        self.code = 0
        self.message: str | None = None  # why it failed, where a worker has not said so itself
        self.own = False  # whether that is rank 0's own report
        self.signalled = False  # whether a signal has come
        self.leftovers = contextlib.ExitStack()  # what goes when they have ended
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Workers:
        for number in caught(STOPPING):
            self._previous[number] = signal.signal(number, self.forward)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def forward(self, number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        self.signalled = True
        for worker in self.processes:
            if worker.poll() is None:
                worker.send_signal(number)

    def end(self) -> None:
        """Kills those that are there still, and removes what they leave outside `target`."""
        for worker in self.processes:
            if worker.poll() is None:
                worker.kill()
        for worker in self.processes:
            worker.wait()
        self.leftovers.close()

    def wait(self, grace_s: float = 20.0, idle_grace_s: float = 4.0) -> int:
        """Until all have ended; after one has left on a signal, the others have `grace_s` seconds to save.

        After a failure, and where they have not begun their work, they have `idle_grace_s`, as there is nothing to
        save: they may wait for a rank that has gone, in a library's own code, where no Python handler of a signal runs.

        Prints one line that names the cause, where several workers ran; a single one prints its own.

        Returns:
            0, or the exit code of the one that failed first (1 where a signal killed it).
        """
        failed: float | None = None
        while any(worker.poll() is None for worker in self.processes):
            if failed is None and any(worker.poll() for worker in self.processes):
                failed = time.monotonic()
                time.sleep(0.5)  # one that fell with it has its report by then
                self._judge()
                for worker in self.processes:
                    if worker.poll() is None:
                        worker.terminate()
            if failed is not None:
                waited = time.monotonic() - failed
                for rank, worker in enumerate(self.processes, self.first):
                    saving = self.code in (130, 143) and begun(self.target, rank)
                    late = waited > (grace_s if saving else idle_grace_s)
                    if late and worker.poll() is None:
                        worker.kill()
            time.sleep(0.1)
        if failed is None and any(worker.poll() for worker in self.processes):
            self._judge()
        return self.code

    def _judge(self) -> None:
        """Which of the workers that have ended badly is the cause, and what to say of it."""
        ended = {self.first + i: w.poll() for i, w in enumerate(self.processes) if w.poll()}
        reports = {rank: read_json(self.target / "ranks" / f"{rank}.json") for rank in ended}
        killed = [rank for rank, code in ended.items() if code and code < 0]
        behind, words = stalled(self.target)
        told = [rank for rank in ended if reports[rank]]
        outcome = "error"
        if behind and not set(behind) & set(told):
            self.message, self.code = words, 1
        elif killed and (len(self.processes) > 1 or not told):
            rank = killed[0]
            number = -(ended[rank] or 0)
            self.message, self.code = f"rank {rank} was killed by signal {number} ({signal.Signals(number).name})", 1
            if number == signal.SIGKILL:
                self.message += "; if nobody did that, the machine ran out of memory: lower data.batch_size"
        else:
            rank = min(told, key=lambda r: reports[r]["time"], default=min(ended))
            self.code = ended[rank] or 1
            if len(self.processes) == 1 or not told:
                return  # it has spoken for itself
            outcome = reports[rank]["outcome"]
            self.message = (f"rank {rank}: " if rank and outcome == "error" else "") + reports[rank]["message"]
            self.own = rank == 0
        say(f"genlab: {outcome}: {self.message}")


def _inherited() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "GENLAB_ALLOW": ",".join(user_packages())}


def worker_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables by which a worker, and Lightning in it, knows its rank."""
    variables = {**_inherited(), OWN: "1"}
    counts = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    for name in counts:
        variables.pop(name, None)
    if ranks > 1:
        variables |= {name: str(count) for name, count in counts.items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return variables


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
