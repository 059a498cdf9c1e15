"""hparams_search: a search that is killed goes on, and its best value is that of a stored run."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest
from commands import Begun, command, train_arguments

pytest.importorskip("optuna", reason="pip install -e '.[sweep]'")
TRIALS = 3


def states(database: Path) -> list[str]:
    """States of the study's trials, straight from its file."""
    if not database.exists():
        return []
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return [row[0] for row in connection.execute("select state from trials order by number")]
    except sqlite3.OperationalError:  # being made
        return []


def test_a_killed_search_ends_with_all_its_trials(tmp_path: Path) -> None:
    given = [
        *train_arguments(tmp_path), "model=ddpm", "hparams_search=ddpm_optuna", f"hydra.sweeper.trials={TRIALS}",
        "data.batch_size=4",
    ]  # fmt: skip
    given = [
        argument for argument in given if not argument.startswith(("model=gan", "model.generator", "model.critic"))
    ]
    database = tmp_path / "runs" / "sweeps" / "ddpm.db"
    for wanted in (1, 2):
        begun = Begun(given, tmp_path)
        begun.until(lambda wanted=wanted: states(database).count("COMPLETE") >= wanted)
        time.sleep(0.2)  # into the next trial
        assert begun.process.exitcode is None, begun.output()
        begun.process.kill()
        begun.process.join()
    done = command(*given, folder=tmp_path, timeout=400)
    output = done.output
    assert done.code == 0, output
    assert f"of {TRIALS} trials in" in output
    assert states(database).count("COMPLETE") == TRIALS
    assert "RUNNING" not in states(database)
    results = [json.loads(path.read_text())["value"] for path in (tmp_path / "runs").glob("*/*/result.json")]
    assert len(results) == TRIALS
    (line,) = [line for line in output.splitlines() if line.startswith(f"best of {TRIALS}")]
    assert float(line.split()[3]) == pytest.approx(min(results), rel=1e-5)


def test_what_cannot_be_searched_is_said(tmp_path: Path) -> None:
    for argument, words in (
        ("hydra.sweeper.sampler=grid", "choose one of tpe, random"),
        ("optimizer.lr=-1,-2", "optimizer.lr"),
    ):
        done = command("train.py", "hparams_search=ddpm_optuna", "trainer=debug", argument, folder=tmp_path)
        errors = [line for line in done.output.splitlines() if line.startswith("genlab: error")]
        assert done.code != 0
        assert len(errors) == 1, done.output
        assert words in errors[0]
