"""scripts/compare.py: groups, warnings, damaged runs, the files it writes."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import statistics
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from rich.cells import cell_len
from runs import ROOT, new_run, small_run, work

from genlab.cli.compare import main, numbers, write
from genlab.cli.comparison.compared import Comparison, compare
from genlab.cli.comparison.curves import series
from genlab.cli.comparison.differences import ABSENT, differences
from genlab.cli.comparison.find import find_runs
from genlab.cli.comparison.numbers import duration, mean_sd, number
from genlab.cli.comparison.read import read_run
from genlab.cli.comparison.text import _cut, blocks, grid, lines
from genlab.cli.train import sweep

STORED = ROOT / "docs" / "results"
DDPM, GAN = STORED / "ddpm-mnist-184348-8172", STORED / "gan-mnist-192324-8a32"
FID = "fid_1k_test.proxy"
Change = Callable[[dict[str, Any]], None]


def put(node: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        node = node[name]
    node[last] = value


class Maker:
    """Run directories with the stored DDPM's configuration and record, changed as asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "2026-11-22"
        self.config = yaml.safe_load((DDPM / "config.yaml").read_text())
        self.record = json.loads((DDPM / f"{FID}.json").read_text())

    def __call__(
        self,
        name: str,
        seed: int = 0,
        fid: float | None = 2.0,
        losses: tuple[float, ...] = (0.5, 0.25),
        state: str = "finished",
        overrides: dict[str, Any] | None = None,
        record: dict[str, Any] | None = None,
        speed: float = 100.0,
    ) -> Path:
        path = self.folder / name
        (path / "evaluation").mkdir(parents=True)
        config = copy.deepcopy(self.config)
        for key, value in {"seed": seed, "data.seed": seed, **(overrides or {})}.items():
            put(config, key, value)
        (path / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        rows = []
        for i, loss in enumerate(losses, 1):
            at = {"samples": 1000 * i, "time": 1e9 + 1000 * i / speed}
            rows += [{**at, "train/samples_per_s": speed}, {**at, "val/loss": loss}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (path / "status.json").write_text(json.dumps({"state": state, "samples": 1000 * len(losses)}))
        if fid is not None:
            written = copy.deepcopy(self.record)
            written["values"][FID] = fid
            written["generated"]["seeds"]["seed"] = seed
            written["model"]["samples_seen"] = 1000 * len(losses)
            for key, value in (record or {}).items():
                put(written, key, value)
            (path / "evaluation" / f"{FID}.json").write_text(json.dumps(written))
        return path


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "runs")


def compared(*paths: Path, **options: Any) -> Comparison:
    return compare([read_run(path) for path in paths], **options)


def cell(made: Comparison, name: str, entry: int = 1) -> Any:
    return made.cells[name][entry - 1]


# ---- groups


def test_a_group_is_mean_and_sample_deviation_over_seeds(make: Maker) -> None:
    values = [1.0, 2.0, 4.0]
    losses = [(0.5, 0.3), (0.7, 0.2), (0.6, 0.4)]
    paths = [make(f"run-{i}", seed=i, fid=v, losses=x) for i, (v, x) in enumerate(zip(values, losses, strict=True))]
    made = compared(*paths)
    (entry,) = made.entries
    assert entry.name == "ddpm-mnist, n=3"
    assert made.overrides == {}
    one = cell(made, FID)
    assert (one.mean, one.n) == (pytest.approx(7 / 3), 3)
    assert one.sd == pytest.approx(math.sqrt(7 / 3))  # ((-4/3)^2 + (-1/3)^2 + (5/3)^2) / 2
    assert cell(made, "val/loss last").mean == pytest.approx(0.3)
    assert cell(made, "val/loss last").sd == pytest.approx(0.1)
    assert cell(made, "val/loss best").sd == pytest.approx(0.1)
    assert not made.warnings
    (row, floor) = grid(made).rows
    assert row[grid(made).head.index(FID)] == "2.3 ± 1.5"
    assert floor[grid(made).head.index(FID)] == "0.6956"


def test_curves_of_a_group_are_a_mean_with_a_band(make: Maker) -> None:
    made = compared(make("a", 0, losses=(0.5, 0.3)), make("b", 1, losses=(0.7, 0.2), speed=50.0))
    (entry,) = made.entries
    found = series(entry, "val/loss", "samples")
    assert found is not None
    assert (found.x, found.n) == ([1000.0, 2000.0], 2)
    assert found.mean == pytest.approx([0.6, 0.25])
    assert found.sd == pytest.approx([statistics.stdev([0.5, 0.7]), statistics.stdev([0.3, 0.2])])
    timed = series(entry, "val/loss", "time")
    assert timed is not None
    assert timed.x == pytest.approx([(10 + 20) / 2, (20 + 40) / 2])  # 1000 samples at 100 and at 50 a second
    assert made.times[0].values == pytest.approx([20, 40])
    assert made.speeds[0].values == pytest.approx([100, 50])


def test_no_group_shows_each_run_with_its_seed(make: Maker) -> None:
    made = compared(make("a", 0), make("b", 1), grouping=False)
    assert [entry.name for entry in made.entries] == ["a", "b"]
    assert made.overrides == {"seed": ["0", "1"]}


def test_names_folders_and_devices_do_not_split_a_group_but_a_setting_does(make: Maker) -> None:
    changed = {"name": "x", "runs_dir": "/elsewhere", "logger": {}, "trainer.devices": 2, "evaluation.n": 5}
    made = compared(make("a", 0), make("b", 1, overrides=changed), make("c", 2, overrides={"optimizer.lr": 0.1}))
    assert [len(entry.runs) for entry in made.entries] == [2, 1]
    assert made.overrides == {"optimizer.lr": ["0.0015", "0.1"]}


def test_unfinished_runs_and_repeated_seeds_are_not_averaged(make: Maker) -> None:
    old, new = make("old", 0, fid=1.0), make("new", 0, fid=3.0, losses=(0.5, 0.4, 0.3))
    made = compared(new, old, make("b", 1, fid=5.0), make("c", 2, fid=100.0, state="preempted"))
    assert [[run.name for run in entry.runs] for entry in made.entries] == [["new", "b"], ["c"]]
    assert cell(made, FID).mean == pytest.approx(4.0)
    assert any("old" in note and "seed again" in note for note in made.notes)
    assert any(note.startswith("c: preempted") for note in made.notes)


def test_a_value_that_some_runs_lack_has_its_own_n(make: Maker) -> None:
    made = compared(make("a", 0, fid=1.0), make("b", 1, fid=2.0), make("c", 2, fid=None))
    assert cell(made, FID).n == 2
    assert grid(made).rows[0][grid(made).head.index(FID)] == "1.50 ± 0.71 (n=2)"


# ---- protocols

MEASURED = {
    "reference.sha256": "0" * 64,
    "reference.n": 5000,
    "extractor.sha256": "1" * 64,
    "extractor.path": "fast",
    "resize.how": "bicubic",
    "versions.torch-fidelity": "0.5.0",
    "protocol.something_new": 7,
}
SAMPLED = {
    "model.weights": "raw",
    "generated.sampler.steps": 50,
    "generated.nfe": 100,
    "generated.guidance_scale": None,
    "generated.labels": "train: of real items",
}


@pytest.mark.parametrize("key", [*MEASURED, *SAMPLED])
def test_values_of_another_protocol_are_marked_named_and_not_averaged(make: Maker, key: str) -> None:
    change = {**MEASURED, **SAMPLED}
    if key == "generated.guidance_scale":  # its other copy is in the sampler
        change, key = {"generated.sampler.guidance_scale": 9.0}, "generated.sampler.guidance_scale"
    made = compared(make("a", 0), make("b", 1), make("c", 2, record={key: change[key]}))
    one = cell(made, FID)
    sign = "!" if key in MEASURED else "~"
    assert (one.mean, one.sd, one.averaged, one.mark) == (None, None, False, f"{sign}ab")
    field = key.removeprefix("generated.").removeprefix("model.")
    before = make.record
    for name in key.split("."):
        before = before.get(name) or {}
    values = ["none" if v == {} else str(v)[:12] for v in (before, change[key])]
    (warning,) = [w for w in made.warnings if "differently" in w]
    assert f"{field}: {values[0]}" in warning
    assert "(1 [seeds 0, 1])" in warning
    assert f", {values[1]}" in warning
    assert "(1 [seed 2])" in warning
    assert any("no mean of group 1" in w for w in made.warnings)
    assert "not averaged" in " ".join(grid(made).rows[0])


def test_letters_say_which_values_share_a_protocol(make: Maker) -> None:
    other = {"extractor.sha256": "1" * 64}
    runs = [make("a"), make("b", record=other), make("c")]
    made = compared(*runs, grouping=False)
    assert [cell(made, FID, i).mark for i in (1, 2, 3)] == ["!a", "!b", "!a"]
    assert cell(made, FID, 2).mean == 2.0  # a single run keeps its value
    assert any("9c280b5d22a9 (1, 3), 111111111111 (2)" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    "change",
    [
        {"machine.ranks": 4},
        {"machine.device": "another"},
        {"model.dtype": "bfloat16"},
        {"generated.chunk_size": 64},
        {"versions.torch": "3.0"},
        {"protocol.batch": 20},
        {"extractor.batch": 20},
        {"extractor.dtype": "float64"},
    ],
)
def test_machine_and_dtype_are_only_a_note(make: Maker, change: dict[str, Any]) -> None:
    made = compared(make("a", 0), make("b", 1, record=change))
    assert cell(made, FID).n == 2
    assert cell(made, FID).averaged
    assert cell(made, FID).mark == ""
    assert not made.warnings
    (key,) = change
    field = key.removeprefix("generated.").removeprefix("model.")
    assert any("computed differently" in note and field in note for note in made.notes)


def test_settings_of_other_metrics_and_seeds_do_not_matter(make: Maker) -> None:
    other = {"protocol.kid_subsets": 7, "protocol.neighbours": 9, "protocol.metrics": ["fid"], "generated.seconds": 1.0}
    made = compared(make("a", 0), make("b", 1, record=other))
    assert cell(made, FID).averaged
    assert not made.warnings


def test_val_loss_of_another_objective_is_marked_and_of_another_network_is_not(make: Maker) -> None:
    wider = {"model.network.network.block_out_channels": [8, 16], "optimizer.lr": 1.0}
    made = compared(make("a"), make("b", overrides=wider), make("c", overrides={"model.prediction": "eps"}))
    assert [cell(made, "val/loss last", i).mark for i in (1, 2, 3)] == ["!a", "!a", "!b"]
    assert any(w.startswith("! val/loss") and "model.prediction: v (1-2), eps (3)" in w for w in made.warnings)
    assert not compared(make("d"), make("e", overrides=wider)).warnings


def test_stored_runs_of_two_families() -> None:
    made = compared(DDPM, GAN)
    assert cell(made, FID).mean == pytest.approx(1.589831848760923)
    assert cell(made, f"{FID} [guidance_scale=1]").mean == pytest.approx(12.282976062823764)
    assert [cell(made, FID, i).mark for i in (1, 2)] == ["~a", "~b"]
    assert made.floors[FID] == pytest.approx(0.6955762410482862)
    assert made.overrides["model"] == ["DiffusionModel", "GAN"]
    assert made.overrides["optimizer.lr"] == ["0.0015", "0.0004"]
    assert any("sampler: DPMSolverPP (1), LatentSampler (2); nfe: 40 (1), 1 (2)" in w for w in made.warnings)
    assert made.entries[0].runs[0].state == "stored, finished"


def test_differences_are_said_once() -> None:
    a = {"x": {"_target_": "p.A", "n": 1, "same": 2, "only": 3}, "y": 1, "z": {"k": 1}}
    b = {"x": {"_target_": "p.B", "n": 5, "same": 2}, "y": True, "z": {"k": 1}}
    c = {"x": {"_target_": "p.A", "n": 1, "same": 2, "only": 4}, "y": 1}
    assert differences([a, b, c]) == {
        "x": ["A", "B", "A"],
        "x.n": [1, 5, 1],
        "x.only": [3, ABSENT, 4],
        "y": [1, True, 1],
        "z.k": [1, 1, ABSENT],
    }
    assert differences([a, a]) == {}
    assert differences([{"x": None}, {"x": {"_target_": "p.A"}}]) == {"x": [None, "A"]}


# ---- which runs


def test_runs_are_found_by_path_name_pattern_folder_sweep_and_last(make: Maker, monkeypatch: Any) -> None:
    a, b, c = make("扩散-a"), make("扩散-b"), make("other")
    runs = make.folder.parent
    for i, path in enumerate((a, b, c)):
        os.utime(path / "status.json", (i, i))
    (b / "environment.json").write_text(json.dumps({"sweep": "2026-11-22_10-00-00"}))
    swept = runs / "sweeps" / "2026-11-22_10-00-00"
    swept.mkdir(parents=True)
    (swept / "multirun.yaml").write_text("")
    assert find_runs([str(a)], runs) == [a]
    assert find_runs(["扩散-b"], runs) == [b]
    assert find_runs(["last"], runs) == [c]
    assert find_runs(["扩散-*"], runs) == [a, b]
    assert find_runs([str(runs / "*" / "扩散-?")], Path("/nowhere")) == [a, b]
    assert find_runs([str(make.folder)], runs) == [c, a, b]
    assert find_runs([str(runs)], runs) == [c, a, b]
    assert find_runs([str(swept)], runs) == [b]
    assert find_runs([str(a), "扩散-*", str(a)], runs) == [a, b]
    monkeypatch.chdir(make.folder)
    assert find_runs(["other"], Path("/nowhere")) == [c]


def test_train_writes_the_sweep_that_compare_looks_for(tmp_path: Path, monkeypatch: Any) -> None:
    def settings(*overrides: str) -> dict[str, str]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            whole = compose("train", [f"runs_dir={tmp_path}", *overrides], return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", whole)
        return sweep()

    assert settings() == {}
    assert settings("hydra.mode=MULTIRUN", "hydra.sweep.dir=${runs_dir}/sweeps/that") == {"sweep": "that"}


@pytest.mark.parametrize("wanted", ["no-such-run", "no-such-*", "EMPTY"])
def test_a_missing_run_is_answered_in_one_line(tmp_path: Path, capsys: Any, wanted: str) -> None:
    wanted = str(tmp_path) if wanted == "EMPTY" else wanted
    assert main([wanted, "--runs-dir", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert wanted in err
    assert not (tmp_path / "out").exists()


# ---- unfinished and damaged


def test_damaged_metrics_are_left_out_and_mentioned(make: Maker, tmp_path: Path, capsys: Any) -> None:
    path = make("a", losses=(0.5, 0.25))
    whole = (path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes(
        whole[0] + b'{"samples": 10, "va\n\xff\xfe\n[1]\n' + b"".join(whole[1:]) + b'{"sam'
    )
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    out, _ = capsys.readouterr()
    assert "metrics.jsonl: 4 damaged lines left out (line 2, 3, 4, 8)" in out
    assert cell(compared(path), "val/loss last").mean == 0.25


def test_what_is_damaged_is_shown_with_its_state(make: Maker, tmp_path: Path, capsys: Any) -> None:
    good, bad, gone = make("good", seed=0), make("bad", seed=1), make("gone", seed=2)
    (bad / "config.yaml").write_text("a: [")
    (bad / "evaluation" / f"{FID}.json").write_text("{")
    (gone / "config.yaml").unlink()
    (gone / "status.json").write_text("not json")
    (gone / "evaluation" / f"{FID}.json").write_text('{"values": {"fid": "x"}, "protocol": 3, "floor": 1}')
    assert main([str(make.folder), "--out", str(tmp_path / "out")]) == 0
    out, _ = capsys.readouterr()
    assert "finished, no configuration" in out
    assert "status.json damaged, no configuration" in out
    assert "bad: config.yaml: not readable YAML" in out
    assert f"bad: evaluation/{FID}.json: not readable JSON" in out
    assert "gone: config.yaml: No such file or directory" in out
    assert [len(entry.runs) for entry in compared(good, bad, gone).entries] == [1, 1, 1]


def png_bomb() -> bytes:
    """60,000 x 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.faults(39)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a0: &a0 [x]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9))
                                                   for i in range(1, 30))),
        ("config.yaml", b"a: " + b"[" * 100_000),
        ("metrics.jsonl", b"[" * 1_000_000),
        ("metrics.jsonl", b'{"samples": 1' + b"0" * 4000 + b', "val/loss": 1e999, "x": 1' + b"0" * 400 + b"}"),
        ("evaluation/x.json", b'{"a":' * 100_000),
        ("status.json", b"[" * 1_000_000),
        ("samples/final.png", png_bomb()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_damaged_run_does_not_take_the_others_along(
    make: Maker, tmp_path: Path, capsys: Any, name: str, content: bytes
) -> None:
    good, bad = make("good", seed=0), make("bad", seed=1)
    (bad / name).parent.mkdir(exist_ok=True)
    (bad / name).write_bytes(content)
    assert main([str(good), str(bad), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "good" in page
    assert "bad" in page + capsys.readouterr().out


def test_a_run_whose_process_died_is_not_called_running(make: Maker) -> None:
    path = make("a", state="running")
    run = read_run(path)
    assert (run.state, run.finished) == ("died", False)
    assert any("no process works on the run" in warning for warning in compared(path).warnings)


def test_an_empty_run_is_shown(make: Maker, tmp_path: Path, capsys: Any) -> None:
    path = make("a", losses=(), fid=None, state="starting")
    (path / "config.yaml").unlink()
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "compare.png").exists()
    assert "died" in capsys.readouterr().out


def test_a_value_without_a_record_and_a_missing_value_are_explained(make: Maker) -> None:
    path = make("a", fid=None)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"samples": 2000, "time": 1e9 + 30, f"test/{FID}": 1.5}) + "\n")
    failed = make("b", fid=1.0, overrides={"seed": 1}, record={"missing": {FID: "features are not finite"}})
    written = json.loads((failed / "evaluation" / f"{FID}.json").read_text())
    written["values"][FID] = None
    (failed / "evaluation" / f"{FID}.json").write_text(json.dumps(written))
    made = compared(path, failed, grouping=False)
    assert cell(made, FID, 1) is None
    assert any(f"test/{FID} in metrics.jsonl has no record" in note for note in made.notes)
    assert any(f"2: no {FID}: features are not finite" in note for note in made.notes)


def test_an_evaluation_of_fewer_samples_than_the_run_has_seen_is_noted(make: Maker) -> None:
    made = compared(make("a", record={"model.samples_seen": 1000}))
    assert "a: evaluated at 1,000 samples, the run has seen 2,000" in made.notes


# ---- what is printed and written


@pytest.mark.parametrize("count", [1, 2, 5, 24])
def test_the_table_fits_120_columns(make: Maker, count: int) -> None:
    for i in range(count):
        make(f"扩散模型-手写数字-1843{i:02d}-8172", i % 3, overrides={"optimizer.lr": 0.1 + i // 3, "name": "扩散模型"})
    for grouping in (True, False):
        made = compared(*sorted(make.folder.iterdir()), grouping=grouping)
        printed = lines(made, 120)
        assert max(map(cell_len, printed)) <= 120
        text = "\n".join(printed)
        assert all(f"{entry.number} {entry.name}" in text for entry in made.entries)
        assert all(name in text for name in made.columns)


def test_blocks_keep_every_cell_aligned() -> None:
    assert [_cut("扩散abcdef模型", width) for width in (14, 9, 8)] == ["扩散abcdef模型", "扩散…模型", "扩散… 型"]
    table = grid(compared(DDPM, GAN))
    for parts in (blocks(table, 80), blocks(table.transposed(), 80)):
        assert len(parts) > 1
        for block in parts:
            assert len({cell_len(line) for line in block[:2]}) == 1
            assert all(cell_len(line) <= 80 for line in block)


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, 3, 102400, 0.0929102, 12.28297, 927.63, 45678.9, 1.6227e-9)] == [
        "-", "3", "102,400", "0.09291", "12.28", "927.6", "45,679", "1.623e-09",
    ]  # fmt: skip
    assert [mean_sd(1.58983, s) for s in (None, 0.0, 0.01234, 0.5, 12.0)] == [
        "1.59", "1.59 ± 0", "1.590 ± 0.012", "1.59 ± 0.50", "2 ± 12",
    ]  # fmt: skip
    assert [duration(s) for s in (5.0, 374.0, 9000.0)] == ["5 s", "6.23 min", "2.5 h"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_runs_say_and_needs_nothing_else(make: Maker, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    a = make(evil, 0, overrides={"name": evil, "model.prediction": evil})
    b = make("b", 1)
    (a / "samples").mkdir()
    (a / "samples" / "final.txt").write_text(f"<script>alert(2)</script>{evil}")
    (b / "samples").mkdir()
    shutil.copy(DDPM / "final.png", b / "samples")
    (a / "status.json").write_text(json.dumps({"state": "failed", "message": "</table><script>", "samples": 1}))
    page = write(compared(a, b), tmp_path / "out")[0].read_text(encoding="utf-8")
    parsed = Tags()
    parsed.feed(page)
    assert parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object"}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    sources = [v for _, attributes in parsed.tags for k, v in attributes.items() if k in ("src", "srcset", "href")]
    assert len(sources) == 3  # curves on white and on dark, one grid
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert evil in parsed.text
    assert "<script>alert(2)</script>" in parsed.text
    assert "</table><script>" in parsed.text


def test_files_hold_all_numbers_and_are_written_whole(make: Maker, tmp_path: Path) -> None:
    paths = [make("一号", 0, fid=1.0), make("二号", 1, fid=2.0)]
    made = compared(*paths)
    out = tmp_path / "结 果"
    write(made, out)
    assert sorted(path.name for path in out.iterdir()) == ["compare.html", "compare.json", "compare.png"]
    with Image.open(out / "compare.png") as picture:
        picture.load()
        assert picture.size[0] > 400
    stored = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    (entry,) = stored["entries"]
    assert entry["values"][FID]["mean"] == 1.5
    assert entry["values"][FID]["sd"] == pytest.approx(math.sqrt(0.5))
    assert entry["values"][FID]["values"] == [1.0, 2.0]
    assert [run["name"] for run in entry["runs"]] == ["一号", "二号"]
    assert entry["runs"][0]["values"][FID]["measured"]["extractor"]["name"] == "mnist-cnn"
    assert entry["curves"]["val/loss"] == {
        "samples": [1000, 2000], "mean": [0.5, 0.25], "sd": [0.0, 0.0], "n": 2,
    }  # fmt: skip
    assert json.dumps(numbers(made), allow_nan=False)


def test_metrics_chooses_values_and_curves(make: Maker, tmp_path: Path, capsys: Any) -> None:
    path = make("a")
    made = compared(path, metrics=["val/*"])
    assert (made.columns, made.curves) == (["val/loss best", "val/loss last"], ["val/loss"])
    assert compared(path, metrics=["fid*"]).columns == [FID]
    assert "train/samples_per_s" in compared(path, metrics=["*"]).curves
    assert "train/samples_per_s" not in compared(path).curves
    assert main([str(path), "--metrics", "nothing,none", "--out", str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_answered_in_one_line(make: Maker, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(make("a")), "--out", str(tmp_path / "file" / "x")]) == 74
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_two_real_runs_make_a_group(tmp_path: Path) -> None:
    runs = []
    for seed in (1, 2):
        run = new_run(small_run("model=gan", tmp_path, f"seed={seed}"))
        assert work(run) == 0
        runs.append(run.path)
    made = compared(*runs)
    (entry,) = made.entries
    last = [read_run(path).curves["val/loss"][16][1] for path in runs]
    assert entry.runs[0].samples == 16
    assert last[0] != last[1]
    assert cell(made, "val/loss last").mean == pytest.approx(sum(last) / 2)
    assert cell(made, "val/loss last").sd == pytest.approx(abs(last[0] - last[1]) / math.sqrt(2))
    assert made.speeds[0].n == 2
    assert entry.runs[0].pictures == runs[0] / "samples" / "final.png"
    assert not made.warnings


def test_the_command_imports_no_torch_and_takes_a_broken_pipe(make: Maker, tmp_path: Path) -> None:
    make("数字-a", 0)
    make("数字-b", 1)
    script = (
        "import sys, runpy; sys.argv = ['compare.py', '数字-*', '--out', 'out']\n"
        "try: runpy.run_path(PATH, run_name='__main__')\n"
        "except SystemExit as left: assert left.code == 0, left.code\n"
        "heavy = {'torch', 'pytorch_lightning', 'hydra', 'matplotlib.pyplot'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    ).replace("PATH", repr(str(ROOT / "scripts" / "compare.py")))
    environment = {**os.environ, "GENLAB_RUNS": str(make.folder.parent)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 ddpm-mnist, n=2" in done.stdout
    assert (tmp_path / "out" / "compare.html").is_file()
    command = f"{sys.executable} {ROOT}/scripts/compare.py '数字-*' --no-group | true"
    piped = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert piped.stderr == ""
    (made,) = make.folder.parent.glob("compare-*")  # the default folder
    assert (made / "compare.json").is_file()
