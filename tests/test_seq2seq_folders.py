"""Encoder-decoders to and from transformers: T5, BART and Marian as runs, training from a folder, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import command
from runs import log, new_run, small_run, work
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartTokenizer, PreTrainedTokenizerFast, T5Tokenizer
from transformers.models.bart import BartConfig, BartForConditionalGeneration
from transformers.models.marian import MarianConfig, MarianMTModel
from transformers.models.t5 import T5Config, T5ForConditionalGeneration

from genlab.cli.export import export
from genlab.cli.load import load_run
from genlab.decoding.beam import BeamSearch
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.networks.pretrained import causal_lm, seq2seq_lm
from genlab.runs.directory import RunDirectory

WORDS = ["a", "dog", "runs", "over", "green", "grass", "two", "men", "sit", "down"]
TEXTS = ["a dog runs", "two men sit down over green grass", "a", "green grass grass a dog", "runs runs sit"]
SIZE: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64,
    "init_std": 0.5,
}  # fmt: skip


def t5() -> tuple[Any, Any]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [*((f"\u2581{word}", -1.0) for word in WORDS), ("\u2581", -2.0)]
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz:"]
    tokenizer = T5Tokenizer(vocab=special + words + letters, extra_ids=0)
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        initializer_factor=4.0,
    )  # fmt: skip
    network = T5ForConditionalGeneration(config)
    with torch.no_grad():
        network.shared.weight[1] *= 9  # texts end, here and there
    return network, tokenizer


def bart() -> tuple[Any, Any]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"])}
    torch.manual_seed(4)
    network = BartForConditionalGeneration(BartConfig(vocab_size=len(vocabulary), **SIZE))
    network.final_logits_bias[0, 2] = 2.0
    return network, BartTokenizer(vocabulary, [])


def marian() -> tuple[Any, Any]:
    vocabulary = {token: i for i, token in enumerate(["</s>", "<unk>", *(f"\u2581{word}" for word in WORDS), "<pad>"])}
    last = len(vocabulary) - 1
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    inner.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokens: dict[str, Any] = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    torch.manual_seed(5)
    network = MarianMTModel(
        MarianConfig(vocab_size=last + 1, eos_token_id=0, pad_token_id=last, decoder_start_token_id=last, **SIZE)
    )
    network.final_logits_bias[0, 0] = 1.5
    names = ["input_ids", "attention_mask"]
    return network, PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **tokens)


def folder_of(make: Any, folder: Path, **generation: Any) -> Path:
    """What save_pretrained leaves of a network of random weights, with these words of generation_config.json."""
    network, tokenizer = make()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "generation_config.json"
    end = {"forced_eos_token_id": network.config.eos_token_id}
    path.write_text(json.dumps({**json.loads(path.read_text()), **end, **generation}))
    return folder


def of_transformers(folder: Path, texts: list[str], **options: Any) -> list[str]:
    """What transformers makes of the texts, as the folder says."""
    network, tokenizer = (kind.from_pretrained(folder) for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    with torch.no_grad():
        made = network.generate(**tokenizer(texts, padding=True, return_tensors="pt"), **options)
    return tokenizer.batch_decode(made, skip_special_tokens=True)


@pytest.mark.parametrize("make", [t5, bart, marian])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_folder_writes_as_in_transformers(make: Any, beams: int, tmp_path: Path) -> None:
    folder = folder_of(make, tmp_path / "a", max_length=14, num_beams=beams, early_stopping="never", length_penalty=0.7)
    expected = of_transformers(folder, TEXTS)
    loaded = load_run(folder, device="cpu")
    assert len(set(expected)) > 2, expected
    assert loaded.sample(len(TEXTS), source=TEXTS).data == expected
    assert loaded.sample(1, source=TEXTS[1]).data == expected[1:2], "alone as among others"
    sampler: Any = loaded.generative.sampler
    assert isinstance(sampler, TokenSampler if beams == 1 else BeamSearch)
    assert sampler.max_new_tokens == 13


@pytest.mark.parametrize("make", [t5, bart, marian])
def test_a_source_is_read_as_transformers_tokenizer_has_it(make: Any, tmp_path: Path) -> None:
    folder = folder_of(make, tmp_path / "a")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "prefix": "a dog: " if make is t5 else ""}))
    model: Any = load_run(folder, device="cpu").model
    whole = AutoTokenizer.from_pretrained(folder)([model.prefix + text for text in TEXTS], padding=True)
    (condition,) = model.conditions
    ids, mask = model.framed(condition.rows(TEXTS, model))
    assert (ids.tolist(), mask.tolist()) == (whole["input_ids"], whole["attention_mask"])


def test_folders_that_cannot_be_runs(tmp_path: Path) -> None:
    folder = folder_of(t5, tmp_path / "a")
    with pytest.raises(ConfigError, match="has 48 tokens, the tokenizer 50"):
        seq2seq_lm(str(folder), vocab_size=50)
    for name in ("config.json", "generation_config.json"):
        facts = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**facts, "pad_token_id": None}))
    with pytest.raises(ConfigError, match=r"says no pad_token_id; add it to generation_config\.json there"):
        load_run(folder, device="cpu")
    folder = folder_of(marian, tmp_path / "b")
    (folder / "tokenizer.json").rename(folder / "source.spm")
    with pytest.raises(ConfigError, match=r"has \*\.spm of Marian in the place of a tokenizer\.json"):
        load_run(folder, device="cpu")
    with pytest.raises(ConfigError, match="cannot be loaded as AutoModelForCausalLM"):
        causal_lm(str(tmp_path / "a"))


def test_the_commands_take_a_folder(tmp_path: Path) -> None:
    folder = folder_of(marian, tmp_path / "folder", max_length=14, num_beams=2, early_stopping="never")
    done = command("sample.py", "run=folder", "n=1", "condition.source=two men sit down", "out=s", folder=tmp_path)
    assert done.code == 0, done.output
    assert (tmp_path / "s" / "000000.txt").read_text() == of_transformers(folder, ["two men sit down"])[0]
    rows = [{"source": text, "target": "a dog"} for text in [*TEXTS, *(f"{word} sit" for word in WORDS)]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = command(
        "evaluate.py", "run=folder", "evaluation=translation_test", "data=pairs", "data.path=pairs.jsonl",
        "data.vocabulary=folder", "data.vocab_size=13", "data.batch_size=4", "data.num_workers=0",
        "data.test_fraction=0.4", "data.val_fraction=0.3", folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.output
    (table,) = (folder / "evaluation").glob("translation_test-texts*.jsonl")
    judged = [json.loads(line) for line in table.read_text().splitlines()]
    assert 3 < len(judged) < len(rows)
    assert [row["generated"] for row in judged] == of_transformers(folder, [row["source"] for row in judged])
    assert {row["reference"] for row in judged} == {"a dog"}


# ---- export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    words = ("sampler.alpha=1", "sampler.offset=0", "model.network.config.init_std=1.0", "optimizer.lr=1e-6", "seed=3",
             "+model.network.config.tie_word_embeddings=false", "model.prefix=cab")  # fmt: skip
    made = new_run(small_run("model=seq2seq", tmp_path_factory.mktemp("seq2seq"), *words))
    assert work(made) == 0, log(made)
    return made


def test_an_export_writes_as_the_run(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(run.path), out, format="transformers")
    own, back = (load_run(path, device="cpu") for path in (run.path, out))
    sources = ["abc", "hgfedcba", "b", "cafe"]
    whole = [f"cab{source}" for source in sources]  # there the prefix is part of the text
    model: Any = own.model
    model.length_ratio, model.length_extra = 0.0, 20  # transformers has no limit by the source
    for sampler, options in (
        (own.generative.sampler, {"max_new_tokens": 20}),
        (TokenSampler(temperature=0.0), {"num_beams": 1, "max_new_tokens": 20}),
    ):
        texts = own.sample(4, source=sources, sampler=sampler).data
        assert of_transformers(out, whole, **options) == texts
        assert len(set(texts)) == 4
    ids = AutoTokenizer.from_pretrained(out)(whole, padding=True)
    assert ids["input_ids"] == model.framed(model.conditions[0].rows(sources, model))[0].tolist()
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {
        "max_new_tokens": 20, "do_sample": False, "num_beams": 5, "length_penalty": 1.0, "early_stopping": "never",
        "decoder_start_token_id": 1, "eos_token_id": 0, "pad_token_id": 1, "forced_eos_token_id": 0,
    }  # fmt: skip
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text2text-generation" in card
    assert "Before each source stands `cab`." in card
    assert back.sample(4, source=sources).data == of_transformers(out, whole)
    export(str(out), tmp_path / "again", format="transformers")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_the_code_on_the_card_runs(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    export(str(run.path), out, format="transformers")
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(compile(code.replace("FOLDER", str(out)).replace('"..."', '"abc"'), "card", "exec"), {})
    assert capsys.readouterr().out.strip() == str(of_transformers(out, ["abc"]))
