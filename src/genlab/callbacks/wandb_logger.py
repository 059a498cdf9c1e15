"""W&B as a view of metrics.jsonl."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from genlab.callbacks.wandb_files import Mark, mend, read_mark, write_mark
from genlab.errors import ConfigError
from genlab.files import read_json
from genlab.runs.directory import config_hash
from genlab.runs.keys import SEEDS
from genlab.runs.metrics import read_rows

# How long W&B may keep a run waiting, in seconds: for one answer, for wandb.init, for run.finish. A server that hangs
# costs ASK + INIT at the start, or ASK (a table asks the server) + FINISH when it dies later: below 30 either way.
ASK_S, INIT_S, FINISH_S = 5, 10, 12

# Read by wandb when it is imported. Its telemetry would hold the exit for 20 s where the server hangs.
os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(ASK_S))
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("WANDB_SILENT", "true")

import wandb  # noqa: E402


class RunWandbLogger(WandbLogger):
    """Online where the user is logged in, otherwise offline in the run directory, with one line that says so.

    The W&B run has the id of the run directory, so a resumed run goes on in the same one; every value stands against
    samples. Jobs of a sweep share a group; runs that differ only in their seed share the config value `seedless`. A
    server that does not answer costs some seconds and a line; metrics.jsonl holds every row in any case.

    Each row of metrics.jsonl is sent once, however often the run is killed. A resume truncates metrics.jsonl to its
    checkpoint and writes the rows after it again, while W&B takes nothing back (its rewind is a feature of some servers
    only) and appends what a resumed run sends, online as in `wandb sync`. So the logger follows the file, not the
    calls: what W&B lacks of the file is sent, what it has is not (an exact resume gives the same values again).

    Args:
        save_dir: the run directory.
        project: W&B project.
        group: of the W&B run; None: the sweep, if there is one.
        job_type: of the W&B run.
        kwargs: further arguments of wandb.init (entity, tags, notes, ...).
    """

    def __init__(
        self, save_dir: str, project: str = "genlab", group: str | None = None, job_type: str = "train", **kwargs: Any
    ) -> None:
        self.run = Path(save_dir)
        self.environment: dict[str, Any] = read_json(self.run / "environment.json") or {}
        self.mark, self.offset = Mark(), 0
        self.no_tables: Exception | None = None
        mode, problem = kwargs.pop("mode", None) or os.environ.get("WANDB_MODE", "online"), None
        if mode not in ("online", "offline", "disabled", "dryrun"):  # the last is W&B's old name of offline
            raise ConfigError(f"logger.wandb.mode={mode}: choose online, offline or disabled")
        if mode == "online":
            try:
                if not wandb.login(prompt=False):  # asks the server about the key, where there is one
                    mode = "offline"
            except Exception as error:  # no answer, a wrong key
                mode, problem = "offline", error
        self.mode = "disabled" if mode == "disabled" else "online" if mode == "online" else "offline"
        if self.mode == "offline":
            self._say_offline(problem)
        own: dict[str, Any] = {"name": self.run.name, "resume": "allow", "settings": _settings(), **kwargs}
        super().__init__(
            id=self.run.name, save_dir=save_dir, project=project, job_type=job_type,
            group=group or self.environment.get("sweep"), **own,
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # Lightning's; wandb warns of it

    def _say_offline(self, problem: Exception | None) -> None:
        where = f"{self.run}/wandb/offline-run-*"
        _say(f"offline{f' ({_short(problem)})' if problem else ''}; send it later with: wandb sync {where}")

    # ---- the W&B run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run. What goes wrong with it must not cost the run: it is then offline, or not there."""
        while self._experiment is None:
            try:
                self._experiment = wandb.init(mode=self.mode, **self._wandb_init)  # type: ignore[arg-type]
            except Exception as error:
                wandb.teardown()  # its service still holds the run's id
                if self.mode == "online":
                    self.mode = "offline"
                    self._say_offline(error)
                elif self.mode == "offline":
                    self.mode = "disabled"
                    _say(f"not used ({_short(error)})")
                else:
                    raise
            else:
                self._begin(self._experiment)
        return self._experiment

    def _begin(self, experiment: Any) -> None:
        experiment.define_metric("samples")
        experiment.define_metric("*", step_metric="samples")
        environment = dict(self.environment)
        facts = {"code": environment.pop("code", {}), "environment": environment}
        experiment.config.update(facts, allow_val_change=True)
        mend(self.run / "wandb", Path(experiment.dir).parent)
        self.mark = read_mark(self.run / "wandb", experiment.starting_step if self.mode == "online" else None)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The configuration, and in `seedless` its hash without the seed, by which W&B groups runs of several seeds."""
        super().log_hyperparams(params)
        seedless = config_hash(params, (*SEEDS, "name"))
        self.experiment.config.update({"seedless": seedless}, allow_val_change=True)

    @rank_zero_only
    def end_run(self, code: int = 0) -> None:
        """Ends the W&B run. Not in `finalize`, which Lightning calls before the final evaluation.

        Args:
            code: exit code of the run, as in genlab.errors: what W&B marks the run with.
        """
        experiment, self._experiment = self._experiment, None
        if experiment is None:
            return
        try:
            last: dict[str, Any] = {}  # of the whole run: W&B's own summary is of what this session has sent
            for row in read_rows(self.run / "metrics.jsonl"):
                last.update({key: value for key, value in row.items() if key != "time" and value is not None})
            experiment.summary.update(last)
            if code in (130, 143):
                experiment.mark_preempting()
            experiment.finish(exit_code=code)
            if self.mode != "disabled":
                write_mark(self.run / "wandb", self.mark)
            if self.no_tables is not None:
                _say(f"the later texts are only in {self.run}/samples ({_short(self.no_tables)})")
        except Exception as error:  # the server has died
            files = f"{self.run}/wandb/run-*"
            _say(
                f"not all has been sent ({_short(error)}); metrics.jsonl is whole; send the rest with: "
                f"wandb sync --include-online {files}"
            )
            wandb.teardown()

    # ---- rows

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """A row of the recorder is taken from metrics.jsonl, with those before it that W&B lacks; others as they are.

        `step` is never W&B's own step, which must not go back. With media (what Lightning's log_image, log_audio,
        log_video and log_table hand on) it is samples; with values it may be what Lightning counts, batches.
        """
        path = self.run / "metrics.jsonl"
        experiment = self.experiment  # made first: it reads the mark
        if step is not None and any(isinstance(value, list | wandb.Table) for value in metrics.values()):
            self._send({**metrics, "samples": step})
        elif "samples" not in metrics or not path.exists():
            experiment.log(dict(metrics))
        else:
            with open(path, "rb") as file:
                file.seek(self.offset)
                lines = file.readlines()
                self.offset = file.tell()
            for row in map(json.loads, lines):
                self._send({k: float("nan") if value is None else value for k, value in row.items() if k != "time"})

    def _send(self, row: dict[str, Any]) -> None:
        """What W&B has of it already is not sent again."""
        if not self.mark.has(row):
            self.experiment.log(row)
            self.mark = self.mark.after(row)

    @rank_zero_only
    def log_table(self, key: str, *args: Any, **kwargs: Any) -> None:
        """As Lightning's. Online it waits for the server, so the first failure is the last."""
        if self.no_tables is not None:
            return
        try:
            super().log_table(key, *args, **kwargs)
        except Exception as error:  # what it raises depends on what does not answer; `end_run` says it
            self.no_tables = error


def _settings() -> Any:
    return wandb.Settings(
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        finish_timeout_raises=True,
        x_graphql_retry_wait_max_seconds=5,
        x_file_stream_retry_wait_max_seconds=5,
        x_transaction_log_flush_interval=1.0,  # what a kill can lose of the file, in seconds
    )


def _say(text: str) -> None:
    print(f"W&B: {text}", file=sys.stderr, flush=True)


def _short(error: Exception | None) -> str:
    if "respond in time" in str(error):  # wandb says that its own process is busy
        return f"no answer within {ASK_S} s"
    return " ".join(str(error).split())[:200] or type(error).__name__
