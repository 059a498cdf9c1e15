"""Tasks of answers: dialogue and functions as pairs, what is judged of them, what was forgotten, what lay below."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_parts import V, chat_vocabulary, make_chat_folder, some_chats
from commands import command
from runs import make_pairs

from genlab.data import functions
from genlab.data.corpora import shakespeare_dialogue
from genlab.data.functions import function_pairs, joined, parsed
from genlab.errors import ConfigError
from genlab.evaluation.doctests import has_doctest, passes_doctest
from genlab.evaluation.metrics import AnswerLikelihood, Forgetting, Items, PythonFunctions, measure
from genlab.models.autoregressive import AutoregressiveModel
from genlab.models.instruction import InstructionModel
from genlab.networks.pretrained import causal_lm

MODULE = '''
import os

def double(x):
    """Twice.

    >>> double(2)
    4
    """
    # by addition
    return helper(x, x)

def helper(a, b):
    return a + b

class Thing:
    @property
    def size(self):
        """How large."""
        if self:
            return 1
        return 0

    def bare(self):
        """Nothing but this."""

def short(x):
    """One line."""; return x
'''


# ---- data


def test_dialogue_is_a_speech_and_the_reply_and_no_reply_is_in_two_groups(tmp_path: Path) -> None:
    speeches = [f"{('ROMEO', 'JULIET', 'NURSE')[i % 3]}:\nI say {i}\nand so on." for i in range(100)]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "input.txt").write_text("\n\n".join(speeches) + "\n")
    shakespeare_dialogue(tmp_path, tmp_path)
    found = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert found[0] == {
        "source": "ROMEO:\nI say 0\nand so on.\n\nJULIET:",
        "target": "I say 1\nand so on.",
        "group": "0",
    }
    assert len(found) == 99 - 2  # none goes from a group into the next
    said = {group: {word for pair in found if pair["group"] == group for word in pair["target"].split()[2:3]}
            for group in "012"}  # fmt: skip
    assert not said["0"] & said["1"]
    assert len(said["0"]) == 39


def test_functions_are_put_together_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "parts.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("def f(:\n")
    files = sorted(tmp_path.rglob("*.py"))
    found = list(function_pairs(tmp_path, files))
    assert [parsed(pair["source"]).name for pair in found] == ["double", "size"]  # type: ignore[union-attr]
    assert {(pair["group"], pair["module"]) for pair in found} == {("tool", "tool.parts")}
    assert found[0]["target"] == "# by addition\n    return helper(x, x)"
    assert joined(found[0]["source"], found[0]["target"]) in MODULE
    assert found[1]["source"].startswith("def size(self):\n    ")
    assert [functions.split_of(group) for group in ("tool", "statistics", "pathlib")] == ["train", "test", "val"]
    with pytest.raises(ConfigError, match="has no function with a docstring"):
        functions.python_functions(make_empty(tmp_path))


def make_empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    (folder / "empty" / "a.py").write_text("x = 1\n")
    return folder / "empty"


# ---- functions


def test_examples_are_run_apart_and_what_harms_is_refused(tmp_path: Path) -> None:
    right = 'def f(x):\n    """Twice.\n\n    >>> f(2)\n    4\n    """\n    '
    assert has_doctest(right)
    assert passes_doctest(right + "return 2 * x", "f")
    assert not passes_doctest(right + "return x", "f")
    assert not passes_doctest(right + "while True: pass", "f", seconds=1)
    target = tmp_path / "written"
    for harm in (f"open({str(target)!r}, 'w')", "__import__('socket').socket()", "__import__('os').system('true')",
                 "__import__('subprocess').run(['true'])", f"__import__('os').mkdir({str(target)!r})"):  # fmt: skip
        assert not passes_doctest(f"{right}{harm}\n    return 2 * x", "f"), harm
        assert passes_doctest(f"{right}try:\n        {harm}\n    except PermissionError:\n        return 2 * x", "f"), (
            harm
        )
    assert not target.exists()
    assert passes_doctest(right + "return 2 * mean([x])", "f", "statistics")
    assert not passes_doctest(right + "return 2 * mean([x])", "f")


def test_functions_are_judged_where_examples_judge_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = 'def f(x):\n    """Twice.\n\n    >>> f(2)\n    4\n    """'
    blind = 'def g(x):\n    """Anything.\n\n    >>> 1\n    1\n    """'  # nothing that it says depends on the body
    plain = 'def h(x):\n    """No example."""'
    sources, real = [shown, blind, plain, shown], ["return 2 * x", "return x", "return x", "return x + x"]
    monkeypatch.setattr("genlab.evaluation.metrics.pairs.modules_of_functions", dict)
    items = Items(["return x * 2", "return (", "return 3", "return x"], prompts=sources, prompt_name="source",
                  references=[[text] for text in real])  # fmt: skip
    for doctests, passed in ((True, 0.5), (False, None)):
        found = measure({"python_functions": PythonFunctions(doctests=doctests)}, items)
        assert found.values == {"function_parses": 0.75, "function_doctests": passed}
        assert found.columns["parses"] == [True, False, True, True]
        assert found.signatures["function_doctests"].endswith(f"judged:{2 * doctests}")
    assert "no examples" in found.missing["function_doctests"] or "none of these" in found.missing["function_doctests"]


# ---- likelihoods


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_folder(tmp_path_factory.mktemp("answers") / "folder")


def models(folder: Path) -> list[Any]:
    network = causal_lm(str(folder)).eval()
    made = [AutoregressiveModel(network, 256), InstructionModel(network, 256, "ask ", " say ", "<|im_end|>")]
    for model in made:
        model.eval().tokenizer = chat_vocabulary()
    return made


def test_bits_a_byte_of_a_page_are_the_same_whatever_the_model_was_tuned_on(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("Rain fell on the hill, 12 mm.\n" * 5)
    values = []
    for model in models(folder):
        metric = Forgetting(str(page), context=64)
        metric.check(model, None, SimpleNamespace(name="forgetting", needs_pairs=False))
        rows = metric.read(model, None, None, torch.device("cpu"))
        values.append(measure({"forgetting": metric}, Items(rows)).values)
    assert values[0] == values[1]
    model, text = models(folder)[0], page.read_text().strip()
    ids = [chat_vocabulary().token_to_id("<|endoftext|>"), *chat_vocabulary().encode(text).ids]
    nats = 0.0
    with torch.no_grad():
        for i in range(1, len(ids)):  # a window of 64 begins every 32 tokens; its last 32 count
            start = 0 if i <= 64 else 32 * -(-(i - 64) // 32)
            logits = model.network(input_ids=torch.tensor([ids[start:i]])).logits[0, -1]
            nats -= float(logits.log_softmax(0)[ids[i]])
    assert values[0]["page_bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-4)
    assert values[0]["page_nats_per_token"] == pytest.approx(nats / (len(ids) - 1), rel=1e-4)


def test_pages_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    protocol, model = SimpleNamespace(name="forgetting", needs_pairs=False), models(folder)[0]
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    for name, words in (("none.txt", "not a text"), ("empty.txt", "it is empty"), ("bytes.txt", "not a text")):
        with pytest.raises(ConfigError, match=words):
            Forgetting(str(tmp_path / name), context=64).check(model, None, protocol)
    with pytest.raises(ConfigError, match=r"context=512: the model reads at most 256 tokens; set .*context=256"):
        Forgetting().check(model, None, protocol)
    with pytest.raises(ConfigError, match="cannot give a forgetting, it has no text_log_likelihood"):
        Forgetting().check_model(object(), protocol)


def test_the_shipped_page_is_a_page() -> None:
    assert 2500 < len(Forgetting().text().encode()) < 4500


def test_perplexity_of_answers_is_that_of_all_their_tokens() -> None:
    rows = {"nats": torch.tensor([1.0, 5.0], dtype=torch.float64), "tokens": torch.tensor([1, 2])}
    values = measure({"answer_likelihood": AnswerLikelihood()}, Items(rows)).values
    assert values["answer_nats_per_token"] == pytest.approx(2.0)
    assert values["answer_bits_per_token"] == pytest.approx(2.0 / math.log(2))
    assert values["answer_perplexity"] == pytest.approx(math.exp(2.0))


# ---- commands


COMMON = ("trainer=debug", "logger=none", "evaluation=none", "callbacks.samples.count=0", "callbacks.final.count=0",
          "data.num_workers=0", "data.batch_size=2", "data.val_batch_size=2", "schedule.max_samples=4",
          "schedule.eval_every=4", "schedule.save_every=4", "data.val_fraction=0.3",
          "data.test_fraction=0.2")  # fmt: skip


def value_of(output: str, name: str) -> float:
    return float(next(line.split()[1] for line in output.splitlines() if line.startswith(name)))


def test_a_tuned_run_stands_beside_what_lies_below_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    known = (f"data.vocabulary={folder}", f"data.vocab_size={V}", f"model.network.path={folder}")
    pairs = (f"data.path={make_pairs(tmp_path / 'p.jsonl')}", "data=pairs", "model=instruction", "model.context=128")
    chats = (f"data.path={some_chats(tmp_path / 'c.jsonl')}", "data=chat", "model=pretrained_lm", "data.block_size=128")
    page = "evaluation.metrics.forgetting.context=64"
    before = command("evaluate.py", f"run={folder}", "evaluation=forgetting", page, folder=tmp_path)
    assert before.code == 0, before.output
    for kind in (pairs, chats):
        done = command("train.py", *kind, *known, "adapter=lora", "optimizer.lr=0.1", *COMMON, folder=tmp_path)
        assert done.code == 0, done.output
        found = {}
        for protocol in ("answer_likelihood_test", "forgetting"):
            more = (page,) if protocol == "forgetting" else ()
            for base in ("false", "true"):
                done = command("evaluate.py", f"base={base}", f"evaluation={protocol}", *more, folder=tmp_path)
                assert done.code == 0, done.output
                name = "page_bits_per_byte" if protocol == "forgetting" else "answer_perplexity_test"
                found[protocol, base] = value_of(done.output, name)
                assert ("-base-" in done.output) == (base == "true")
        assert found["answer_likelihood_test", "true"] != found["answer_likelihood_test", "false"]
        assert found["forgetting", "true"] != found["forgetting", "false"]
        assert found["forgetting", "true"] == pytest.approx(value_of(before.output, "page_bits_per_byte"), rel=1e-4)
    done = command("evaluate.py", f"run={folder}", "base=true", "evaluation=forgetting", page, folder=tmp_path)
    done.line(2, "base=true: the run has no adapter")
