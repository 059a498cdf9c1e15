"""W&B online, against a server that plays it: a whole run arrives; one that fails costs a line and some seconds.

The first test takes more than 20 seconds: so long W&B itself waits for a server that does not answer.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from runs import log, new_run, rows, small_run, start
from test_wandb import TINY, check_rows, cores_of, holders, no_core_left, wait_for
from wandb_server import KEY, BlackHole, WandbServer, free_url

from genlab.runs.directory import RunDirectory

LONGEST_S = 30.0  # that W&B may add to a run


def online(url: str, key: str = KEY) -> dict[str, str]:
    """The environment of a worker whose user is logged in at `url`."""
    return {"WANDB_MODE": "online", "WANDB_BASE_URL": url, "WANDB_API_KEY": key, "WANDB_CONFIG_DIR": "/nonexistent"}


@dataclass
class Job:
    run: RunDirectory
    process: BaseProcess
    then: Callable[[], None] | None  # what befalls the server in mid-run
    began: float
    seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        return [line for line in log(self.run).splitlines() if line.startswith(("W&B", "wandb"))]


class Jobs(NamedTuple):
    servers: dict[str, WandbServer]
    runs: dict[str, Job]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """One run for each fault, all at once (they mostly wait), and one without W&B."""
    folder = tmp_path_factory.mktemp("wandb")
    servers = {
        name: WandbServer() for name in ("answers", "refuses", "hangs", "hangs at init", "dies later", "hangs later")
    }
    hole = BlackHole()
    servers["hangs"].hang()
    servers["hangs at init"].hang_at = "RunResumeStatus"  # it has taken the key
    environments: dict[str, dict[str, str]] = {name: online(server.url) for name, server in servers.items()}
    environments["refuses"] = online(servers["refuses"].url, "f" * 40)
    environments["unreachable"] = online(free_url())
    environments["black hole"] = online(hole.url)
    environments["no key"] = online(free_url(), "") | {"NETRC": "/nonexistent"}
    environments["without"] = {}
    then = {"dies later": servers["dies later"].die, "hangs later": servers["hangs later"].hang}
    config = small_run("model=gpt", folder, "resume=never", *TINY, "schedule.max_samples=64", "schedule.eval_every=32")
    started: dict[str, Job] = {}
    for name, environment in environments.items():
        run = new_run(config)
        if environment:
            text = run.config.read_text().replace("logger: {}", LOGGER)
            run.config.write_text(text)
        started[name] = Job(run, start(run, **environment), then.get(name), time.monotonic())
    deadline, left = time.monotonic() + 200, dict(started)
    while left and time.monotonic() < deadline:
        for name, job in list(left.items()):
            if job.then is not None and len(rows(job.run)) >= 2:
                job.then()
                job.then = None
            if job.process.exitcode is not None:
                job.seconds = time.monotonic() - job.began
                del left[name]
        time.sleep(0.05)
    yield Jobs(servers, started)
    for server in servers.values():
        if server.socket.fileno() >= 0:
            server.die()
    hole.die()


LOGGER = "logger: {wandb: {_target_: genlab.callbacks.wandb_logger.RunWandbLogger, project: genlab}}"
FAULTS = {
    "no key": "W&B: offline; ",
    "unreachable": "W&B: offline (",
    "black hole": "W&B: offline (",
    "refuses": "W&B: offline (",
    "hangs": "W&B: offline (",
    "hangs at init": "W&B: offline (",
    "dies later": "W&B: not all has been sent (",
    "hangs later": "W&B: not all has been sent (",
}


def test_a_whole_run_arrives(jobs: Jobs) -> None:
    job, server = jobs.runs["answers"], jobs.servers["answers"]
    assert job.process.exitcode == 0, log(job.run)
    assert job.lines == [], "nothing to say"
    id = job.run.path.name
    history: list[dict[str, Any]] = server.history(id)
    check_rows(job.run, history)
    assert [row["_step"] for row in history] == list(range(len(history)))
    summary = server.summary(id)
    assert summary["val/loss"] == [row["val/loss"] for row in rows(job.run) if "val/loss" in row][-1]
    assert server.ended[id] == 0
    assert any(name.startswith("texts") and name.endswith(".table.json") for name in server.uploads)
    metrics = server.runs[id]["config"]["_wandb"]["value"]["m"]
    assert metrics, "define_metric is part of the config"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.faults(24)
def test_a_server_that_fails_does_not_cost_the_run(fault: str, jobs: Jobs) -> None:
    job, without = jobs.runs[fault], jobs.runs["without"]
    print(f"{fault}: {job.seconds:.1f} s, without W&B {without.seconds:.1f} s, {job.lines}")
    assert job.process.exitcode == 0, log(job.run)
    assert rows(job.run) == rows(without.run)
    assert job.run.status()["state"] == "finished"
    assert len(job.lines) == 1, job.lines
    assert job.lines[0].startswith(FAULTS[fault]), job.lines
    assert "wandb sync" in job.lines[0]
    assert "Traceback" not in log(job.run)
    assert job.seconds - without.seconds < LONGEST_S
    assert no_core_left(job.process.pid)
    assert not holders(job.run, KEY)


@pytest.mark.faults(25)
def test_an_online_run_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had arrived is not sent again, what had not is; the server tells which."""
    monkeypatch.setenv("GENLAB_ALLOW", "ddp_parts")
    server = WandbServer()
    hang = "callbacks.extra=[{_target_:ddp_parts.Sleep,rank:0,batch:12}]"
    options = ("debug=null", "data.batch_size=4", "data.limit_val=8", "schedule.max_samples=80",
               "schedule.save_every=20", "schedule.log_every=4", "schedule.eval_every=40", hang)  # fmt: skip
    run = new_run(small_run("model=gpt", tmp_path, "logger=wandb", *TINY, *options))
    try:
        often = {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"}
        process = start(run, allow="ddp_parts", **online(server.url), **often)
        wait_for(lambda: any(row["samples"] == 48 for row in server.history(run.path.name)))
        time.sleep(2)  # until wandb-core's own file has them as well
        for pid in (*cores_of(process.pid), process.pid or 0):
            os.kill(pid, signal.SIGKILL)
        process.join()
        lines = server.lines[run.path.name]["wandb-history.jsonl"]
        for place in range(6, len(lines)):  # as where the rest was on its way
            del lines[place]
        lines_of_summary = server.lines[run.path.name]["wandb-summary.json"]
        lines_of_summary[max(lines_of_summary)] = lines[5]
        run.config.write_text(run.config.read_text().replace("batch: 12", "batch: 1000"))
        process = start(run, allow="ddp_parts", **online(server.url))
        process.join(120)
        assert process.exitcode == 0, log(run)
        check_rows(run, server.history(run.path.name))
        steps = [row["_step"] for row in server.history(run.path.name)]
        assert steps == list(range(len(steps)))
    finally:
        server.die()
