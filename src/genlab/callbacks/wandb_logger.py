"""W&B as a view of metrics.jsonl."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from genlab.files import read_json

INIT_S, FINISH_S = 20.0, 25.0  # how long W&B may keep a run waiting at its start and at its end


class RunWandbLogger(WandbLogger):
    """Online where the user is logged in, otherwise offline in the run directory, with one line that says so.

    The W&B run has the id of the run directory, so a resumed run goes on in the same one; every value stands against
    samples. Jobs of a sweep share a group. A server that does not answer costs some seconds and a warning: the run goes
    on offline, and metrics.jsonl holds every row in any case.

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
        os.environ.setdefault("WANDB_SILENT", "true")
        run = Path(save_dir)
        self.environment: dict[str, Any] = read_json(run / "environment.json") or {}
        if not _logged_in():
            self._say_offline(run)
            kwargs["mode"] = "offline"  # not Lightning's offline=True: its "dryrun" still asks for a key
        super().__init__(
            name=run.name, id=run.name, save_dir=save_dir, project=project, resume="allow", job_type=job_type,
            group=group or self.environment.get("sweep"), settings=_settings(), **kwargs,
        )  # fmt: skip

    def _say_offline(self, run: Path) -> None:
        where = f"{run}/wandb/offline-run-*"
        print(f"W&B: offline; send it later with: wandb sync {where}", file=sys.stderr, flush=True)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        # Not wandb's own step, which must never go back: a resumed run writes some samples again.
        self.experiment.log(dict(metrics) if step is None else {**metrics, "samples": step})

    @property
    def experiment(self) -> Any:
        if self._experiment is not None:
            return super().experiment
        try:
            experiment = super().experiment
        except Exception as error:  # no answer, a wrong key, no such entity: it must not cost the run
            _complain(error)
            self._say_offline(Path(str(self._save_dir)))
            self._wandb_init["mode"] = "offline"
            wandb.teardown()  # its service still holds the run's id
            experiment = super().experiment
        experiment.define_metric("samples")
        experiment.define_metric("*", step_metric="samples")
        experiment.config.update({"code": self.environment.get("code", {})}, allow_val_change=True)
        return experiment

    def close(self) -> None:
        """Ends the W&B run. Not in `finalize`, which Lightning calls before the final evaluation."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None


def _settings() -> Any:
    """Short waits: a dead server must not hold a run that is done."""
    return wandb.Settings(
        init_timeout=INIT_S,
        finish_timeout=FINISH_S,
        x_graphql_retry_wait_max_seconds=5,
        x_file_stream_retry_wait_max_seconds=5,
    )


def _logged_in() -> bool:
    """Whether the user has a key that the server takes, now."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    try:
        return wandb.login(prompt=False)  # asks the server about the key
    except Exception as error:  # no answer, a wrong key
        _complain(error)
        return False


def _complain(error: Exception) -> None:
    warnings.warn(f"W&B: {' '.join(str(error).split())[:200] or type(error).__name__}")
