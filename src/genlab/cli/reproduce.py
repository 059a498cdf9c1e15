"""docs/reproduction.md: published numbers beside ours, from stored run records alone. Free of torch."""

from __future__ import annotations

import argparse
import ast
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.cli.comparison.differences import same
from genlab.cli.comparison.find import find_runs
from genlab.cli.comparison.read import Run, read_run
from genlab.cli.compose import compose_config
from genlab.cli.signature import Definition, find, signature
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


@dataclass(frozen=True)
class Found:
    """A run of an experiment with the value of its paper's metric."""

    run: Run
    value: float | None
    seen: int


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """See `--help`; returns the exit code."""
    root = root or Path(__file__).resolve().parents[3]
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
        rows = [
            row for name in options.experiments or known for row in rows_of(name, root, stored, options.runs_dir, seeds)
        ]
        write_bytes(options.out, (HEAD + "\n".join(rows) + "\n").encode())
    except ConfigError as error:
        print(f"genlab: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: {len(rows)} rows")
    return 0


def rows_of(name: str, root: Path, stored: Sequence[Run], runs_dir: Path, seeds: Sequence[str]) -> list[str]:
    """Lines of the table for one experiment: one for the paper's metric. What is missing of `seeds` is trained."""
    config: Any = compose_config(root / "conf", "train", [f"experiment={name}"])
    paper = config.get("paper")
    if paper is None:
        return []
    runs = same_runs(config, stored)
    for seed in seeds:
        if not any(str(run.seed) == seed and run.finished for run in runs):
            _call([str(root / "train.py"), f"experiment={name}", f"seed={seed}", f"runs_dir={runs_dir}"])
            runs = same_runs(config, [*stored, *read_runs([runs_dir])])
    if seeds:
        unmeasured = [run for run in runs if run.finished and _value(run, paper.metric) is None]
        for run in [run for run in unmeasured if (run.path / "checkpoints" / "last.ckpt").exists()]:
            _call([str(root / "evaluate.py"), f"run={run.path}", f"evaluation={paper.protocol}"])
        runs = same_runs(config, [*stored, *read_runs([runs_dir])])
    found = [Found(run, _value(run, paper.metric), run.samples or 0) for run in runs]
    return [_line(name, paper, [f for f in found if f.value is not None])]


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

    def kept(whole: Mapping[str, Any]) -> dict[str, Any]:
        nodes = _functions(without({node: whole.get(node) for node in RECIPE}, RECIPE_NEUTRAL))
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
    target = wanted.get("_target_")
    definition = find(target) if isinstance(target, str) else None
    parameters = signature(definition).parameters if isinstance(definition, Definition) else {}

    def is_default(name: str) -> bool:
        default = parameters[name].default if name in parameters else None
        try:
            return default is not None and same(ast.literal_eval(default), wanted[name])
        except ValueError:  # no literal
            return False

    return {k: _without_new_defaults(v, had.get(k)) for k, v in wanted.items() if k in had or not is_default(k)}


def _value(run: Run, metric: str) -> float | None:
    """The metric at the end of a run: of its own record, else the last row that has it."""
    for record in run.records:
        if record.own and (value := record.data.get("values", {}).get(metric)) is not None:
            return float(value)
    values = [row[metric] for row in run.rows if metric in row]
    return values[-1] if values else None


def _line(name: str, paper: Mapping[str, Any], found: Sequence[Found]) -> str:
    published, source = (
        f"{paper['value']:g}",
        f"{paper['title']}, {paper.get('arxiv') or paper.get('url')}, {paper['table']}",
    )
    if not found:
        return f"| `{name}` | {source} | {paper['metric']} | {published} | not run yet | | | | | |"
    seen = max(f.seen for f in found)
    group = [f for f in found if f.seen == seen]
    if seen < paper["samples"]:
        points = [point for point in paper.get("curve", ()) if point["samples"] <= seen]
        published = f"{points[-1]['value']:g} at {points[-1]['samples']:,}" if points else "none at so few"
    values = [f.value for f in group if f.value is not None]
    ours = f"{statistics.mean(values):.4g}"
    if len(values) > 1:
        ours += f" ± {statistics.stdev(values):.2g} (n = {len(values)})"
    environment = read_json(group[-1].run.path / "environment.json") or {}
    hardware = f"{environment.get('processor', '?')}, {environment.get('cpus', '?')} cores"
    protocol = f"`{paper['protocol']}`"
    when = group[-1].run.path.parent.name if group[-1].run.path.parent.name[:2] == "20" else _date(group[-1].run)
    records = ", ".join(f.run.name for f in group)
    cells = [
        f"`{name}`",
        source,
        paper["metric"],
        published,
        ours,
        f"{seen:,} of {paper['samples']:,}",
        protocol,
        hardware,
        when,
    ]
    return f"| {' | '.join(cells)} | {records} |"


def _date(run: Run) -> str:
    """Day of the last row, or of the record."""
    import datetime

    times = [row["time"] for row in run.rows if "time" in row]
    return datetime.date.fromtimestamp(times[-1]).isoformat() if times else "?"
