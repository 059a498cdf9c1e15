"""Fuzzing of every reader of files from outside: one line or a result, no traceback, no hang, nothing elsewhere.

A second each by default. `GENLAB_RECORD=FILE.json python -m pytest -n 0 -m soak tests/test_fuzz.py` takes a minute each
and writes what it saw; docs/results/fuzz.json is such a record.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest
from commands import command, runs_in, train_arguments
from data_files import cache as cache

from genlab.cli.export import export
from genlab.files import read_json, versions, write_json

READERS = ("idx", "png", "npz", "audio", "jsonl", "config", "checkpoint", "export")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    done = command(*train_arguments(folder), folder=folder)
    assert done.code == 0, done.output
    return runs_in(folder)[0].path


@pytest.fixture
def little_memory() -> Iterator[None]:
    """2 GB more than now: a file that asks for more is refused, and the machine stays usable."""
    gc.collect()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(name: str, seconds: float, seed: int, trained: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = folder / "sandbox"
    inside, elsewhere, keep = sandbox / "inside", sandbox / "elsewhere", folder / "kept"
    for path in (elsewhere, keep):
        path.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GENLAB_DATA", str(inside / "cache"))
    if name in ("config", "checkpoint"):
        shutil.copytree(trained, inside)
    elif name == "export":
        export(str(trained), inside)
    else:
        inside.mkdir()
    reader = getattr(fuzz, name)(inside)
    home = {str(path) for path in Path.home().iterdir()}
    report = fuzz.fuzz(reader, seconds, seed, keep)
    print(f"{name}: {report.cases} cases, slowest {report.slowest:.2f} s, {dict(report.outcomes)}")
    if record := os.environ.get("GENLAB_RECORD"):
        whole = read_json(Path(record)) or {"what": "python -m pytest -m soak tests/test_fuzz.py", "readers": {}}
        whole["readers"][name] = {
            "cases": report.cases, "seconds": round(report.seconds, 1), "slowest_s": round(report.slowest, 2),
            "outcomes": dict(report.outcomes.most_common()), "faults": report.faults[:10], "seed": seed,
        }  # fmt: skip
        whole |= {"date": time.strftime("%Y-%m-%d"), "versions": versions(("torch", "numpy", "pillow", "safetensors"))}
        write_json(Path(record), whole)
    assert not report.faults, f"{len(report.faults)} of {report.cases}, kept in {keep}:\n" + "\n".join(
        sorted(set(report.faults))[:20]
    )
    assert report.outcomes["read"] < report.cases, "no mutation was refused"
    assert not list(elsewhere.iterdir())
    assert {path.name for path in sandbox.iterdir()} == {"inside", "elsewhere"}
    assert not (inside / "marker").exists()
    assert {str(path) for path in Path.home().iterdir()} == home


@pytest.mark.faults(19)
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", READERS)
def test_fuzz(name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, 1.2, 0, trained, tmp_path, monkeypatch)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("name", READERS)
def test_fuzz_for_a_minute(name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, float(os.environ.get("GENLAB_SOAK_S") or 60), time.time_ns() % 10**6, trained, tmp_path, monkeypatch)
