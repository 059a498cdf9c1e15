"""Rows 31 and 32 of the faults, files of others for Hydra or in a run; and text as it was typed."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import command, runs_in, train_arguments
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from runs import ROOT, new_run, small_run, work

from genlab import load_run
from genlab.cli import targets
from genlab.cli.build import load_weights
from genlab.cli.condition_values import read_conditions
from genlab.cli.hydra_main import complain, readable
from genlab.cli.hydra_node import check_hydra
from genlab.cli.stored import literal, load_yaml
from genlab.conditions import Condition
from genlab.data.characters import text_blocks
from genlab.data.documents import read_documents
from genlab.data.text import Text
from genlab.errors import CheckpointError, ConfigError, DataError
from genlab.evaluation.judged import texts_from
from genlab.runs.directory import RunDirectory, create_run, find_unfinished, list_runs

TOUCH = "{_target_: subprocess.check_output, args: [touch, marker]}"
LAUNCHER = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
NODES = {
    "callbacks": ("callbacks: {x: {_target_: torch.load, f: evil.pt, weights_only: false}}", "hydra.callbacks"),
    "env_set": ("job: {env_set: {GENLAB_ALLOW: subprocess}}", "hydra.job.env_set"),
    "env_copy": ("job: {env_copy: [HF_TOKEN]}", "hydra.job.env_copy"),
    "logging": ("job_logging: {handlers: {x: {(): os.system, command: touch marker}}}", "hydra.job_logging"),
    "hydra_logging": ("hydra_logging: {formatters: {x: {(): os.system}}}", "hydra.hydra_logging"),
    "sweeper": (f"mode: MULTIRUN\n  sweeper: {{params: {TOUCH}}}", "hydra.sweeper.params._target_"),
    "attribute": (
        f"mode: MULTIRUN\n  sweeper: {{params: {{_target_: {LAUNCHER}.os.system}}}}",
        "hydra.sweeper.params._target_",
    ),
    "shell": ("mode: MULTIRUN\n  launcher: {setup: [touch marker]}", "hydra.launcher.setup"),
}


@pytest.mark.faults(31)
@pytest.mark.parametrize("name", NODES)
def test_hydras_node_in_an_experiment(name: str, tmp_path: Path) -> None:
    """Hydra would act on it before any check; with its own logging and plugins for searches it goes on."""
    node, key = NODES[name]
    experiment = tmp_path / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    defaults = "defaults:\n- override /hydra/launcher: submitit_slurm\n" if name == "shell" else ""
    extra = f"callbacks: {{extra: [{TOUCH}]}}\n"
    experiment.write_text(f"# @package _global_\n{defaults}hydra:\n  {node}\n{extra}")
    options = ("--config-dir", str(tmp_path / "conf"), "experiment=mine")
    done = command(*train_arguments(tmp_path), *options, folder=tmp_path)
    done.line(2, key)
    assert not list(tmp_path.rglob("marker"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.faults(31)
@pytest.mark.parametrize("remedy", ["hydra/job_logging=default", "hydra/launcher=submitit_slurm"])
def test_what_the_refusals_advise_is_taken(remedy: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [remedy], return_hydra_config=True)
    OmegaConf.set_struct(config, False)
    if "launcher" in remedy:
        config.hydra.launcher.setup = ["module load cuda"]
    check_hydra(config)
    config.hydra.overrides.hydra = []
    config.hydra.runtime.choices["hydra/job_logging"] = "none"
    with pytest.raises(ConfigError, match="must not be set"):
        check_hydra(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0: must be >= 1"),
        ({"num_workers": -1}, "data.num_workers is -1: must be >= 0"),
        ({"block_size": 2.5}, "data.block_size is 2.5: must be an integer >= 1"),
        ({"train_fraction": 1.0}, "data.train_fraction is 1.0: must be >= 0 and < 1"),
        ({"split": "thirds"}, "data.split=thirds: choose one of share, files, lines, documents"),
    ],
)
def test_bounds_of_data_hold_in_python(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Text("x", **({"split": "share", "vocab_size": 2, "block_size": 1, "tokenizer": "characters"} | options))


@pytest.mark.faults(31)
def test_the_allow_list_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_ALLOW", "mine")
    targets.settle()
    monkeypatch.setenv("GENLAB_ALLOW", "mine,subprocess")
    assert targets.user_packages() == ["mine"]


@pytest.mark.faults(34)
@pytest.mark.parametrize("name", ["a/b", "../evil", "/evil", "..", "a\\b/../c"])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", name, "digest")
    assert run.path.parent.parent == tmp_path / "runs"
    assert [found.path for found in list_runs(tmp_path / "runs")] == [run.path]
    found = find_unfinished(tmp_path / "runs", "digest")
    assert found is not None
    assert found.path == run.path
    with pytest.raises(ConfigError, match=r"data\.name=.* must be a name"):
        Text(name, split="share", vocab_size=2, block_size=1, batch_size=1)


def test_a_nested_experiment_goes_on(tmp_path: Path) -> None:
    """experiment=mine/small is found again by the same command."""
    experiment = tmp_path / "conf" / "experiment" / "mine" / "small.yaml"
    experiment.parent.mkdir(parents=True)
    signal = f"{{_target_: fault_parts.Signal, number: 15, samples: 0, folder: '{tmp_path}'}}"
    experiment.write_text(f"# @package _global_\ncallbacks: {{extra: [{signal}]}}\n")
    nested = [*train_arguments(tmp_path), "--config-dir", str(tmp_path / "conf"), "experiment=mine/small"]
    done = command(*nested, folder=tmp_path, environment={"GENLAB_ALLOW": "fault_parts"})
    assert done.code == 143, done.output
    done = command(*nested, folder=tmp_path, environment={"GENLAB_ALLOW": "fault_parts"})
    assert "continues " in done.output
    assert len(runs_in(tmp_path)) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = new_run(small_run("model=gpt", tmp_path_factory.mktemp("received")))
    assert work(run) == 0
    return run


@pytest.mark.faults(32)
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"name": "${oc.env:SECRET_OF_MINE}"}, None),
        ({"name": "${b0}", "b0": "${b1}" * 9, **{f"b{i}": f"${{b{i + 1}}}" * 9 for i in range(1, 14)}}, None),
        ({"model.network.config.n_layer": 1_000_000}, "n_layer must be <= 256"),
        ({"model.network.config.n_layer": "${name}"}, "n_layer"),
        ({"sampler": {"_target_": "torch.nn.Linear", "in_features": 9, "out_features": 9}}, "is no sampler of GenLab"),
        ({"sampler": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "x"}}, "is no sampler of GenLab"),
    ],
)
def test_a_received_configuration(
    trained: RunDirectory, lines: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in it is resolved, and nothing is built that could not be a run's."""
    monkeypatch.setenv("SECRET_OF_MINE", "canary")
    whole = trained.config.read_text()
    config: Any = OmegaConf.create(whole)
    for key, value in lines.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    trained.config.write_text(OmegaConf.to_yaml(config))
    began = time.process_time()
    try:
        if message is None:
            assert load_run(trained.path).config.name == lines["name"]
        else:
            with pytest.raises(ConfigError, match=message):
                load_run(trained.path)
    finally:
        trained.config.write_text(whole)
    assert time.process_time() - began < 60, "of bombs that would take hours"


TEXTS = st.text(alphabet="\\\"'${},= a1\n[]()你{:@*.#~?", max_size=9)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
@example("a\\${b}")
@example("???x")
def test_text_in_a_stored_configuration_is_text(text: str) -> None:
    if text == "???":  # OmegaConf's word for what is missing
        return
    config = OmegaConf.create(literal({"a": [text], "b": {"c": text}}))
    assert (config.a[0], config.b.c) == (text, text)
    assert OmegaConf.to_container(config, resolve=True) == {"a": [text], "b": {"c": text}}


@given(TEXTS)
@settings(max_examples=200, deadline=None)
@example("Hello, world")
@example("  outer spaces ")
@example("1e5")
@example("true")
@example("1984")
@example('"Hi," he said')
@example("[Verse 1] la la")
@example("C:\\")
@example("${oc.env:HOME}")
def test_a_condition_on_a_command_line_is_text(text: str) -> None:
    override = readable(f"condition.prompt={text}", ["condition"], sweep=False)
    if text in ("null", "???") or (text[:1] in "['\"" and not override.startswith('++condition.prompt="')):
        return  # null, a list, or quoted for Hydra
    value = OverridesParser.create().parse_override(override).value()
    if text[:1] != '"':  # what is quoted for Hydra as a whole is as it reads it
        assert OmegaConf.create({"a": value}).a == text


class Word(Condition):
    name = "word"

    def rows(self, values: Any, model: Any) -> torch.Tensor:
        return torch.tensor([len(value) for value in values])


@pytest.mark.parametrize(
    "content", [b"ab\ncd\n", b"ab\r\ncd\r\n", b"\xef\xbb\xbfab\ncd\n", b"\xef\xbb\xbfab\r\n\r\ncd"], ids=str
)
def test_files_of_conditions_from_other_systems(content: bytes, tmp_path: Path) -> None:
    model = SimpleNamespace(conditions=(Word(),))
    (tmp_path / "words").write_bytes(content)
    assert read_conditions(tmp_path / "words", model) == {"word": ["ab", "cd"]}
    lines = b"".join(b'{"word": "%s"}\n' % word for word in (b"ab", b"cd"))
    (tmp_path / "words.jsonl").write_bytes(content[: 3 * content.startswith(b"\xef")] + lines.replace(b"\n", b"\r\n"))
    assert read_conditions(tmp_path / "words.jsonl", model) == {"word": ["ab", "cd"]}
    (tmp_path / "words.jsonl").write_bytes(b'{"word": "a"}\n{"word": "\\ud800"}\n')
    with pytest.raises(ConfigError, match=r"words\.jsonl:2: half a surrogate pair"):
        read_conditions(tmp_path / "words.jsonl", model)


def test_a_stored_configuration_keeps_numbers(tmp_path: Path) -> None:
    """As OmegaConf reads YAML: 1e-3 is a number."""
    (tmp_path / "config.yaml").write_text("a: 1e-3\nb: ${x}\n")
    config = load_yaml(tmp_path / "config.yaml")
    assert (config.a, config.b) == (0.001, "${x}")


ODD = {
    "sparse_coo": torch.Tensor.to_sparse,
    "qint8": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "meta": lambda weight: weight.to("meta"),
    "not finite": lambda weight: torch.full_like(weight, torch.nan),
    "complex64, not float32": lambda weight: weight.to(torch.complex64),
    "bool, not float32": torch.Tensor.bool,
    "int8, not float32": torch.Tensor.char,
}


@pytest.mark.faults(38)
@pytest.mark.parametrize("kind", ODD)
def test_weights_of_odd_kinds(trained: RunDirectory, kind: str) -> None:
    """A right name and shape, and yet no weights."""
    model = load_run(trained.path).model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(name for name, value in state.items() if value.ndim == 2 and value.is_floating_point())
    state[name] = ODD[kind](state[name])
    with pytest.raises(CheckpointError, match=rf"x\.ckpt: {name} is .*{kind}"):
        load_weights(model, {"state_dict": state, "samples": 0, "updates": 0}, "raw", Path("x.ckpt"))
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    load_weights(model, {"state_dict": half, "samples": 0, "updates": 0}, "raw", Path("x.ckpt"))


@pytest.mark.faults(38)
def test_names_do_not_speak_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    complain(CheckpointError("\x1b]0;evil\x07\x1b[31m weights\u202e\ud800 are absent\nsecond line"))
    line = capsys.readouterr().err
    assert line.startswith("genlab: error: ")
    assert line.count("\n") == 1
    assert all(character.isprintable() for character in line[:-1])


def test_documents_from_other_systems(tmp_path: Path) -> None:
    """A byte order mark, line ends of Windows, an array, half a character beside the text."""

    def read(name: str, content: bytes) -> list[tuple[str | None, dict[str, Any]]]:
        (tmp_path / name).write_bytes(content)
        return [(document.text, dict(document.fields)) for document in read_documents(tmp_path, [tmp_path / name])]

    two = [("a b", {"kind": "x"}), ("c", {})]
    lines = b'{"text": "a b", "kind": "x"}\n{"text": "c"}\n'
    for content in (lines, b"\xef\xbb\xbf" + lines, lines.replace(b"\n", b"\r\n")):
        assert read("a.jsonl", content) == two
    assert read("a.json", b'[{"text": "a b", "kind": "x"}, {"text": "c"}]') == two
    assert read("prose.json", b"[sic] no JSON") == [("[sic] no JSON", {})]
    assert read("a.txt", "\ufeffa b".encode()) == [("a b", {})]
    assert "".join(text_blocks(tmp_path / "a.txt")) == "a b"
    assert read("a.jsonl", b'{"text": "a", "by": "\\ud800"}\n' + lines)[0] == (None, {})
    (tmp_path / "a.jsonl").write_bytes(lines + b'[{"text": "a"}]\n')
    with pytest.raises(DataError, match=r"a\.jsonl:3: expected an object"):
        list(read_documents(tmp_path, [tmp_path / "a.jsonl"]))
    (tmp_path / "s.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    assert texts_from(tmp_path / "s.jsonl", None).read(0, 2).data == ["a b", "c"]


@pytest.mark.faults(39)
def test_a_tokenizer_that_panics(trained: RunDirectory, tmp_path: Path) -> None:
    """A regular expression on which the library gives up, in a way that is no Exception."""
    copy = tmp_path / "runs" / "day" / "copy"
    shutil.copytree(trained.path, copy)
    whole = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    letter = next(token for token in vocabulary if len(token) == 1 and token.isalpha())
    other = next(token for token in vocabulary if len(token) == 1 and token.isalpha() and token != letter)
    pattern = {"Regex": f"({letter}|{letter}{letter})+$"}
    whole["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    (copy / "tokenizer.json").write_text(json.dumps(whole))
    record = json.loads((copy / "data.json").read_text())
    record.get("facts", {}).pop("vocabulary_sha256", None)
    (copy / "data.json").write_text(json.dumps(record))
    done = command("sample.py", f"run={copy}", "n=1", f"condition.prompt={letter * 60}{other}", folder=tmp_path)
    assert done.code == 76, done.output
    assert done.output.count("genlab: error") == 1, done.output
    assert "Traceback" not in done.output
