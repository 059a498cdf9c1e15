"""W&B as a view of metrics.jsonl: the offline file holds every row, against samples, and one run over a resume."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from runs import log, new_run, small_run, work

from genlab.runs.metrics import read_rows


def offline_records(path: Path) -> list[Any]:
    """All records of an offline run's file: a 7-byte header, then LevelDB's log format: blocks of 32 KiB, in which each
    chunk has a checksum, a length and a type (1 whole, 2 first, 3 middle, 4 last)."""
    from wandb.proto import wandb_internal_pb2

    data, place, found, parts = path.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no room for a chunk's header: the rest of the block is empty
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def rows_of(records: list[Any]) -> list[dict[str, Any]]:
    """The history: what was logged, by W&B's own keys."""
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            found.append(items)
    return found


def test_the_offline_file_holds_what_metrics_jsonl_holds(tmp_path: Path) -> None:
    config = small_run("model=gan", tmp_path, "logger=wandb", "schedule.log_every=4")
    run = new_run(config)
    assert work(run) == 0, log(run)
    text = run.config.read_text().replace("max_samples: 16", "max_samples: 32")
    run.config.write_text(text)
    assert work(run) == 0, log(run)  # extended: a second session of the same W&B run
    assert "W&B: offline; send it later with: wandb sync" in log(run)
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    records = [record for file in files for record in offline_records(file)]
    kinds = {record.WhichOneof("record_type") for record in records}
    assert {"run", "history", "metric", "summary", "exit"} <= kinds, kinds
    assert {r.run.run_id for r in records if r.WhichOneof("record_type") == "run"} == {run.path.name}
    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert any(m.glob_name == "*" and m.step_metric == "samples" for m in metrics)
    logged = [row for row in rows_of(records) if "samples" in row]
    for row in read_rows(run.metrics):
        wanted = {k: v for k, v in row.items() if k != "time"}
        assert any(all(other.get(k) == v for k, v in wanted.items()) for other in logged), wanted
    updates = [u for r in records for u in (*r.run.config.update, *r.config.update)]
    stored = {u.key or ".".join(u.nested_key): u.value_json for u in updates}
    assert json.loads(stored["seed"]) == config.seed, sorted(stored)
    assert json.loads(stored["schedule"])["max_samples"] == 32
