"""The RUN arguments of scripts/compare.py: paths, folder names, patterns, "last", folders of runs, sweeps."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from genlab.cli.comparison.read import is_run
from genlab.errors import ConfigError
from genlab.runs.directory import find_run, list_runs, read_json

DEPTH = 3  # folders below a folder of runs: RUNS_DIR/DATE/RUN, and one above


def find_runs(wanted: Sequence[str], runs_dir: Path) -> list[Path]:
    """Run directories in the order in which they were asked for, each once.

    Args:
        wanted: each a path, a folder name in `runs_dir`, "last", a pattern of either, a folder that holds runs, or a
            sweep's folder (RUNS_DIR/sweeps/TIME).

    Raises:
        ConfigError: nothing is there; names the newest runs.
    """
    found: dict[Path, Path] = {}
    for one in wanted:
        try:
            for path in _expand(one, runs_dir):
                found.setdefault(path.resolve(), path.absolute())
        except OSError as error:
            raise ConfigError(f"run={one}: {error.strerror or error}.") from error
    if not found:
        raise ConfigError(f"no run in {', '.join(wanted)}: only what compare.py wrote earlier.")
    return list(found.values())


def _expand(wanted: str, runs_dir: Path) -> Iterable[Path]:
    path = Path(wanted).expanduser()
    if path.is_dir():
        runs = list(_below(path, runs_dir))
        if not runs and not (path / "compare.json").is_file():
            raise ConfigError(f"run={wanted}: no run in this folder.")
        return runs
    if any(character in wanted for character in "*?["):
        patterns = dict.fromkeys([str(path), str(runs_dir / path)])
        matches = [Path(match) for pattern in patterns for match in sorted(glob.glob(pattern, recursive=True))]
        matches += [run.path for run in list_runs(runs_dir) if fnmatch.fnmatchcase(run.path.name, wanted)]
        runs = [run for match in matches if match.is_dir() for run in _below(match, runs_dir)]
        if not runs:
            raise ConfigError(f"run={wanted}: the pattern fits no run, here or in {runs_dir}.")
        return runs
    try:
        return [find_run(wanted, runs_dir).path]
    except ConfigError:
        damaged = [run.path for run in list_runs(runs_dir) if run.path.name == wanted]  # without config.yaml
        if not damaged:
            raise
        return damaged[-1:]


def _below(folder: Path, runs_dir: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder itself if it is a run; else the runs of its sweep, or of the folders in it."""
    if is_run(folder):
        yield folder
    elif (folder / "multirun.yaml").is_file():
        yield from _of_sweep(folder, runs_dir)
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _below(inner, runs_dir, depth - 1)


def _of_sweep(folder: Path, runs_dir: Path) -> Iterator[Path]:
    """Runs whose environment.json names this sweep, oldest first by name (it ends in the time)."""
    for parent in dict.fromkeys((folder.absolute().parent.parent, runs_dir.absolute())):
        for status in sorted(parent.glob("*/*/status.json")):
            facts = read_json(status.with_name("environment.json"))
            if isinstance(facts, dict) and facts.get("sweep") == folder.name:
                yield status.parent
