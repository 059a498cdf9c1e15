"""What train.py calls: find or make the run directory, start one worker a rank, wait, pass on the outcome.

Free of torch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab.cli.check import check
from genlab.cli.redact import redact
from genlab.errors import ConfigError
from genlab.runs.directory import (
    RunDirectory,
    config_hash,
    create_run,
    find_run,
    find_unfinished,
    read_json,
    write_json,
)
from genlab.runs.environment import environment

# What may be changed when a run goes on: how long, where, and what is watched. Anything else is another run.
CHANGEABLE = ("schedule.", "trainer.", "callbacks.", "logger.", "evaluation.", "data.num_workers", "data.resident_max",
              "compile", "threads")  # fmt: skip


def train(config: DictConfig) -> float | None:
    """Runs one training from a composed and checked configuration.

    Returns:
        The value of `callbacks.checkpoint.monitor`, for sweeps.

    Raises:
        ConfigError: the run asked for does not exist, is in use, or cannot be continued like this.
        SystemExit: with the worker's exit code where it is not 0; the worker has said why.
    """
    run, config = open_run(with_debug(config, HydraConfig.get().runtime.choices))
    with run.lock() as lock:
        OmegaConf.save(config, run.config)
        write_json(run.path / "environment.json", {**environment(sys.orig_argv[1:]), **sweep()})
        (run.path / "result.json").unlink(missing_ok=True)
        code = launch(run, config, lock)
    if code:
        raise SystemExit(code)
    result = read_json(run.path / "result.json")
    if result is None:
        run.set_status("failed", message="the worker ended without a result")
        print(f"genlab: error: the worker ended without a result; see {run.path}", file=sys.stderr)
        raise SystemExit(1)
    return result["value"]


def sweep() -> dict[str, str]:
    """The sweep that this job belongs to, by its folder's name, so that a sweep's runs can be found again."""
    settings = HydraConfig.get()
    return {"sweep": Path(settings.sweep.dir).name} if settings.mode == RunMode.MULTIRUN else {}


def with_debug(config: DictConfig, choices: Mapping[str, Any]) -> DictConfig:
    """The configuration, with its `debug` node laid over it where trainer=debug was chosen, and without that node."""
    changes = config.get("debug") if choices["trainer"] == "debug" else None
    merged = OmegaConf.merge(config, changes or {})
    assert isinstance(merged, DictConfig)
    OmegaConf.set_struct(merged, False)
    merged.pop("debug", None)
    return merged


def open_run(config: DictConfig) -> tuple[RunDirectory, DictConfig]:
    """The run directory to work in, and the configuration that holds for it."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("hydra", None)
    plain = redact(plain)
    runs_dir, resume = Path(plain["runs_dir"]), plain["resume"]
    if plain["init_from"] is not None:
        plain["init_from"] = str(find_run(plain["init_from"], runs_dir).path)
    digest = config_hash(plain)
    if resume not in ("auto", "never"):
        return continue_run(find_run(resume, runs_dir))
    run = find_unfinished(runs_dir, digest) if resume == "auto" else None
    if run is not None:
        samples = run.status().get("samples", 0)
        print(f"continues {run.path} from {samples:,} samples (resume=never starts anew)", file=sys.stderr, flush=True)
        return run, OmegaConf.create(plain)
    run = create_run(runs_dir, plain["name"], digest)
    print(f"run {run.path}", file=sys.stderr, flush=True)
    return run, OmegaConf.create(plain)


def continue_run(run: RunDirectory) -> tuple[RunDirectory, DictConfig]:
    """A run's own configuration with the command line's changes to what may change.

    Raises:
        ConfigError: a change of something else, or a finished run that is not extended.
    """
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    for override in HydraConfig.get().overrides.task:
        key, _, value = override.lstrip("+~").partition("=")
        if key in ("resume", "runs_dir"):
            continue
        if not key.startswith(CHANGEABLE):
            raise ConfigError(
                f"{key} cannot change when a run goes on ({run.path.name}). Start a new run, with init_from=RUN "
                "for its weights; keys of schedule, trainer and callbacks can change."
            )
        OmegaConf.update(config, key, yaml.safe_load(value), force_add=True)
    check(config, "train")
    status = run.status()
    if status.get("state") == "finished" and config.schedule.max_samples <= status.get("samples", 0):
        raise ConfigError(
            f"run {run.path.name} is finished at {status['samples']:,} samples; extend it with a larger "
            "schedule.max_samples."
        )
    print(f"continues {run.path} from {status.get('samples', 0):,} samples", file=sys.stderr, flush=True)
    return run, config


def launch(run: RunDirectory, config: DictConfig, lock: int) -> int:
    """Starts one worker a rank and waits for all; signals are passed on; if one fails the others are stopped.

    Returns:
        0, or the exit code of the first rank that failed.
    """
    ranks = count_ranks(config)
    port = free_port() if ranks > 1 else 0
    workers: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        for rank in range(ranks):
            workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "genlab.cli.worker", str(run.path)],
                    env=worker_environment(rank, ranks, port),
                    pass_fds=[lock],  # the run stays locked until the last worker is gone
                    start_new_session=True,  # a Ctrl-C reaches the workers once, through `forward`
                )
            )
        return wait(run, workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
        for number, handler in previous.items():
            signal.signal(number, handler)


def wait(run: RunDirectory, workers: Sequence[subprocess.Popen[bytes]], grace_s: float = 20.0) -> int:
    """Until all ranks have ended; after a failure the others have `grace_s` seconds before they are killed."""
    deadline, first = float("inf"), 0
    while True:
        codes = [worker.poll() for worker in workers]
        for rank, code in enumerate(codes):
            if code and not first:
                first, deadline = code, time.monotonic() + grace_s
                if code < 0:
                    message = f"rank {rank} was killed by signal {-code} ({signal.Signals(-code).name})"
                    if -code == signal.SIGKILL:
                        message += "; if nobody did that, the machine ran out of memory: lower data.batch_size"
                    print(f"genlab: error: {message}", file=sys.stderr, flush=True)
                    run.set_status("failed", message=message)
                for other in workers:
                    if other.poll() is None:
                        other.terminate()
        if all(code is not None for code in codes):
            return 1 if first < 0 else first
        if time.monotonic() > deadline:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
        time.sleep(0.2)


def count_ranks(config: DictConfig) -> int:
    """trainer.devices as a number of processes on this machine."""
    devices = config.trainer.devices
    if isinstance(devices, int) and devices >= 1:
        return devices
    if not isinstance(devices, int | str) and len(devices):
        return len(devices)
    raise ConfigError(f"trainer.devices={devices}: expected a number >= 1 or a list of device indexes.")


def worker_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables by which Lightning knows a rank."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if ranks > 1:
        variables |= {
            "LOCAL_RANK": str(rank),
            "NODE_RANK": variables.get("NODE_RANK", "0"),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    return variables


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
