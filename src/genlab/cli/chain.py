"""What scripts/chain.py calls: stages that build on each other, run, gone on with, and reported. Free of torch."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from genlab.cli import targets
from genlab.cli.chains.report import write_report
from genlab.cli.chains.stages import check_stage, find_chain, read_chain
from genlab.cli.chains.work import Chain, StageFailed, run_stages
from genlab.cli.hydra_main import complain
from genlab.cli.problem import say
from genlab.cli.redact import redact
from genlab.errors import ConfigError, GenlabError, Interrupted, expected
from genlab.files import cannot_write
from genlab.runs.directory import RunDirectory


def main(root: Path, arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, 2 for a chain that is wrong, else that of the stage that did not end well.

    Args:
        root: the repository, with the scripts and conf.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_intermixed_args(given)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        targets.settle()
        path = find_chain(options.chain, root / "conf" / "chain")
        stages = read_chain(path, options.overrides)
        runs_dir = Path(os.environ.get("GENLAB_RUNS") or "runs")
        chain = Chain(path.stem, stages, options.dir or runs_dir / "chains" / path.stem, root)
        for stage in stages:
            if not chain.finished(stage):
                check_stage(stage, root / "conf")
        if options.dry_run:
            return _show(chain)
        with _locked(chain) as lock:
            run_stages(chain, lock)
            files = write_report(chain)
    except StageFailed as failed:
        say(f"genlab: {failed}. The same command goes on: python scripts/chain.py {shlex.join(given)}")
        return failed.exit_code
    except KeyboardInterrupt:
        complain(GenlabError("interrupted; the same command goes on"))
        return Interrupted.exit_code
    except (GenlabError, OSError, MemoryError) as error:
        known = expected(error)
        if known is None:
            raise
        complain(known)
        return known.exit_code
    print("\n".join(f"see  {file}" for file in files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chain.py",
        description="Runs stages that build on each other (train, evaluate, sample), and writes one report.",
        epilog="The same command goes on where it stood: what is finished is not done again.",
    )
    add = parser.add_argument
    add("chain", metavar="NAME|FILE.yaml", help="of conf/chain, or a file")
    add("overrides", nargs="*", metavar="STAGE.KEY=VALUE", help="what a stage is given otherwise than in the file")
    add("--dir", type=Path, help="folder of the chain; default: $GENLAB_RUNS or runs, /chains/NAME")
    add("--dry-run", action="store_true", help="check all commands and show how each stage stands; do nothing")
    return parser


@contextlib.contextmanager
def _locked(chain: Chain) -> Iterator[int]:
    """The chain's folder, for this command alone."""
    try:
        chain.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(chain.folder, error) from error
    directory = RunDirectory(chain.folder)
    if (holder := directory.holder()) is not None:
        raise ConfigError(
            f"chain {chain.folder} is worked on by process {holder}. Wait for it, stop it, or take another folder with "
            "--dir."
        )
    with directory.lock() as lock:
        yield lock


def _show(chain: Chain) -> int:
    """Each stage, how it stands, and what its script would be given now."""
    for stage in chain.stages:
        if chain.finished(stage):
            print(f"{stage.name}: finished\n    {redact(stage.command)}")
        else:
            state = chain.facts(stage).get("state", "waiting")
            print(f"{stage.name}: {state}\n    python {stage.entry}.py {redact(shlex.join(chain.arguments(stage)))}")
    return 0
