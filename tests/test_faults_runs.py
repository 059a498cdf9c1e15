"""Kills, signals and lost processes, as they befall a command; rows 1, 2, 4, 5, 7 and 9 of the table of faults."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Begun, command, runs_in, train_arguments
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import assert_same_state, rows

from genlab.errors import LoaderError, expected
from genlab.files import sha256_of
from genlab.runs.checkpoint import load_checkpoint
from genlab.runs.directory import RunDirectory

ALLOW = {"GENLAB_ALLOW": "fault_parts"}
SAMPLES = 120  # twice and some more of the images made here to train on, whose number no batch of 8 divides
MOMENTS = ("batch", "validation", "validated", "save", "saved")
RUN = ("debug=null", "data.batch_size=8", "data.limit_val=8", "data.val_batch_size=4", "schedule.log_every=8",
       f"schedule.max_samples={SAMPLES}", "schedule.eval_every=40", "callbacks.guard.skips=0")  # fmt: skip


def arguments(folder: Path, *more: str) -> list[str]:
    return train_arguments(folder, *RUN, *more)


def kill(moment: str, samples: int, folder: Path) -> str:
    return f"{{_target_:fault_parts.Kill,moment:{moment},samples:{samples},folder:{folder}}}"


def ids_of(folder: Path) -> dict[int, int]:
    """Id by position, over all sessions and ranks; a batch that was given again must be the same."""
    found: dict[int, int] = {}
    for path in folder.glob("ids-*.jsonl"):
        for line in path.read_text().splitlines():
            for position, identifier in json.loads(line).items():
                assert found.setdefault(int(position), identifier) == identifier
    return found


def undisturbed(folder: Path, ranks: int) -> RunDirectory:
    """A run that nothing happens to; one for each number of ranks, whatever the loader and the saves."""
    place = folder / f"whole-{ranks}"
    if not place.exists():
        place.mkdir()
        extra = kill("never", 0, place / "signs")
        done = command(*arguments(place, f"trainer.devices={ranks}", f"callbacks.extra=[{extra}]"), folder=place,
                       environment=ALLOW)  # fmt: skip
        assert done.code == 0, done.output
    return runs_in(place)[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


def broken(folder: Path, points: list[tuple[str, int]], *more: str) -> RunDirectory:
    """The same command given again after each kill, until it ends by itself."""
    extra = ",".join(kill(moment, samples, folder / "signs") for moment, samples in points)
    given_ = arguments(folder, f"callbacks.extra=[{extra}]", *more)
    for session in range(len(points) + 1):
        done = command(*given_, folder=folder, environment=ALLOW, apart=True)
        if done.code == 0:
            break
        assert "killed by signal 9" in done.output, done.output
        assert session < len(points), done.output
    assert len(list((folder / "signs").glob("*-*"))) >= len(points)
    (run,) = runs_in(folder)
    return run


def check(whole: RunDirectory, run: RunDirectory, folder: Path) -> None:
    """Bit for bit the same end, no row twice, every id once an epoch."""
    assert_same_state(whole, run)
    samples = [row["samples"] for row in rows(run) if "train/lr" in row]
    assert samples == list(range(8, SAMPLES + 1, 8))
    ids = ids_of(folder / "signs")
    assert sorted(ids) == list(range(SAMPLES))
    split = sorted(set(ids.values()))
    assert 40 < len(split) < 60  # the rest is for validation
    for epoch in range(SAMPLES // len(split)):
        assert sorted(ids[p] for p in range(len(split) * epoch, len(split) * (epoch + 1))) == split


@pytest.mark.faults(2)
@pytest.mark.parametrize(
    ("every", "workers", "ranks"),
    [  # each two of them together; the rest of the grid is test_the_full_grid's
        (8, 0, 1), (48, 2, 1), (8, 2, 2), (48, 0, 2),
    ],
)  # fmt: skip
def test_kills_on_the_boundaries(shared: Path, tmp_path: Path, every: int, workers: int, ranks: int) -> None:
    """The first save, the end of an epoch, the middle of a validation and of a save, the last batch."""
    points = [("save", 0), ("batch", 56), ("validation", 80), ("saved", 88), ("batch", SAMPLES)]
    if ranks > 1:
        points = points[1:4]
    options = (f"schedule.save_every={every}", f"data.num_workers={workers}", f"trainer.devices={ranks}")
    check(undisturbed(shared, ranks), broken(tmp_path, points, *options), tmp_path)


@pytest.mark.faults(1)
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(
        st.tuples(st.sampled_from(MOMENTS), st.integers(0, SAMPLES // 8).map(lambda k: 8 * k)),
        min_size=1, max_size=3, unique=True,
    ),
    every=st.sampled_from([8, 16, 200]),
)  # fmt: skip
def test_drawn_crash_points(shared: Path, points: list[tuple[str, int]], every: int) -> None:
    import tempfile

    last = {"validation": SAMPLES, "validated": SAMPLES, "save": SAMPLES, "saved": SAMPLES, "batch": SAMPLES}
    points = [(moment, min(samples, last[moment])) for moment, samples in points]
    with tempfile.TemporaryDirectory(dir=shared) as name:
        run = broken(Path(name), list(dict.fromkeys(points)), f"schedule.save_every={every}")
        check(undisturbed(shared, 1), run, Path(name))


def status(folder: Path) -> dict[str, Any]:
    found = runs_in(folder)
    return found[0].status() if found else {}


def seen(folder: Path) -> int:
    found = runs_in(folder)
    return max((row["samples"] for row in rows(found[0])), default=0) if found else 0


def children(pid: int) -> list[int]:
    """Processes that `pid` has started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(process.name))
    return sorted(found)


def long_run(folder: Path, *more: str) -> Begun:
    return Begun(arguments(folder, "schedule.max_samples=200000", "schedule.eval_every=0", *more), folder, ALLOW)


def sigterm(folder: Path, to: str, wait: int) -> float:
    """SIGTERM to a command of two ranks, or to one of its ranks: seconds to its end."""
    begun = long_run(folder, "trainer.devices=2")
    begun.until(lambda: seen(folder) >= wait)
    workers = children(begun.process.pid or 0)
    assert len(workers) == 2, begun.output()
    began = time.monotonic()
    if to == "group":
        begun.signal(signal.SIGTERM)
    else:
        os.kill(workers[int(to)], signal.SIGTERM)
    done = begun.end()
    seconds = time.monotonic() - began
    assert done.code == 143, done.output
    assert status(folder)["state"] == "preempted"
    assert load_checkpoint(runs_in(folder)[0].last)["samples"] == status(folder)["samples"] >= wait
    assert f"saved at {status(folder)['samples']:,} samples" in done.output
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    return seconds


@pytest.mark.faults(4)
@pytest.mark.parametrize("to", ["group", "0", "1"])
def test_sigterm_to_two_ranks(tmp_path: Path, to: str) -> None:
    assert sigterm(tmp_path, to, 64) < 10


@pytest.mark.faults(5)
def test_ctrl_c_once_and_twice(tmp_path: Path) -> None:
    begun = long_run(tmp_path)
    begun.until(lambda: seen(tmp_path) >= 64)
    begun.signal(signal.SIGINT)
    done = begun.end()
    assert done.code == 130, done.output
    saved = status(tmp_path)["samples"]
    assert saved >= 64
    assert status(tmp_path)["state"] == "interrupted"
    run = runs_in(tmp_path)[0]
    before = sha256_of(run.last)
    extra = f"callbacks.extra=[{{_target_:fault_parts.LongStep,samples:{saved + 80},seconds:30,folder:{tmp_path}}}]"
    begun = Begun(["train.py", f"resume={run.path}", extra], tmp_path, ALLOW)
    begun.until(lambda: (tmp_path / "long").exists())
    began = time.monotonic()
    begun.signal(signal.SIGINT)
    time.sleep(0.5)
    begun.signal(signal.SIGINT)
    done = begun.end()
    assert done.code == 130, done.output
    assert time.monotonic() - began < 10, "it must not wait for the end of the step"
    assert sha256_of(run.last) == before
    assert load_checkpoint(run.last)["samples"] == saved


@pytest.mark.faults(7)
def test_a_killed_rank_is_named_and_leaves_no_orphan(tmp_path: Path) -> None:
    begun = long_run(tmp_path, "trainer.devices=2", "schedule.save_every=32")
    begun.until(lambda: seen(tmp_path) >= 64)
    workers = children(begun.process.pid or 0)
    os.kill(workers[1], signal.SIGKILL)
    began = time.monotonic()
    done = begun.end()
    assert time.monotonic() - began < 30
    done.line(1, "rank 1 was killed by signal 9", "memory")
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert status(tmp_path)["state"] == "failed"
    assert load_checkpoint(runs_in(tmp_path)[0].last)["samples"] >= 32


@pytest.mark.faults(9)
def test_a_killed_loader_worker_is_named(tmp_path: Path) -> None:
    begun = long_run(tmp_path, "data.num_workers=2", "data.resident_max=0", "schedule.save_every=32")
    begun.until(lambda: seen(tmp_path) >= 64)
    (worker,) = children(begun.process.pid or 0)
    loaders = begun.until(lambda: children(worker))
    os.kill(loaders[-1], signal.SIGKILL)
    done = begun.end()
    done.line(1, "DataLoader worker (pid", str(loaders[-1]), "data.num_workers")
    assert load_checkpoint(runs_in(tmp_path)[0].last)["samples"] >= 32


@pytest.mark.faults(9)
@pytest.mark.parametrize(
    ("words", "workers"),
    [  # torch's, from its handler of SIGCHLD and from its queue
        ("DataLoader worker (pid 41) is killed by signal: Killed. ", "41"),
        ("DataLoader worker (pid 41) exited unexpectedly with exit code 1. Details are lost due to ...", "41"),
        ("DataLoader worker (pid(s) 41, 42) exited unexpectedly", "41, 42"),
    ],
)
def test_every_way_in_which_torch_tells_of_lost_workers_is_known(words: str, workers: str) -> None:
    told = RuntimeError(words)
    caused, followed = TypeError("unsupported callable"), KeyError("x")
    caused.__cause__, followed.__context__ = told, told  # a library was called just then
    for error in (told, caused, followed):
        known = expected(error)
        assert isinstance(known, LoaderError)
        assert f"(pid {workers}) has died" in str(known)
        assert "data.num_workers" in str(known)
    assert expected(TypeError("unsupported callable")) is None


# ---- minutes of it, by hand: pytest -n 0 -m soak tests/test_faults_runs.py

RECORD = Path(__file__).resolve().parent.parent / "docs" / "results" / "soak.json"


def record(**facts: Any) -> None:
    """Adds to the stored record of what a soak has shown."""
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known.update({"date": time.strftime("%Y-%m-%d"), "cores": len(os.sched_getaffinity(0)), **facts})
    RECORD.write_text(json.dumps(known, indent=1) + "\n")


@pytest.mark.soak
def test_200_random_kills(tmp_path: Path) -> None:
    options = ("schedule.max_samples=96000", "schedule.save_every=64", "schedule.eval_every=4000",
               "schedule.log_every=80")  # fmt: skip
    (tmp_path / "whole").mkdir()
    done = command(*arguments(tmp_path / "whole", *options), folder=tmp_path / "whole", timeout=600)
    assert done.code == 0, done.output
    rng, kills, began = random.Random(0), 0, time.monotonic()
    while kills < 200:
        begun = Begun(arguments(tmp_path, *options), tmp_path)
        begun.process.join(rng.uniform(0.3, 1.6))
        assert begun.process.exitcode is None, begun.output()
        workers = children(begun.process.pid or 0)
        for pid in rng.choice([[begun.process.pid], workers or [begun.process.pid], [*workers, begun.process.pid]]):
            os.kill(pid or 0, signal.SIGKILL)
        begun.process.join(30)
        kills += 1
    print(seen(tmp_path), "samples after", kills, "kills")
    done = command(*arguments(tmp_path, *options), folder=tmp_path, timeout=600)
    assert done.code == 0, done.output
    (run,) = runs_in(tmp_path)
    assert_same_state(runs_in(tmp_path / "whole")[0], run)
    record(random_kills={"kills": kills, "minutes": round((time.monotonic() - began) / 60, 1), "equal": True})


@pytest.mark.soak
def test_fifteen_sigterms(tmp_path: Path) -> None:
    seconds = {}
    for to in ("group", "0", "1"):
        seconds[to] = []
        for i in range(15):
            folder = tmp_path / f"{to}-{i}"
            folder.mkdir()
            seconds[to].append(round(sigterm(folder, to, 8 * (1 + i)), 2))
    assert max(max(found) for found in seconds.values()) < 10
    record(sigterm_to_two_ranks={to: {"exit 143": len(s), "longest s": max(s)} for to, s in seconds.items()})


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_full_grid(tmp_path: Path, ranks: int) -> None:
    points = [[(moment, samples)] for moment in MOMENTS for samples in (0, 64, SAMPLES)]
    done = 0
    for point in points:
        for every in (8, 48):
            for workers in (0, 2):
                folder = tmp_path / f"{done}"
                folder.mkdir()
                options = (f"schedule.save_every={every}", f"data.num_workers={workers}", f"trainer.devices={ranks}")
                check(undisturbed(tmp_path, ranks), broken(folder, point, *options), folder)
                done += 1
    record(**{f"grid at {ranks} rank(s)": {"crash points": len(points), "cases": done, "equal": True}})
