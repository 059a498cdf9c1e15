"""The run directory: checkpoints that are whole or not there, locks, metrics, status."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from processes import as_a_process, server

from genlab.cli.train import with_debug
from genlab.errors import CheckpointError, ConfigError, StorageError
from genlab.runs.checkpoint import AtomicCheckpointIO, keep_as, load_checkpoint, load_last
from genlab.runs.directory import RunDirectory, config_hash, create_run, find_run, find_unfinished
from genlab.runs.metrics import MetricsFile, read_rows
from genlab.runs.pulse import Pulse, stalled

STATE = {"state_dict": {"w": torch.arange(1000.0)}, "samples": 8}


def other(value: float) -> dict[str, object]:
    return {"state_dict": {"w": torch.full((1000,), value)}, "samples": int(value)}


def test_checkpoint_round_trip_keeps_previous(tmp_path: Path) -> None:
    io, last = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint(other(1), last)
    io.save_checkpoint(other(2), last)
    assert load_checkpoint(last)["samples"] == 2
    assert load_checkpoint(last.with_name("previous.ckpt"))["samples"] == 1
    keep_as(last, "best.ckpt")
    io.save_checkpoint(other(3), last)
    assert load_checkpoint(last.with_name("best.ckpt"))["samples"] == 2
    assert not list(last.parent.glob(".*.tmp"))


@pytest.mark.faults(14)
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "bit"])
def test_damaged_last_falls_back_to_previous(tmp_path: Path, damage: str) -> None:
    io, last = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(other(1), last)
    io.save_checkpoint(other(2), last)
    good = last.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    bad = {"truncated": good[:-100], "empty": b"", "garbage": b"x" * 500, "bit": bytes(flipped)}[damage]
    last.write_bytes(bad)
    with pytest.raises(CheckpointError, match="sha256 mismatch"):
        load_checkpoint(last)
    with pytest.warns(UserWarning, match="trying the one before"):
        found = load_last(tmp_path)
    assert found is not None
    assert found[0]["samples"] == 1
    assert last.read_bytes() == bad  # kept as it is
    last.with_name("previous.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="sha256"), pytest.raises(CheckpointError, match="no valid checkpoint"):
        load_last(tmp_path)


@pytest.mark.faults(18)
def test_no_checkpoint_is_none_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert load_last(tmp_path) is None
    with pytest.raises(ConfigError, match="does not exist"):
        load_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.faults(16)
def test_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    path = tmp_path / "evil.ckpt"
    with open(path, "wb") as file:
        pickle.dump({"state_dict": Evil()}, file)
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        load_checkpoint(path)
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not marker.exists()


@pytest.mark.faults(16)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, last)
    with pytest.raises(pickle.UnpicklingError):
        AtomicCheckpointIO().save_checkpoint({"path": Path("x")}, last)
    assert load_checkpoint(last)["samples"] == 8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256.json"]


def _save_too_much(last: str) -> None:
    as_a_process(f"{last}.log", {})
    io = AtomicCheckpointIO()
    io.save_checkpoint({"w": torch.zeros(10)}, last)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    with pytest.raises(StorageError) as caught:
        io.save_checkpoint({"w": torch.zeros(1_000_000)}, last)
    print(caught.value, flush=True)


@pytest.mark.faults(11)
def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """The limit on file sizes stands in for the full disk: the write fails in the middle of the file."""
    process = server.Process(target=_save_too_much, args=(str(tmp_path / "last.ckpt"),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    said = (tmp_path / "last.ckpt.log").read_text()
    (tmp_path / "last.ckpt.log").unlink()
    assert "last.ckpt" in said
    assert "bytes free" in said
    assert len(load_checkpoint(tmp_path / "last.ckpt")["w"]) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.sha256.json"]


def test_lock_names_its_holder_and_is_free_after_a_kill(tmp_path: Path) -> None:
    run = create_run(tmp_path, "x", "0" * 16)
    code = f"""
        import time
        from pathlib import Path
        from genlab.runs.directory import RunDirectory
        with RunDirectory(Path({str(run.path)!r})).lock():
            print("held", flush=True)
            time.sleep(60)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    assert run.holder() is not None
    with pytest.raises(ConfigError, match=str(child.pid)), run.lock():
        raise AssertionError("not reached")
    child.kill()
    child.wait()
    assert run.holder() is None
    with run.lock():
        assert run.holder() is not None


def test_unfinished_run_is_found_by_its_configuration(tmp_path: Path) -> None:
    config = {"model": {"lr": 1}, "trainer": {"devices": 1}, "logger": {"a": 1}, "resume": "auto", "runs_dir": "x"}
    elsewhere = {"model": {"lr": 1}, "trainer": {"devices": 2}, "logger": {}, "resume": "never", "runs_dir": "y"}
    digest = config_hash(config)
    assert digest == config_hash(elsewhere)  # where and how it is watched is not what it computes
    assert digest != config_hash({**config, "model": {"lr": 2}})
    run = create_run(tmp_path, "x", digest)
    found = find_unfinished(tmp_path, digest)
    assert found is not None
    assert found.path == run.path
    with run.lock():
        assert find_unfinished(tmp_path, digest) is None
    run.set_status("finished")
    assert find_unfinished(tmp_path, digest) is None


def test_run_by_name_path_and_last(tmp_path: Path) -> None:
    run = create_run(tmp_path, "x", "0")
    with pytest.raises(ConfigError, match="no run directory"):
        find_run("last", tmp_path)
    run.config.write_text("a: 1\n")
    assert (
        find_run("last", tmp_path).path
        == find_run(run.path.name, tmp_path).path
        == find_run(str(run.path), tmp_path).path
    )
    with pytest.raises(ConfigError, match=run.path.name):
        find_run("nope", tmp_path)


def test_metrics_rows_are_whole_and_truncated_to_a_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append(8, {"train/loss": torch.tensor(0.5), "text": "數"})
    offset = file.offset()
    file.append(16, {"train/loss": float("nan")})
    rows = read_rows(file.path)
    assert [row["samples"] for row in rows] == [8, 16]
    assert rows[0]["train/loss"] == 0.5
    assert rows[1]["train/loss"] is None
    with open(file.path, "a") as raw:
        raw.write('{"samples": 24, "tra')  # a crash in the middle of a row
    assert len(read_rows(file.path)) == 2
    file.truncate(offset)
    assert [row["samples"] for row in read_rows(file.path)] == [8]


def test_status_is_replaced_whole(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.set_status("running", samples=5)
    run.set_status("failed", message="x")
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["samples"], status["message"]) == ("failed", 5, "x")
    run.set_status("running", message=None)
    assert "message" not in run.status()


def test_debug_overlay_gives_way_to_the_command_line() -> None:
    config = OmegaConf.create({"a": {"b": 1, "c": 2}, "debug": {"a": {"b": 10, "c": 20}}})
    assert with_debug(config, {"trainer": "debug"}, ["a.b=1", "model=x", "a=option"]) == {"a": {"b": 1, "c": 20}}
    assert with_debug(config, {"trainer": "default"}) == {"a": {"b": 1, "c": 2}}


def test_the_rank_behind_is_named(tmp_path: Path) -> None:
    now = time.time()
    (tmp_path / "ranks").mkdir()
    for rank, words in ((0, f"7 {now - 60:.1f} was to send gradients"), (1, f"6 {now - 61:.1f} had a batch"), (2, "")):
        (tmp_path / "ranks" / f"{rank}.pulse").write_text(words)  # the last has only just made its file
    behind, words = stalled(tmp_path)
    assert behind == [1]
    assert words.startswith("rank 1 gave no sign for 61 s, last had a batch")
    Pulse(tmp_path, 1).mark("had a batch")
    assert stalled(tmp_path) == ([], "")


def _what_is_loaded(path: str) -> None:
    Path(path).write_text(str("genlab.cli.session" in sys.modules))


def test_the_fork_server_has_all_loaded(tmp_path: Path) -> None:
    process = server.Process(target=_what_is_loaded, args=(str(tmp_path / "out"),))
    process.start()
    process.join(60)
    assert (tmp_path / "out").read_text() == "True"
