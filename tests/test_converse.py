"""A conversation in the terminal: history, seeds, what is left out and said; of every kind of run that can hold one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_parts import V, chat_vocabulary, make_chat_folder, some_chats
from commands import command
from runs import make_pairs

from genlab.cli.chat import Conversation, converse
from genlab.data.chat_template import find_template
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.models.autoregressive import AutoregressiveModel
from genlab.networks.pretrained import causal_lm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_folder(tmp_path_factory.mktemp("chat") / "folder")


def talk(folder: Path, context: int | None = 256, **options: Any) -> tuple[Conversation, list[str]]:
    model = AutoregressiveModel(causal_lm(str(folder)), context).eval()
    model.tokenizer = chat_vocabulary()
    written: list[str] = []
    given = {"seed": 0, "system": None, **options}
    sampler = TokenSampler(max_new_tokens=8, top_k=20)
    template = find_template(None, str(folder), chat_vocabulary())
    return Conversation(model, sampler, template, write=written.append, **given), written


def test_an_answer_is_a_function_of_weights_seed_and_history(folder: Path) -> None:
    one, _ = talk(folder)
    first, second = one.say("hi"), one.say("and you?")
    assert [turn["content"] for turn in one.turns] == ["hi", first, "and you?", second]
    other, _ = talk(folder)
    assert [other.say("hi"), other.say("and you?")] == [first, second]
    other.begin()
    assert other.say("hi") == first
    assert talk(folder, seed=1)[0].say("hi") != first
    assert talk(folder, system="Speak")[0].say("hi") != first
    alone, _ = talk(folder)
    assert alone.say("and you?") != second  # the history counts


def test_answers_are_those_of_the_templates_prompt_and_end_at_its_end(folder: Path) -> None:
    one, written = talk(folder)
    end = chat_vocabulary().token_to_id("<|im_end|>")
    one.model.network.get_output_embeddings().weight.data[end] *= 3  # so that some end
    one.sampler = TokenSampler(max_new_tokens=8, temperature=0.0, stop=["<|im_end|>"])
    answers = [one.say(text) for text in ("hi", "abab", "what?")]
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    for i in range(3):
        history = one.turns[: 2 * i + 1]
        prompt = theirs.apply_chat_template(history, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected = one.model.network.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=end,
                                                  attention_mask=torch.ones_like(prompt), pad_token_id=0)  # fmt: skip
        assert answers[i] == theirs.decode(expected[0, prompt.shape[1] :]).partition("<|im_end|>")[0].strip()
    assert "<|im_end|>" not in "".join(written)
    assert "hi" not in "".join(written).replace(answers[0], "")  # prompts are not shown


def test_a_history_beyond_the_context_loses_its_oldest_turns(folder: Path) -> None:
    one, written = talk(folder, context=90)
    for i in range(4):
        one.say(f"ab{i}")
    assert any(text.startswith("[the context is full: what was said first is left out, 1 turns") for text in written)
    assert 2 <= len(one.turns) < 8
    assert one.turns[0]["role"] == "user"
    before = list(one.turns)
    with pytest.raises(ConfigError, match="leave no room for an answer of 8 in a context of 90; say less"):
        one.say("x" * 120)
    assert one.turns == before


def test_lines_that_are_commands(folder: Path) -> None:
    one, written = talk(folder)
    converse(one, ["hi", "", "/new", "x" * 300, "/quit", "never"])
    assert one.count == 0
    assert "[begun again]\n" in written
    assert any(text.startswith("[") and "leave no room" in text for text in written)
    assert "never" not in [turn["content"] for turn in one.turns]


def run_command(monkeypatch: pytest.MonkeyPatch, said: str, *arguments: str, **options: Any) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return command("sample.py", "chat=true", "sampler=nucleus", "sampler.max_new_tokens=6", *arguments, **options)


COMMON = ("trainer=debug", "logger=none", "evaluation=none", "callbacks.samples.count=0", "callbacks.final.count=0",
          "data.num_workers=0", "data.batch_size=2", "data.val_batch_size=2", "schedule.max_samples=4",
          "schedule.eval_every=4", "schedule.save_every=4")  # fmt: skip


def test_a_run_trained_on_conversations_talks_and_so_does_its_export(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    path = some_chats(tmp_path / "c.jsonl")
    done = command("train.py", "model=pretrained_lm", "data=chat", f"data.path={path}", f"data.vocabulary={folder}",
                   f"data.vocab_size={V}", f"model.network.path={folder}", "data.block_size=128",
                   "data.val_fraction=0.2", *COMMON, folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.output
    done = run_command(monkeypatch, "hi\nand?\n/quit\n", folder=tmp_path)
    assert done.code == 0, done.output
    head, *answers = done.output.split("\n")
    assert "answers: /new begins again, /quit ends" in head
    assert len([text for text in answers if text.strip()]) == 2
    assert run_command(monkeypatch, "hi\nand?\n", folder=tmp_path).output == done.output
    exported = command("scripts/export.py", "run=last", f"out={tmp_path / 'out'}",
                       "format=transformers", folder=tmp_path)  # fmt: skip
    assert exported.code == 0, exported.output
    facts = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert facts["chat_template"] == json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert chat_vocabulary().token_to_id("<|im_end|>") in stops
    assert run_command(monkeypatch, "hi\n", f"run={tmp_path / 'out'}", folder=tmp_path).code == 0


def test_a_folder_without_a_template_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = make_chat_folder(tmp_path / "bare", template=None)
    done = run_command(monkeypatch, "hi\n", f"run={bare}", folder=tmp_path)
    done.line(2, "has no chat template; name one: template=FILE.jinja, chatml or plain")
    assert run_command(monkeypatch, "hi\n", f"run={bare}", "template=plain", folder=tmp_path).code == 0
    done = run_command(monkeypatch, "hi\n", f"run={bare}", "template=plain", "prompt=x", folder=tmp_path)
    done.line(2, "leave out prompt")


def test_a_model_of_pairs_takes_each_line_as_a_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    done = command("train.py", "model=instruction", "data=pairs", f"data.path={make_pairs(tmp_path / 'p.jsonl')}",
                   f"data.vocabulary={folder}", f"data.vocab_size={V}", f"model.network.path={folder}",
                   "data.val_fraction=0.3", "data.test_fraction=0.1", "model.context=64",
                   *COMMON, folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.output
    done = run_command(monkeypatch, "abc\nabc\n", "sampler.temperature=0.0", folder=tmp_path)
    assert done.code == 0, done.output
    head, one, two, *_ = done.output.split("\n")
    assert "nothing is remembered" in head
    assert one == two
