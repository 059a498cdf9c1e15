#!/usr/bin/env python
"""docs/reproduction.md: published numbers beside ours, from stored run records alone. Free of torch."""

from __future__ import annotations

import argparse
import datetime
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genlab.cli.comparison.differences import same
from genlab.cli.comparison.find import find_runs
from genlab.cli.comparison.read import Run, read_run
from genlab.cli.compose import compose_config
from genlab.cli.signature import defaults
from genlab.data.registry import DATASETS
from genlab.errors import ConfigError
from genlab.files import read_json, write_bytes
from genlab.runs.keys import RECIPE, RECIPE_NEUTRAL, RECIPE_SCHEDULE, without

HEAD = """# Reproduction

Written by `python scripts/reproduce.py` from run records alone: those stored in `docs/results` and those in the runs
directory. A run that was cut short is set beside the paper's curve at as many samples, never beside the final value.

| experiment | paper | metric | published | ours | samples seen | protocol | hardware | date | record |
|---|---|---|---|---|---|---|---|---|---|
"""
SAME_FUNCTION = {"gelu_pytorch_tanh": "gelu_new"}  # other kernels, other last bits


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """See `--help`; returns the exit code."""
    root = root or Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(prog="reproduce.py", description=__doc__)
    parser.add_argument("experiments", nargs="*", help="of conf/experiment; none: all")
    parser.add_argument("--train", action="store_true", help="train and evaluate what has no finished run yet")
    parser.add_argument("--seeds", default="0", help="with --train: seeds, comma-separated")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs are looked up and made")
    parser.add_argument("--out", type=Path, default=root / "docs" / "reproduction.md")
    options = parser.parse_args(arguments)
    known = sorted(path.stem for path in (root / "conf" / "experiment").glob("*.yaml"))
    try:
        for name in options.experiments:
            if name not in known:
                raise ConfigError(f"no experiment {name!r} (there are: {', '.join(known)}).")
        stored = read_runs([root / "docs" / "results", options.runs_dir])
        seeds = options.seeds.split(",") if options.train else []
        rows = []
        for name in options.experiments or known:
            config = compose_config(root / "conf", "train", [f"experiment={name}"])
            if config.get("paper") is not None:
                runs = experiment_runs(name, config, root, stored, options.runs_dir, seeds)
                rows.append(row(_cells(name, config.paper, runs)))
        write_bytes(options.out, (HEAD + "\n".join(rows) + "\n").encode())
    except ConfigError as error:
        print(f"genlab: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: {len(rows)} rows")
    return 0


def experiment_runs(
    name: str, config: Any, root: Path, stored: Sequence[Run], runs_dir: Path, seeds: Sequence[str]
) -> list[Run]:
    """The runs of an experiment. What is missing of `seeds` is trained, and evaluated by the paper's protocol."""
    runs = same_runs(config, stored)
    for seed in seeds:
        if not any(str(run.seed) == seed and run.finished for run in runs):
            _call([str(root / "train.py"), f"experiment={name}", f"seed={seed}", f"runs_dir={runs_dir}"])
            runs = same_runs(config, [*stored, *read_runs([runs_dir])])
    if seeds:
        unmeasured = [run for run in runs if run.finished and _value(run, config.paper.metric) is None]
        for run in [run for run in unmeasured if (run.path / "checkpoints" / "last.ckpt").exists()]:
            _call([str(root / "evaluate.py"), f"run={run.path}", f"evaluation={config.paper.protocol}"])
        runs = same_runs(config, [*stored, *read_runs([runs_dir])])
    return runs


def _call(arguments: list[str]) -> None:
    if code := subprocess.run([sys.executable, *arguments], check=False).returncode:
        raise ConfigError(f"{' '.join(arguments)} ended with {code}; the table is left as it was.")


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders that have a configuration; none of a folder that is missing."""
    runs: list[Run] = []
    for folder in folders:
        if not folder.is_dir():
            continue
        try:
            paths = find_runs([str(folder)], folder)
        except ConfigError:  # a folder without runs
            continue
        runs += [run for run in map(read_run, paths) if run.config]
    return runs


def same_runs(config: Mapping[str, Any], runs: Sequence[Run]) -> list[Run]:
    """The runs of this configuration, whatever their seed, devices and length; of one name the last."""

    by_hand = ("data.path",) if config["data"].get("name") not in DATASETS else ()  # not fetched: it lies anywhere

    def kept(whole: Mapping[str, Any]) -> dict[str, Any]:
        nodes = _functions(without({node: whole.get(node) for node in RECIPE}, (*RECIPE_NEUTRAL, *by_hand)))
        return {**nodes, **{key: (whole.get("schedule") or {}).get(key) for key in RECIPE_SCHEDULE}}

    wanted = kept(config)

    def is_same(run: Run) -> bool:
        had = kept(run.config)
        return same(had, _without_new_defaults(wanted, had))

    return list({run.path.name: run for run in runs if is_same(run)}.values())


def _functions(node: Any) -> Any:
    """A configuration with the first of several names of a function in the place of the others."""
    if isinstance(node, Mapping):
        return {key: _functions(value) for key, value in node.items()}
    return SAME_FUNCTION.get(node, node) if isinstance(node, str) else node


def _without_new_defaults(wanted: Any, had: Any) -> Any:
    """`wanted` less the arguments that `had` does not name and whose value is the class's own default: options that
    came after a record was made, and change nothing."""
    if not (isinstance(wanted, Mapping) and isinstance(had, Mapping)):
        return wanted
    default = defaults(wanted.get("_target_"))
    return {
        key: _without_new_defaults(value, had.get(key))
        for key, value in wanted.items()
        if key in had or key not in default or not same(default[key], value)
    }


def _value(run: Run, metric: str) -> float | None:
    """The metric at the end of a run: of its own record, else the last row that has it."""
    own = run.measured(metric)
    return own if own is not None else next((row[metric] for row in reversed(run.rows) if metric in row), None)


def _cells(name: str, paper: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """The cells of an experiment's row: its longest runs beside the paper's number."""
    measured = [run for run in runs if _value(run, paper["metric"]) is not None]
    published = f"{paper['value']:g}"
    source = f"{paper['title']}, {paper.get('arxiv') or paper.get('url')}, {paper['table']}"
    if not measured:
        return [f"`{name}`", source, paper["metric"], published, "not run yet" + " |" * 5]  # empty cells
    seen = max(run.samples or 0 for run in measured)
    group = [run for run in measured if (run.samples or 0) == seen]
    last = group[-1]
    if seen < paper["samples"]:
        points = [point for point in paper.get("curve", ()) if point["samples"] <= seen]
        published = f"{points[-1]['value']:g} at {points[-1]['samples']:,}" if points else "none at so few"
    environment = read_json(last.path / "environment.json") or {}
    return [
        f"`{name}`",
        source,
        paper["metric"],
        published,
        mean_sd([_value(run, paper["metric"]) for run in group], 4),
        f"{seen:,} of {paper['samples']:,}",
        f"`{paper['protocol']}`",
        f"{environment.get('processor', '?')}, {environment.get('cpus', '?')} cores",
        last.path.parent.name if last.path.parent.name.startswith("20") else _date(last),
        ", ".join(run.name for run in group),
    ]


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def mean_sd(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation of those that are there, with so many digits of the mean."""
    known = [value for value in values if value is not None]
    mean = rounded(statistics.mean(known), digits) if known else ""
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.2g} (n = {len(known)})"


def _date(run: Run) -> str:
    """Day of the last row, or of the record."""
    times = [row["time"] for row in run.rows if "time" in row]
    return datetime.date.fromtimestamp(times[-1]).isoformat() if times else "?"


if __name__ == "__main__":
    sys.exit(main())
