"""Sampling and evaluation on several devices: one process a rank, as in training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from genlab.cli.ranks import Place, place, start_workers
from genlab.errors import ConfigError
from genlab.files import read_json, write_json
from genlab.runs.temporary import temporary_folder


def parallel(task: str, config: DictConfig) -> Any:
    """Does "sample" or "evaluate" on `config.devices` processes, or as the rank that torchrun or srun has started.

    Returns:
        What the task returns on rank 0; None on other ranks.

    Raises:
        SystemExit: with the exit code of the rank that failed; the cause has been printed.
    """
    here = place()
    if here.external or config.devices == 1:
        return run(task, config)
    with temporary_folder() as variables:
        folder = Path(variables["TMPDIR"])
        (folder / "ranks").mkdir()
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
        with start_workers(task, folder, config.devices, here) as workers:
            if code := workers.wait():
                raise SystemExit(code)
        return (read_json(folder / "result.json") or {}).get("value")


def run(task: str, config: Any, folder: Path | None = None) -> Any:
    """One rank's part; rank 0 leaves the result in `folder`/result.json."""
    from genlab.cli.evaluate import evaluate_run
    from genlab.cli.sample import sample

    here = place()
    with process_group(here, config, folder):
        value = {"evaluate": evaluate_run, "sample": sample}[task](config)
    if here.rank:
        return None
    if folder is not None:
        write_json(folder / "result.json", {"value": value if isinstance(value, float | int) else None})
    return value


@contextlib.contextmanager
def process_group(here: Place, config: Any, folder: Path | None) -> Iterator[None]:
    """torch.distributed among the ranks, NCCL on CUDA and gloo on CPUs, with signs of life in `folder`."""
    if here.world == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    from genlab.evaluation import sharding
    from genlab.runs.pulse import Pulse

    cuda = torch.cuda.is_available() and config.device in ("auto", "cuda")
    if cuda:
        if here.local >= torch.cuda.device_count():
            raise ConfigError(f"devices={here.local_world}, but there are {torch.cuda.device_count()} CUDA devices.")
        torch.cuda.set_device(here.local)
    if here.launcher == "slurm":
        from pytorch_lightning.plugins.environments import SLURMEnvironment

        environment = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
    timeout = timedelta(seconds=float(config.rank_timeout_s))
    dist.init_process_group("nccl" if cuda else "gloo", rank=here.rank, world_size=here.world, timeout=timeout)
    pulse = Pulse(folder, here.rank) if folder is not None else None
    if pulse is not None:
        sharding.on_wait = lambda: pulse.mark("had done its share")
    try:
        yield
    finally:
        sharding.on_wait = None
        dist.destroy_process_group()
