"""What train.py calls: find or make the run directory, start one worker a rank, wait, pass on the outcome.

Free of torch.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from genlab.cli.check import check
from genlab.cli.problem import say
from genlab.cli.ranks import Place, announce, forget, learn, place, start_workers
from genlab.cli.redact import redact
from genlab.cli.stored import literal, load_yaml
from genlab.cli.sweep import JobFailed, Outcome
from genlab.errors import ConfigError, Preempted
from genlab.files import folder_or_cached, read_json, write_bytes, write_json
from genlab.runs.directory import RunDirectory, config_hash, create_run, find_run, find_unfinished
from genlab.runs.environment import environment
from genlab.runs.keys import CHANGEABLE


def train(config: DictConfig) -> Outcome | None:
    """Runs one training from a composed and checked configuration.

    Returns:
        The value of `callbacks.checkpoint.monitor`, for sweeps; None on ranks other than 0.

    Raises:
        ConfigError: the run asked for does not exist, is in use, or cannot be continued like this.
        JobFailed: with the worker's exit code where it is not 0; the worker has said why.
    """
    settings, here = HydraConfig.get(), place()
    config = with_debug(config, settings.runtime.choices, settings.overrides.task)
    runs_dir = Path(config.runs_dir)
    if config.resume in ("auto", "never"):
        fit_devices(config, here)
    if here.rank:
        with start_workers("train", learn(here, runs_dir), 1, here) as workers:
            leave(workers.wait())
        return None
    try:
        run, config = open_run(config)
        fit_devices(config, here)  # a run that goes on has its own configuration
        with run.lock() as lock:
            if run.left_by is not None and run.status().get("state") in ("starting", "running"):
                say_killed(run)
            write_bytes(run.config, OmegaConf.to_yaml(config, resolve=True).encode())
            write_json(run.path / "environment.json", redact({**environment(sys.orig_argv[1:]), **sweep()}))
            (run.path / "result.json").unlink(missing_ok=True)
            shutil.rmtree(run.path / "ranks", ignore_errors=True)  # reports and pulses of an earlier start
            (run.path / "ranks").mkdir()
            announce(here, runs_dir, str(run.path))
            with start_workers("train", run.path, count_ranks(config), here, [lock]) as workers:
                code = workers.wait()
            if workers.message and not workers.own and code not in (130, 143):  # then rank 0 has said it
                run.set_status("failed", message=workers.message, exit_code=code)
    except BaseException:
        announce(here, runs_dir, "")  # the others leave as well
        raise
    forget(here, runs_dir)
    leave(code, str(run.path))
    if workers.signalled and settings.mode == RunMode.MULTIRUN:
        raise Preempted("the run is finished; the sweep's other jobs were not begun")
    result = read_json(run.path / "result.json")
    if result is None:
        run.set_status("failed", message="the worker ended without a result")
        say(f"genlab: error: the worker ended without a result; see {run.path}")
        leave(1, str(run.path))
    return Outcome.of(result["value"], str(run.path), result.get("pruned", False))


def say_in_use(run: RunDirectory, holder: str) -> None:
    """One line on a run of the same configuration that another command works on."""
    say(f"{run.path} is in use by process {holder}; this command does not go on with it")


def say_killed(run: RunDirectory) -> None:
    """One line on the last session, whose lock says that it ended without a word."""
    samples = run.status().get("samples", 0)
    say(
        f"genlab: the last session of this run (process {run.left_by}) ended without saying why, saved at {samples:,} "
        "samples: it was killed, or the machine went down. If nobody did that, memory ran out: `dmesg` tells, and "
        "a lower data.batch_size helps."
    )


def leave(code: int, run: str = "") -> None:
    """Ends the command with a worker's exit code where it is not 0; the cause has been printed."""
    if code:
        raise JobFailed(code, run)


def fit_devices(config: DictConfig, here: Place) -> None:
    """Under torchrun or srun, devices and nodes are what it has started.

    Raises:
        ConfigError: the configuration names others, or the batch cannot be shared among so many.
    """
    if not here.external:
        return
    wanted = {"devices": here.local_world, "num_nodes": here.world // here.local_world}
    for key, value in wanted.items():
        if config.trainer[key] not in (1, "auto", value):
            raise ConfigError(
                f"trainer.{key}={config.trainer[key]}, but {here.launcher} has started {value}: leave it out."
            )
        config.trainer[key] = value
    share = here.world * config.trainer.accumulate_grad_batches
    if config.data.batch_size % share:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} must be a multiple of the {here.world} processes x "
            f"trainer.accumulate_grad_batches = {share}."
        )


def sweep() -> dict[str, str]:
    """The sweep that this job belongs to, by its folder's name, so that a sweep's runs can be found again."""
    settings = HydraConfig.get()
    return {"sweep": Path(settings.sweep.dir).name} if settings.mode == RunMode.MULTIRUN else {}


def with_debug(config: DictConfig, choices: Mapping[str, Any], given: Sequence[str] = ()) -> DictConfig:
    """The configuration, with its `debug` node laid over it where trainer=debug was chosen, and without that node.

    Keys `given` on the command line (as overrides) stay as they were given.
    """
    debug = config.get("debug") if choices["trainer"] == "debug" else None
    changes: Any = OmegaConf.to_container(debug or OmegaConf.create())
    for override in given:
        *path, last = override.lstrip("+").partition("=")[0].split(".")
        node = changes
        for name in path:
            node = node.get(name) or {}
        if not isinstance(node.get(last), dict):  # data=mnist chooses a group: its fields were not given
            node.pop(last, None)
    changes = {key: change for key, change in changes.items() if config.get(key) is not None}  # evaluation=none
    merged = OmegaConf.merge(config, changes)
    assert isinstance(merged, DictConfig)
    OmegaConf.set_struct(merged, False)
    merged.pop("debug", None)
    return merged


def open_run(config: DictConfig) -> tuple[RunDirectory, DictConfig]:
    """The run directory to work in, and the configuration that holds for it."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("hydra", None)
    runs_dir, resume = Path(plain["runs_dir"]), plain["resume"]
    if plain["init_from"] is not None:
        plain["init_from"] = str(find_run(plain["init_from"], runs_dir).path)
    pin_runs([plain["model"], plain.get("adapter"), plain.get("feedback")], runs_dir)
    digest = config_hash(plain)
    if resume not in ("auto", "never"):
        return continue_run(find_run(resume, runs_dir), plain)
    run = find_unfinished(runs_dir, digest, say_in_use) if resume == "auto" else None
    if run is None:
        run = create_run(runs_dir, plain["name"], digest)
        say(f"run {run.path}")
    else:
        say(f"continues {run.path} from {run.status().get('samples', 0):,} samples (resume=never starts anew)")
    return run, OmegaConf.create(literal(plain))


def pin_runs(node: Any, runs_dir: Path) -> None:
    """Puts the paths of runs in the place of their names, in the frozen parts of a model: "the newest run of that name"
    must mean the same tomorrow. What is a folder, or a name of the cache, stays."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        pin_runs(child, runs_dir)
    kinds = {
        "genlab.parts.FrozenPart": "path", "genlab.networks.adapter.Adapter": "base",
        "genlab.rewards.learned.LearnedReward": "path", "genlab.dual_judge.DualJudge": "path",
    }  # fmt: skip
    key = kinds.get(str(node.get("_target_"))) if isinstance(node, dict) else None
    if key is not None and node.get(key) is not None:
        with contextlib.suppress(ConfigError):  # what is not there is told when the model is built
            if not folder_or_cached(node[key]).exists():
                node[key] = str(find_run(node[key], runs_dir).path)


def continue_run(run: RunDirectory, composed: Mapping[str, Any]) -> tuple[RunDirectory, DictConfig]:
    """A run's own configuration with the command line's changes to what may change.

    Args:
        composed: the configuration as the command line alone would have it, for groups that are chosen anew.

    Raises:
        ConfigError: a change of something else, or a finished run that is not extended.
    """
    config = load_yaml(run.config)
    given = OmegaConf.create(literal(dict(composed)))
    for override in HydraConfig.get().overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        if key in ("resume", "runs_dir"):
            continue
        if f"{key}." in CHANGEABLE:  # another option of the group
            config[key] = given[key]
            continue
        if not key.startswith(CHANGEABLE):
            raise ConfigError(
                f"{key} cannot change when a run goes on ({run.path.name}). Start a new run, with init_from=RUN "
                "for its weights; keys of schedule, trainer and callbacks can change."
            )
        OmegaConf.update(config, key, OmegaConf.select(given, key), force_add=True)
    check(config, "train")
    status = run.status()
    if status.get("state") == "finished" and config.schedule.max_samples <= status.get("samples", 0):
        raise ConfigError(
            f"run {run.path.name} is finished at {status['samples']:,} samples; extend it with a larger "
            "schedule.max_samples."
        )
    say(f"continues {run.path} from {status.get('samples', 0):,} samples")
    return run, config


def count_ranks(config: DictConfig) -> int:
    """trainer.devices as a number of processes on this machine."""
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: start train.py on each node with torchrun or srun, see "
            "docs/devices.md; it then finds out the number of nodes itself."
        )
    devices = config.trainer.devices
    if isinstance(devices, int) and devices >= 1:
        return devices
    if not isinstance(devices, int | str) and len(devices):
        return len(devices)
    raise ConfigError(f"trainer.devices={devices}: expected a number >= 1 or a list of device indexes.")
