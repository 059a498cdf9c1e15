"""W&B as a view of metrics.jsonl: the offline file holds every row, against samples, and one run over a resume."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import log, new_run, rows, small_run, start
from wandb_server import KEY, WandbServer

from genlab.callbacks.wandb_files import Mark, history, values_of
from genlab.callbacks.wandb_files import records as read_records
from genlab.cli.redact import redact
from genlab.files import write_json
from genlab.runs.directory import RunDirectory, config_hash
from genlab.runs.environment import code_version, environment
from genlab.runs.metrics import read_rows

RULE = "\n" + "-" * 80 + "\n"  # between texts in RUN/samples
TINY = ("model.network.config.n_layer=1", "model.network.config.n_head=1", "model.network.config.n_embd=8",
        "data.block_size=8", "model.chunk_size=2", "callbacks.samples.count=2", "callbacks.final.count=0",
        "sampler.max_new_tokens=4")  # fmt: skip


def offline_files(run: RunDirectory) -> list[Path]:
    return sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))


def logged(run: RunDirectory) -> list[dict[str, Any]]:
    """What the offline files hold of all sessions: rows, and with them pictures and tables."""
    return [row for file in offline_files(run) for row in history(file) if "samples" in row]


MEDIA = {"grid", "texts", "reconstructions", "interpolation", "traversal", "classes", "map"}


def check_rows(run: RunDirectory, found: list[dict[str, Any]]) -> None:
    """Every row of metrics.jsonl stands in `found` once, in order, with equal values; beside them only media."""
    wanted = [{k: v for k, v in row.items() if k != "time"} for row in read_rows(run.metrics)]
    plain = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found]
    plain = [row for row in plain if not MEDIA & row.keys()]
    assert [names(row) for row in plain] == [names(row) for row in wanted]
    clocks = ("train/samples_per_s", "train/memory_gib")  # not the same on the second pass after a kill
    for a, b in zip(plain, wanted, strict=True):
        assert {k: v for k, v in a.items() if k not in clocks} == {k: v for k, v in b.items() if k not in clocks}


def names(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["samples"], *sorted(row)


def cores_of(pid: int | None) -> list[int]:
    """wandb-core processes that a process has started and that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "wandb-core" in words[0] and str(pid) in words:
            found.append(int(path.parent.name))
    return found


def no_core_left(pid: int | None, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while cores_of(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not cores_of(pid)


def holders(run: RunDirectory, secret: str) -> list[Path]:
    """Files of the run directory that hold a text."""
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if secret.encode() in path.read_bytes()]


def apart(run: RunDirectory, **options: str) -> int:
    """Trains the run in a process of its own, at whose end wandb-core has written all: the exit code."""
    process = start(run, **options)
    process.join(240)
    return process.exitcode if process.exitcode is not None else -1


def wait_for(done: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert done()


def test_the_offline_file_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    config = small_run("model=gan", tmp_path, "logger=wandb", "schedule.log_every=4", shipped=True)
    run = new_run(config)
    assert apart(run) == 0, log(run)
    text = run.config.read_text().replace("max_samples: 16", "max_samples: 32")
    run.config.write_text(text)
    assert apart(run) == 0, log(run)  # extended: a second session of the same W&B run
    assert "W&B: offline; send it later with: wandb sync" in log(run)
    files = offline_files(run)
    assert len(files) == 2
    records = [record for file in files for record in read_records(file)]
    kinds = {record.WhichOneof("record_type") for record in records}
    assert {"run", "history", "metric", "summary", "exit"} <= kinds, kinds
    assert {r.run.run_id for r in records if r.WhichOneof("record_type") == "run"} == {run.path.name}
    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert any(m.glob_name == "*" and m.step_metric == "samples" for m in metrics)
    check_rows(run, logged(run))
    grids = [(row["samples"], row["grid"]) for row in logged(run) if "grid" in row]
    assert {"interpolation", "traversal", "classes"} <= {name for row in logged(run) for name in row}
    assert [samples for samples, _ in grids] == [8, 16, 24, 32]
    pictures = [path for file in files for path in (file.parent / "files").glob(grids[0][1]["filenames"][0])]
    assert [path.read_bytes() for path in pictures] == [(run.path / "samples" / "000000008.png").read_bytes()]
    stored = values_of(u for r in records for u in (*r.run.config.update, *r.config.update))
    assert stored["seed"] == config.seed, sorted(stored)
    assert stored["schedule"]["max_samples"] == 32


def test_what_w_and_b_shows_beside_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three loggers at once; texts, summary, group, seeds; and no secret anywhere."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    canaries = {"api_key": "canary-0f3a", "token": "canary-1b7c", "password": "canary-2d9e"}
    given = ",".join(f"{key}:{value}" for key, value in canaries.items())
    options = (
        "logger=[wandb,csv,tensorboard]",
        "evaluation=text_likelihood",
        f"+logger.wandb.config={{{given}}}",
        *TINY,
    )
    config = small_run("model=gpt", tmp_path, *options)
    run = new_run(config)
    command = ["train.py", *(f"+logger.wandb.config.{key}={value}" for key, value in canaries.items())]
    write_json(run.path / "environment.json", redact({**environment(command), "sweep": "sweep-7"}))
    process = start(run, WANDB_API_KEY=KEY)
    process.join(240)
    assert process.exitcode == 0, log(run)

    check_rows(run, logged(run))
    records = [record for file in offline_files(run) for record in read_records(file)]
    facts = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (facts.run_group, facts.job_type, facts.project) == ("sweep-7", "train", "genlab")
    stored = values_of(u for r in records for u in (*r.run.config.update, *r.config.update))
    assert stored["code"].keys() == code_version().keys()
    assert stored["environment"]["versions"]["torch"] == torch.__version__
    other = OmegaConf.to_container(small_run("model=gpt", tmp_path, *options, "seed=1"), resolve=True)
    assert isinstance(other, dict)
    assert config_hash(other) != run.status()["config_hash"]
    assert config_hash(other, ("seed", "data.seed", "name")) == stored["seedless"], "seeds of one configuration"

    summary = values_of(u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update)
    last = [row["val/loss"] for row in rows(run) if "val/loss" in row][-1]
    assert summary["val/loss"] == last
    final = {key: value for key, value in rows(run)[-1].items() if key.startswith("test/")}
    assert final
    assert final.items() <= summary.items()
    tables = [row["texts"] for row in logged(run) if "texts" in row]
    assert [row["samples"] for row in logged(run) if "texts" in row] == [8, 16]
    table = json.loads((offline_files(run)[0].parent / "files" / tables[-1]["path"]).read_text())
    assert table["columns"] == ["samples", "text"]
    assert [text for _, text in table["data"]] == (run.path / "samples" / "000000016.txt").read_text()[:-1].split(RULE)

    wanted = {row["samples"]: row["val/loss"] for row in rows(run) if "val/loss" in row}
    assert wanted.keys() == {8, 16}
    with open(run.path / "csv" / "version_0" / "metrics.csv", newline="") as file:
        *_, row = table_rows = list(csv.DictReader(file))
    assert {int(row["step"]): float(row["val/loss"]) for row in table_rows if row["val/loss"]} == wanted
    assert final.keys() <= row.keys(), "also what came after training"
    board = event_accumulator.EventAccumulator(str(run.path / "tensorboard" / "version_0")).Reload()
    assert {event.step: event.value for event in board.Scalars("val/loss")} == pytest.approx(wanted)
    for key, value in final.items():
        kept = float(torch.tensor(value, dtype=torch.float32))  # a perplexity a word of noise may be beyond that: inf
        assert [event.value for event in board.Scalars(key)] == pytest.approx([kept])

    assert not holders(run, KEY)
    for secret in canaries.values():  # too short for keys: as typed in the configuration, and nowhere else
        assert holders(run, secret) == [run.config]
    assert KEY not in log(run)


@pytest.mark.faults(25)
def test_a_kill_loses_and_doubles_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with wandb-core, so that the end of its file is lost: rows before the checkpoint are sent again, rows
    after it are not written twice; and so it stands after `wandb sync`."""
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    options = ("schedule.max_samples=120", "schedule.save_every=20", "schedule.log_every=4", "schedule.eval_every=40")
    hang = "callbacks.extra=[{_target_:ddp_parts.Sleep,rank:0,batch:12}]"
    run = new_run(small_run("model=gpt", tmp_path, "logger=wandb", "debug=null", "data.batch_size=4",
                            "data.limit_val=8", *TINY, *options, hang))  # fmt: skip

    def kill_at(samples: int, settle: float) -> None:
        process = start(run, allow="ddp_parts")
        wait_for(lambda: any(row["samples"] == samples for row in rows(run)) or process.exitcode is not None)
        time.sleep(settle)
        for pid in (*cores_of(process.pid), process.pid or 0):
            os.kill(pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, log(run)

    kill_at(48, 2.5)  # all rows are in W&B's file; the checkpoint is at 40
    assert [row["samples"] for row in logged(run)][-1] == 48
    first = offline_files(run)[0]
    while logged(run)[-1]["samples"] == 48:  # as where the disk has the file up to the middle of a record
        os.truncate(first, first.stat().st_size - 5)
    run.config.write_text(run.config.read_text().replace("batch: 12", "batch: 20"))
    kill_at(80, 0.0)  # the checkpoint is at 80, W&B's file behind it
    while logged(run)[-1]["samples"] >= 80:  # wandb-core writes to the disk once a second: it may just have done so
        os.truncate(offline_files(run)[-1], offline_files(run)[-1].stat().st_size - 5)
    run.config.write_text(run.config.read_text().replace("batch: 20", "batch: 1000"))
    assert apart(run, allow="ddp_parts") == 0, log(run)
    check_rows(run, logged(run))

    server = WandbServer()
    try:
        found = {**os.environ, "WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        command = [sys.executable, "-m", "wandb", "sync", *(str(file.parent) for file in offline_files(run))]
        synced = subprocess.run(command, env=found, cwd=run.path, capture_output=True, text=True, timeout=120)
        assert synced.returncode == 0, synced.stderr
        assert all(file.with_name(f"{file.name}.synced").exists() for file in offline_files(run))
        check_rows(run, server.history(run.path.name))
        steps = [row["_step"] for row in server.history(run.path.name)]
        assert steps == list(range(len(steps)))
        assert server.summary(run.path.name)["val/loss"] == rows(run)[-1]["val/loss"]
    finally:
        server.die()


@pytest.mark.parametrize(("end", "code"), [("raises", 1), ("SIGTERM", 143)])
@pytest.mark.faults(24)
def test_the_w_and_b_run_ends_however_the_run_ends(
    end: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    options = ["logger=wandb", *TINY, "schedule.max_samples=100000", "schedule.eval_every=0", "schedule.save_every=0"]
    if end == "raises":
        options.append("callbacks.extra=[{_target_:ddp_parts.Fail,rank:0,batch:3}]")
    run = new_run(small_run("model=gpt", tmp_path, "debug=null", "data.batch_size=4", "schedule.log_every=4", *options))
    process = start(run, allow="ddp_parts")
    if end == "SIGTERM":
        wait_for(lambda: len(rows(run)) >= 2)
        os.kill(process.pid or 0, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == code, log(run)
    assert no_core_left(process.pid)
    records = [record for file in offline_files(run) for record in read_records(file)]
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [code]
    assert any(r.WhichOneof("record_type") == "preempting" for r in records) == (end == "SIGTERM")
    check_rows(run, logged(run))


def test_the_mark_is_where_the_next_row_goes_on() -> None:
    mark = Mark()
    assert not mark.has({"samples": 0, "a": 1})
    for row in ({"samples": 4, "a": 1}, {"samples": 8, "a": 2}, {"samples": 8, "b": 2, "time": 3.0}):
        assert not mark.has(row)
        mark = mark.after(row)
        assert mark.has(row)
    assert mark.has({"samples": 4, "c": 1}), "one in its place"
    assert not mark.has({"samples": 8, "c": 1})
    assert not mark.has({"samples": 12, "a": 1})
    assert mark.after({"samples": 4, "a": 1}) == mark


def test_a_command_line_is_redacted() -> None:
    given = ["train.py", "seed=1", "+logger.wandb.config.token=abc", "--password=abc=d", "eos_token=x"]
    assert redact(given) == ["train.py", "seed=1", "+logger.wandb.config.token=[redacted]", "--password=[redacted]",
                             "eos_token=x"]  # fmt: skip
