"""Encoder-decoders: losses and decoding against transformers, padding, limits of length, pictures of attention."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import compose_train, log, make_pairs, make_text, new_run, work
from torch import Tensor

from genlab.data.vocabulary import PAD, train_tokenizer
from genlab.decoding.beam import BeamSearch
from genlab.decoding.best_of import BestOf
from genlab.decoding.reading import lengths_of
from genlab.decoding.tokens import TokenSampler
from genlab.drawing import save_attention
from genlab.errors import ConfigError
from genlab.models.seq2seq import Seq2Seq

END, PADDING, V, CONTEXT = 0, 1, 40, 48
Rows = dict[str, Tensor]


@functools.cache
def tokenizer() -> Any:
    """END, [PAD], then letters and digits."""
    return train_tokenizer("characters", V, [], [chr(ord("a") + i) for i in range(V - 2)], ["<|endoftext|>", PAD])


@functools.cache
def network() -> Any:
    from transformers.models.marian import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=V, max_position_embeddings=CONTEXT, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, dropout=0.0,
        activation_dropout=0.0, attention_dropout=0.0, eos_token_id=END, pad_token_id=PADDING,
        decoder_start_token_id=PADDING, forced_eos_token_id=None, init_std=0.3, scale_embedding=True,
    )  # fmt: skip
    made = MarianMTModel(config).eval()
    made.final_logits_bias[0, END] = 2.0  # texts end, here and there
    made.final_logits_bias[0, PADDING] = -1e4
    return made


def model(**options: Any) -> Seq2Seq:
    made = Seq2Seq(network(), CONTEXT, **options).eval()
    made.tokenizer = tokenizer()
    return made


def sources(rows: int, longest: int = 20) -> Tensor:
    """int64 [rows, <= longest], of unequal length."""
    torch.manual_seed(1)
    lengths = torch.randint(1, longest + 1, (rows, 1))
    ids = torch.randint(2, V, (rows, int(lengths.max())))
    return ids.masked_fill(torch.arange(ids.shape[1]) >= lengths, -1)


def pairs(rows: int = 6) -> Rows:
    torch.manual_seed(2)
    labels = sources(rows, 9).flip(0)
    ends = lengths_of(labels)[:, None]
    labels = torch.cat([labels, torch.full((rows, 1), -1)], 1).scatter(1, ends, END)
    return {"source": sources(rows), "labels": labels.masked_fill(labels == -1, -100)}


def of_transformers(source: Tensor, **options: Any) -> list[list[int]]:
    """Texts of Marian's own `generate`, without what begins and pads them."""
    ids = torch.cat([source, torch.full((len(source), 1), -1)], 1).scatter(1, lengths_of(source)[:, None], END)
    texts = network().generate(
        ids.masked_fill(ids == -1, PADDING), attention_mask=(ids != -1).long(), do_sample=False, **options
    )
    return [[token for token in row[1:].tolist() if token != PADDING] for row in texts]


def tokens(rows: Tensor) -> list[list[int]]:
    return [[token for token in row if token != -1] for row in rows.tolist()]


@pytest.mark.parametrize("beams", [1, 5])
def test_decoding_is_that_of_transformers(beams: int) -> None:
    """100 sources of unequal length, in one batch there and in chunks here; by the mean log p a token."""
    source, limit = sources(100), 24
    ours = model(length_ratio=0.0, length_extra=limit, chunk_size=16)
    sampler: Any = TokenSampler(temperature=0.0) if beams == 1 else BeamSearch(beams=beams, alpha=1.0, offset=0.0)
    with torch.no_grad():
        parts = [ours.generate(torch.arange(len(part)), {"source": part}, sampler) for part in source.split(16)]
    theirs = of_transformers(source, num_beams=beams, max_new_tokens=limit, length_penalty=1.0, early_stopping="never",
                             forced_eos_token_id=END)  # fmt: skip
    ends = [len(row) for row in theirs]
    assert min(ends) < 6 < limit == max(ends), "texts that end, and some that the limit ends"
    assert [row for part in parts for row in tokens(part)] == theirs


def test_padding_never_changes_a_row() -> None:
    ours, source = model(), sources(12)
    sampler = BeamSearch(beams=3)
    with torch.no_grad():
        together = tokens(ours.generate(torch.arange(12), {"source": source}, sampler))
        for i in range(12):
            row = source[i : i + 1, : int(lengths_of(source[i : i + 1]))]
            assert tokens(ours.generate(torch.arange(1), {"source": row}, sampler)) == [together[i]]
        batch = pairs()
        whole, count = ours.log_likelihood(batch)
        for i in range(len(whole)):
            one = {"source": batch["source"][i : i + 1], "labels": batch["labels"][i : i + 1, : int(count[i])]}
            alone, _ = ours.log_likelihood(one)
            torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-6)


def test_losses_are_those_of_transformers() -> None:
    """Of `labels=` without smoothing, of the trainer's LabelSmoother with it."""
    from transformers.trainer_pt_utils import LabelSmoother

    ours, batch = model(label_smoothing=0.1), pairs()
    ids, mask = ours.framed(batch["source"])
    with torch.no_grad():
        theirs = network()(input_ids=ids, attention_mask=mask, labels=batch["labels"])
        assert ours.losses(batch)["loss"].item() == pytest.approx(theirs.loss.item(), rel=1e-6)
        sums, counts = ours.log_likelihood(batch)
        assert -sums.sum().item() / counts.sum().item() == pytest.approx(theirs.loss.item(), rel=1e-6)
        ours.train()
        smooth = ours.losses(batch)
        expected = LabelSmoother(epsilon=0.1)(theirs, batch["labels"])
    assert smooth["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert smooth["nll"].item() == pytest.approx(theirs.loss.item(), rel=1e-6)


def test_the_first_targets_are_the_beginnings_of_the_sources() -> None:
    batch, one = pairs(), model(copy_samples=10, copy_tokens=3).train()
    start = batch["source"][:, :3]
    copies = {"source": batch["source"], "labels": start.masked_fill(start == -1, -100)}
    torch.testing.assert_close(one.losses({**batch, "weight": torch.ones(6)})["loss"], model().losses(copies)["loss"])
    assert torch.equal(one.eval().losses(batch)["loss"], model().losses(batch)["loss"]), "validation has its own"
    one.train().samples_seen = 10
    assert torch.equal(one.losses(batch)["loss"], model().losses(batch)["loss"])


def test_micro_batches_are_the_whole_batch() -> None:
    """With the weight that the loader gives to each token, rows of unequal length count as in one batch."""
    ours, batch = model(label_smoothing=0.1).train(), pairs()
    whole = ours.losses(batch)["loss"]
    mean = (batch["labels"] != -100).sum() / 3
    parts = [
        ours.losses({name: rows[i : i + 2] for name, rows in batch.items()} | {"weight": (1 / mean).expand(2)})["loss"]
        for i in (0, 2, 4)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_text_is_bounded_by_its_source() -> None:
    ours, source = model(length_ratio=1.0, length_extra=2), sources(30)
    with torch.no_grad():
        found = tokens(ours.generate(torch.arange(30), {"source": source}, TokenSampler(temperature=3.0)))
    limits = (lengths_of(source) + 1 + 2).tolist()
    assert all(len(row) <= limit and row[-1] == END for row, limit in zip(found, limits, strict=True))
    assert any(len(row) == limit for row, limit in zip(found, limits, strict=True))


@pytest.mark.parametrize("sampler", [TokenSampler(top_p=0.9), BestOf(n=3), BeamSearch(beams=4)])
def test_an_item_depends_on_its_seed_and_source_alone(sampler: Any) -> None:
    ours, source = model(chunk_size=4), sources(10)
    whole = ours.sample(torch.arange(10), {"source": source}, sampler)
    assert ours.sample(torch.arange(4, 7), {"source": source[4:7]}, sampler).data == whole.data[4:7]
    assert not any("<|endoftext|>" in text for text in whole.data)


def test_what_is_put_around_a_source() -> None:
    """A tokenizer's own template, as BART has one, and a prefix, as T5."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    ours = model(prefix="ab")
    ids, mask = ours.framed(torch.tensor([[5, 6, -1], [7, 8, 9]]))
    assert ids.tolist() == [[2, 3, 5, 6, 0, 1], [2, 3, 7, 8, 9, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]
    ours.tokenizer = Tokenizer.from_str(tokenizer().to_str())
    ours.tokenizer.post_processor = TemplateProcessing(
        single="[PAD] $A <|endoftext|>", special_tokens=[("[PAD]", 1), ("<|endoftext|>", 0)]
    )
    ids, _ = ours.framed(torch.tensor([[5, 6]]))
    assert ids.tolist() == [[1, 2, 3, 5, 6, 0]]


def test_bad_sources_are_refused() -> None:
    ours = model()
    with pytest.raises(ConfigError, match=r'needs a source: condition\.source="TEXT"'):
        ours.sample(torch.arange(2))
    with pytest.raises(ConfigError, match=r"a source of 60 tokens, with 1 around it, is beyond model\.context=48"):
        ours.sample(torch.arange(1), {"source": torch.full((1, 60), 5)}, BeamSearch())
    with pytest.raises(ConfigError, match=r"model\.prefix: character 'Z' \(U\+005A\) at 0 of 'Z' is not in the vocab"):
        model(prefix="Z").sample(torch.arange(1), {"source": torch.full((1, 6), 5)}, BeamSearch())


def test_attention_is_drawn(tmp_path: Path) -> None:
    ours, batch = model(), pairs(3)
    with torch.no_grad():
        maps = ours.attention(batch)
        assert network().config._attn_implementation == "sdpa"
    for i, (weights, rows, columns) in enumerate(maps):
        assert rows == batch["labels"][i][batch["labels"][i] != -100].tolist()
        assert columns == [*batch["source"][i][batch["source"][i] != -1].tolist(), END]
        torch.testing.assert_close(weights.sum(1), torch.ones(len(rows)))
    save_attention(tmp_path / "a.png", [(w, [str(r) for r in rows], [str(c) for c in cs]) for w, rows, cs in maps])
    assert Image.open(tmp_path / "a.png").size[0] > 1000


def test_data_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Before training, in one line: plain text for an encoder-decoder, pairs for a language model."""
    for choice, other, line in (
        ("model=seq2seq", ("data=text_file", f"data.path={make_text(tmp_path / 'a.txt')}", "data.vocab_size=65",
                           "data.block_size=64"),
         "data=text_file: its items have no source, only input_ids, labels; Seq2Seq reads source and labels"),
        ("model=lstm", ("data=pairs", f"data.path={make_pairs(tmp_path / 'a.jsonl')}", "data.tokenizer=characters",
                        "data.vocab_size=18", "data.val_fraction=0.3", "data.test_fraction=0.1"),
         "data=pairs: its items have no input_ids, only source, labels; AutoregressiveModel reads input_ids"),
    ):  # fmt: skip
        run = new_run(compose_train([choice, *other, "trainer=debug", "logger=none", "evaluation=none",
                                     f"runs_dir={tmp_path}"]))  # fmt: skip
        assert work(run) == 2
        assert line in log(run)
