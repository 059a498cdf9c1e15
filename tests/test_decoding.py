"""Decoding: truncations, prompts of unequal length, stop strings, beam search, best of n; against closed forms and
transformers."""

from __future__ import annotations

import itertools
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genlab import noise
from genlab.data.characters import Alphabet
from genlab.decoding.beam import BeamSearch
from genlab.decoding.best_of import BestOf, JudgeScore
from genlab.decoding.reading import Reading, Stops, lengths_of, padded, window_start
from genlab.decoding.tokens import TokenSampler
from genlab.diffusion.samplers import DDIM, DDPM
from genlab.errors import ConfigError
from genlab.judges import Judge
from genlab.models.autoregressive import AutoregressiveModel
from genlab.models.latent import LatentSampler
from genlab.networks.awd_lstm import AWDLSTM
from genlab.samples import Samples

V, CONTEXT = 13, 32


def network(kind: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any]
    none: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if kind == "lstm":
        return AWDLSTM(V, embedding=12, width=16, layers=2)
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 1, "max_position_embeddings": CONTEXT}
        return LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes, initializer_range=0.5, **none))
    sizes = {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=V, **sizes, initializer_range=0.5, **none))


def language_model(kind: str) -> AutoregressiveModel:
    model = AutoregressiveModel(network(kind), None if kind == "lstm" else CONTEXT, start="\n", chunk_size=4)
    model.tokenizer = Alphabet(["\n", *"abcdefghijkl"]).tokenizer()
    return model.eval()


class Table:
    """A reader whose next token depends on the last one alone."""

    context, tokenizer = None, Alphabet([*"abcdefgh"]).tokenizer()

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.logits[tokens[:, -1]], state

    def select(self, state: Any, rows: Tensor) -> Any:
        return state


# ---- one token


def reached(sampler: TokenSampler, logits: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Share of a fine grid of uniforms that goes to each token, [V]."""
    n = 20_000
    grid = (torch.arange(n) + 0.5) / n
    tokens = None if tokens is None else tokens.expand(n, -1)
    return torch.bincount(sampler.choose(logits.expand(n, -1), grid, tokens)[0], minlength=logits.shape[1]) / n


def test_truncations_of_a_known_distribution() -> None:
    p = torch.tensor([[0.5, 0.25, 0.125, 0.0625, 0.0625]])
    close = lambda s, expected: torch.testing.assert_close(  # noqa: E731
        reached(s, p.log()), torch.tensor(expected), atol=1e-3, rtol=0
    )
    close(TokenSampler(min_p=0.24), [4 / 7, 2 / 7, 1 / 7, 0.0, 0.0])
    # Entropy 1.875 bits; information 1, 2, 3, 4, 4 bits: nearest are 2, then 1, then 3 (mass 0.25, 0.75, 0.875).
    close(TokenSampler(typical=0.2), [0.0, 1.0, 0.0, 0.0, 0.0])
    close(TokenSampler(typical=0.7), [2 / 3, 1 / 3, 0.0, 0.0, 0.0])
    close(TokenSampler(typical=0.8), [4 / 7, 2 / 7, 1 / 7, 0.0, 0.0])
    close(TokenSampler(typical=0.2, top_k=1), [1.0, 0.0, 0.0, 0.0, 0.0])  # they agree on none: the likeliest


def test_truncations_and_penalty_are_those_of_transformers() -> None:
    from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper, TypicalLogitsWarper

    torch.manual_seed(3)
    held = torch.tensor([[4, 9, 9, 30]])
    for warper, sampler in (
        (TopPLogitsWarper(0.8), TokenSampler(top_p=0.8)),
        (MinPLogitsWarper(0.1), TokenSampler(min_p=0.1)),
        (TypicalLogitsWarper(0.6), TokenSampler(typical=0.6)),
        (TypicalLogitsWarper(0.95), TokenSampler(typical=0.95)),
        (RepetitionPenaltyLogitsProcessor(1.7), TokenSampler(repetition_penalty=1.7)),
    ):
        for _ in range(3):
            logits = 2 * torch.randn(1, 40)
            expected = warper(held, logits.clone()).softmax(1)[0]
            torch.testing.assert_close(reached(sampler, logits, held), expected, atol=3e-4, rtol=0)
    logits = torch.tensor([[2.0, -1.0, 1.5]])
    penalised, log_p = TokenSampler(temperature=0, repetition_penalty=2.0).choose(
        logits, torch.zeros(1), torch.tensor([[0, -1]])
    )
    assert penalised.tolist() == [2]
    torch.testing.assert_close(log_p, logits.double().log_softmax(1)[:, 2])  # without the penalty


@pytest.mark.parametrize("options", [{"top_k": 40}, {"top_k": 40, "top_p": 0.8, "temperature": 0.7}, {"top_p": 0.6}])
@pytest.mark.parametrize("ties", [False, True])
def test_a_shortlist_changes_no_token(options: dict[str, Any], ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    logits, uniform, sampler = 3 * torch.randn(400, 3000), torch.rand(400), TokenSampler(**options)
    logits = logits.round() if ties else logits
    assert (sampler._shortlist(logits.double() / sampler.temperature, None) is None) == ties
    found, log_p = sampler.choose(logits, uniform)
    monkeypatch.setattr(TokenSampler, "_shortlist", lambda *_: None)
    expected, same = sampler.choose(logits, uniform)
    assert torch.equal(found, expected)
    assert torch.equal(log_p, same)


# ---- rows


@pytest.mark.parametrize("kind", ["gpt2", "llama", "lstm"])
def test_cached_generation_equals_generation_without(kind: str) -> None:
    """Token for token, across contexts that are full."""
    model, sampler = language_model(kind), TokenSampler(max_new_tokens=70)

    class Anew:
        context, tokenizer = model.context, model.tokenizer

        def next_logits(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
            tokens = tokens if state is None else torch.cat([state, tokens], 1)
            return model.network(input_ids=tokens, use_cache=False).logits[:, -1], tokens

        def select(self, state: Tensor, rows: Tensor) -> Tensor:
            return state[rows]

    prompt, seeds = torch.randint(V, (5, 3)), torch.arange(5)
    with torch.no_grad():
        cached, anew = (sampler.decode(reader, prompt, seeds) for reader in (model, Anew()))
    assert torch.equal(cached.tokens, anew.tokens)
    torch.testing.assert_close(cached.log_p, anew.log_p, atol=1e-4, rtol=0)
    assert len(set(cached.tokens.flatten().tolist())) > 5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "lstm"])
@pytest.mark.parametrize(
    "sampler",
    [
        TokenSampler(max_new_tokens=40, top_p=0.9, repetition_penalty=1.2, stop=["ab", "c"]),
        BeamSearch(max_new_tokens=6, beams=3, stop=["d"]),
        BestOf(max_new_tokens=6, n=3),
    ],
    ids=["sampled", "beam", "best"],
)
def test_an_item_does_not_change_with_the_batch(kind: str, sampler: Any) -> None:
    model = language_model(kind)
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7], [5, 5], [2, 3, 4, 1, 1, 0], [7] * 34]
    together = model.sample(torch.arange(5), {"prompt": padded(prompts)}, sampler)
    for i, prompt in enumerate(prompts):
        alone = model.sample(torch.tensor([i]), {"prompt": torch.tensor([prompt])}, sampler)
        assert alone.data == together.data[i : i + 1]
        assert alone.data[0].startswith(model.tokenizer.decode(prompt))


def test_stop_strings_end_items_one_by_one() -> None:
    cycle = torch.full((8, 8), -50.0)
    cycle[torch.arange(8), (torch.arange(8) + 1) % 8] = 0  # abcdefghab...
    reader, prompt = Table(cycle), padded([[0], [4, 5], [3]])
    for sampler in (TokenSampler(max_new_tokens=5, stop=["cd", "ha"]), BeamSearch(5, beams=1, stop=["cd", "ha"])):
        decoded = sampler.decode(reader, prompt, torch.arange(3))
        texts = [reader.tokenizer.decode(row[row >= 0].tolist()) for row in decoded.tokens]
        assert texts == ["abcd", "efgha", "defgh" + "a"]
        assert decoded.count.tolist() == [3, 3, 5]
    assert TokenSampler(max_new_tokens=9, stop=["c"]).decode(reader, prompt, torch.arange(3)).tokens.shape == (3, 8)
    with pytest.raises(ConfigError, match="none of them empty"):
        TokenSampler(stop=["a", ""])


def test_a_stop_string_with_a_space_before_it() -> None:
    """sentencepiece's decoder drops the space with which a text begins, not that of a later token."""
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.WordLevel({"▁Tom": 0, "▁and": 1, "▁Ann": 2, "s": 3}))
    tokenizer.decoder = decoders.Metaspace()
    reader: Any = SimpleNamespace(tokenizer=tokenizer)
    rows, lengths = torch.tensor([[0, 1], [0, 2], [1, 0], [0, 3]]), torch.tensor([1, 1, 1, 1])
    assert Stops([" and"], reader).met(rows, lengths, torch.ones(4, dtype=torch.bool)).tolist() == [
        True, False, False, False]  # fmt: skip
    assert Stops(["s", " Ann"], reader).met(rows, lengths, torch.ones(4, dtype=torch.bool)).tolist() == [
        False, True, False, True]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenSampler(temperature=-1), "sampler.temperature is -1: must be >= 0"),
        (lambda: TokenSampler(temperature=math.nan), "sampler.temperature is nan"),
        (lambda: TokenSampler(top_k=-1), "sampler.top_k is -1: must be >= 0"),
        (lambda: TokenSampler(top_k=1.5), "sampler.top_k is 1.5: must be an integer >= 0"),  # type: ignore[arg-type]
        (lambda: TokenSampler(top_p=0.0), "sampler.top_p is 0.0: must be > 0 and <= 1"),
        (lambda: BestOf(n=0), "sampler.n is 0: must be > 0"),
        (lambda: BeamSearch(beams=0), "sampler.beams is 0: must be > 0"),
        (lambda: DDIM(steps=0), "sampler.steps is 0: must be > 0"),
        (lambda: DDIM(eta=-0.1), "sampler.eta is -0.1: must be >= 0"),
        (lambda: DDPM(variance="x"), "sampler.variance=x: choose one of beta, beta_tilde"),  # type: ignore[arg-type]
        (lambda: LatentSampler(threshold=0.0), "sampler.threshold is 0.0: must be > 0"),
    ],
)
def test_ranges_hold_in_python_too(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


def test_windows_of_a_full_context() -> None:
    for context in (1, 2, 5, 8):
        kept = [t - window_start(t, context) for t in range(1, 60)]
        assert kept[:context] == list(range(1, context + 1))
        assert max(kept) == context
        assert min(kept[context:]) == max(1, context // 2)
    assert window_start(10**6, None) == 0


def test_log_probability_of_what_is_new() -> None:
    model = language_model("gpt2")
    prompt = padded([[1, 2], [3, 4, 5, 6]])
    with torch.no_grad():
        decoded = TokenSampler(max_new_tokens=6, temperature=0.7, top_k=4).decode(model, prompt, torch.arange(2))
        labels = decoded.tokens[:, 1:].clone()
        for i, length in enumerate(lengths_of(prompt).tolist()):
            labels[i, : length - 1] = -100
        labels[labels < 0] = -100
        expected = model.log_likelihood({"input_ids": decoded.tokens[:, :-1].clamp(min=0), "labels": labels})
    torch.testing.assert_close(decoded.log_p, expected[0], atol=1e-5, rtol=1e-5)
    assert decoded.count.tolist() == expected[1].tolist() == [6, 6]


# ---- searches


def test_a_wide_beam_finds_the_best_of_all_continuations() -> None:
    torch.manual_seed(5)
    logits, steps, end = 2 * torch.randn(4, 4), 4, 3
    log_p, reader = logits.double().log_softmax(1), Table(logits)
    reader.tokenizer = Alphabet([*"abcd"]).tokenizer()
    for alpha in (0.0, 0.6, 2.0):
        scores = {}
        for n in range(1, steps + 1):
            for path in itertools.product(range(4), repeat=n):
                if end not in path[:-1] and (path[-1] == end or n == steps):
                    total = sum(log_p[a, b].item() for a, b in itertools.pairwise([0, *path]))
                    scores[path] = total / ((5 + n) / 6) ** alpha
        best = max(scores, key=scores.__getitem__)
        search = BeamSearch(steps, beams=64, alpha=alpha, stop=["d"])
        found = search.decode(reader, torch.tensor([[0]]), torch.zeros(1, dtype=torch.int64))
        assert tuple(found.tokens[0, 1:][: len(best)].tolist()) == best
        assert found.log_p.item() == pytest.approx(scores[best] * ((5 + len(best)) / 6) ** alpha)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_beam_search_is_that_of_transformers(kind: str) -> None:
    model = language_model(kind)
    for end, alpha in itertools.product((None, 4), (0.0, 1.0)):
        if end is not None and alpha:
            continue  # transformers' penalty is length^alpha, not the paper's
        for first in range(6):
            prompt = torch.tensor([[first, 2, 1]])
            theirs = model.network.generate(  # type: ignore[operator]
                prompt, attention_mask=torch.ones_like(prompt), num_beams=4, do_sample=False, max_new_tokens=9,
                length_penalty=alpha, eos_token_id=end, pad_token_id=0, early_stopping=False,
            )[0]  # fmt: skip
            stop = [] if end is None else [model.tokenizer.decode([end])]
            with torch.no_grad():
                ours = BeamSearch(9, beams=4, alpha=alpha, stop=stop).decode(model, prompt, torch.zeros(1).long())
            assert ours.tokens[0].tolist() == theirs.tolist()


class Threes(Judge):
    """How often a text has the token 3."""

    def judge(self, samples: Samples, condition: Any) -> list[float]:
        third = language_model("gpt2").tokenizer.decode([3])
        return [float(text.count(third)) for text in samples.data]


def test_best_of_n_keeps_the_sample_of_highest_score() -> None:
    model, seeds, prompt = language_model("gpt2"), torch.arange(4), torch.tensor([[1]]).expand(4, -1)
    sampler = BestOf(max_new_tokens=8, n=5)
    with torch.no_grad():
        best = sampler.decode(model, prompt, seeds)
        drawn = [
            TokenSampler(max_new_tokens=8).decode(model, prompt, noise.fold_in(seeds, k) if k else seeds)
            for k in range(5)
        ]
        mine = BestOf(max_new_tokens=8, n=5, score=lambda d, _: (d.tokens == 3).sum(1)).decode(model, prompt, seeds)
    assert torch.equal(best.log_p, torch.stack([d.log_p for d in drawn]).amax(0))
    judged = BestOf(max_new_tokens=8, n=5, score=JudgeScore(Threes())).decode(model, prompt, seeds)
    assert torch.equal(judged.tokens, mine.tokens)
    assert "Threes" in BestOf(score=JudgeScore(Threes())).record()["score"]
    counts = torch.stack([(d.tokens == 3).sum(1) for d in drawn])
    assert (mine.tokens == 3).sum(1).tolist() == counts.amax(0).tolist()
    assert sampler.nfe == 40
    assert math.isfinite(float(best.log_p.sum()))


def test_a_reading_reads_each_token_once() -> None:
    model, read = language_model("gpt2"), []
    next_logits = model.next_logits
    model.next_logits = lambda tokens, state: read.append(tokens.shape[1]) or next_logits(tokens, state)  # type: ignore
    reading, tokens = Reading(model), torch.randint(V, (2, CONTEXT + 2))
    with torch.no_grad():
        for t in range(3, CONTEXT + 3):
            reading.logits(tokens[:, :t])
    assert read == [3, *[1] * (CONTEXT - 3), CONTEXT // 2, 1]
