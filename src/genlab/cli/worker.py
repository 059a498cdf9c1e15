"""One rank of a job: `python -m genlab.cli.worker TASK FOLDER`, started from FOLDER/config.yaml and nothing else."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genlab.errors import GenlabError


def main(task: str, folder: str) -> int:
    """Does one rank's part of "train" (folder: the run), "evaluate" or "sample".

    Returns the exit code of genlab.errors. An expected error is one line, any other a traceback; where this is one of
    several workers that GenLab has started, the line goes to FOLDER/ranks/RANK.json, and the parent prints the cause.
    """
    from genlab import signals

    signals.die_with_parent()
    from genlab.cli.problem import one_line
    from genlab.cli.ranks import place
    from genlab.cli.redact import redact
    from genlab.cli.targets import settle
    from genlab.errors import GenlabError, Preempted, Stopped, expected

    def stop(number: int, frame: FrameType | None) -> None:
        signals.leave_terminal(number)
        signals.raise_in_handler(Preempted("stopped before training began" if task == "train" else "stopped"))

    for number in signals.caught(signals.PREEMPTING):  # until the session takes them
        signal.signal(number, stop)
    settle()
    signals.forget()
    _keep_locks()
    here = place()
    try:
        signals.let_through()
        _work(task, Path(folder))
        signals.ignore_all()
        return 0
    except BaseException as failure:
        error = signals.cause(failure)
        state, outcome, code = "failed", "error", 1
        if isinstance(error, Stopped):
            state = outcome = {130: "interrupted", 143: "preempted"}[error.exit_code]
            message, code = str(error), error.exit_code
        elif isinstance(error, KeyboardInterrupt):
            state, message, code, outcome = "interrupted", "stopped before training began", 130, "interrupted"
        elif isinstance(error, SystemExit):  # the user's own code, or a library
            frame = traceback.extract_tb(error.__traceback__)[-1]
            code = error.code if isinstance(error.code, int) and error.code else 1
            message = f"sys.exit({error.code!r}) was called by {frame.filename}, line {frame.lineno}"
        elif (known := expected(error, folder) or _left_alone(error)) is not None:
            message, code = str(known), known.exit_code
        else:
            print(redact(traceback.format_exc()), file=sys.stderr)
            message = f"{type(error).__name__}: {error}".split("\n")[0]
    signals.ignore_all()
    message = one_line(redact(message))
    if task == "train" and here.rank == 0:
        from genlab.runs.directory import RunDirectory

        with contextlib.suppress(GenlabError):  # on a full disk the line below is all that can be said
            RunDirectory(Path(folder)).set_status(state, message=message, exit_code=code)  # type: ignore[arg-type]
    if here.world > 1 and not here.external:
        from genlab.files import write_json

        report = {"outcome": outcome, "message": message, "code": code, "time": time.time()}
        try:
            write_json(Path(folder) / "ranks" / f"{here.rank}.json", report)
        except GenlabError:  # the same: the parent cannot be told, so say it here
            print(f"genlab: {outcome}: rank {here.rank}: {message}", file=sys.stderr, flush=True)
    elif here.rank == 0 or code not in (130, 143):
        rank = f"rank {here.rank}: " if here.rank else ""
        print(f"genlab: {outcome}: {rank}{message}", file=sys.stderr, flush=True)
    return code


def _left_alone(error: BaseException) -> GenlabError | None:
    """A collective that failed because another rank has gone: that one, or the parent, says why."""
    from genlab.errors import GenlabError
    from genlab.evaluation.sharding import lost_rank

    if not lost_rank(error):
        return None
    return GenlabError(f"another rank has left ({str(error).strip().partition(chr(10))[0][:160]})")


def _work(task: str, folder: Path) -> None:
    if task == "train":
        from genlab.cli.session import train_session
        from genlab.runs.directory import RunDirectory

        _quieten()  # after Lightning's import, which sets its own level
        train_session(RunDirectory(folder))
    else:
        from genlab.cli import distributed
        from genlab.cli.stored import load_yaml

        distributed.run(task, load_yaml(folder / "config.yaml"), folder)


def _keep_locks() -> None:
    """No process that this one forks (a loader's) holds the run's lock: it might outlive this one by seconds."""
    for descriptor in filter(None, os.environ.pop("GENLAB_LOCKS", "").split(",")):
        os.register_at_fork(after_in_child=functools.partial(_close, int(descriptor)))


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _quieten() -> None:
    """Leaves out what says nothing to a user of GenLab: Lightning's tips, warnings about choices made on purpose."""
    import logging

    warnings.formatwarning = lambda message, *_, **__: f"genlab: warning: {message}\n"
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        if (logger := logging.getLogger(name)).level != logging.WARNING:  # setting it clears the caches of all loggers
            logger.setLevel(logging.WARNING)
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
    sys.exit(main(sys.argv[1], sys.argv[2]))
