"""The folder of a chain, and its stages one after another, each as a process of its own. Free of torch.

FOLDER/chain.json lists the stages as they stand; FOLDER/STAGE-DIGEST holds what one has left: its run (DATE/RUN),
records or samples, its output and stage.json. The digest is that of the command and of the stages that it names, so a
chain that has been changed repeats what depends on the change, and nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genlab.cli.chains.stages import Stage, fill
from genlab.cli.problem import say
from genlab.cli.ranks import Workers
from genlab.cli.redact import redact
from genlab.errors import ConfigError, GenlabError, Interrupted, Preempted
from genlab.files import read_json, write_bytes, write_json
from genlab.runs.directory import RunDirectory, list_runs
from genlab.signals import die_with_parent, held_back, let_through

REPORT = ("report.md", "report.html")
POLL_S = 0.1  # between looks at what a stage prints
STOPPED = (Interrupted.exit_code, Preempted.exit_code)


class Chain:
    """A chain and its folder.

    Args:
        name: of the chain.
        stages: in order.
        folder: where all of it is kept; made when the first stage begins.
        root: the repository, where the scripts are.
    """

    def __init__(self, name: str, stages: Sequence[Stage], folder: Path, root: Path) -> None:
        self.name, self.stages, self.folder, self.root = name, stages, folder.absolute(), root

    def folder_of(self, stage: Stage) -> Path:
        """What the stage leaves."""
        return self.folder / f"{stage.name}-{stage.digest}"

    def facts(self, stage: Stage) -> dict[str, Any]:
        """The stage's stage.json; {} before it has begun."""
        kept = read_json(self.folder_of(stage) / "stage.json")
        return kept if isinstance(kept, dict) else {}

    def run_of(self, stage: Stage) -> RunDirectory | None:
        """The newest run of a stage that trains, None before it has one."""
        runs = list_runs(self.folder_of(stage))
        return runs[-1] if runs else None

    def finished(self, stage: Stage) -> bool:
        """Whether the stage is not to be done again.

        Raises:
            ConfigError: it was finished, but its run is gone or not finished any more.
        """
        before = self.facts(stage).get("state") == "finished"
        if stage.entry != "train":
            return before
        run = self.run_of(stage)
        done = run is not None and run.status().get("state") == "finished"
        if before and not done:
            folder = self.folder_of(stage)
            what = "is gone" if run is None else f"({run.path.name}) is not finished any more"
            raise ConfigError(
                f"stage {stage.name} was finished, but its run {what}: put it back into {folder}, or remove that "
                "folder and the stage is done again."
            )
        return done

    def mark(self, stage: Stage, state: str, **more: Any) -> None:
        """Writes how a stage stands, and the list of all."""
        run = self.run_of(stage) if stage.entry == "train" else None
        facts = {"stage": stage.name, "command": redact(stage.command), "state": state}
        facts |= {"folder": self.folder_of(stage).name, **more}
        if run is not None:
            facts["run"] = str(run.path.relative_to(self.folder))
        write_json(self.folder_of(stage) / "stage.json", facts)
        waiting = [
            {"stage": one.name, "command": redact(one.command), "state": "waiting", **self.facts(one)}
            for one in self.stages
        ]
        write_json(self.folder / "chain.json", {"chain": self.name, "stages": waiting})

    def arguments(self, stage: Stage) -> list[str]:
        """What the stage's script is given now: the run to go on with where one was cut short.

        A stage that has no run yet stands in angle brackets.
        """
        runs: dict[str, str] = {}
        for other in self.stages:
            run = self.run_of(other) if other.entry == "train" else None
            runs[other.name] = f"<{other.name}>" if run is None else str(run.path)
        if stage.entry == "train":
            run = self.run_of(stage)
            begun = run is not None and run.config.is_file()  # else train.py finds it by its configuration
            own = [f"resume={run.path}"] if run is not None and begun else fill(stage.arguments, runs)
            return [*own, f"runs_dir={self.folder_of(stage)}"]
        if stage.entry == "sample":
            return [*fill(stage.arguments, runs), f"out={self.folder_of(stage) / 'samples'}"]
        return fill(stage.arguments, runs)

    def do(self, stage: Stage, lock: int) -> None:
        """Runs one stage to its end.

        Args:
            lock: descriptor of the chain's lock, which the stage holds as well.

        Raises:
            StageFailed: with its exit code; it has said why.
        """
        folder = self.folder_of(stage)
        for part in ("samples", "records"):  # of an attempt that was cut short
            shutil.rmtree(folder / part, ignore_errors=True)
        self.mark(stage, "running")
        command = [str(self.root / f"{stage.entry}.py"), *self.arguments(stage)]
        code, signalled, output = call(command, folder / "log.txt", lock)
        if code == 0:
            self.keep(stage, output)
            self.mark(stage, "finished")
            if signalled:
                raise StageFailed(Preempted.exit_code, f"stopped; stage {stage.name} is finished")
            return
        state = "stopped" if code in STOPPED else "failed"
        self.mark(stage, state, exit_code=code)
        if state == "stopped":
            raise StageFailed(code, f"stage {stage.name} was stopped")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has failed with exit code {code}"
        raise StageFailed(max(code, 1), f"stage {stage.name} {how}; its output is in {folder / 'log.txt'}")

    def keep(self, stage: Stage, output: str) -> None:
        """Copies the records that an evaluation has told of, which another one of the same run may replace.

        Raises:
            ConfigError: a stage ended well and has left nothing.
        """
        folder = self.folder_of(stage)
        if stage.entry == "evaluate":
            for path in map(Path, re.findall(r"^record: (.+)$", output, re.MULTILINE)):
                if path.is_file():
                    write_bytes(folder / "records" / path.name, path.read_bytes())
        left = {"train": "*/*/result.json", "evaluate": "records/*.json", "sample": "samples/*"}[stage.entry]
        if not any(folder.glob(left)):
            raise ConfigError(f"stage {stage.name} ended and left nothing in {folder}: see its log.txt.")


class StageFailed(GenlabError):
    """A stage that ended with another exit code than 0, after it has said why.

    Args:
        exit_code: of the stage, and so of the chain.
        message: which stage, and how it ended.
    """

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(command: Sequence[str], log: Path, lock: int) -> tuple[int, bool, str]:
    """Runs `python COMMAND`, its output added to a file and shown as it comes; signals are passed on to it.

    Returns:
        Its exit code (negative where a signal killed it), whether a signal has come, and its output.
    """
    begin = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as file, open(log, "rb") as lines, Workers(log.parent, 0) as stage:
        lines.seek(begin)
        with held_back():
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,  # a Ctrl-C reaches it once, through `Workers.forward`
                preexec_fn=_begin,
            )
            stage.processes.append(process)
        ended = False
        while not ended:
            ended = process.poll() is not None  # before reading: after it nothing comes
            show(lines.read())
            if not ended:
                time.sleep(POLL_S)
        lines.seek(begin)
        return process.returncode, stage.signalled, lines.read().decode(errors="replace")


def _begin() -> None:
    """In the stage's process, before Python starts."""
    die_with_parent()
    let_through()


def show(output: bytes) -> None:
    """Passes on what a stage has printed."""
    sys.stdout.write(output.decode(errors="replace"))
    sys.stdout.flush()


def run_stages(chain: Chain, lock: int) -> None:
    """Does what is not finished, in order.

    Raises:
        StageFailed: at the first stage that does not end well.
        ConfigError: a finished stage whose run is gone.
    """
    for name in REPORT:
        (chain.folder / name).unlink(missing_ok=True)  # of the chain as it was
    done = [chain.finished(stage) for stage in chain.stages]
    for number, (stage, finished) in enumerate(zip(chain.stages, done, strict=True), 1):
        at = f"chain {chain.name}, stage {number} of {len(chain.stages)}: {stage.name}"
        if finished:
            say(f"{at}: finished before")
            chain.mark(stage, "finished")
        else:
            say(f"{at}: {redact(stage.command)}")
            chain.do(stage, lock)
