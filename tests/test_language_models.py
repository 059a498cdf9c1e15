"""Language models: networks against transformers and torch, pretrained folders, prompts and streams of the command
line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import compose_train
from test_decoding import V, language_model, network
from torch import Tensor, nn

from genlab.cli.build import build_model
from genlab.cli.load import LoadedRun
from genlab.cli.sample import wanted_conditions
from genlab.decoding.reading import Decoded, padded
from genlab.decoding.stream import Streamed
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.models.autoregressive import AutoregressiveModel
from genlab.networks.awd_lstm import AWDLSTM
from genlab.networks.pretrained import causal_lm


def batch_of(rows: int = 3, length: int = 11) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(V, (rows, length + 1))
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_training_path_is_that_of_transformers(kind: str) -> None:
    """Logits by SDPA against eager attention, our loss against transformers' own, which shifts labels itself."""
    model, batch = language_model(kind), batch_of()
    ids = torch.cat([batch["input_ids"], batch["labels"][:, -1:]], 1)
    theirs = copy.deepcopy(model.network)
    theirs.set_attn_implementation("eager")  # type: ignore[operator]
    assert model.network.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    with torch.no_grad():
        ours = model.network(input_ids=batch["input_ids"], use_cache=False).logits
        expected = theirs(input_ids=ids, labels=ids)
        torch.testing.assert_close(ours, expected.logits[:, :-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.losses(batch)["loss"], expected.loss)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_compiled_training_has_no_dense_mask(kind: str) -> None:
    """What torch.compile is given: attention that is said to be causal, so that its fused kernels can be taken."""
    model, batch = language_model(kind), batch_of(rows=3, length=11)
    expected = model.losses(batch)["loss"]
    attention, dense = [], []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is nn.functional.scaled_dot_product_attention:
                attention.append((node.kwargs["attn_mask"], node.kwargs["is_causal"]))
            value = node.meta.get("example_value")
            if isinstance(value, Tensor) and value.shape[-2:] == (11, 11):
                dense.append(node)
        return graph.forward

    model.network.compile(backend=record)
    torch.testing.assert_close(model.losses(batch)["loss"], expected)
    assert attention == [(None, True)] * 2
    assert not dense
    model.log_likelihood(batch)
    assert attention == [(None, True)] * 2
    model.network(input_ids=batch["input_ids"], use_cache=False)  # as transformers has it
    assert dense
    assert model.network.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_unequal_prompts_go_on_as_in_transformers(kind: str) -> None:
    """Greedy, against transformers' left padding with its mask and positions."""
    model, rows = language_model(kind), [[3], [1, 2, 3, 4, 5], [6, 6, 2]]
    left = torch.tensor([[0] * (5 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (5 - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        theirs = model.network.generate(  # type: ignore[operator]
            left, attention_mask=mask, do_sample=False, max_new_tokens=9, pad_token_id=0
        )
        ours = TokenSampler(max_new_tokens=9, temperature=0).decode(model, padded(rows), torch.arange(3))
    for i, row in enumerate(rows):
        assert ours.tokens[i, len(row) : len(row) + 9].tolist() == theirs[i, 5:].tolist()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        model = AutoregressiveModel(network("llama"), 32, gradient_checkpointing=on).train()
        model.losses(batch_of())["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert model.network.is_gradient_checkpointing  # type: ignore[union-attr]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ConfigError, match="AWDLSTM has none"):
        AutoregressiveModel(network("lstm"), None, gradient_checkpointing=True)


# ---- the LSTM


def test_awd_lstm_is_torchs_lstm_and_its_state_goes_on() -> None:
    torch.manual_seed(0)
    ours = AWDLSTM(V, embedding=10, width=10, layers=2, tied=True)
    theirs = nn.LSTM(10, 10, 2, batch_first=True)
    for i, layer in enumerate(ours.layers):
        for name, value in layer.named_parameters():
            getattr(theirs, f"{name[:-1]}{i}").data.copy_(value)
    ids = batch_of()["input_ids"]
    logits = ours(ids).logits
    hidden, _ = theirs(ours.embedding(ids))
    torch.testing.assert_close(logits, hidden @ ours.embedding.weight.T)
    first = ours(ids[:, :4], use_cache=True)
    second = ours(ids[:, 4:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), logits)
    assert second.cache is None
    cut = first.cache.detach()
    assert not any(part.requires_grad for layer in cut.layers for part in layer)


def test_awd_lstm_drops_what_it_says() -> None:
    torch.manual_seed(0)
    model, ids = AWDLSTM(V, 16, 16, layers=1, weight_drop=0.5), batch_of(2, 6)["input_ids"]
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    first, again = model.train()(ids).logits, model(ids).logits
    # h_0 = 0: the first token has no recurrent weight to drop.
    torch.testing.assert_close(first[:, 0], again[:, 0])
    assert not torch.allclose(first[:, 1:], again[:, 1:])
    first.square().sum().backward()
    share = (model.layers[0].weight_hh_l0.grad == 0).float().mean()  # type: ignore[union-attr]
    assert 0.45 < float(share) < 0.55
    locked = AWDLSTM(V, 16, input_drop=0.5)._locked(torch.ones(3, 9, 16), 0.5)
    assert torch.equal(locked, locked[:, :1].expand(-1, 9, -1))
    assert set(locked.unique().tolist()) == {0.0, 2.0}
    whole = AWDLSTM(V, 16, 16, layers=1, embedding_drop=0.5)
    whole(torch.arange(V)[None]).logits.square().sum().backward()
    assert whole.head.weight is whole.embedding.weight


@pytest.mark.parametrize(("name", "parameters"), [("gpt", 809_856), ("llama", 800_000), ("lstm", 814_785)])
def test_shipped_sizes_are_alike(name: str, parameters: int) -> None:
    model = build_model(compose_train([f"model={name}"]))
    assert sum(p.numel() for p in model.parameters()) == parameters


# ---- a pretrained folder


def test_a_pretrained_folder(tmp_path: Path) -> None:
    network("llama").save_pretrained(tmp_path / "a")  # type: ignore[operator]
    loaded, batch = causal_lm(str(tmp_path / "a"), vocab_size=V), batch_of()
    assert all(module.training for module in loaded.modules()), "its dropout is wanted in training"
    expected = network("llama").eval()(**{"input_ids": batch["input_ids"]}).logits
    torch.testing.assert_close(loaded.eval()(batch["input_ids"]).logits, expected)
    with pytest.raises(ConfigError, match="has 13 tokens, the tokenizer 20"):
        causal_lm(str(tmp_path / "a"), vocab_size=20)
    with pytest.raises(ConfigError, match=r"no folder with a config\.json"):
        causal_lm(str(tmp_path / "none"))
    weights = tmp_path / "a" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:200])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        causal_lm(str(tmp_path / "a"))
    from safetensors.torch import load, save

    weights.write_bytes(save({k: v for k, v in load(whole).items() if "norm" not in k}, {"format": "pt"}))
    with pytest.raises(ConfigError, match="the weights lack"):
        causal_lm(str(tmp_path / "a"))
    weights.rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no model\.safetensors"):
        causal_lm(str(tmp_path / "a"))


# ---- prompts and streams


def test_prompts_of_a_run_and_of_the_command_line(tmp_path: Path) -> None:
    run = LoadedRun(None, None, language_model("gpt2"), "raw", tmp_path)  # type: ignore[arg-type]
    run.model.sampler = TokenSampler(max_new_tokens=3)
    made = run.condition(3, {"prompt": ["ab", "c", "\n"]})["prompt"]
    assert made.tolist() == [[1, 2], [3, -1], [0, -1]]
    assert run.condition(2, {"prompt": "ab"})["prompt"].tolist() == [[1, 2]] * 2
    assert [text[:-3] for text in run.sample(2, prompt=["abc", "d"]).data] == ["abc", "d"]
    assert run.condition(3, {"prompt": ["a", "b"]})["prompt"].tolist() == [[1], [2], [1]]
    for wrong, message in ((["a"] * 4, "4 values for 3 items"), ("ax", "character 'x'"), ("", "empty")):
        with pytest.raises(ConfigError, match=message):
            run.condition(3, {"prompt": wrong})

    def wanted(**given: Any) -> dict[str, Any]:
        config = OmegaConf.create({"condition": {}, "conditions": None, "n": 3} | given)
        return wanted_conditions(config, run.generative)

    file = tmp_path / "prompts"
    file.write_text("ab\n\nb\n")
    assert wanted(condition={"prompt": "a b"}) == {"prompt": "a b"}
    assert wanted(conditions=str(file)) == {"prompt": ["ab", "b"]}
    with pytest.raises(ConfigError, match=r"condition\.prompt and conditions=.*prompts: give one"):
        wanted(conditions=str(file), condition={"prompt": "b"})
    with pytest.raises(ConfigError, match="cannot be read"):
        wanted(conditions=str(tmp_path / "none"))
    for content, message in (
        ("貓\n".encode(), r"prompts:1: condition\.prompt: character '貓'"),
        (b"ab\n\nabx\n", r"prompts:3: condition\.prompt: character 'x' \(U\+0078\) at 2 of 'abx'"),
        (b"ab\na\xff", "prompts:2: not UTF-8"),
        (b"\n", "holds no condition"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            wanted(conditions=str(file))


def test_a_stream_writes_whole_characters() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ids = tokenizer.encode("a貓é").ids
    assert len(ids) == 6
    pieces: list[str] = []

    class Given(TokenSampler):
        def decode(self, reader: Any, prompt: Tensor, seeds: Tensor, show: Any = None) -> Decoded:
            for t in range(1, 7):
                show(torch.tensor([ids[:t]]))
            cut = torch.tensor([ids[:5]])
            return Decoded(cut, torch.zeros(1), torch.ones(1))

    Streamed(Given(), tokenizer, pieces.append).decode(None, torch.tensor([ids[:1]]), torch.zeros(1))  # type: ignore
    assert pieces == ["a", "貓", "é", "\n"]

    model, pieces = language_model("gpt2"), []
    sampler = TokenSampler(max_new_tokens=12)
    streamed = model.sample(torch.tensor([5]), None, Streamed(sampler, model.tokenizer, pieces.append))
    assert "".join(pieces) == streamed.data[0] + "\n" == model.sample(torch.tensor([5]), None, sampler).data[0] + "\n"
    assert len(pieces) > 10
