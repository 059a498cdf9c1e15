"""VAEs of texts: bounds against sums over all texts, phases of training, generation, what their latents hold."""

from __future__ import annotations

import json
import math
import re
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import log, new_run, small_run, work
from tokenizers import Tokenizer, models
from torch import Tensor, nn

from genlab.cli.load import load_run
from genlab.data.vocabulary import END
from genlab.decoding.beam import BeamSearch
from genlab.decoding.best_of import BestOf
from genlab.decoding.reading import ENDED
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate
from genlab.evaluation.metrics import ImportanceWeightedNLL, Items, LatentUsage, TextCopying, VariationalNLL
from genlab.models.autoregressive import AutoregressiveModel
from genlab.models.schedule import Schedule
from genlab.models.text_vae import TextVAE
from genlab.models.trained import Plan
from genlab.networks.awd_lstm import AWDLSTM
from genlab.networks.text_vae import LatentDecoder, TextEncoder
from genlab.objectives import elbo

WORDS = [END, "a", "b", "c", "d"]


def gpt(positions: int) -> nn.Module:
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_positions=positions, n_embd=8, n_layer=2, n_head=2, bos_token_id=None,
                   eos_token_id=None, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )  # fmt: skip


def decoder(kind: str, latent_dim: int) -> LatentDecoder:
    if kind == "lstm":
        return LatentDecoder(AWDLSTM(len(WORDS), 8, 12, layers=2), latent_dim)
    return LatentDecoder(gpt(7), latent_dim, latent=kind)  # type: ignore[arg-type]


KINDS = ["lstm", "added", "prefix"]


def vae(kind: str = "lstm", latent_dim: int = 2, **options: Any) -> TextVAE:
    torch.manual_seed(0)
    model = TextVAE(TextEncoder(len(WORDS), latent_dim, 6, 8), decoder(kind, latent_dim), latent_dim, 6, **options)
    model.tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=END))
    model.tokenizer.add_special_tokens([END])
    for parameter in model.decoder.parameters():  # what stands before matters,
        parameter.data.mul_(2)
    model.decoder.to_embedding.weight.data.mul_(4)  # and so does z
    return model.eval()


def texts(*rows: str, length: int = 6) -> dict[str, Tensor]:
    """Rows such as "abca" as windows of single documents."""
    ids = [[0, *(WORDS.index(c) for c in row), 0] for row in rows]
    inputs = [[*row[:-1], *[0] * (length + 1 - len(row))] for row in ids]
    labels = [[*row[1:], *[-100] * (length + 1 - len(row))] for row in ids]
    keys = torch.arange(len(rows))
    return {"input_ids": torch.tensor(inputs), "labels": torch.tensor(labels), "id": keys, "position": keys}


def quadrature(points: int = 200, reach: float = 6.0) -> tuple[Tensor, Tensor]:
    """z [n, 1] and the prior's mass of each."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)
    density = torch.exp(-0.5 * z.square())
    return z[:, None].float(), density / density.sum()


# ---- bounds


@pytest.mark.parametrize("kind", KINDS)
def test_bound_and_importance_nll_equal_integrals_over_the_latent(kind: str) -> None:
    """By quadrature: log p(x), whose sum over all texts is 1, and E_q[log p(x | z)] - KL."""
    model, (z, prior) = vae(kind, latent_dim=1), quadrature()
    whole = {"input_ids": [], "labels": []}
    for first, second in product(range(len(WORDS)), repeat=2):  # all texts of two tokens
        whole["input_ids"].append([0, first])
        whole["labels"].append([first, second])
    batch = {key: torch.tensor(rows) for key, rows in whole.items()} | {"id": torch.arange(25)}
    with torch.no_grad():
        nll = model.nll(batch, z.repeat_interleave(25, 0)).view(len(z), 25).T
        exact = -(prior.log() - nll.double()).logsumexp(1)
        assert (-exact).exp().sum().item() == pytest.approx(1, abs=1e-5)
        estimate = model.importance_nll(batch, 2000, rows=10000)
        assert estimate["tokens"].tolist() == [2] * 25
        torch.testing.assert_close(estimate["nll"], exact, atol=0.03, rtol=0)
        mu, logvar = model.posterior(batch)
        q = (-0.5 * (z.T.double() - mu).square() * (-logvar).exp()).softmax(1)
        bound = (q * nll).sum(1) + elbo.gaussian_kl(mu, logvar).sum(1)
        draws = model.nll(batch, model.drawn(mu, logvar, batch["id"], 0, 100).flatten(0, 1)).view(100, 25).double()
        found = model.variational_bound(batch)
        mean = found["neg_elbo"] - found["reconstruction"] + draws.mean(0)
        torch.testing.assert_close(mean, bound.double(), atol=4 * float(draws.std(0).max()) / 10, rtol=0)
        assert (bound > exact - 1e-4).all()
        torch.testing.assert_close(found["reconstruction"], draws[0])


@pytest.mark.parametrize("kind", ["lstm", "added"])
def test_a_collapsed_model_is_its_twin_without_a_latent(kind: str) -> None:
    model, given = vae(kind), texts("abca", "d", "")
    for part in (model.decoder.to_embedding, model.decoder.to_state, model.encoder.head):
        for parameter in part.parameters() if part is not None else ():
            parameter.data.zero_()
    twin = AutoregressiveModel(model.decoder.network, None).eval()
    with torch.no_grad():
        sums, counts = twin.log_likelihood(given)
        found = model.importance_nll(given, 5)
        losses = model.losses(given)
    torch.testing.assert_close(found["nll"], -sums, atol=1e-5, rtol=1e-6)
    assert found["tokens"].tolist() == counts.tolist() == [5, 2, 1]
    assert losses["kl"] == 0
    assert losses["nats_per_token"].item() == pytest.approx(-sums.sum().item() / 8, rel=1e-5)
    assert losses["neg_elbo"].item() == pytest.approx(-sums.mean().item(), rel=1e-5)


def test_values_of_a_text_do_not_depend_on_its_batch() -> None:
    model, given = vae(), texts("abcab", "d", "bb")
    alone = {key: rows[1:2] for key, rows in given.items()}
    for value in (model.variational_bound, partial(model.importance_nll, draws=7, rows=4)):
        with torch.no_grad():
            for key, rows in value(given).items():
                torch.testing.assert_close(rows[1:2], value(alone)[key], rtol=1e-5, atol=1e-5, msg=key)
    torch.testing.assert_close(model.posterior(given)[0][1:2], model.posterior(alone)[0])


# ---- training


def test_weights_of_the_kl() -> None:
    linear, sigmoid = (elbo.KLWeight(shape, warmup=100) for shape in ("linear", "sigmoid"))
    assert [linear(n) for n in (0, 25, 100, 1000)] == [0, 0.25, 1, 1]
    assert [sigmoid(n) for n in (0, 50, 100)] == pytest.approx([1 / (1 + math.exp(6)), 0.5, 1])
    cyclical = elbo.KLWeight("cyclical", warmup=50, period=100)
    assert [cyclical(n) for n in (0, 25, 50, 99, 100, 125, 275)] == [0, 0.5, 1, 1, 0, 0.5, 1]
    assert elbo.KLWeight()(0) == 1
    with pytest.raises(ConfigError, match="period=10: a cycle is at least its warmup, 50"):
        elbo.KLWeight("cyclical", warmup=50, period=10)


def trained(**options: Any) -> TextVAE:
    model = vae(**options).train()
    model.plan = Plan(partial(torch.optim.AdamW, lr=0.1), Schedule(max_samples=100), batch_size=4, accumulation=2)
    return model


def test_the_loss_in_each_phase() -> None:
    model, given = trained(free_bits=3.0, autoencoder_samples=8, kl_weight=elbo.KLWeight(warmup=16)), texts("abca", "d")
    for seen, weight in ((0, 0), (6, 0), (8, 0), (10, 0), (12, 0.25), (14, 0.25), (24, 1)):
        model.samples_seen = seen  # between 10 and 12 lies a micro-batch, whose weight is that of its step
        losses = model.losses(given)
        torch.testing.assert_close(losses["loss"], losses["reconstruction"] + weight * 6.0)
    assert "neg_elbo" not in losses
    validated = model.eval().losses(given)
    torch.testing.assert_close(validated["neg_elbo"], validated["reconstruction"] + validated["kl"])


def test_word_dropout_is_keyed_by_the_item_and_spares_the_first_token() -> None:
    given, model = texts("abcab", "d", *["abcab"] * 40), trained(word_dropout=0.5)
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs.get("kept")), with_kwargs=True)
    model.losses(given)
    model.losses({key: rows[2:] for key, rows in given.items()})
    model.eval().losses(given)
    assert torch.equal(seen[0][2:], seen[1])
    assert not torch.equal(seen[0][0], seen[0][3]), "one text at two positions of the run"
    assert (seen[0][:, 0] == 1).all()
    assert 0.4 < seen[0][:, 1:].mean() < 0.6
    assert seen[2] is None
    with torch.no_grad():  # a token that is not seen may as well be another
        tokens, z = given["input_ids"][:1], torch.zeros(1, 2)
        kept = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0, 1.0]])
        other = tokens.clone()
        other[0, 1] = 3
        assert torch.equal(model.decoder(tokens, z, kept=kept)[0], model.decoder(other, z, kept=kept)[0])
        assert not torch.equal(model.decoder(tokens, z)[0], model.decoder(other, z)[0])


def test_the_encoder_moves_alone_in_the_aggressive_phase() -> None:
    model, given = trained(aggressive_samples=20, aggressive_every=3), texts("abca", "d")
    optimizer, moved = model.configure_optimizers(), []
    model.trainer = None
    for step in range(8):
        model.samples_seen = 4 * step
        before = [p.clone() for p in (model.decoder.to_embedding.weight, model.encoder.head.weight)]
        optimizer.zero_grad()
        model.losses(given)["loss"].backward()
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        after = (model.decoder.to_embedding.weight, model.encoder.head.weight)
        moved.append(tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)))
    assert [decoder for decoder, _ in moved] == [False, False, True, False, False, True, True, True]
    assert all(encoder for _, encoder in moved)


def test_the_decoder_begins_anew_after_the_autoencoder_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(autoencoder_samples=6, reset_decoder=True)
    initial = {key: value.clone() for key, value in model._initial.items()}
    optimizer = model.configure_optimizers()
    monkeypatch.setattr(model, "all_optimizers", lambda: [optimizer])
    changed = []
    for seen in (0, 4, 8, 10, 12):
        model.samples_seen = seen
        for parameter in model.parameters():
            parameter.data.add_(1)
            optimizer.state[parameter] = {"step": torch.tensor(1.0)}
        model.on_train_batch_start(None, 0)
        state = model.decoder.state_dict()
        changed.append(all(torch.equal(state[key], initial[key]) for key in initial))
        assert len(optimizer.state) == len(list((model.encoder if changed[-1] else model).parameters()))
    assert changed == [False, False, True, True, False], "in both micro-batches of the first step at 6 samples or more"
    with pytest.raises(ConfigError, match="reset_decoder=true"):
        vae(reset_decoder=True)


# ---- generation


SAMPLERS = [TokenSampler(9), TokenSampler(5, temperature=0.0), BeamSearch(5, beams=3),
            BestOf(4, n=3)]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_an_item_depends_on_its_seed_alone(kind: str, sampler: Any) -> None:
    model, seeds = vae(kind), torch.arange(40, 52)
    with torch.no_grad():
        whole = model.to_data(model.generate(seeds, None, sampler))
        some = model.to_data(model.generate(seeds[[7, 2]], None, sampler))
    assert some == [whole[7], whole[2]]
    assert len(set(whole)) > 2 or isinstance(sampler, BeamSearch) or sampler.temperature == 0
    z = model.reader(seeds).z
    assert torch.equal(model.reader(seeds[5:]).z, z[5:])
    with torch.no_grad():
        logits = model.decoder(torch.zeros(12, 1, dtype=torch.int64), z)[0].flatten(1)
    assert (logits.std(0) > 0.01).any(), "what comes depends on z"


def test_a_decoder_of_too_few_positions_is_refused() -> None:
    parts = TextEncoder(len(WORDS), 2), LatentDecoder(gpt(6), 2, latent="prefix")
    with pytest.raises(ConfigError, match="n_positions=6: texts of 6 tokens need 7"):
        TextVAE(*parts, 2, 6)
    TextVAE(*parts, 2, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_equals_reading_the_whole_text(kind: str) -> None:
    model, z = vae(kind), torch.randn(4, 2)
    with torch.no_grad():
        tokens = model.decode(z)
        assert tokens.shape[1] <= 7
        for row, one in zip(tokens, z, strict=True):
            text = row[row != ENDED]
            logits = model.decoder(text[None, :-1], one[None])[0][0]
            assert torch.equal(logits.argmax(1), text[1:])
        prompt = model.generate(torch.arange(3), {"prompt": torch.tensor([[0, 2], [0, 3], [0, 1]])}, SAMPLERS[0])
    assert prompt[:, :2].tolist() == [[0, 2], [0, 3], [0, 1]]


def test_a_trained_model_reconstructs() -> None:
    given = texts("abca", "d", "bbbb", "cab")
    model = vae(latent_dim=4).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        optimizer.zero_grad()
        losses = model.losses({**given, "position": given["id"] + 4 * step})
        losses["reconstruction"].backward()
        optimizer.step()
    with torch.no_grad():
        shown, back = map(model.to_data, model.eval().reconstruct(given))
    assert shown == back
    assert shown[1] == "d"


# ---- what the latents hold


def usage(mu: Tensor, logvar: Tensor) -> dict[str, float]:
    """latent_usage of a model with these posteriors."""
    model = SimpleNamespace(posterior=lambda batch: (mu, logvar))
    metric = LatentUsage()
    rows = metric.score(model, {"id": torch.arange(len(mu))})
    assert metric.describe(rows, len(mu), model, None, None)["mutual_information_at_most"] == math.log(len(mu))
    metric.update(Items(data=rows))
    return metric.compute()


def test_latent_usage_of_posteriors_with_a_closed_form() -> None:
    torch.manual_seed(0)
    n = 3000
    collapsed = usage(torch.zeros(n, 4), torch.zeros(n, 4))
    assert collapsed == pytest.approx({"kl": 0, "active_units": 0, "mutual_information": 0}, abs=1e-9)
    # mu ~ N(0, 0.75) with variance 0.25: the aggregate is the prior, so the information is the KL, 0.5 log 4 a
    # dimension
    mu, logvar = torch.randn(n, 3) * 0.75**0.5, torch.full((n, 3), math.log(0.25))
    mu[:, 2], logvar[:, 2] = 0.05 * torch.randn(n), 0.0  # one that hardly varies
    found = usage(mu, logvar)
    assert found["active_units"] == 2
    assert found["kl"] == pytest.approx(2 * 0.5 * math.log(4), abs=0.06)
    assert found["mutual_information"] == pytest.approx(2 * 0.5 * math.log(4), abs=0.06)
    # posteriors that do not overlap say which item it is: log N nats, and no estimate can be more
    apart = usage(100.0 * torch.arange(50)[:, None].expand(-1, 2), torch.full((50, 2), -4.0))
    assert apart["mutual_information"] == pytest.approx(math.log(50), abs=1e-6)


def test_mutual_information_does_not_depend_on_the_parts_it_is_computed_in() -> None:
    torch.manual_seed(0)
    z, mu, logvar = torch.randn(3, 70, 5).unbind(0)
    pairs = elbo.gaussian_log_prob(z[:, None], mu[None], logvar[None]).sum(2)
    wanted = (pairs.diagonal() - pairs.logsumexp(1) + math.log(70)).mean().item()
    assert elbo.mutual_information(z, mu, logvar, rows=16) == pytest.approx(wanted, rel=1e-4)
    assert elbo.mutual_information(z, mu, logvar) == pytest.approx(wanted, rel=1e-4)


def captions(folder: Path) -> list[str]:
    """Overrides that make 48 sentences the data of a run, a document an item."""
    parts = ("red", "blue", "green", "old"), ("dog", "cat", "man"), ("runs", "sleeps", "eats", "looks around")
    lines = [json.dumps({"text": f"a {colour} {who} {verb}"}) for colour, who, verb in product(*parts)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return ["data=jsonl", f"data.path={folder / 'texts.jsonl'}", "data.documents=single", "data.windows=epoch",
            "data.block_size=32", "data.tokenizer=characters", "data.vocab_size=18", "data.limit_val=null",
            "data.prepare.near_duplicates=ignore", "data.prepare.val_fraction=0.25"]  # fmt: skip


def test_a_run_on_sentences_writes_pages_and_values_a_token(tmp_path: Path) -> None:
    small = ["model.encoder.width=16", "model.decoder.network.embedding=16", "model.latent_dim=3",
             "model.start='<|endoftext|>'",
             "evaluation=importance_nll_test", "evaluation.metrics.importance_nll.draws=6"]  # fmt: skip
    run = new_run(small_run("model=text_vae", tmp_path, *captions(tmp_path), *small))
    assert work(run) == 0, log(run)
    count = json.loads((run.path / "data.json").read_text())["splits"]["val"]["count"]
    assert 8 < count < 16
    names = sorted(path.name for path in (run.path / "samples").iterdir())
    pages = ["final.txt", "interpolation.txt", "reconstructions.txt", "traversal.txt"]
    assert [name for name in names if "0" not in name] == pages
    interpolations = (run.path / "samples" / "interpolation.txt").read_text().strip("\n").split("\n\n")
    assert [len(row.split("\n")) for row in interpolations] == [10] * (count // 2), "of the texts there are"
    pairs = (run.path / "samples" / "reconstructions.txt").read_text().strip("\n").split("\n\n")
    assert [len(pair.split("\n")) for pair in pairs] == [2] * count
    assert re.fullmatch(
        r"a (red|blue|green|old) (dog|cat|man) (runs|sleeps|eats|looks around)", pairs[0].split("\n")[0]
    )
    loaded = load_run(run.path, device="cpu")

    def values(metric: Any) -> dict[str, float]:
        return evaluate(loaded.model, loaded.data(), Protocol(metrics={"given": metric}), progress=False)["values"]

    nll = values(ImportanceWeightedNLL(6, 4))
    record = json.loads((run.path / "evaluation" / "importance_nll_64_test.proxy.json").read_text())
    assert [*record["values"].values()] == pytest.approx([*nll.values()], rel=1e-5)
    assert nll["nll_iw6_perplexity_test"] == pytest.approx(math.exp(nll["nll_iw6_per_token_test"]))
    bound = values(VariationalNLL(batch=5))
    assert bound["neg_elbo_test"] == pytest.approx(bound["reconstruction_test"] + bound["kl_test"], rel=1e-5)
    texts = [text for _, text in loaded.data().texts("test")]
    tokens = bound["neg_elbo_test"] / bound["neg_elbo_per_token_test"]
    assert tokens == pytest.approx(sum(len(text) + 1 for text in texts) / len(texts))
    assert values(LatentUsage(4)).keys() == {"kl_test", "active_units_test", "mutual_information_test"}
    with pytest.raises(ConfigError, match="TextVAE cannot reconstruct images"):
        evaluate(loaded.model, loaded.data(), Protocol(metrics={"c": TextCopying()}, n=4, judged="reconstructions"))
