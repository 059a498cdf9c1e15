"""Rows 19 to 21, 27 and 30 of the faults, and libraries that are known to be bad: what comes in from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands import command, everything, runs_in, train_arguments
from data_files import cache as cache
from data_files import module, npz, tgz
from omegaconf import OmegaConf
from runs import ROOT

from genlab.cli import doctor, start
from genlab.cli.redact import HIDDEN, redact
from genlab.data.archive import unpack
from genlab.data.readers import read_npz
from genlab.errors import ConfigError, DataError
from genlab.evaluation.judged import texts_from
from genlab.files import read_rows

# ---- 19: corrupt data, by the commands


@pytest.mark.faults(19)
def test_corrupt_data_end_a_command_with_65(tmp_path: Path) -> None:
    text = tmp_path / "bad.txt"
    text.write_bytes(b"one\ntwo\nthr\xe9e\n" * 50)
    broken = tmp_path / "broken.npz"
    np.savez(broken, image=np.zeros((40, 1, 28, 28), np.uint8), label=np.array([{}] * 40, dtype=object))
    before = {path: path.read_bytes() for path in (text, broken)}
    gan = [a for a in train_arguments(tmp_path) if not a.startswith("data.path=")]
    command(*gan, f"data.path={broken}", folder=tmp_path).line(65, str(broken), "pickled")
    gpt = ("train.py", "model=gpt", "trainer=debug", "data=text_file", "data.vocab_size=11", "evaluation=none",
           "logger=none", f"data.path={text}")  # fmt: skip
    command(*gpt, folder=tmp_path).line(65, str(text), "not UTF-8", "offset 11, line 3")
    assert {path: path.read_bytes() for path in before} == before
    assert all(not run.last.exists() for run in runs_in(tmp_path))


@pytest.mark.faults(19)
def test_jsonl_names_file_line_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"text": "a\u2028b\x85c", "reference": "r"}\n'.encode()  # str.splitlines would split here
    path.write_bytes(good * 3)
    assert texts_from(path, None).read(0, 3).data == ["a\u2028b\x85c"] * 3
    for line, words in (
        (b'{"text": "c\xe9"}\n', rf"offset {3 * len(good) + 11}, line 4"),
        (b'{"text": "c\n', "line 4: expected"),
        (b'{"txt": "c"}\n', "line 4: expected"),
        (b'{"text": 5}\n', "line 4: expected"),
        (b'{"text": "c", "references": [1]}\n', "line 4: expected"),
        (b'{"text": "c"}\n', "line 4: all lines must have a reference"),
        (b'{"text": "\\ud800", "reference": ""}\n', "line 4: half a surrogate"),
        (b"[" * 100_000 + b"\n", "line 4: expected"),
        (b"null\n", "line 4: expected"),
        (b"\n", "line 4: expected"),
    ):
        path.write_bytes(good * 3 + line)
        with pytest.raises(DataError, match=words) as caught:
            texts_from(path, None)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.faults(19)
def test_damaged_rows_of_a_record_are_left_out(tmp_path: Path) -> None:
    """metrics.jsonl: one bad row must cost neither the others nor a resume."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"samples": n, "text": "a\u2028b"} for n in (8, 16, 24)]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"\n".join([lines[0], b"\xff\xfe", b"5", b"[" * 99999, b'{"x": 1}', lines[1], lines[2], b'{"sa']))
    assert read_rows(path) == rows


@pytest.mark.faults(19)
def test_members_of_an_npz_that_are_no_arrays(tmp_path: Path) -> None:
    """numpy hands such a member out as bytes. Found by fuzzing."""
    path = tmp_path / "x.npz"
    np.savez(path, image=np.zeros((4, 1, 8, 8), np.uint8))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("label", b"not an array")
    with pytest.raises(DataError, match="label is no array"):
        read_npz(path, (1, 8, 8))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("圖\n\x1b[2J.npy", b"")
        file.writestr("圖.npy", b"")
    with pytest.raises(DataError, match=r"has '圖\\n\\x1b\[2J', 圖; expected 'image'"):
        read_npz(path, (1, 8, 8))


# ---- 20: bombs and escapes


@pytest.mark.faults(20)
def test_an_npz_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, image=np.zeros((2000, 1, 64, 64), np.uint8))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    with pytest.raises(DataError, match=r"image.npy unpacks to 8,192,128 bytes from .*decompression bomb"):
        read_npz(path, (1, 64, 64))


@pytest.mark.faults(20)
def test_what_is_not_wanted_of_an_archive_is_bounded_too(tmp_path: Path) -> None:
    """Reading over it would take as long as unpacking it."""
    target = tmp_path / "out"
    target.mkdir()
    path = tgz(tmp_path / "x.tgz", {"big": b"\0" * (70 << 20), "a": b"1"})
    with pytest.raises(DataError, match=r"would unpack to more than .*nothing was written"):
        unpack(path, target, {"a"}, 1000)
    assert not list(target.iterdir())


@pytest.mark.faults(20)
def test_escapes_by_pax_and_gnu_names_and_a_lying_zip(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        for name in ("../evil" + "x" * 200, "/" + "y" * 300, "a/" * 60 + "../" * 70 + "evil"):
            path = tmp_path / "x.tar"
            with tarfile.open(path, "w", format=form) as file:
                file.addfile(tarfile.TarInfo("ok"))
                file.addfile(tarfile.TarInfo(name))
            with pytest.raises(DataError, match="outside"):
                unpack(path, target, None, 1000)
    path = tmp_path / "lying.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * 100_000)
    raw = path.read_bytes().replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(raw)  # it says 10 bytes
    with pytest.raises(DataError):
        unpack(path, target, None, 1000)
    assert all(p.stat().st_size <= 1000 for p in target.rglob("*") if p.is_file())
    assert {p.name for p in tmp_path.iterdir()} == {"out", "x.tar", "lying.zip"}


# ---- 21: sizes


@pytest.mark.faults(21)
def test_sizes_that_do_not_go_together_name_both(tmp_path: Path) -> None:
    for options, words in (
        (("data.batch_size=1000", "debug=null"), ("1000", "54 items")),
        (("data.val_fraction=0",), ("validation has 0 items, train 60",)),
        (("data.val_fraction=0.001",), ("val split", "0 items", "train 60, val 0")),
    ):
        command(*train_arguments(tmp_path, *options), folder=tmp_path).line(2, *words)
    assert all(not run.last.exists() for run in runs_in(tmp_path))
    with pytest.raises(ConfigError, match=r"train split of data 'tiny' .*0 items \(train 0, val 0"):
        module(tmp_path, path=npz(tmp_path, n=0)).setup()


# ---- 27: names and text

CHINESE = "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。\n"


UNDER_C = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BOTH = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from genlab.cli.start import use_utf8
use_utf8()
from pathlib import Path
from commands import command
for given in json.loads(sys.argv[2]):
    done = command(*given, folder=Path.cwd(), environment={"GENLAB_RUNS": sys.argv[3]})
    print(done.output)
    assert done.code == 0
"""


@pytest.mark.faults(27)
def test_names_and_text_come_back_whole_under_the_c_locale(tmp_path: Path) -> None:
    """Cold starts, since the locale is read when Python starts: one that answers, one that trains and samples."""
    folder = tmp_path / "數據 a=b"
    folder.mkdir()
    text = folder / "詩 x=1.txt"
    text.write_text(CHINESE * 60, encoding="utf-8")
    size = len(set(CHINESE))
    runs = folder / "運行 =runs"

    def go(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, env={**os.environ, **UNDER_C}, cwd=folder, timeout=120
        )
        output = (done.stdout + done.stderr).decode("utf-8")
        assert done.returncode == 0, output
        return output

    train = ["train.py", "model=gpt", "trainer=debug", "data=text_file", f"data.path={text}", f"data.vocab_size={size}",
             "data.block_size=16", "evaluation=none", "logger=none", "name=月 光=x", "model.start=床",
             "sampler.max_new_tokens=12"]  # fmt: skip
    assert "name: 月 光=x" in go(str(ROOT / train[0]), *train[1:], "--cfg", "job")
    prompt = "舉頭望明月，"
    sample = ["sample.py", "run=last", "n=2", f"condition.prompt={prompt}", "out=樣 本=2"]
    paths = [str(ROOT / "tests"), str(ROOT / "src")]
    output = go("-c", BOTH, json.dumps(paths), json.dumps([train, sample]), str(runs))
    (run,) = [p.parent for p in folder.glob("運行 =runs/*/*/status.json")]
    config = OmegaConf.load(run / "config.yaml")
    assert config.data.path == str(text)
    assert config.name == "月 光=x"
    assert prompt in output
    made = sorted((folder / "樣 本=2").iterdir())
    whole = "\n".join(path.read_text(encoding="utf-8") for path in made)
    assert prompt in whole
    assert set(whole) - set(CHINESE) <= set("-—─= \n0123456789[]:.#abcdefghijklmnopqrstuvwxyz\"'{},"), whole


@pytest.mark.faults(27)
def test_paths_with_spaces_chinese_and_equals_signs(tmp_path: Path) -> None:
    folder = tmp_path / "數 據=x"
    folder.mkdir()
    done = command(*train_arguments(folder, "name=一 二=三"), folder=folder)
    assert done.code == 0, done.output
    (run,) = runs_in(folder)
    out = folder / "出 a=b"
    done = command("sample.py", f"run={run.path}", "n=2", f"out={out}", folder=folder)
    assert done.code == 0, done.output
    assert (out / "000001.png").is_file()
    done = command("scripts/export.py", f"run={run.path}", f"out={folder / '出 口=1'}", folder=folder)
    assert done.code == 0, done.output


# ---- 30: secrets

CANARIES = {
    "WANDB_API_KEY": "canary0123456789abcdef0123456789abcdef01",
    "HF_TOKEN": "hf_canaryABCDEFGHIJKLMNOPQRSTUVWXYZ012345",
    "AWS_SECRET_ACCESS_KEY": "canary/wJalrXUtnFEMI/K7MDENG/bPxRfiCYEX",
    "MY_SERVICE_PASSWORD": "canary-hunter2-canary",
}
GIVEN = "canary-given-on-the-command-line"


def reveals(*where: bytes) -> list[str]:
    return [value for value in (*CANARIES.values(), GIVEN) if any(value.encode() in part for part in where)]


@pytest.mark.faults(30)
def test_no_secret_reaches_disk_or_screen(tmp_path: Path) -> None:
    """In the environment; in values and names of the configuration; in the command line; in the error's line."""
    short = "+paper.password=as-typed"  # too short for a key: the configuration keeps it, the record of the command not
    done = command(*train_arguments(tmp_path, short), folder=tmp_path, environment=CANARIES)
    assert done.code == 0, done.output
    files = everything(tmp_path / "runs")
    assert any(name.endswith("last.ckpt") for name in files)
    assert [name for name, content in files.items() if reveals(content, name.encode())] == []
    assert not reveals(done.output.encode())
    (run,) = runs_in(tmp_path)
    assert "password: as-typed" in run.config.read_text()
    assert f"+paper.password={HIDDEN}" in json.loads((run.path / "environment.json").read_text())["command"]
    for carrying in (
        f"name=x {CANARIES['MY_SERVICE_PASSWORD']}", f"+logger.csv.prefix=hf_{'a' * 34}", f"+paper.hub_token={GIVEN}",
        f"+paper.url=https://me:{GIVEN}@example.org/x", f"data.path=/nowhere/{CANARIES['HF_TOKEN']}",
    ):  # fmt: skip
        done = command(*train_arguments(tmp_path), carrying, folder=tmp_path, environment=CANARIES)
        assert done.code == 2, done.output
        assert "is a key or password, which the run would keep" in done.output
        assert not reveals(done.output.encode())
    done = command("train.py", "resume=last", "schedule.max_samples=32", f"+logger.csv.password={GIVEN}",
                   folder=tmp_path, environment=CANARIES)  # fmt: skip
    assert not reveals(done.output.encode(), *everything(tmp_path / "runs").values())
    for wrong in (
        f"data.val_fraction={CANARIES['WANDB_API_KEY']}",
        f"logger.wandb.api_key={GIVEN}",
        f"model.password={GIVEN}(",
        f"+data.token={GIVEN}",
    ):
        done = command(*train_arguments(tmp_path), wrong, folder=tmp_path, environment=CANARIES)
        assert done.code == 2, done.output
        assert not reveals(done.output.encode()), wrong
    assert not reveals(*everything(tmp_path / "runs").values())


@pytest.mark.faults(30)
def test_a_traceback_and_a_sweep_keep_secrets_to_themselves(tmp_path: Path) -> None:
    sweep = ["-m", "seed=1,2", "+paper.password=as-typed"]
    secret = f"name={CANARIES['MY_SERVICE_PASSWORD']}"
    done = command(*train_arguments(tmp_path), *sweep, secret, folder=tmp_path, environment=CANARIES)
    assert done.code == 2, done.output
    assert not reveals(done.output.encode(), *everything(tmp_path / "runs").values())
    done = command(*train_arguments(tmp_path), *sweep, folder=tmp_path, environment=CANARIES)
    assert done.code == 0, done.output
    assert list((tmp_path / "runs").rglob("multirun.yaml"))
    assert not reveals(done.output.encode(), *everything(tmp_path / "runs").values())
    done = command(*train_arguments(tmp_path), folder=tmp_path, environment=CANARIES, before=_fail_with_a_secret)
    assert done.code == 1
    assert "Traceback" in done.output
    assert "could not reach [redacted]" in done.output
    assert not reveals(done.output.encode(), *everything(tmp_path / "runs").values())


def _fail_with_a_secret() -> None:
    from genlab.cli import session

    def fail(*_: object) -> None:
        raise LookupError(f"could not reach {os.environ['HF_TOKEN']}")

    session.train_session = fail


@pytest.mark.faults(30)
def test_redaction_within_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for text, hidden in (
        ("train.py +a.api_key=abc seed=1", f"train.py +a.api_key={HIDDEN} seed=1"),
        ("{'password': 'abc', 'n': 1}", f"{{'password': '{HIDDEN}', 'n': 1}}"),
        ('{"hub_token": "abc"}', f'{{"hub_token": "{HIDDEN}"}}'),
        ("DB_PASS=abc PGPASSWORD=x", f"DB_PASS={HIDDEN} PGPASSWORD={HIDDEN}"),
        ("STRIPE_KEY=abc", f"STRIPE_KEY={HIDDEN}"),
        ("Authorization: Basic bWU6cGFzcw==", f"Authorization: {HIDDEN}"),
        ("glpat-abcdefghijABCDEFGHIJ", HIDDEN),
        (f"AIza{'a' * 35}", HIDDEN),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-_def", HIDDEN),
        ("https://h/x?a=1&sig=abcdefgh%3D&b=2", f"https://h/x?a=1&sig={HIDDEN}&b=2"),
        ("redis://:pw@host:1", f"redis://{HIDDEN}@host:1"),
    ):
        assert redact(text) == hidden
    for text in ("model.eos_token=3 max_tokens=5", "tokenizer=bpe", "key=value", "the next token: a", "monkey=see"):
        assert redact(text) == text


# ---- libraries that are known to be bad


def fake(folder: Path, name: str, version: str) -> Path:
    """A folder in which `name` is installed in `version`, by its metadata; importing it would show."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    package = folder / name.replace("-", "_")
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\n")
    return folder


@pytest.mark.faults(23)
@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("pytorch-lightning", "2.6.2", "malware"),
        ("pytorch-lightning", "2.6.3", "malware"),
        ("lightning", "2.6.3", "malware"),
        ("pytorch-lightning", "2.6.5", "CVE-2026-58659"),
        ("torch", "2.9.1", "CVE-2026-24747"),
    ],
)
def test_known_bad_versions_are_refused_before_they_are_imported(
    name: str, version: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake(tmp_path / "site", name, version)
    source = str(ROOT / "src")
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{source}"}
    commands = [[str(ROOT / "train.py"), "trainer=debug"], ["-c", "import genlab; genlab.load_run"]]
    for arguments in commands if version in ("2.6.3", "2.9.1") else commands[:1]:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
        last = done.stderr.strip().splitlines()[-1]
        assert f"{name} {version}" in last, done.stderr
        assert words in last
        if arguments is commands[0]:
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
        assert not (folder / "imported").exists()
    monkeypatch.syspath_prepend(str(folder))
    assert [(n, w) for n, w in start.known_bad() if n == name and words in w]
    assert ("BAD", name) in [found[:2] for found in doctor.packages()]


def test_what_is_installed_is_not_known_to_be_bad() -> None:
    assert start.known_bad() == []
    start.refuse_known_bad()
