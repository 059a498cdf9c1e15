"""Set before anything heavy is imported: one thread, no network, W&B offline and in temporary folders."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", WANDB_MODE="offline", WANDB_SILENT="true", TQDM_DISABLE="1")

import pytest

import genlab  # noqa: F401  its import hook must be there before a test imports Lightning
from genlab.cli import targets

# A process that is killed loses nothing for want of it, only a machine that goes down does; a disk makes tests wait.
os.fsync = lambda descriptor: None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def _runs_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves runs in the repository."""
    monkeypatch.setenv("GENLAB_RUNS", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _allow_list_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test runs in this process reads GENLAB_ALLOW for good; the next test has its own."""
    monkeypatch.setattr(targets, "_settled", None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded now stays: looking through it for rubbish again and again costs more than many tests."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: some tests mostly wait, for W&B or for a rank that hangs."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--row", type=int, help="only tests of this row of the table of faults (docs/faults.md)")
    parser.addoption("--shuffle", type=int, metavar="SEED", help="tests in random order")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that share what a module's fixture has made (a trained run, a network) stay in one process of xdist."""
    row = config.getoption("--row")
    if row is not None:
        items[:] = [item for item in items if any(row in mark.args for mark in item.iter_markers("faults"))]
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs
        shared = [name for name, found in fixtures.items() if found[-1].scope == "module"]
        if shared:
            params = item.callspec.params if hasattr(item, "callspec") else {}
            of = "-".join(str(params[name]) for name in shared if name in params)
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{of}"))
