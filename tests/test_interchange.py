"""Language models to and from transformers: exported folders, pretrained folders as runs, GGUF."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from gguf import GGUFReader, dequantize
from runs import log, make_text, new_run, small_run, work
from safetensors.torch import load_file

from genlab.cli.export import export
from genlab.cli.load import load_run
from genlab.data.convert import gpt2_tokenizer, llama_from_gguf
from genlab.data.fetch import present
from genlab.decoding.tokens import TokenSampler
from genlab.errors import CheckpointError, ConfigError, DataError
from genlab.runs.directory import RunDirectory

# transformers in a process where genlab cannot be imported. The operator stands in for that of torchvision, whose
# published wheel does not import over CPU torch (genlab does the same at its import).
ALONE = """
import sys, json
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "genlab":
            raise ImportError("genlab is blocked")
sys.meta_path.insert(0, Blocked())
import torch
if not torch.version.cuda:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from transformers import pipeline
try:
    import genlab
except ImportError:
    pass
else:
    raise SystemExit("genlab is not blocked")
folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
made = pipeline("text-generation", folder, device="cpu")
greedy = made(prompt, do_sample=False, max_new_tokens=count)[0]["generated_text"]
drawn = made(prompt)[0]["generated_text"]
print(json.dumps({"greedy": greedy, "drawn": drawn, "sampling": made.model.generation_config.do_sample}))
"""


def alone(folder: Path, prompt: str, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder), prompt, str(count)], capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["gpt", "llama"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("interchange")
    size = {"gpt": "n_layer=1", "llama": "num_hidden_layers=1"}[request.param]
    made = new_run(
        small_run(
            f"model={request.param}", folder, "data.block_size=256", f"model.network.config.{size}",
            "optimizer.lr=0.01",
        )
    )  # fmt: skip
    assert work(made) == 0, log(made)
    return made


def test_an_export_goes_on_in_transformers_as_in_genlab(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (run.path / "evaluation" / "x.json").write_text(
        '{"name": "x_val", "values": {"x": 1.5}, "context": {"a": "/home"}}'
    )
    export(str(run.path), out, format="transformers")
    own = load_run(run.path, device="cpu")
    own.model.chunk_size = 1
    prompt = own.model.tokenizer.decode([5, 9, 11])
    greedy = own.sample(1, prompt=prompt, sampler=TokenSampler(max_new_tokens=200, temperature=0)).data[0]
    theirs = alone(out, prompt, 200)
    assert len(greedy) == 203
    assert theirs["greedy"] == greedy
    assert theirs["sampling"] is True
    assert len(theirs["drawn"]) == 3 + min(own.model.sampler.max_new_tokens, 128), "half of the context"
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "README.md", "genlab.json",
    }  # fmt: skip
    assert (out / "tokenizer.json").read_bytes() == (run.path / "tokenizer.json").read_bytes()
    facts, card = json.loads((out / "genlab.json").read_text()), (out / "README.md").read_text()
    assert facts["weights"]["kind"] == "ema"
    assert facts["weights"]["samples"] == 16
    assert facts["metrics"]["x"]["values"] == {"x": 1.5}
    assert facts["data"]["manifest"]["splits"]["train"]["count"] > 0
    assert "val/loss" in facts["final"]
    for said in ("Protocol `x_val`", "| x | 1.5 |", "not known to GenLab", run.path.name, "val/loss"):
        assert said in card
    assert "/home" not in card + (out / "genlab.json").read_text()


def test_the_round_trip_gives_the_same_logits(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(run.path), out, format="transformers")
    own, back = load_run(run.path, device="cpu"), load_run(out, device="cpu")
    assert (back.weights, back.model.samples_seen) == ("ema", 16)
    ids = torch.randint(65, (2, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [r.model.network(input_ids=ids).logits for r in (own, back)]  # type: ignore[operator]
    assert torch.equal(*logits)
    assert load_run(out, "raw", device="cpu").weights == "ema", "the folder has one sort"
    export(str(run.path), out, "raw", format="transformers")  # an earlier one is replaced
    assert load_run(out, device="cpu").weights == "raw"
    with pytest.raises(ConfigError, match="has no data of its own; say which: data=NAME"):
        back.data()
    with pytest.raises(ConfigError, match="checkpoint=best"):
        load_run(out, checkpoint="best", device="cpu")


def test_training_goes_on_from_a_folder(run: RunDirectory, tmp_path: Path) -> None:
    """init_from: the weights of the folder, in a model made by configuration; and only with its own vocabulary."""
    out = tmp_path / "out"
    export(str(run.path), out, format="transformers")
    config = load_run(run.path, device="cpu").config.copy()
    config.init_from, config.optimizer.lr, config.seed, config.resume = str(out), 1e-30, 3, "never"
    made = new_run(config)
    assert work(made) == 0, log(made)
    state = load_run(made.path, "raw", device="cpu").model.state_dict()
    expected = load_run(run.path, device="cpu").model.state_dict()
    assert all(torch.allclose(state[key], expected[key], atol=1e-7) for key in expected)
    config.data.path = str(make_text(tmp_path / "other.txt", 66))
    text = (tmp_path / "other.txt").read_text()
    lost, kept, *_ = (character for character in dict.fromkeys(text) if character != "\n")  # with which texts begin
    (tmp_path / "other.txt").write_text(text.replace(lost, kept))  # 65 others
    other = new_run(config)
    assert work(other) == 2
    assert "the data's vocabulary (65 tokens) is not that of" in log(other)


def test_what_transformers_has_not_is_refused(tmp_path: Path) -> None:
    for choice, name in (("model=lstm", "AWDLSTM"), ("model=gan", "GAN")):
        made = new_run(small_run(choice, tmp_path / name))
        assert work(made) == 0, log(made)
        with pytest.raises(ConfigError, match=f"{name} is no language model of transformers"):
            export(str(made.path), tmp_path / "out", format="transformers")
    with pytest.raises(ConfigError, match="format=onnx: expected genlab, transformers, diffusers, peft"):
        export(str(made.path), tmp_path / "out", format="onnx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    gpt = new_run(small_run("model=gpt", tmp_path / "gpt"))
    assert work(gpt) == 0, log(gpt)
    with pytest.raises(ConfigError, match="holds something else"):
        export(str(gpt.path), tmp_path / "mine", format="transformers")


@pytest.mark.parametrize("run", ["llama"], indirect=True)
def test_a_vocabulary_of_another_model_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    def swapped(path: Path, tokens: list[str]) -> None:
        """The same file with other tokens, or the same ones with other ids."""
        content = json.loads(path.read_text())
        content["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
        path.write_text(json.dumps(content))

    shutil.copytree(run.path, tmp_path / "run")
    tokens = list(load_run(run.path, device="cpu").model.tokenizer.get_vocab())
    swapped(tmp_path / "run" / "tokenizer.json", sorted(tokens, reverse=True))
    with pytest.raises(CheckpointError, match="is not the vocabulary that the model was trained with"):
        load_run(tmp_path / "run", device="cpu")
    export(str(run.path), tmp_path / "out", format="transformers")
    swapped(tmp_path / "out" / "tokenizer.json", [*tokens, "猫"])
    with pytest.raises(ConfigError, match=r"tokenizer\.json has 66 tokens, the network 65"):
        load_run(tmp_path / "out", device="cpu")


@pytest.mark.parametrize("run", ["llama"], indirect=True)
def test_the_commands_take_a_folder(run: RunDirectory, tmp_path: Path) -> None:
    done = command(
        "scripts/export.py", f"run={run.path}", f"out={tmp_path / 'out'}", "format=transformers", folder=tmp_path
    )
    assert done.code == 0, done.output
    assert "by transformers alone: as" in done.output
    assert 'pipeline("text-generation", "FOLDER")' in (tmp_path / "out" / "README.md").read_text()
    done = command("sample.py", f"run={tmp_path / 'out'}", "n=2", "sampler.max_new_tokens=5", "device=cpu",
                   f"out={tmp_path / 's'}", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.output
    text = make_text(tmp_path / "text.txt")
    done = command(
        "evaluate.py", f"run={tmp_path / 'out'}", "data=text_file", f"data.path={text}", "device=cpu",
        "data.vocab_size=65", "data.batch_size=4", "evaluation=text_likelihood", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.output
    (record,) = (tmp_path / "out" / "evaluation").glob("*.json")
    assert json.loads(record.read_text())["values"]["perplexity_val"] > 1
    command("evaluate.py", f"run={tmp_path / 'out'}", "evaluation=text_likelihood", folder=tmp_path).line(
        2, "data=NAME"
    )


# ---- GGUF


def text_of(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def field(key: str, kind: int, content: bytes) -> bytes:
    return text_of(key) + struct.pack("<I", kind) + content


def strings(values: list[str]) -> bytes:
    return struct.pack("<IQ", 8, len(values)) + b"".join(map(text_of, values))


V = [*(chr(i) for i in range(33, 127)), "<|a|>", "<|end|>"]  # 96 tokens
LLAMA = [
    field("general.architecture", 8, text_of("llama")),
    field("tokenizer.ggml.model", 8, text_of("gpt2")),
    field("tokenizer.ggml.pre", 8, text_of("smollm")),
    field("tokenizer.ggml.tokens", 9, strings(V)),
    field("tokenizer.ggml.merges", 9, strings([])),
    field("tokenizer.ggml.token_type", 9, struct.pack("<IQ96i", 5, 96, *[1] * 94, 3, 3)),
    field("tokenizer.ggml.eos_token_id", 4, struct.pack("<I", 95)),
    field("llama.block_count", 4, struct.pack("<I", 1)),
    field("llama.context_length", 4, struct.pack("<I", 64)),
    field("llama.embedding_length", 4, struct.pack("<I", 64)),
    field("llama.feed_forward_length", 4, struct.pack("<I", 96)),
    field("llama.attention.head_count", 4, struct.pack("<I", 4)),
    field("llama.attention.head_count_kv", 4, struct.pack("<I", 2)),
    field("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
]
SHAPES = {
    "token_embd.weight": (96, 64),
    "output_norm.weight": (64,),
    "blk.0.attn_norm.weight": (64,),
    "blk.0.ffn_norm.weight": (64,),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.attn_k.weight": (32, 64),
    "blk.0.attn_v.weight": (32, 64),
    "blk.0.attn_output.weight": (64, 64),
    "blk.0.ffn_gate.weight": (96, 64),
    "blk.0.ffn_up.weight": (96, 64),
    "blk.0.ffn_down.weight": (64, 96),
}
WIDTH = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 8: (32, 34), 30: (1, 2)}


def gguf_file(path: Path, kinds: dict[str, int] | None = None, fields: list[bytes] = LLAMA, version: int = 3) -> Path:
    """A Llama of random weights; its matrices in Q4_1, Q8_0 or as `kinds` says."""
    rng, infos, blocks, at = np.random.default_rng(0), b"", b"", 0
    for name, shape in SHAPES.items():
        kind = (kinds or {}).get(name, 0 if len(shape) == 1 else 3 if "ffn" in name else 8)
        per, width = WIDTH[kind]
        raw = rng.integers(0, 256, (int(np.prod(shape)) // per, width), dtype=np.uint8)
        if kind in (0, 1, 30):
            raw = np.ones(len(raw), {0: "<f4", 1: "<f2", 30: "<u2"}[kind]).view(np.uint8).reshape(raw.shape)
        else:
            raw[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
            if kind == 3:
                raw[:, 2:4] = np.frombuffer(np.float16(-0.07).tobytes(), np.uint8)
        content = raw.tobytes() + b"\0" * (-raw.size % 32)
        infos += (
            text_of(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]) + struct.pack("<IQ", kind, at)
        )
        blocks, at = blocks + content, at + len(content)
    head = b"GGUF" + struct.pack("<IQQ", version, len(SHAPES), len(fields)) + b"".join(fields) + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + blocks)
    return path


def test_a_llama_of_gguf_becomes_a_folder(tmp_path: Path) -> None:
    kinds = {"blk.0.attn_q.weight": 2, "blk.0.attn_output.weight": 30, "blk.0.attn_v.weight": 1}
    data = gguf_file(tmp_path / "a.gguf", kinds).read_bytes()
    llama_from_gguf(tmp_path, tmp_path)
    run = load_run(tmp_path, device="cpu")
    assert run.config.sampler.stop == ["<|end|>"]
    assert run.model.context == 64
    state = load_file(tmp_path / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors}
    # A block of Q4_1 by its formula, w = d q + m, from the file's bytes.
    at, up = tensors["blk.0.ffn_up.weight"].data_offset, state["model.layers.0.mlp.up_proj.weight"].numpy().ravel()
    d, m = np.float32(np.float16(0.01)), np.float32(np.float16(-0.07))
    for i in (0, 5, 15, 16, 31):
        byte = data[at + 4 + i % 16]
        assert up[i] == d * np.float32(byte & 15 if i < 16 else byte >> 4) + m
    assert state["model.norm.weight"].tolist() == [1.0] * 64
    assert state["model.layers.0.self_attn.v_proj.weight"].tolist() == [[1.0] * 64] * 32
    key = tensors["blk.0.attn_k.weight"]
    theirs = dequantize(key.data, key.tensor_type)  # two heads of 16: pairs 2i, 2i+1 become i, i+8
    ours = state["model.layers.0.self_attn.k_proj.weight"].numpy()
    for head in (0, 16):
        assert np.array_equal(ours[head : head + 8], theirs[head : head + 16 : 2])
        assert np.array_equal(ours[head + 8 : head + 16], theirs[head + 1 : head + 16 : 2])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rms_norm_eps"], config["bos_token_id"], config["eos_token_id"]) == (1e-5, None, 95)
    assert run.model.tokenizer.encode("ab12<|end|>").ids == [64, 65, 16, 17, 95]
    text = run.sample(2, prompt="ab", sampler=TokenSampler(max_new_tokens=4)).data
    assert all(isinstance(t, str) and t.startswith("ab") for t in text)


def test_a_broken_gguf_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage at random is found before, by the sha256 that the registry has of the file (tests/test_fetch.py)."""
    whole = gguf_file(tmp_path / "a.gguf").read_bytes()
    bad, out = tmp_path / "bad" / "a.gguf", tmp_path / "out"
    bad.parent.mkdir()
    out.mkdir()

    def refused(content: bytes, message: str = "cannot be read") -> None:
        bad.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            llama_from_gguf(bad.parent, out)
        assert "\n" not in str(caught.value)
        assert not list(out.iterdir())

    refused(b"")
    refused(b"GGML" + whole[4:], "GGUF magic invalid")
    refused(whole[:4] + struct.pack("<I", 1) + whole[8:], "version 1")
    refused(whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:])
    refused(whole[:16] + struct.pack("<Q", 1 << 60) + whole[24:])
    for cut in (-100, *np.random.default_rng(1).integers(0, len(whole) - 64, 20)):
        refused(whole[: int(cut)])
    refused(whole.replace(b"blk.0.attn_v.weight", b"blk.0.attn_w.weight"), "it has no model.layers.0.self_attn.v_proj")
    refused(whole.replace(text_of("gpt2"), text_of("bert")), "tokenizer.ggml.model is 'bert'")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r'a GGUF file needs gguf: pip install "genlab\[gguf\]"'):
        llama_from_gguf(bad.parent, out)


def test_gpt2s_own_files(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    ids = {"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}
    (tmp_path / "encoder.json").write_text(json.dumps(ids))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
    gpt2_tokenizer(tmp_path, tmp_path)
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode("aba<|endoftext|>").ids == [2, 0, 3]
    (tmp_path / "encoder.json").write_text('{"a": 0, "<|endoftext|>": 7}')
    with pytest.raises(DataError, match="not GPT-2's vocabulary"):
        gpt2_tokenizer(tmp_path, tmp_path)


# ---- SmolLM2 itself

smollm2 = pytest.mark.skipif(not present("smollm2"), reason="smollm2 is not in the cache")


@smollm2
@pytest.mark.data
def test_smollm2_answers_as_in_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = load_run("smollm2", device="cpu")
    folder = run.directory.path
    run.model.chunk_size = 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "Name three colours of the rainbow."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([run.model.tokenizer.encode(prompt).ids])
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
    sampler = TokenSampler(max_new_tokens=24, temperature=0, stop=["<|im_end|>"])
    with torch.no_grad():
        ours = sampler.decode(run.model.eval(), ids, torch.zeros(1, dtype=torch.int64)).tokens
    assert ours[0].tolist()[: theirs.shape[1]] == theirs[0].tolist()


@smollm2
@pytest.mark.data
@pytest.mark.skipif(not present("tiny_shakespeare"), reason="tiny_shakespeare is not in the cache")
def test_smollm2_on_the_first_page_of_shakespeare() -> None:
    """The perplexity that is stored: 562 tokens, each after all before it."""
    from genlab.data.text import Text
    from genlab.evaluation import evaluate
    from genlab.evaluation.metrics import TextLikelihood
    from genlab.evaluation.protocol import Protocol

    run = load_run("smollm2", device="cpu")
    data = Text("tiny_shakespeare", split="share", vocabulary="smollm2", vocab_size=49152, block_size=1024,
                         train_fraction=0, characters=2000, batch_size=1)  # fmt: skip
    data.setup()
    stored = json.loads((Path(__file__).parent.parent / "docs/results/smollm2-shakespeare-page.json").read_text())
    protocol = Protocol(metrics={"text_likelihood": TextLikelihood()}, reference_split="val")
    record = evaluate(run.model, data, protocol, weights="raw")
    assert record["reference"] == {"documents": False, **stored["reference"]}  # a field that is newer than the record
    assert record["values"]["perplexity_val"] == pytest.approx(stored["values"]["perplexity_val"], rel=1e-4)
    with pytest.raises(ConfigError, match="for evaluation only"):
        data.train_loader(0, 4)
