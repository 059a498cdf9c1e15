"""Sweeps: every job is checked before the first one starts, and a table at the end says what became of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from genlab.cli.problem import Problem, say
from genlab.cli.redact import redact
from genlab.errors import GenlabError
from genlab.files import write_bytes


class Outcome(float):
    """What a job of a sweep returns: the value that it was measured by, with the run that has it.

    Attributes:
        run: path of the run directory.
        pruned: whether a search ended the run early.
    """

    run: str
    pruned: bool

    @classmethod
    def of(cls, value: float | None, run: str, pruned: bool = False) -> Outcome:
        """NaN stands for no value."""
        made = cls(math.nan if value is None else value)
        made.run, made.pruned = run, pruned
        return made


class JobFailed(GenlabError):
    """A run, perhaps one of a sweep, that ended with `exit_code` other than 0, after it has said why.

    Args:
        exit_code: of the run.
        run: path of the run directory.
    """

    def __init__(self, exit_code: int, run: str = "") -> None:
        super().__init__(exit_code, run)  # the arguments, so that it can come back from another process
        self.exit_code, self.run = exit_code, run


class CheckedLauncher(Launcher):
    """Any launcher, with `check` called on each job's configuration before the first starts."""

    def __init__(
        self,
        launcher: Launcher,
        check: Callable[[DictConfig], None],
        *,
        hydra_context: HydraContext,
        task_function: TaskFunction,
        config: DictConfig,
    ) -> None:
        self.launcher, self.check = launcher, check
        self.loader, self.config = hydra_context.config_loader, config
        self.report = True  # a table after each launch

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        try:
            for i, overrides in enumerate(job_overrides):
                config = self.loader.load_sweep_config(self.config, list(overrides))
                try:
                    self.check(config)
                except Problem as problem:
                    problem.where = f"job {initial_job_idx + i}: {' '.join(filter_overrides(overrides))}"
                    raise
        except Exception:  # whatever it is goes on, but the files of a sweep that has not begun do not stay
            if initial_job_idx == 0:
                self._leave_nothing()
            raise
        if initial_job_idx == 0:
            self._hide_secrets()
        returned = self.launcher.launch(job_overrides, initial_job_idx)
        if self.report:
            say(redact(table(job_overrides, returned, initial_job_idx)))
        return returned

    def _hide_secrets(self) -> None:
        """In the multirun.yaml that Hydra has written with the command line."""
        path = Path(self.config.hydra.sweep.dir) / "multirun.yaml"
        if path.is_file():
            plain = redact(yaml.safe_load(path.read_text(encoding="utf-8")))
            write_bytes(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())

    def _leave_nothing(self) -> None:
        """Removes the multirun.yaml that Hydra wrote before asking, and the folders that are empty without it."""
        folder = Path(self.config.hydra.sweep.dir)
        (folder / "multirun.yaml").unlink(missing_ok=True)
        for empty in (folder, folder.parent, folder.parent.parent):
            try:
                empty.rmdir()
            except OSError:  # something else is in it: it stays, and so do those above
                return


def table(job_overrides: Sequence[Sequence[str]], returned: Sequence[JobReturn], first: int) -> str:
    """One line a job: number, status, value, run, and the overrides that are not the same for all."""
    lines = ["job  status     value       run                                      overrides"]
    given = [filter_overrides(overrides) for overrides in job_overrides]
    common = set(given[0]).intersection(*given[1:]) if len(given) > 1 else set()
    for i, (overrides, job) in enumerate(zip(given, returned, strict=True)):
        result: Any = job._return_value  # the property raises for a failed job
        done = job.status == JobStatus.COMPLETED
        status = "finished" if done else f"exit {getattr(result, 'exit_code', 1)}"
        value = f"{result:.6g}" if done and isinstance(result, int | float) and not math.isnan(result) else "-"
        run = Path(getattr(result, "run", "") or "-").name
        words = " ".join(word for word in overrides if word not in common)
        lines.append(f"{first + i:<4} {status:<10} {value:<11} {run:<40} {words}")
    return "\n".join(lines)
