"""Hyper-parameter search by Optuna as a Hydra sweeper. Free of torch; Optuna is imported when a search starts.

Why not hydra-optuna-sweeper: its last version asks for an Optuna of 2021, and a search that is killed leaves trials
that are never finished. Here a search is its SQLite file: given again, the command goes on until the study has its
trials, and a trial that was cut short is given again with the same values, so its run continues.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from genlab.cli.problem import say
from genlab.errors import ConfigError


class Search(Sweeper):
    """Searches by Optuna.

    Args:
        storage: SQLite file of the study.
        study: name of the study in it.
        trials: finished trials that end the search.
        direction: "minimize" or "maximize" the value that a job returns (callbacks.checkpoint.monitor).
        sampler: "tpe" (Bergstra et al. 2011) or "random".
        seed: of the sampler.
        jobs: trials given to the launcher at a time.
        space: override -> Hydra's choice(...), range(...) or interval(...); tag(log, interval(a, b)) is logarithmic,
            tag(int, interval(a, b)) whole numbers. Sweeps on the command line are added.
        pruner: "none", "median" or "halving": ends trials that fall behind, by their validations; one trial at a time.

    Raises:
        ConfigError: an empty space, or a sweep that Optuna cannot draw from.
    """

    def __init__(
        self, storage: str, study: str, trials: int, direction: str, sampler: str, seed: int, jobs: int, space: Any,
        pruner: str = "none",
    ) -> None:  # fmt: skip
        self.storage, self.study, self.trials = Path(storage), study, trials
        self.direction: Any = direction
        self.pruner = pruner
        self.kind, self.seed, self.jobs, self.space = sampler, seed, jobs, dict(space or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.loader = config, hydra_context.config_loader
        launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        launcher.report = False  # the search says what has become of each trial
        self.launch = launcher.launch

    def sweep(self, arguments: list[str]) -> Any:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(f"hparams_search needs Optuna: pip install 'genlab[sweep]' ({error})") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fixed, space = self._read(arguments)
        samplers: dict[str, Any] = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        if self.kind not in samplers:
            raise ConfigError(f"hydra.sweeper.sampler={self.kind}: choose one of {', '.join(samplers)}")
        if self.pruner not in (pruners := ("none", "median", "halving")):
            raise ConfigError(f"hydra.sweeper.pruner={self.pruner}: choose one of {', '.join(pruners)}")
        if self.pruner != "none" and self.jobs > 1:  # a launcher's jobs share one environment, which names the trial
            raise ConfigError(f"hydra.sweeper.pruner={self.pruner} needs hydra.sweeper.jobs=1, is {self.jobs}")
        self.storage.parent.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{self.storage.absolute()}", study_name=self.study, direction=self.direction,
            sampler=samplers[self.kind](seed=self.seed), load_if_exists=True,
        )  # fmt: skip
        states = optuna.trial.TrialState
        for left in study.get_trials(states=[states.RUNNING]):  # by a search that was killed
            study.tell(left.number, state=states.FAIL)
            study.enqueue_trial(left.params)
        finished = len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
        say(f"search {self.study}: {finished} of {self.trials} trials in {self.storage}")
        returned: list[JobReturn] = []
        failed = 0
        while finished < self.trials:
            batch = [study.ask(space) for _ in range(min(self.jobs, self.trials - finished))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in batch]
            if self.pruner != "none":
                trial_of = {"storage": str(self.storage.absolute()), "study": self.study, "number": batch[0].number}
                os.environ["GENLAB_TRIAL"] = json.dumps({**trial_of, "pruner": self.pruner})
            for trial, job in zip(batch, self.launch(jobs, batch[0].number), strict=True):
                ended = self._tell(study, trial, job)
                finished, failed = finished + ended, failed + (not ended)
                returned.append(job)
            if failed > self.trials:
                raise ConfigError(f"search {self.study}: {failed} trials failed; see their messages above.")
        if not study.get_trials(states=[states.COMPLETE]):
            raise ConfigError(f"search {self.study}: all {finished} trials were pruned")
        best = study.best_trial
        say(f"best of {finished}: {best.value:.6g} by trial {best.number}: {values_of(best)}")
        return returned

    def _tell(self, study: Any, trial: Any, job: JobReturn) -> bool:
        """Tells the study what has become of a trial; whether the trial counts."""
        from optuna.trial import TrialState

        value: Any = job._return_value if job.status == JobStatus.COMPLETED else None
        if getattr(value, "pruned", False):  # its value is that of its last report
            study.tell(trial, state=TrialState.PRUNED)
            said = f"pruned at {value:.6g}"
        elif isinstance(value, int | float) and not math.isnan(value):
            study.tell(trial, float(value))
            said = f"{value:.6g}"
        else:
            study.tell(trial, state=TrialState.FAIL)
            said = "failed"
        run = Path(getattr(value, "run", "")).name
        say(f"trial {trial.number}: {said}  {values_of(trial)}  {run}".rstrip())
        return said != "failed"

    def _read(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Overrides that hold for every trial, and Optuna's distribution of each key that is searched."""
        parser = OverridesParser.create(config_loader=self.loader)
        searched = [f"{key}={value}" for key, value in self.space.items()]
        fixed: list[str] = []
        space: dict[str, Any] = {}
        for override in parser.parse_overrides([*searched, *arguments]):
            key = override.get_key_element()
            if override.is_sweep_override():
                space[key] = distribution(override)
            else:
                fixed.append(override.input_line or "")
                space.pop(key, None)  # given on the command line: not searched
        if not space:
            raise ConfigError(
                "hydra.sweeper.space is empty: say what is searched, e.g. optimizer.lr=interval(1e-4,1e-2)"
            )
        return fixed, space


def values_of(trial: Any) -> str:
    """What was drawn, as overrides."""
    return " ".join(f"{key}={value}" for key, value in trial.params.items())


def distribution(override: Override) -> Any:
    """Hydra's sweep -> Optuna's distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    tags: set[str] = getattr(sweep, "tags", set())
    if isinstance(sweep, IntervalSweep):
        low: Any = sweep.start
        high: Any = sweep.end
        if "int" in tags:
            return IntDistribution(int(low), int(high), log="log" in tags)
        return FloatDistribution(float(low), float(high), log="log" in tags)
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        choices: Any = list(override.sweep_iterator(transformer=Transformer.encode))
        return CategoricalDistribution(choices)
    raise ConfigError(f"{override.key_or_group}: Optuna searches choice(...), range(...) and interval(...) only")
