"""docs/reproduction.md from stored records alone."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import families
import pytest
import reproduce
from omegaconf import OmegaConf
from reproduce import _without_new_defaults, main
from runs import ROOT

from genlab.cli.compose import compose_config

STORED = next((ROOT / "docs" / "results").glob("gpt_shakespeare_char_cpu-*"))


@functools.cache
def composed(folder: Path, entry: str, overrides: tuple[str, ...]) -> Any:
    return compose_config(folder, entry, overrides)


@pytest.fixture(autouse=True)
def _composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tables are of the same experiments."""
    for module in (families, reproduce):
        monkeypatch.setattr(module, "compose_config", lambda folder, entry, o: composed(folder, entry, tuple(o)))


def line_of(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_in_the_repository_is_what_the_records_give(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "table.md"), "--runs-dir", str(tmp_path / "none")]) == 0
    assert (tmp_path / "table.md").read_text() == (ROOT / "docs" / "reproduction.md").read_text()


def test_families_page_is_what_the_records_give(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "families.md"
    assert families.main(["--out", str(out)]) == 0
    stored = (ROOT / "docs" / "families.md").read_text()
    pictures = re.compile(r"\]\([^)]*results/")  # relative to the page
    assert pictures.sub("](", out.read_text()) == pictures.sub("](", stored)
    assert all((ROOT / "docs" / path).is_file() for path in re.findall(r"\]\(([^)]*png)\)", stored))


def test_an_option_that_came_later_leaves_old_records_what_they_are() -> None:
    had = {"_target_": "genlab.models.vae.VAE", "beta": 1.0}
    new = {
        **had,
        "tc_beta": 1.0,
        "likelihood": {"_target_": "genlab.objectives.likelihoods.Gaussian", "scale": "shared"},
    }
    assert _without_new_defaults(new, {**had, "likelihood": {"_target_": new["likelihood"]["_target_"]}}) == {
        **had, "likelihood": {"_target_": new["likelihood"]["_target_"]}
    }  # fmt: skip
    assert "tc_beta" in _without_new_defaults({**new, "tc_beta": 2.0}, had), "another value is another experiment"
    assert _without_new_defaults({**had, "latent_dim": 3}, had) == {**had, "latent_dim": 3}, "it has no default"


def test_seeds_are_averaged_and_short_runs_meet_the_curve(tmp_path: Path) -> None:
    for seed in (1, 2):
        run = tmp_path / "runs" / "2026-01-01" / f"seed{seed}"
        shutil.copytree(STORED, run)
        config = OmegaConf.load(run / "config.yaml")
        config.seed = seed
        OmegaConf.save(config, run / "config.yaml")
        (run / "status.json").write_text('{"state": "finished", "samples": 24000}')
        row = {"samples": 24000, "time": 1.0, "val/loss": 1.9 + seed / 10}
        (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(tmp_path / "runs" / "2026-01-01" / "seed1", tmp_path / "runs" / "2026-01-01" / "other")
    path = tmp_path / "runs" / "2026-01-01" / "other" / "config.yaml"
    path.write_text(path.read_text().replace("n_layer: 4", "n_layer: 3"))  # another model: it does not count
    out = tmp_path / "table.md"
    assert main(["gpt_shakespeare_char_cpu", "--runs-dir", str(tmp_path / "runs"), "--out", str(out)]) == 0
    cells = line_of(out.read_text(), "gpt_shakespeare_char_cpu")
    stored = [json.loads(line) for line in (STORED / "metrics.jsonl").read_text().splitlines()]
    third = [row["val/loss"] for row in stored if "val/loss" in row][-1]
    assert cells[3] == "1.88"
    assert cells[4].startswith(f"{(third + 2.0 + 2.1) / 3:.4g} ± ")
    assert cells[4].endswith("(n = 3)")
    assert "seed1, seed2" in cells[9]


def test_unknown_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ddpm_cifar11"]) == 2
    assert "no experiment 'ddpm_cifar11'" in capsys.readouterr().err
