"""Truncated back-propagation through time: rows that go on from batch to batch, and the state that is carried."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_state, compose_train, log, make_text, new_run, rows, small_run, start, work
from test_decoding import V, network
from torch import Tensor

from genlab.cli.load import load_run
from genlab.cli.problem import Problem
from genlab.data.text import Text
from genlab.data.windows import Windows
from genlab.errors import ConfigError, DataError
from genlab.evaluation import evaluate
from genlab.evaluation.metrics import TextLikelihood
from genlab.evaluation.protocol import Protocol
from genlab.models.autoregressive import AutoregressiveModel
from genlab.models.trained import Plan
from genlab.networks.awd_lstm import AWDLSTM
from genlab.runs.checkpoint import load_checkpoint


def stream(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int16)


# ---- the order of the data


def test_row_b_of_a_batch_goes_on_where_row_b_of_the_one_before_ended() -> None:
    source = Windows(stream(50), 5, "x", rows=4)  # rows of 12 predicted tokens, 3 windows, the last of 2
    assert len(source) == 12
    ends: list[int] | None = None
    seen = []
    for step in range(3):
        batch = source.batch(torch.arange(4 * step, 4 * step + 4), torch.zeros(4, dtype=torch.int64))
        assert batch["row"].tolist() == [0, 1, 2, 3]
        assert batch["begins"].tolist() == [step == 0] * 4
        counted = batch["labels"] != -100
        assert torch.equal(batch["labels"][counted], batch["input_ids"][counted] + 1)
        if ends is not None:
            assert batch["input_ids"][:, 0].tolist() == ends
        ends = [row[keep][-1].item() for row, keep in zip(batch["labels"], counted, strict=True)]  # type: ignore[misc]
        seen += batch["labels"][counted].tolist()
    assert sorted(seen) == list(range(1, 49)), "all but the first, and the one token that is left over"
    whole = Windows(stream(50), 5, "x", rows=1)
    one = [t for i in range(len(whole)) for t in whole.batch(torch.tensor([i]), torch.zeros(1))["labels"][0].tolist()]
    assert [t for t in one if t != -100] == list(range(1, 50))
    with pytest.raises(ConfigError, match="too few for 60 contiguous rows"):
        Windows(stream(50), 5, "x", rows=60)


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_position_is_reached_at_once_and_ranks_have_rows_of_their_own(tmp_path: Path, ranks: int) -> None:
    path = make_text(tmp_path / "text.txt", 9, 400)
    data = Text("t", split="share", tokenizer="characters", vocab_size=9, block_size=7, path=str(path),
                windows="contiguous", batch_size=4, val_batch_size=2, limit_val=5)  # fmt: skip
    data.setup()
    n = len(data.source("train"))
    for rank in range(ranks):
        whole = list(data.batches(data.train_loader(0, 2 * n, rank=rank, world_size=ranks)))
        late = list(data.batches(data.train_loader(n + 8, 2 * n, rank=rank, world_size=ranks)))
        assert len(whole) == 2 * n // 4
        for a, b in zip(whole[-len(late) :], late, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
        own = (0, 1, 2, 3) if ranks == 1 else ((0, 1), (2, 3))[rank]
        assert {tuple(batch["row"].tolist()) for batch in whole} == {own}
        assert [bool(b["begins"].all()) for b in whole] == [i % (n // 4) == 0 for i in range(len(whole))]
        val = list(data.batches(data.eval_loader("val", rank=rank, world_size=ranks)))
        assert len(val) == 2, "limit_val, in whole batches"
        assert all(b["row"].tolist() == ([0, 1] if ranks == 1 else [rank]) for b in val)
    with pytest.raises(ConfigError, match=r"data.val_batch_size=2 contiguous rows for trainer.devices=3"):
        data.eval_loader("val", rank=0, world_size=3)


# ---- the state


def lstm(**options: Any) -> AutoregressiveModel:
    torch.manual_seed(0)
    model = AutoregressiveModel(AWDLSTM(V, 8, 12, 2), None, carried_state=True, **options)
    model.plan = Plan(None, None, 3)  # type: ignore[arg-type]
    return model


def batches_of(source: Windows) -> list[dict[str, Tensor]]:
    n, r = len(source), source.rows or 1
    return [source.batch(torch.arange(i, i + r), torch.zeros(r, dtype=torch.int64)) for i in range(0, n, r)]


def test_windows_one_after_another_are_the_whole_text() -> None:
    """The loss over carried windows is that of each row read at once; gradients stop at the window's beginning."""
    torch.manual_seed(1)
    tokens = torch.randint(V, (61,), dtype=torch.int16)
    source = Windows(tokens, 5, "x", rows=3)
    at_once = Windows(tokens, 20, "x", rows=3)
    for training in (True, False):
        model = lstm().train(training)
        got = [model.log_likelihood(batch) for batch in batches_of(source)]
        plain = AutoregressiveModel(model.network, None)
        expected, counts = plain.log_likelihood(batches_of(at_once)[0])
        torch.testing.assert_close(sum(sums for sums, _ in got), expected)
        assert sum(int(count.sum()) for _, count in got) == int(counts.sum()) == 60
    model = lstm().train()
    model.losses(batches_of(source)[0])
    assert model.carried is not None
    assert model.carried.kept is not None
    assert not any(part.requires_grad for layer in model.carried.kept.layers for part in layer)
    model.losses(batches_of(source)[1])["loss"].backward()  # one graph a window: no error of a freed graph
    again = model.losses(batches_of(source)[0])["loss"]  # a row begins: as from nothing
    torch.testing.assert_close(again, lstm().losses(batches_of(source)[0])["loss"])


def test_micro_batches_and_lost_states() -> None:
    torch.manual_seed(1)
    source = Windows(torch.randint(V, (61,), dtype=torch.int16), 5, "x", rows=3)
    whole, parts = lstm().train(), lstm().train()
    for batch in batches_of(source)[:2]:
        whole.losses(batch)
        for i in range(3):
            parts.losses({key: value[i : i + 1] for key, value in batch.items()})
    assert whole.carried is not None
    assert parts.carried is not None
    assert whole.carried.kept is not None
    assert parts.carried.kept is not None
    for a, b in zip(whole.carried.kept.layers, parts.carried.kept.layers, strict=True):
        torch.testing.assert_close(a, b)
    saved: dict[str, Any] = {}
    whole.on_save_checkpoint(saved)
    fresh = lstm().train()
    fresh.on_load_checkpoint(saved)
    torch.testing.assert_close(
        fresh.losses(batches_of(source)[2])["loss"], whole.losses(batches_of(source)[2])["loss"], rtol=0, atol=0
    )
    whole.carried.kept.layers[0][0][0, 1] = math.nan  # a row that has overflowed begins anew, the others go on
    whole.losses(batches_of(source)[3])
    final = whole.carried.kept.layers[1][0]
    assert final.isfinite().all()
    assert not final[0, 1].any()
    assert final[0, 0].any()


def test_activation_regularisation_is_a_loss_in_training() -> None:
    """Section 4.6: alpha mean(h^2) of what dropout has left, beta mean((h_t - h_t+1)^2) before it."""
    torch.manual_seed(1)
    batch = batches_of(Windows(torch.randint(V, (61,), dtype=torch.int16), 5, "x", rows=3))[0]
    model = lstm(activation_reg=2.0, temporal_reg=1.0).train()
    found, output = model.losses(batch), model.network(batch["input_ids"])
    h = output.raw
    torch.testing.assert_close(output.dropped, h)
    torch.testing.assert_close(found["activation_reg"], 2 * (h**2).mean())
    torch.testing.assert_close(found["temporal_reg"], ((h[:, 1:] - h[:, :-1]) ** 2).mean())
    torch.testing.assert_close(found["loss"], found["nll"] + found["activation_reg"] + found["temporal_reg"])
    assert model.eval().losses(batch).keys() == {"loss"}


def test_what_does_not_fit_is_said() -> None:
    for option in ({"carried_state": True}, {"activation_reg": 1.0}, {"temporal_reg": 1.0}):
        with pytest.raises(ConfigError, match="GPT2LMHeadModel is not recurrent"):
            AutoregressiveModel(network("gpt2"), 32, **option)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"set data\.windows=contiguous"):
        lstm().losses({"input_ids": torch.zeros(1, 2, dtype=torch.int64), "labels": torch.zeros(1, 2).long()})
    with pytest.raises(Problem, match=r"data\.windows=random"):
        compose_train(["model=lstm", "model.carried_state=true"])


# ---- runs


LONGER = ("schedule.max_samples=100", "schedule.save_every=12", "schedule.eval_every=40", "schedule.log_every=8",
          "callbacks.samples.count=0", "callbacks.final.count=0", "debug=null", "data.batch_size=4",
          "data.val_batch_size=2", "model.network.hidden_drop=0.3")  # fmt: skip


def test_a_run_with_a_carried_state_goes_on_exactly(tmp_path: Path) -> None:
    """Killed within an epoch (60 samples) and at its end, and continued: bit for bit, the state too."""
    whole = new_run(small_run("experiment=lstm_shakespeare", tmp_path, *LONGER))
    assert work(whole) == 0, log(whole)
    broken = new_run(small_run("experiment=lstm_shakespeare", tmp_path, *LONGER, "resume=never"))
    for seen in (24, 64):
        process = start(broken)
        while process.exitcode is None and max((r["samples"] for r in rows(broken)), default=0) < seen:
            time.sleep(0.005)
        assert process.exitcode is None, log(broken)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert work(broken) == 0, log(broken)
    assert_same_state(whole, broken)
    state = load_checkpoint(whole.last)["carried_state"]
    assert [tuple(h.shape[:2]) for h, _ in state] == [(1, 4)] * 2, "all rows of the batch"
    assert all(bool(h.any()) for h, _ in state)
    assert "carried" not in " ".join(load_checkpoint(whole.last)["state_dict"])
    assert load_run(whole.path, device="cpu").sample(1).data[0]


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    runs = []
    for ranks in (1, 2):
        config = small_run(
            "experiment=lstm_shakespeare", tmp_path / str(ranks), "data.limit_val=null", f"trainer.devices={ranks}",
            "schedule.decay=constant",
        )  # fmt: skip
        # AdamW would move a weight whose gradient is nothing but rounding by the whole rate.
        config.optimizer = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 1.0}
        run = new_run(config)
        assert work(run, ranks=ranks) == 0, log(run)
        runs.append(run)
    one, two = (load_checkpoint(run.last) for run in runs)
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(one["carried_state"], two["carried_state"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    losses = [[row["val/loss"] for row in rows(run) if "val/loss" in row] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- words


def treebank(folder: Path) -> Path:
    """Three files of Penn Treebank's form: a space at both ends of a line, <unk> and N among the words."""
    folder.mkdir()
    (folder / "ptb.train.txt").write_text(" the cat sat on the mat \n a dog of N years ate <unk> \n" * 40)
    (folder / "ptb.valid.txt").write_text(" the dog sat on <unk> \n" * 9)
    (folder / "ptb.test.txt").write_text(" a cat of N years ate the zebra \n" * 7)
    return folder


def words(folder: Path, **options: Any) -> Text:
    return Text("ptb", split="files", tokenizer="words", windows="contiguous", path=str(folder), **options)


def test_penn_treebank_by_words(tmp_path: Path) -> None:
    options: dict[str, Any] = {"vocab_size": 13, "block_size": 4, "batch_size": 3, "val_batch_size": 1}
    data = words(treebank(tmp_path / "ptb"), **options)
    data.setup()
    assert data.manifest.splits["train"]["tokens"] == 40 * 15
    assert data.manifest.splits["test"]["unknown"] == 7, "zebra"
    assert next(iter(data.texts("val")))[1].startswith("the dog sat on <unk> <eos> the")
    assert data.tokenizer.decode(data.tokenizer.encode("the cat\nsat").ids) == "the cat <eos> sat"
    assert data.tokenizer.token_to_id("the") == 0 or data.tokenizer.token_to_id("<eos>") == 0
    assert data.units_per_token("val") is None
    torch.manual_seed(0)
    model = AutoregressiveModel(AWDLSTM(13, 8, 12, 2), None, carried_state=True).eval()
    record = evaluate(
        model, data, Protocol(metrics={"text_likelihood": TextLikelihood()}, reference_split="test"), weights="raw"
    )
    ids = torch.tensor(data.tokenizer.encode(" a cat of N years ate the zebra \n" * 7).ids)
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(model.network(ids[None, :-1]).logits[0], ids[1:])
    assert record["values"]["perplexity_test"] == pytest.approx(math.exp(nll), rel=1e-5), "of the whole text, per word"
    assert record["reference"]["tokens"] == 7 * 9 - 1
    assert (record["reference"]["rows"], record["reference"]["carried"]) == (1, True)
    assert "bits_per_byte_test" not in record["values"]


def test_mistakes_with_words_are_one_line(tmp_path: Path) -> None:
    folder = treebank(tmp_path / "ptb")
    with pytest.raises(ConfigError, match=r"13 distinct words.* set data\.vocab_size=13"):
        words(folder, vocab_size=10000, block_size=4).setup()
    with pytest.raises(DataError, match=r"ptb\.train\.txt: md5 .* is not Penn Treebank's"):
        words(folder, vocab_size=13, block_size=4, verify=True).setup()
    (folder / "ptb.valid.txt").unlink()
    with pytest.raises(ConfigError, match=r"has no ptb\.valid\.txt or .*simple-examples\.tgz"):
        words(folder, vocab_size=13, block_size=4).setup()
    (folder / "valid.txt").write_bytes(b"a \xff b")
    with pytest.raises(DataError, match="not UTF-8 at offset 2, line 1"):
        words(folder, vocab_size=13, block_size=4).setup()


def test_random_windows_are_what_they_were() -> None:
    assert Windows(stream(50), 5, "x", seed=0).rows is None
