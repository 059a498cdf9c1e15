"""Chat data: templates against transformers, labels of answers alone, packing without sight of other conversations."""

from __future__ import annotations

import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_parts import CHATML, V, chat_vocabulary, make_chat_folder, some_chats, talk, write_chats
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import compose_train

from genlab.cli.build import build_data
from genlab.data.chat import Chat, pack
from genlab.data.chat_template import ChatTemplate, find_template
from genlab.errors import ConfigError, DataError
from genlab.models.autoregressive import AutoregressiveModel
from genlab.networks.attention import PACKED

TALK = talk("hi there", "hello", "  bye <|im_end|> ", "see you")["messages"]


@functools.cache
def folder() -> Path:
    return make_chat_folder(Path(tempfile.mkdtemp()) / "folder")


def chat(path: Path, **options: Any) -> Chat:
    given = {"vocabulary": str(folder()), "vocab_size": V, "block_size": 160, "batch_size": 2, **options}
    data = Chat("chats", path=str(path), **given)
    data.setup()
    return data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    return tmp_path


def template(text: str = CHATML) -> ChatTemplate:
    return ChatTemplate(text, {"eos_token": "<|endoftext|>"}, chat_vocabulary(), "t")


# ---- templates


def test_a_conversation_is_rendered_as_transformers_does() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder())
    plain = [{**turn, "content": turn["content"].replace("<|im_end|>", "").strip()} for turn in TALK]
    ours = find_template(None, str(folder()), chat_vocabulary())
    assert ours.render(plain) == theirs.apply_chat_template(plain, tokenize=False)
    assert ours.encoded(plain, "x")[0] == theirs.apply_chat_template(plain, return_dict=False)
    asked = theirs.apply_chat_template(plain[:3], add_generation_prompt=True, return_dict=False)
    assert ours.prompt(plain[:3]) == asked


def test_answers_and_the_end_after_them_are_labels_and_what_is_said_is_text() -> None:
    ours = template()
    turns = [{**turn, "content": turn["content"].strip()} for turn in TALK]
    ids, answered = ours.encoded(turns, "x")
    end = chat_vocabulary().token_to_id("<|im_end|>")
    labels = [i for i, answer in zip(ids, answered, strict=True) if answer]
    decode = chat_vocabulary().decode
    assert decode(labels, skip_special_tokens=False) == "hello<|im_end|>see you<|im_end|>"
    assert labels.count(end) == 2
    assert ids.count(end) == 5  # the system's, two of the user's, two of the assistant's: the one that was said is text
    assert decode(ids, skip_special_tokens=False) == ours.render(turns)


MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content | trim }}]"
    "{% else %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("text", ["plain", MARKED])
def test_other_templates_show_their_answers(text: str) -> None:
    ours = find_template(text, str(folder()), chat_vocabulary()) if text == "plain" else template(text)
    turns = talk("a", "b", "c", "d")["messages"]
    ids, answered = ours.encoded(turns, "x")
    labels = [i for i, answer in zip(ids, answered, strict=True) if answer]
    assert chat_vocabulary().decode(labels, skip_special_tokens=False) == "b<|endoftext|>d<|endoftext|>"
    assert ids[: len(ours.prompt(turns[:3]))] == ours.prompt(turns[:3])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
         "does not show what an assistant says"),
        ("{{ messages[0].content }}: {{ messages[1].content }}", "puts nothing after an answer"),
        ("{% for m in messages %}{{ m.content ", "no chat template for answers"),
        ("{{ raise_exception('not me') }}", "not me"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "no chat template for answers"),
    ],
)  # fmt: skip
def test_a_template_without_answers_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        template(text)
    assert "chatml or plain" in str(error.value)


def test_a_template_that_changes_or_refuses_a_conversation() -> None:
    shout = "{% for m in messages %}{{ m.content | upper }}{{ eos_token }}{% endfor %}"
    with pytest.raises(DataError, match=r"c\.jsonl:1: t changes what a turn says"):
        template(shout).encoded(talk("a", "b")["messages"], "c.jsonl:1")
    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"c\.jsonl:2: t refuses it \(no system\)"):
        template(strict).encoded(talk("a", "b", system="s")["messages"], "c.jsonl:2")
    last = "{{ messages[0].content }}:{{ messages[1].content }}{{ eos_token }}"
    with pytest.raises(DataError, match="does not show each answer once"):
        template(last).encoded(talk("a", "b", "c", "d")["messages"], "x")


def test_where_a_template_is_looked_for(tmp_path: Path) -> None:
    tokenizer = chat_vocabulary()
    bare = make_chat_folder(tmp_path / "bare", template=None)
    with pytest.raises(
        ConfigError, match=r"bare has no chat template; name one: template=FILE\.jinja, chatml or plain"
    ):
        find_template(None, str(bare), tokenizer)
    with pytest.raises(ConfigError, match="template=nowhere: no such file"):
        find_template("nowhere", str(bare), tokenizer)
    assert find_template("chatml", str(bare), tokenizer).end == "<|im_end|>"
    (bare / "chat_template.jinja").write_text(CHATML)
    assert find_template(None, str(bare), tokenizer).text == CHATML
    from genlab.data.vocabulary import END, train_tokenizer

    with pytest.raises(ConfigError, match=r"the vocabulary has no <\|im_end\|>"):
        find_template("chatml", str(bare), train_tokenizer("byte_bpe", 258, ["ab"], [], [END]))


# ---- rows


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_holds_each_item_once_within_the_size(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in row) for row in rows]
    assert max(sums) <= 20
    assert sum(sums[i] + sums[j] <= 20 for i in range(len(sums)) for j in range(i)) == 0  # no two rows could be one


def test_rows_hold_each_conversation_once_and_predict_its_answers(cache: Path) -> None:
    packed, single = (chat(some_chats(cache / "c.jsonl"), packing=packing) for packing in (True, False))
    found = []
    for data in (packed, single):
        rows = data.source("train")
        ids = torch.arange(len(rows))
        batch = rows.batch(ids, ids)
        counted = (batch["labels"] != -100).sum(1)
        assert torch.equal(rows.counted(ids, ids), counted)
        assert data.manifest.splits["train"]["predicted"] == int(counted.sum())
        pieces = []
        for row in range(len(rows)):
            one = {key: value[row] for key, value in batch.items()}
            begins = [*(one["position_ids"] == 0).nonzero()[:, 0].tolist(), len(one["labels"])]
            for a, b in itertools.pairwise(begins):
                kept = one["labels"][a:b] != -100
                if kept.any():
                    last = a + int(kept.nonzero()[-1]) + 1
                    pieces.append((tuple(one["input_ids"][a:last].tolist()), tuple(one["labels"][a:last].tolist())))
        found.append(sorted(pieces))
    assert found[0] == found[1]
    assert len(found[0]) == packed.manifest.splits["train"]["conversations"]
    assert len(packed.source("train")) < len(single.source("train"))


def test_a_folder_is_split_as_its_files_are(cache: Path) -> None:
    (cache / "c").mkdir()
    some_chats(cache / "c" / "train.jsonl", 12)
    write_chats(cache / "c" / "val.jsonl", [talk("who", "me")])
    data = chat(cache / "c")
    assert data.manifest.splits["val"]["conversations"] == 1
    assert data.manifest.splits["test"]["from"] == "alias of val"
    assert next(iter(data.texts("test")))[1].endswith("<|im_start|>assistant\nme<|im_end|>\n")


def test_long_and_open_conversations_are_left_out_or_cut_and_said(cache: Path, capsys: Any) -> None:
    records = [talk("a", "b" * 100), talk("c", "d", "unanswered"), *(talk(f"q{i}", "r") for i in range(30))]
    data = chat(write_chats(cache / "c.jsonl", records), block_size=90, val_fraction=0.2)
    splits = [data.manifest.splits[split] for split in ("train", "val", "test")]
    assert sum(split["longer_than_block_size"] for split in splits) == 1
    assert sum(split["cut_after_the_last_answer"] for split in splits) == 1
    assert "1 of" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"all \d+ conversations have more than data\.block_size=9 tokens"):
        chat(cache / "c.jsonl", block_size=9, val_fraction=0.2)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "x"}, r"c\.jsonl:1: expected an object with 'messages'"),
        ({"messages": "x"}, "expected an object with 'messages'"),
        ([1], "expected an object with 'messages'"),
        ("{", r"c\.jsonl:1: not JSON"),
        (
            {"messages": [{"role": "robot", "content": "x"}]},
            "turn 1 has the role 'robot'; known: system, user, assistant",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, r"turn 1 says no text \(content is a int\)"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the first turn but the system's must be the user's"),
        (talk("a"), r"there is no answer; data\.empty=drop leaves such conversations out"),
        (talk("a", "  "), "a turn is empty; data.empty=drop"),
        ({"prompt": "a", "answer": ""}, "a turn is empty"),
    ],
)
@pytest.mark.faults(19)
def test_records_that_are_none(cache: Path, record: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        chat(write_chats(cache / "c.jsonl", [record]))


def test_empty_conversations_can_be_dropped(cache: Path) -> None:
    some_chats(cache / "c.jsonl")
    with open(cache / "c.jsonl", "a") as file:
        file.write('{"prompt": "a", "answer": " "}\n')
    data = chat(cache / "c.jsonl", empty="drop")
    assert sum(data.manifest.splits[split]["empty"] for split in ("train", "val", "test")) == 1


def test_options_that_do_not_go_together() -> None:
    common = {"path": "x", "vocabulary": "x", "vocab_size": 3, "block_size": 3}
    with pytest.raises(ConfigError, match=r"data\.fields has no text, only messages, prompt, answer, system"):
        Chat("c", **common, fields={"text": "a"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be below 1 together"):
        Chat("c", **common, val_fraction=0.5, test_fraction=0.5)  # type: ignore[arg-type]


# ---- the model


def model(network: Any, **options: Any) -> AutoregressiveModel:
    return AutoregressiveModel(network, 256, **options).eval()


def network_of(kind: str, tmp_path: Path) -> Any:
    from genlab.networks.pretrained import causal_lm

    return causal_lm(str(make_chat_folder(tmp_path / kind, kind=kind))).eval()


@pytest.mark.parametrize("kind", PACKED)
def test_no_conversation_sees_another(kind: str, cache: Path, tmp_path: Path) -> None:
    """The loss of each in a packed row is that of it alone, and logits at labels are those of all places."""
    network = network_of(kind, tmp_path)
    packed, single = (chat(some_chats(cache / "c.jsonl"), packing=packing) for packing in (True, False))
    sums = []
    for data in (packed, single):
        source = data.source("train")
        ids = torch.arange(len(source))
        with torch.no_grad():
            total, count = model(network).log_likelihood(source.batch(ids, ids))
        sums.append((float(total.sum()), int(count.sum())))
    assert sums[0][1] == sums[1][1]
    assert sums[0][0] == pytest.approx(sums[1][0], rel=1e-5)
    one = single.source("train").batch(torch.arange(1), torch.arange(1))
    with torch.no_grad():
        whole = network(input_ids=one["input_ids"], use_cache=False).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(whole, one["labels"].flatten())
    assert model(network).losses(one)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_losses_and_gradients_are_those_of_all_logits(cache: Path, tmp_path: Path) -> None:
    network = network_of("llama", tmp_path)
    source = chat(some_chats(cache / "c.jsonl"), packing=False).source("train")
    batch = source.batch(torch.arange(3), torch.arange(3))
    weight = torch.tensor([0.1, 0.2, 0.3])
    dense = {key: batch[key] for key in ("input_ids", "labels")}
    for extra in ({}, {"weight": weight}):
        found = []
        for form in (batch, dense):
            ours = model(network)
            network.zero_grad()
            loss = ours.losses({**form, **extra})["loss"]
            loss.backward()
            found.append((loss.item(), network.get_output_embeddings().weight.grad.clone()))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-6)


def test_networks_that_cannot_keep_conversations_apart(cache: Path) -> None:
    from genlab.networks.lstm import TokenLSTM

    source = chat(some_chats(cache / "c.jsonl")).source("train")
    batch = source.batch(torch.arange(1), torch.arange(1))
    with pytest.raises(ConfigError, match="TokenLSTM reads no answers: take a network of transformers"):
        model(TokenLSTM(V, 8, 8)).losses(batch)
    from transformers.models.gpt_neo import GPTNeoConfig, GPTNeoForCausalLM

    neo = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=V, hidden_size=8, num_layers=1, num_heads=2,
                                         attention_types=[[["global"], 1]], max_position_embeddings=256))  # fmt: skip
    with pytest.raises(ConfigError, match="no network of the kind gpt_neo is known to keep packed documents apart"):
        model(neo).losses(batch)


def test_the_command_composes_and_its_data_are_what_they_say(cache: Path) -> None:
    config = compose_train(["model=pretrained_lm", "data=chat", f"data.path={some_chats(cache / 'c.jsonl')}",
                            f"data.vocabulary={folder()}", f"data.vocab_size={V}", "data.batch_size=4"])  # fmt: skip
    data = build_data(config)
    data.setup()
    first = [next(iter(data.batches(data.train_loader(0, 8)))) for _ in range(2)]
    assert first[0]["weight"].shape == first[0]["id"].shape
    assert all(torch.equal(first[0][key], first[1][key]) for key in first[0])
    assert np.isclose(float((first[0]["weight"][:, None] * (first[0]["labels"] != -100)).sum()), 1.0)


def test_batches_go_on_where_they_were(cache: Path) -> None:
    path = some_chats(cache / "c.jsonl")
    whole = list((data := chat(path)).batches(data.train_loader(0, 40)))
    later = list((again := chat(path)).batches(again.train_loader(24, 40)))  # past an epoch's end
    assert len(whole) == 20
    assert len(data.source("train")) < 24
    for one, other in zip(whole[12:], later, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
