"""Masked models: what is masked, the bound, pseudo-likelihood, and unmasking; against closed forms and enumeration."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from runs import compose_train, small_run
from test_decoding import language_model
from torch import Tensor, nn

from genlab import noise
from genlab.cli.build import build_data, build_model
from genlab.data.characters import Alphabet
from genlab.decoding.reading import padded
from genlab.decoding.tokens import TokenSampler
from genlab.decoding.unmasking import Unmasking
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate
from genlab.evaluation.metrics import TextBound, TextLikelihood, TextPseudoLikelihood
from genlab.models.masked import MaskedModel, windows
from genlab.objectives.masking import Bert, MaskedDiffusion, choose

V, T = 13, 16


def bert(vocabulary: int = V, length: int = T, **sizes: Any) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=vocabulary + 1, **small, num_attention_heads=2, max_position_embeddings=length + 1,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, type_vocab_size=1,
                        pad_token_id=None, initializer_range=0.5, **sizes)  # fmt: skip
    return BertForMaskedLM(config)


def masked_model(objective: Any = None, **options: Any) -> MaskedModel:
    model = MaskedModel(bert(), V, T, objective or MaskedDiffusion(), chunk_size=4, **options)
    model.tokenizer = Alphabet(["\n", *"abcdefghijkl"]).tokenizer()
    return model.eval()


class Joint(nn.Module):
    """The exact conditionals of a distribution p, float [V] * n, of n tokens after a first one that says nothing."""

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.p, self.calls = p / p.sum(), 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        vocabulary, n = self.p.shape[0], self.p.ndim
        self.calls += 1
        rows, which = input_ids.unique(dim=0, return_inverse=True)
        logits = torch.full((*rows.shape, vocabulary + 1), -math.inf)
        logits[:, :, -1] = 99.0  # [MASK] is the likeliest of all: it must not come
        logits[:, 0, 0] = 0
        for b, row in enumerate(rows[:, 1:].tolist()):
            part = self.p[tuple(slice(None) if token == vocabulary else slice(token, token + 1) for token in row)]
            for i in range(n):
                found = part.sum([j for j in range(n) if j != i]).log() if n > 1 else part.log()
                logits[b, i + 1, :vocabulary] = found if row[i] == vocabulary else math.nan  # never looked at
        return SimpleNamespace(logits=logits[which])


def joint_model(p: Tensor) -> MaskedModel:
    return MaskedModel(Joint(p), p.shape[0], p.ndim, MaskedDiffusion()).eval()


def batch_of(rows: int = 6, vocabulary: int = V, length: int = T) -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(vocabulary, (rows, length + 1))
    order = torch.arange(rows)
    return {"input_ids": ids[:, :-1].clone(), "labels": ids[:, 1:].clone(), "id": order, "position": order}


def documents() -> dict[str, Tensor]:
    """Rows of unequal length; the second has a condition after its boundary."""
    batch = batch_of(4)
    for row, length in enumerate((16, 9, 4, 12)):
        batch["labels"][row, length:] = -100
        batch["input_ids"][row, length:] = 0
    batch["labels"][1, 0] = -100
    batch["attention_mask"] = (torch.arange(T) < torch.tensor([[16], [9], [4], [12]])).long()
    return batch


# ---- what is masked


def test_every_subset_of_counted_places_is_chosen_alike() -> None:
    n = 60_000
    counted = torch.tensor([True, False, True, True, True]).expand(n, -1)
    found = choose(counted, torch.full((n,), 2), torch.arange(n))
    assert (found.sum(1) == 2).all()
    assert not found[:, 1].any()
    _, counts = found.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert float(((counts - n / 6) ** 2 / (n / 6)).sum()) < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


def test_bert_chooses_15_percent_and_treats_them_80_10_10() -> None:
    rows, length = 2000, 40
    tokens = torch.full((rows, length), 3)
    counted = torch.ones(rows, length, dtype=torch.bool)
    seen = Bert()(tokens, counted, torch.arange(rows), torch.zeros(rows), V)
    assert (seen.chosen.sum(1) == 6).all()
    torch.testing.assert_close(seen.weight, torch.full((rows,), 40 / 6))
    assert torch.equal(seen.tokens[~seen.chosen], tokens[~seen.chosen])
    inside = seen.tokens[seen.chosen]
    shares = torch.bincount(inside, minlength=V + 1) / len(inside)
    expected = torch.full((V + 1,), 0.1 / V)
    expected[V], expected[3] = 0.8, 0.1 + 0.1 / V
    error = (expected * (1 - expected) / len(inside)).sqrt()
    assert ((shares - expected).abs() < 4 * error).all()
    kept = Bert(share=0.5, masked=0.0, random=0.0)(tokens, counted, torch.arange(rows), torch.zeros(rows), V)
    assert (kept.chosen.sum(1) == 20).all()
    assert torch.equal(kept.tokens, tokens)
    with pytest.raises(ConfigError, match="more than 1 together"):
        Bert(masked=0.8, random=0.3)


def test_diffusion_masks_one_to_all_tokens_alike() -> None:
    counted = torch.ones(8, 8, dtype=torch.bool)
    counted[:, 0] = False
    u = (torch.arange(7) / 7).repeat_interleave(1)
    seen = MaskedDiffusion()(torch.zeros(7, 8, dtype=torch.int64), counted[:7], torch.arange(7), u + 1e-6, 5)
    assert seen.chosen.sum(1).tolist() == [1, 2, 3, 4, 5, 6, 7]
    torch.testing.assert_close(seen.weight * seen.chosen.sum(1), torch.full((7,), 7.0))
    assert torch.equal(seen.tokens == 5, seen.chosen)
    none = MaskedDiffusion()(seen.tokens, torch.zeros_like(counted[:7]), torch.arange(7), u, 5)
    assert not none.chosen.any()
    assert none.weight.tolist() == [0] * 7


def test_padding_conditions_and_the_first_token_are_never_masked_counted_or_attended_beyond_the_end() -> None:
    batch = documents()
    tokens, counted, attended = windows(batch)
    assert counted.sum(1).tolist() == [16, 8, 4, 12]
    assert not counted[:, 0].any()
    assert attended.sum(1).tolist() == [17, 10, 5, 13]
    assert tokens[1, :3].tolist() == [*batch["input_ids"][1, :2].tolist(), int(batch["labels"][1, 1])]
    model = masked_model()
    for objective in (MaskedDiffusion(), Bert(share=1.0, masked=1.0, random=0.0)):
        seen = objective(tokens, counted, batch["id"], torch.full((4,), 0.999), V)
        assert torch.equal(seen.tokens == V, counted)
    bound, count = model.likelihood_bound(batch)
    assert count.tolist() == [16, 8, 4, 12]
    changed = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)}
    torch.testing.assert_close(model.likelihood_bound(changed)[0], bound)
    conditioned = {**batch, "input_ids": batch["input_ids"].clone()}
    conditioned["input_ids"][1, 1] = (batch["input_ids"][1, 1] + 1) % V
    moved = model.likelihood_bound(conditioned)[0] - bound
    assert moved[1] != 0
    assert moved[[0, 2, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("objective", [MaskedDiffusion(), Bert()], ids=["diffusion", "bert"])
def test_the_loss_is_the_mean_of_those_of_micro_batches_however_padded(objective: Any) -> None:
    model, batch = masked_model(objective).train(), documents()
    model.plan = SimpleNamespace(batch_size=4, seed=5)  # type: ignore[assignment]

    def gradient(*parts: slice) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        losses = [model.losses({key: value[part] for key, value in batch.items()})["loss"] for part in parts]
        loss = torch.stack(losses).mean()
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, split = gradient(slice(0, 4)), gradient(slice(0, 2), slice(2, 4))
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-5)
    assert max(float(g.abs().max()) for g in whole[1]) > 1e-3
    # In validation: over the tokens that the recorder weights it by.
    model.eval()
    values, tokens = [], []
    for part in (slice(0, 1), slice(1, 4), slice(0, 4)):
        rows = {key: value[part] for key, value in batch.items()}
        values.append(float(model.losses(rows)["loss"].detach()))
        tokens.append(int((rows["labels"] != -100).sum()))
    assert (values[0] * tokens[0] + values[1] * tokens[1]) / tokens[2] == pytest.approx(values[2], rel=1e-5)


# ---- the network


def test_mask_has_no_logit_and_the_network_is_transformers_own() -> None:
    model, batch = masked_model(), documents()
    assert model.network.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    tokens, _, attended = windows(batch)
    tokens[0, 3] = V
    with torch.no_grad():
        ours = model.token_logits(tokens, attended)
        model.network.set_attn_implementation("eager")  # type: ignore[operator]
        theirs = model.network(tokens, attention_mask=attended.long()).logits
    assert ours.shape == (4, T + 1, V)
    assert theirs.shape == (4, T + 1, V + 1)
    torch.testing.assert_close(ours[attended], theirs[attended][:, :V], atol=1e-5, rtol=1e-5)
    assert masked_model(gradient_checkpointing=True).network.is_gradient_checkpointing  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "parameters"), [("masked_diffusion", 816_706), ("mlm", 816_706)])
def test_shipped_sizes_are_those_of_gpt(name: str, parameters: int) -> None:
    model = build_model(compose_train([f"model={name}"]))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert isinstance(model, MaskedModel)
    assert isinstance(model.objective, Bert if name == "mlm" else MaskedDiffusion)
    assert (model.mask_id, model.context) == (65, 65)


# ---- bounds


@pytest.mark.parametrize("terms", [1, 3, None])
def test_the_bound_of_the_uniform_distribution_is_t_log_v(terms: int | None) -> None:
    model = joint_model(torch.ones(3, 3, 3, 3))
    batch = batch_of(5, 3, 4)
    batch["labels"][0, 2:] = -100
    bound, count = model.likelihood_bound(batch, terms)
    torch.testing.assert_close(-bound, count.double() * math.log(3), rtol=1e-6, atol=0)
    torch.testing.assert_close(model.losses(batch)["loss"].double(), torch.tensor(math.log(3)).double())


def test_the_bound_of_independent_tokens_is_their_nll() -> None:
    """As is the pseudo-likelihood; each estimate of the bound is not, but the mean over subsets is."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.1, 0.8]).double()
    model = joint_model(p[:, None, None] * q[None, :, None] * p[None, None, :])
    ids = torch.tensor([[0, 0, 1, 2]]).expand(4000, -1)
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "id": torch.arange(4000)}
    exact = -(p[0] * q[1] * p[2]).log()
    estimates = -model.likelihood_bound(batch)[0]
    assert estimates.std() > 0.1
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(4000)
    torch.testing.assert_close(-model.pseudo_log_likelihood({k: v[:1] for k, v in batch.items()})[0][0], exact)


def test_the_bound_is_mdlms_integral_over_time_and_a_bound() -> None:
    """Equation 10 with alpha_t = 1 - t by quadrature, all masks enumerated, for a network that is no distribution's."""
    torch.manual_seed(2)
    model, x = masked_model(), torch.randint(V, (4,))
    n = len(x) - 1
    nats: dict[tuple[bool, ...], float] = {}
    for mask in itertools.product([False, True], repeat=n):
        chosen = torch.tensor([[False, *mask]])
        with torch.no_grad():
            logits = model.token_logits(x[None].masked_fill(chosen, V), torch.ones(1, n + 1, dtype=torch.bool))
        nats[mask] = -float((logits[0].double().log_softmax(1)[torch.arange(n + 1), x] * chosen[0]).sum())
    integral, steps = 0.0, 2000
    for t in (torch.arange(steps) + 0.5) / steps:
        weights = {mask: float(t ** sum(mask) * (1 - t) ** (n - sum(mask))) for mask in nats}
        integral += sum(weights[mask] / float(t) * nats[mask] for mask in nats) / steps
    count = 4000
    rows = x.expand(count, -1)
    batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:], "id": torch.arange(count)}
    with torch.no_grad():
        estimates = -model.likelihood_bound(batch)[0]
    assert abs(float(estimates.mean()) - integral) < 4 * float(estimates.std()) / math.sqrt(count)
    # What ancestral unmasking generates has the mean over orders of the product of conditionals.
    exact = 0.0
    for order in itertools.permutations(range(n)):
        log_p, mask = 0.0, [True] * n
        for i in order:
            before = nats[tuple(mask)]
            alone = torch.tensor([[False, *mask]])
            with torch.no_grad():
                logits = model.token_logits(x[None].masked_fill(alone, V), torch.ones(1, n + 1, dtype=torch.bool))
            log_p += float(logits[0, i + 1].double().log_softmax(0)[x[i + 1]])
            assert before > 0
            mask[i] = False
        exact += math.exp(log_p) / math.factorial(n)
    assert integral > -math.log(exact)


def test_protocols_name_what_they_measure(tmp_path: Any) -> None:
    config = small_run("model=masked_diffusion", tmp_path)
    model, data = build_model(config), build_data(config)
    data.setup()
    found: dict[str, Any] = {}
    for batch in (3, 7):
        for metric, n in ((TextBound(terms=2, batch=batch), None), (TextPseudoLikelihood(batch=batch), 4)):
            protocol = Protocol(metrics={metric.key: metric}, reference_split="val", n=n)
            record = evaluate(model, data, protocol, progress=False)
            assert not record["missing"]
            for name, value in record["values"].items():
                assert value == pytest.approx(found.setdefault(name, value), rel=1e-5), name
    assert set(found) == {"nats_per_token_bound_val", "perplexity_bound_val", "bits_per_byte_bound_val",
                          "bits_per_character_bound_val", "word_perplexity_bound_val",
                          "pseudo_nats_per_token_4_val.proxy", "pseudo_perplexity_4_val.proxy"}  # fmt: skip
    # Untrained: about the uniform distribution; bytes are those of the tokens that an autoregressive model counts.
    assert found["nats_per_token_bound_val"] == pytest.approx(math.log(65), rel=0.05)
    bits = found["nats_per_token_bound_val"] / math.log(2) / data.units_per_token("val")["byte"]
    assert found["bits_per_byte_bound_val"] == pytest.approx(bits)
    protocol = Protocol(metrics={"text_likelihood": TextLikelihood()}, reference_split="val")
    with pytest.raises(ConfigError, match="MaskedModel cannot give a text likelihood"):
        evaluate(model, data, protocol, progress=False)
    protocol = Protocol(metrics={"text_bound": TextBound()}, reference_split="val")
    with pytest.raises(ConfigError, match="cannot give a text bound"):
        evaluate(language_model("gpt2"), data, protocol, progress=False)


# ---- unmasking


def test_ancestral_unmasking_draws_from_the_distribution() -> None:
    """In as many steps that hardly ever two tokens go at once; in one step they are independent."""
    p = torch.tensor([[0.40, 0.05], [0.05, 0.50]]).double()
    model, n = joint_model(p), 4000
    prompt, seeds = torch.zeros(n, 1, dtype=torch.int64), torch.arange(n)

    def chi_square(steps: int) -> float:
        decoded = Unmasking(max_new_tokens=2, steps=steps).decode(model, prompt, seeds)
        counts = torch.bincount(decoded.tokens[:, 1] * 2 + decoded.tokens[:, 2], minlength=4).double()
        return float(((counts - n * p.flatten()) ** 2 / (n * p.flatten())).sum())

    assert chi_square(200) < 16.3  # 3 degrees of freedom: p = 0.001
    assert chi_square(1) > 1000
    assert model.network.calls <= 201  # type: ignore[operator]


def test_tempering_and_truncation_are_the_samplers() -> None:
    model, n = joint_model(torch.tensor([0.5, 0.3, 0.2]).double()), 20_000
    prompt, seeds = torch.zeros(n, 1, dtype=torch.int64), torch.arange(n)

    def shares(**options: Any) -> list[float]:
        decoded = Unmasking(max_new_tokens=1, steps=1, **options).decode(model, prompt, seeds)
        return (torch.bincount(decoded.tokens[:, 1], minlength=3) / n).tolist()

    assert shares(top_k=2) == pytest.approx([5 / 8, 3 / 8, 0], abs=0.015)
    assert shares(temperature=0.5) == pytest.approx([25 / 38, 9 / 38, 4 / 38], abs=0.015)
    assert shares(temperature=0) == [1, 0, 0]


@pytest.mark.parametrize("order", ["ancestral", "confidence"])
@pytest.mark.parametrize("new", [7, 40])
def test_prompts_stay_and_an_item_does_not_change_with_the_batch(order: Any, new: int) -> None:
    model = masked_model()
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7], [5, 5], [2, 3, 4, 1, 1, 0], [7] * 34]
    sampler = Unmasking(max_new_tokens=new, steps=9, order=order)
    with torch.no_grad():
        whole = sampler.decode(model, padded(prompts), torch.arange(5))
    assert whole.count.tolist() == [new] * 5
    assert ((whole.log_p < 0) & whole.log_p.isfinite()).all()
    for i, row in enumerate(prompts):
        assert whole.tokens[i, : len(row)].tolist() == row
        rest = whole.tokens[i, len(row) :]
        assert (rest[:new] >= 0).all()
        assert (rest[:new] < V).all()
        assert (rest[new:] == -1).all()
    together = model.sample(torch.arange(5), {"prompt": padded(prompts)}, sampler).data
    for i, row in enumerate(prompts):
        assert model.sample(torch.tensor([i]), {"prompt": padded([row])}, sampler).data == together[i : i + 1]
    assert len(set(model.sample(torch.arange(8), None, sampler).data)) == 8


def test_confidence_keeps_the_likeliest_by_the_cosine_schedule() -> None:
    """p(x_i = 0) falls with i; greedy, so tokens come from left to right."""
    n, seen = 8, []
    p = torch.ones(1)
    for i in range(n):
        p = p[..., None] * torch.tensor([0.95 - 0.04 * i, 0.05 + 0.04 * i])
    model = joint_model(p.squeeze(0))
    read = model.token_logits
    model.token_logits = lambda t, a: seen.append((t == 2).int().sum(1).tolist()) or read(t, a)  # type: ignore
    sampler = Unmasking(max_new_tokens=n, steps=4, order="confidence", temperature=0)
    decoded = sampler.decode(model, torch.zeros(2, 1, dtype=torch.int64), torch.arange(2))
    left = [math.floor(math.cos(math.pi / 2 * k / 4) * n) for k in range(4)]
    assert seen == [[k, k] for k in left] == [[8, 8], [7, 7], [5, 5], [3, 3]]
    assert (decoded.tokens == 0).all()
    few = Unmasking(max_new_tokens=2, steps=100, order="confidence")
    assert few.decode(model, torch.zeros(1, 1, dtype=torch.int64), torch.arange(1)).count.tolist() == [2]
    assert len(seen) == 6  # a token a step at least, then it ends


def test_a_stop_string_ends_a_text() -> None:
    model = masked_model()
    free, cut = (Unmasking(max_new_tokens=30, steps=30, stop=stop) for stop in ([], ["a", "bc"]))
    whole = model.sample(torch.arange(12), None, free).data
    texts = model.sample(torch.arange(12), None, cut).data
    assert any(len(text) < 31 for text in texts)
    for long, short in zip(whole, texts, strict=True):
        ends = [long.find(word, 1) + len(word) for word in ("a", "bc") if long.find(word, 1) >= 0]
        assert short == (long[: min(ends)] if ends else long)


def test_models_and_samplers_that_do_not_fit_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="AutoregressiveModel knows no masked tokens; take nucleus"):
        language_model("gpt2").sample(torch.arange(1), None, Unmasking())
    with pytest.raises(ConfigError, match="MaskedModel has no next token; take sampler=unmasking"):
        masked_model().sample(torch.arange(1), None, TokenSampler())
    with pytest.raises(ConfigError, match=r"sampler.order=best"):
        Unmasking(order="best")  # type: ignore[arg-type]


def test_training_noise_is_keyed_and_stratified_over_a_step() -> None:
    """Twelve positions of a step mask twelve different shares, whichever rank reads them; another seed, others."""
    numbers = []

    class Spy(MaskedDiffusion):
        def __call__(self, *args: Any) -> Any:
            seen = super().__call__(*args)
            numbers.append(seen.chosen.sum(1).tolist())
            return seen

    model, batch = masked_model(Spy()).train(), batch_of(12)
    for seed in (1, 1, 2):
        model.plan = SimpleNamespace(batch_size=12, seed=seed)  # type: ignore[assignment]
        torch.manual_seed(seed + 7)
        model.losses(batch)
    model.losses({key: value[5:] for key, value in batch.items()})
    assert numbers[0] == numbers[1] != numbers[2]
    assert numbers[3] == numbers[2][5:]
    for found in numbers[:3]:
        for i, number in enumerate(found):
            assert math.floor(i / 12 * T) + 1 <= number <= math.floor((i + 1) / 12 * T) + 1
    assert torch.equal(noise.even(torch.arange(3))[:1], torch.zeros(1))


def test_configuration_follows_the_data() -> None:
    config = compose_train(["model=mlm", "data=poetry", "model.start='。'"])
    network = OmegaConf.to_container(config.model.network.config, resolve=True)
    assert network["vocab_size"]["n"] == config.data.vocab_size  # type: ignore[index, call-overload]
    assert network["max_position_embeddings"]["n"] == 69  # type: ignore[index, call-overload]
