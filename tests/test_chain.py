"""scripts/chain.py: stages run, killed and gone on with, one report, and what is wrong with a chain in one line."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from commands import Begun, fork_stages
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from runs import ROOT, make_text

from genlab.cli.chain import main
from genlab.cli.chains import work
from genlab.cli.chains.pages import Code, Heading, Picture, Table, html, markdown
from genlab.cli.chains.report import _samples
from genlab.cli.chains.stages import check_stage, read_chain
from genlab.errors import ConfigError
from genlab.files import write_json
from genlab.runs.directory import RunDirectory

CHAINS = sorted((ROOT / "conf" / "chain").glob("*.yaml"))
GPT = ("model=gpt trainer=debug data=text_file data.path=text.txt data.vocab_size=65 data.block_size=32 "
       "data.num_workers=0 logger=none evaluation=none model.network.config.n_layer=1 model.network.config.n_embd=16 "
       "model.network.config.n_head=2 sampler.max_new_tokens=20")  # fmt: skip
JUDGED = "evaluation=code_validity_200_val.proxy evaluation.n=4 sampler.max_new_tokens=20"
TINY = f"""stages:
  pretrain: {{train: "{GPT}"}}
  before: {{evaluate: "run=${{pretrain}} {JUDGED}"}}
  tune: {{train: "{GPT} seed=1 init_from=${{pretrain}}"}}
  after: {{evaluate: "run=${{tune}} {JUDGED}"}}
  texts:
    sample: ["run=${{tune}}", n=3, sampler.max_new_tokens=20]
"""


@pytest.mark.parametrize("path", CHAINS, ids=lambda path: path.stem)
def test_every_command_of_the_shipped_chains_composes(path: Path) -> None:
    stages = read_chain(path)
    assert {stage.entry for stage in stages} == {"train", "evaluate", "sample"}
    for stage in stages:
        check_stage(stage, ROOT / "conf")


# ---- whole and killed


def begin(folder: Path) -> Begun:
    return Begun(("scripts/chain.py", "tiny.yaml"), folder, before=fork_stages)


def chain_folder(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(TINY)
    make_text(folder / "text.txt")
    return folder / "runs" / "chains" / "tiny"


def states(chain: Path) -> dict[str, str]:
    path = chain / "chain.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else []
    return {stage["stage"]: stage["state"] for stage in stages}


def test_a_chain_that_is_killed_and_stopped_ends_with_the_same_report(tmp_path: Path) -> None:
    """Killed in a training, in an evaluation and in the next training, at random moments, then stopped by Ctrl-C.

    It takes long because some fifteen stages are run, one after another.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    first, second = chain_folder(whole), chain_folder(killed)
    done = begin(whole).end()
    assert done.code == 0, done.output
    assert set(states(first).values()) == {"finished"}

    draw = random.Random(0)
    moments: list[Callable[[], object]] = [
        lambda: list(second.glob("pretrain-*/*/*/checkpoints/last.ckpt")),
        lambda: states(second).get("before") == "running",
        lambda: states(second).get("tune") == "running",
    ]
    for moment in moments:
        command = begin(killed)
        command.until(moment)
        time.sleep(draw.uniform(0, 0.3))
        command.signal(signal.SIGKILL)
        assert command.end().code == -signal.SIGKILL
        assert not (second / "report.md").exists()
    command = begin(killed)
    command.until(lambda: list(second.glob("tune-*/*/*/checkpoints/last.ckpt")))
    command.signal(signal.SIGINT)
    stopped = command.end()
    if stopped.code:  # else it was at its very end
        assert stopped.code == 130, stopped.output
        assert "The same command goes on: python scripts/chain.py tiny.yaml" in stopped.output
    done = begin(killed).end()
    assert done.code == 0, done.output
    assert done.output.count("finished before") >= 2
    assert len(list(second.glob("*/*/*/status.json"))) == 2, "no training began anew"

    for name in ("report.md", "report.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    text, page = (first / "report.md").read_text(), (first / "report.html").read_text()
    assert "## before \\| after, by code_validity_4_val.proxy, n = 4" in text
    assert "| value | before | after | difference |" in text
    assert text.count("```text") == 5 + 2 * 4 + 3, "commands, samples of the trainings, samples"
    assert (first / "pictures" / "tune-curves.png").is_file()
    assert str(tmp_path) not in text + page
    assert not re.search(r"-\d{6}-\w{4}\b", text), "the name of a run"
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []


# ---- the logic, with commands that only leave what a real one would


class Commands:
    """In the place of `work.call`: each command as it was given, and what it leaves.

    Attributes:
        codes: exit codes by script and occurrence, 0 where there is none.
    """

    def __init__(self) -> None:
        self.given: list[list[str]] = []
        self.codes: list[int] = []

    def __call__(self, command: Sequence[str], log: Path, lock: int) -> tuple[int, bool, str]:
        script, words = Path(command[0]).name, dict(word.split("=", 1) for word in command[1:])
        self.given.append([script, *command[1:]])
        code = self.codes.pop(0) if self.codes else 0
        output = ""
        if script == "train.py":
            run = RunDirectory(
                Path(words.get("resume") or f"{words['runs_dir']}/2026-01-01/x-000000-{len(self.given):04}")
            )
            run.path.mkdir(parents=True, exist_ok=True)
            run.config.write_text("{}")
            write_json(
                run.path / "result.json", {"samples": 8, "metrics": {"val/loss": 1.5, "train/samples_per_s": 3.0}}
            )
            run.set_status("failed" if code else "finished")
        elif script == "evaluate.py":
            record = {"name": "p", "values": {"a|b": 0.25, "lost": None}, "missing": {"lost": "none in /home/me/x.txt"}}
            write_json(log.parent / "p.json", record)
            output = f"a|b 0.25\nrecord: {log.parent / 'p.json'}\n"
        elif not code:
            Path(words["out"]).mkdir()
            (Path(words["out"]) / "grid.txt").write_text("<b>one</b>\n" + "-" * 80 + "\n```two\n")
        return code, False, output

    def names(self) -> list[str]:
        done = [" ".join(words) for words in self.given]
        self.given = []
        return done


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr(work, "call", made := Commands())
    monkeypatch.setattr("genlab.cli.chain.check_stage", lambda *_: None)
    return made


def chain(tmp_path: Path, *more: str, text: str = TINY) -> int:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return main(ROOT, [str(path), *more])


def test_finished_stages_are_not_repeated_and_a_change_repeats_what_depends_on_it(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes = [0, 0, 70]
    assert chain(tmp_path) == 70
    assert "stage tune has failed with exit code 70" in capsys.readouterr().err
    _, before, tune = commands.names()
    folder = tmp_path / "runs" / "chains" / "tiny"
    (run,) = folder.glob("pretrain-*/*/*")
    assert f"run={run}" in before
    assert f"init_from={run}" in tune
    assert not (folder / "report.md").exists()

    assert chain(tmp_path) == 0
    tune, after, texts = commands.names()
    (tuned,) = folder.glob("tune-*/*/*")
    assert tune == f"train.py resume={tuned} runs_dir={tuned.parent.parent}", "goes on with its own run"
    assert f"run={tuned}" in after
    assert f"run={tuned}" in texts
    report = (folder / "report.md").read_bytes()

    assert chain(tmp_path) == 0
    assert commands.names() == []
    assert (folder / "report.md").read_bytes() == report

    assert chain(tmp_path, "texts.n=4") == 0
    (texts,) = commands.names()
    assert " n=4 " in texts
    assert " n=3 " not in texts
    assert chain(tmp_path, "tune.optimizer.lr=0.1") == 0
    assert [line.split()[0] for line in commands.names()] == ["train.py", "evaluate.py", "sample.py"]
    assert chain(tmp_path) == 0
    assert commands.names() == [], "the chain as it was before"
    assert (folder / "report.md").read_bytes() == report


def test_a_stage_that_another_signal_or_the_kernel_ends_is_named(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.codes = [143]
    assert chain(tmp_path) == 143
    assert "stage pretrain was stopped. The same command goes on" in capsys.readouterr().err
    commands.codes = [-9]
    assert chain(tmp_path) == 1
    assert "stage pretrain was killed by SIGKILL" in capsys.readouterr().err


def test_a_finished_stage_whose_run_is_gone_or_unfinished_is_one_line_with_a_remedy_that_works(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain(tmp_path) == 0
    (run,) = (tmp_path / "runs" / "chains" / "tiny").glob("pretrain-*/*/*")
    RunDirectory(run).set_status("running")
    for what, change in (("is not finished any more", lambda: None), ("is gone", lambda: run.rename(tmp_path / "run"))):
        change()
        capsys.readouterr()
        assert chain(tmp_path) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("genlab: error: stage pretrain was finished, but its run")
        assert what in line
    folder = re.search(r"back into (\S+),", line)
    assert folder
    Path(folder[1]).rename(tmp_path / "away")
    commands.given = []
    assert chain(tmp_path) == 0
    assert len(commands.names()) == 1


def test_two_commands_do_not_work_on_one_chain(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs" / "chains" / "tiny"
    folder.mkdir(parents=True)
    with RunDirectory(folder).lock():
        assert chain(tmp_path) == 2
        assert f"is worked on by process {os.getpid()}" in capsys.readouterr().err
        assert chain(tmp_path, "--dir", str(tmp_path / "other")) == 0, "the remedy that it names"
        assert chain(tmp_path, "--dry-run") == 0
    assert "run=<tune>" in capsys.readouterr().out


def test_a_report_shows_what_is_there_and_nothing_of_this_machine(tmp_path: Path, commands: Commands) -> None:
    assert chain(tmp_path, "pretrain.data.path=/home/me/text.txt") == 0
    folder = tmp_path / "runs" / "chains" / "tiny"
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "| a\\|b | 0.25 | 0.25 | 0 |" in text
    assert "| lost | missing: none in x.txt |" in text
    assert "| val/loss | 1.5 |" in text
    assert "samples_per_s" not in text, "another number each time"
    assert "&lt;b&gt;one&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "\n````text\n```two\n````\n" in text
    assert "/home" not in text + page


def test_a_picture_comes_without_the_facts_of_its_run(tmp_path: Path) -> None:
    facts = PngInfo()
    facts.add_text("run", "x-000000-abcd")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "grid.png", pnginfo=facts)
    (picture,) = _samples(tmp_path / "grid", "s", 4)
    assert isinstance(picture, Picture)
    assert b"x-000000-abcd" in (tmp_path / "grid.png").read_bytes()
    assert b"x-000000-abcd" not in picture.png


def test_both_forms_of_a_report_escape_what_they_are_given() -> None:
    blocks = [Heading(2, "a_b | _c_"), Table(["x", "y"], [["<i>", "1|2\n3"]]), Code("```\n<b>")]
    assert markdown("t", blocks) == (
        "# t\n\n## a_b \\| \\_c\\_\n\n| x | y |\n| --- | ---: |\n| \\<i\\> | 1\\|2 3 |\n\n````text\n```\n<b>\n````\n"
    )
    page = html("<t>", blocks)
    assert "<i>" not in page
    assert "<b>" not in page
    assert "<t>" not in page


# ---- a command's process


def test_a_stage_is_shown_logged_and_has_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With real processes; each is Python without any import."""
    log, lock = tmp_path / "log.txt", os.open(tmp_path, os.O_RDONLY)
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    assert work.call(["-c", code], log, lock) == (3, False, "one\ntwo\n")
    assert capsys.readouterr().out == "one\ntwo\n"
    assert work.call(["-c", "import os; os.kill(os.getpid(), 9)"], log, lock)[0] == -9
    told = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(30)"
    assert work.call(["-c", told], log, lock) == (-signal.SIGTERM, True, ""), "passed on"
    assert log.read_text() == "one\ntwo\n"
    os.close(lock)


# ---- bad input


def stages(*lines: str) -> str:
    return "stages:\n" + "".join(f"  {line}\n" for line in lines)


P = "p: {train: model=gpt}"
KINDS = "stage p: must be one of train, evaluate, sample, with its arguments; is"
LINE, NODE = "stage p: train takes its arguments as on a command line", "a chain has one node, stages"
BEFORE = "Stages that train before it:"
MISTAKES = {
    "missing": (stages(P, 'e: {evaluate: "run=${q}"}'), f"stage e names ${{q}}, which is no stage. {BEFORE} p."),
    "later": (stages('e: {evaluate: "run=${p}"}', P), f"names ${{p}}, which does not come before it. {BEFORE} none."),
    "itself": (stages('p: {train: "init_from=${p}"}'), "stage p names ${p}, which does not come before it"),
    "no training": (stages(P, 'e: {evaluate: "run=${p}"}', 's: {sample: "run=${e}"}'), "${e}, which trains nothing"),
    "kind": (stages("p: {trian: model=gpt}"), f"{KINDS} 'trian'"),
    "two kinds": (stages("p: {train: model=gpt, sample: n=3}"), f"{KINDS} 'train, sample'"),
    "no kind": (stages("p: model=gpt"), f"{KINDS} 'model=gpt'"),
    "arguments": (stages("p: {train: {model: gpt}}"), LINE),
    "number": (stages("p: {train: [3]}"), LINE),
    "quote": (stages('p: {train: "model=\'gpt"}'), "cannot be parsed"),
    "flag": (stages("p: {train: -m seed=1}"), "stage p: '-m' is a flag"),
    "empty": ("stages: {}\n", NODE),
    "nothing": ("", NODE),
    "more": (stages(P) + "name: x\n", NODE),
    "twice": (stages(P, P), "found duplicate key"),
    "yaml": ("stages: [", "cannot read the chain"),
    "name": (stages("a-b: {train: model=gpt}"), "stage 'a-b': a name is letters, digits and underscores"),
    "own": (stages("p: {train: runs_dir=x}"), "stage p: runs_dir is what the chain decides"),
    "out": (stages(P, 's: {sample: "run=${p} out=x"}'), "stage s: out is what the chain decides"),
    "of what": (stages(P, "s: {sample: n=3}"), "stage s: sample of what? Name an earlier stage: run=${STAGE}."),
    "key": (stages("p: {train: schedule.max_sample=3}"), "stage p: unknown key 'schedule.max_sample'. Did you mean"),
    "option": (stages("p: {train: model=gpd}"), "stage p: model has no option 'gpd'"),
    "value": (stages(P, 's: {sample: "run=${p} n=many"}'), "stage s: n "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_chain_is_one_line(mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = MISTAKES[mistake]
    assert chain(tmp_path, text=text) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("genlab: error: ")
    assert words in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("override", ["q.seed=1", "seed=1", "p", "p.seed"])
def test_an_override_of_no_stage_names_the_stages(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chain(tmp_path, override, text=stages(P)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"genlab: error: {override!r}: write STAGE.KEY=VALUE, where STAGE is one of p."


@pytest.mark.parametrize("name", ["poem", "nowhere.yaml"])
def test_an_unknown_chain_names_those_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ROOT, [name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"genlab: error: no chain {name!r}. Name one of assistant, coder, poet")


def test_a_stage_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    (stage,) = read_chain_of(tmp_path, stages(P))
    tiny = work.Chain("tiny", [stage], tmp_path / "chain", ROOT)
    with pytest.raises(ConfigError, match="stage p ended and left nothing"):
        tiny.keep(stage, "")


def read_chain_of(tmp_path: Path, text: str) -> list[work.Stage]:
    (tmp_path / "tiny.yaml").write_text(text)
    return read_chain(tmp_path / "tiny.yaml")


def test_the_script_starts_cold(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "chain.py"),
        "poet",
        "--dry-run",
        "--dir",
        str(tmp_path / "chain"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pretrain: waiting" in done.stdout
    assert not list(tmp_path.iterdir())
