"""Models that answer: losses and answers against transformers, whatever stands beside a row; refusals."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor

from genlab.data.vocabulary import END, PAD, encode, train_tokenizer
from genlab.decoding.reading import padded
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.models.instruction import InstructionModel

ASKED = ["abc", "hello there", "x", "what is it now"]
ANSWERS = ["cba", "general", "yes and no", "z"]
V = 40


@functools.cache
def tokenizer() -> Any:
    """Letters, the end of a text, and <s> and </a> around what is asked and after an answer."""
    made = train_tokenizer("characters", 29, [], "abcdefghijklmnopqrstuvwxyz ", [END, PAD])
    made.add_special_tokens([AddedToken("<s>"), AddedToken("</a>")])
    return made


@functools.cache
def network() -> Any:
    from transformers.models.llama import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
                         bos_token_id=None, eos_token_id=None)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def model(**options: Any) -> InstructionModel:
    given = {"context": 48, "before": "<s>ask ", "after": " <s>", "end": "</a>", **options}
    built = InstructionModel(network(), **given).eval()
    built.tokenizer = tokenizer()
    return built


def ids(text: str) -> list[int]:
    return encode(tokenizer(), text)


def batch() -> dict[str, Tensor]:
    labels = padded([[*ids(text), tokenizer().token_to_id(END)] for text in ANSWERS])
    return {"source": padded([ids(text) for text in ASKED]), "labels": labels.masked_fill(labels < 0, -100)}


def plain() -> list[tuple[list[int], list[int]]]:
    end = tokenizer().token_to_id("</a>")
    return [([*ids("<s>ask "), *ids(q), *ids(" <s>")], [*ids(a), end]) for q, a in zip(ASKED, ANSWERS, strict=True)]


def test_the_loss_is_transformers_on_one_row_at_a_time() -> None:
    ours, total, count = model(), 0.0, 0
    sums, counts = ours.log_likelihood(batch())
    for i, (asked, answer) in enumerate(plain()):
        labels = torch.tensor([[*[-100] * len(asked), *answer]])
        with torch.no_grad():
            loss = network()(input_ids=torch.tensor([[*asked, *answer]]), labels=labels).loss.item()
        assert -sums[i].item() / len(answer) == pytest.approx(loss, rel=1e-4)
        assert counts[i] == len(answer)
        total, count = total + loss * len(answer), count + len(answer)
    assert ours.losses(batch())["loss"].item() == pytest.approx(total / count, rel=1e-4)
    weighted = ours.losses({**batch(), "weight": torch.tensor([1.0, 0.0, 0.0, 0.0])})["loss"]
    assert weighted.item() == pytest.approx(-sums[0].item(), rel=1e-4)


def test_what_is_asked_is_no_label() -> None:
    ours = model()
    rows, answered = ours.answer_rows(batch())
    for i, (asked, answer) in enumerate(plain()):
        assert rows[i, : len(asked) + len(answer)].tolist() == [*asked, *answer]
        assert answered[i].nonzero()[:, 0].tolist() == list(range(len(asked), len(asked) + len(answer)))


def test_answers_are_those_of_transformers_alone() -> None:
    ours = model()
    ours.network.lm_head.weight.data[tokenizer().token_to_id("</a>")] *= 1.5  # so that some end
    sampler = TokenSampler(max_new_tokens=12, temperature=0.0)
    found = ours.generate(torch.arange(4), {"source": batch()["source"]}, sampler)
    end = tokenizer().token_to_id("</a>")
    for row, (asked, _) in zip(found.tolist(), plain(), strict=True):
        with torch.no_grad():
            expected = network().generate(torch.tensor([asked]), max_new_tokens=12, do_sample=False, eos_token_id=end,
                                          pad_token_id=0, attention_mask=torch.ones(1, len(asked)))  # fmt: skip
        expected = [token for token in expected[0, len(asked) :].tolist() if token != end]
        assert [token for token in row if token >= 0] == expected


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"model\.end=<end>: the vocabulary has no such token"):
        model(end="<end>").losses(batch())
    with pytest.raises(ConfigError, match=r"a source of 14 tokens, with 7 around it, leaves no room for an answer"):
        model(context=21).losses(batch())
    with pytest.raises(ConfigError, match=r"a source and its answer have 26 tokens, beyond model\.context=22"):
        model(context=22).losses(batch())
    with pytest.raises(ConfigError, match=r'this model needs a source: condition\.source="TEXT"'):
        model().generate(torch.arange(1), None, TokenSampler())
