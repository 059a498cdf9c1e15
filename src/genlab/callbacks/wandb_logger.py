"""W&B as a view of metrics.jsonl."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger


class RunWandbLogger(WandbLogger):
    """Online where the user is logged in, otherwise offline in the run directory, with one line that says so.

    The W&B run has the id of the run directory, so a resumed run goes on in the same one; every value stands against
    samples.

    Args:
        save_dir: the run directory.
        project: W&B project.
        kwargs: further arguments of wandb.init (entity, group, tags, notes, ...).
    """

    def __init__(self, save_dir: str, project: str = "genlab", **kwargs: Any) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        run, online = Path(save_dir).name, _logged_in()
        if not online:
            where = Path(save_dir) / "wandb"
            print(f"W&B: offline; send it later with: wandb sync {where}/offline-run-*", file=sys.stderr, flush=True)
            kwargs["mode"] = "offline"  # not Lightning's offline=True: its "dryrun" still asks for a key
        super().__init__(name=run, id=run, save_dir=save_dir, project=project, resume="allow", **kwargs)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        # Not wandb's own step, which must never go back: a resumed run writes some samples again.
        self.experiment.log(dict(metrics) if step is None else {**metrics, "samples": step})

    @property
    def experiment(self) -> Any:
        fresh = self._experiment is None
        experiment = super().experiment
        if fresh:
            experiment.define_metric("samples")
            experiment.define_metric("*", step_metric="samples")
        return experiment

    def close(self) -> None:
        """Ends the W&B run. Not in `finalize`, which Lightning calls before the final evaluation."""
        if self._experiment is not None:
            self._experiment.finish()


def _logged_in() -> bool:
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    import wandb

    return wandb.login(prompt=False)
