"""One rank of a run: `python -m genlab.cli.worker RUN`, started from RUN/config.yaml and nothing else."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

PR_SET_PDEATHSIG = 1


def main(path: str) -> int:
    """Trains the run in `path`.

    Returns the exit code of genlab.errors; prints one line for an expected error, a traceback for any other.
    """
    _die_with_parent()
    from genlab.errors import GenlabError
    from genlab.runs.directory import RunDirectory

    run = RunDirectory(Path(path))
    rank = int(os.environ.get("NODE_RANK", "0")) * 10**6 + int(os.environ.get("LOCAL_RANK", "0"))
    try:
        from genlab.cli.session import train_session

        _quieten()  # after Lightning's import, which sets its own level
        train_session(run)
        return 0
    except GenlabError as error:
        state = {130: "interrupted", 143: "preempted"}.get(error.exit_code, "failed")
        message, code = str(error), error.exit_code
        label = state if state != "failed" else "error"
    except KeyboardInterrupt:
        state, message, code, label = "interrupted", "stopped before training began", 130, "interrupted"
    except Exception as error:
        traceback.print_exc()
        state, code, label = "failed", 1, "error"
        message = f"{type(error).__name__}: {error}".split("\n")[0]
    if rank == 0:
        run.set_status(state, message=message, exit_code=code)  # type: ignore[arg-type]
        print(f"genlab: {label}: {message}", file=sys.stderr, flush=True)
    return code


def _die_with_parent() -> None:
    """Asks the kernel to kill this process when the one that started it dies: no orphans, whatever happens."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _quieten() -> None:
    """Leaves out what says nothing to a user of GenLab: Lightning's tips, warnings about choices made on purpose."""
    import logging

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*you defined a `validation_step` but have no `val_dataloader`.*",
        ".*GPU available but not used.*",
        ".*The number of training batches.*",
        ".*isinstance.*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
