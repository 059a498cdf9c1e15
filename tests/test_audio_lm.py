"""The language model of sound: sequences of codes, their levels in turn, generation, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_audio_codec import RATE, T, batch, codec, data_of
from torch import nn
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

from genlab.decoding.tokens import Ancestral, TokenSampler
from genlab.errors import ConfigError
from genlab.models.audio_lm import AudioLM
from genlab.networks.frozen import Frozen

LEVELS, SIZE, FRAMES, CLASSES = 2, 8, T // 16, 4
TOKENS, CONTEXT = LEVELS * SIZE + CLASSES, 1 + LEVELS * FRAMES


def frozen(part: nn.Module | None = None) -> Frozen:
    """A codec whose codebooks have begun."""
    if part is None:
        part = codec()
        books: Any = part.bottleneck.books  # type: ignore[union-attr]
        for i, book in enumerate(books):
            book.codebook.normal_(std=0.5 ** (i + 3))
    return Frozen(part, "my_codec")


def model(**options: Any) -> AudioLM:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=TOKENS, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
                        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)  # fmt: skip
    known = {"samples": T, "levels": LEVELS, "tokens": TOKENS, "context": CONTEXT, "num_classes": CLASSES}
    return AudioLM(GPT2LMHeadModel(config), **{"codec": frozen(), **known, **options}).eval()


def labelled() -> dict[str, torch.Tensor]:
    return {**batch(), "label": torch.arange(4)}


def test_levels_of_a_frame_stand_after_each_other() -> None:
    lm = model()
    codes = torch.arange(2 * 3 * FRAMES).view(2, 3, FRAMES) % SIZE
    rows = lm.rows({"codes": codes, "label": torch.tensor([3, 1])})
    assert (rows.dtype, *rows.shape) == (torch.int64, 2, CONTEXT)
    assert rows[:, 0].tolist() == [3, 1]
    for frame in (0, 1, FRAMES - 1):
        for level in range(LEVELS):
            assert torch.equal(rows[:, 1 + frame * LEVELS + level], codes[:, level, frame])
    assert lm.offsets[:4].tolist() == [LEVELS * SIZE, 0, SIZE, 0]
    part = lm.codec.on("cpu")
    assert torch.equal(lm.rows(labelled())[:, 1::2], part.to_codes(batch()["audio"])[:, 0])
    assert lm.bitrate() == part.bitrate(LEVELS)


def test_loss_is_that_of_codes_read_one_by_one() -> None:
    """What is sampled from is what is trained, position by position, with the cache."""
    lm = model()
    with torch.no_grad():
        rows, state, nats = lm.rows(labelled()), None, []
        for t in range(CONTEXT - 1):
            logits, state = lm.next_logits(rows[:, t : t + 1], state)
            assert logits.shape == (4, SIZE)
            nats.append(-logits.log_softmax(1).gather(1, rows[:, t + 1 : t + 2]).mean())
        torch.testing.assert_close(lm.losses(labelled())["loss"], torch.stack(nats).mean(), rtol=1e-4, atol=0)
        several, _ = lm.next_logits(rows[:, :-1], None)
    torch.testing.assert_close(several, logits, rtol=1e-3, atol=1e-4)


def test_sounds_are_a_function_of_seed_and_label() -> None:
    lm = model()
    lm.sampler = Ancestral(max_new_tokens=10**6)
    whole = lm.sample(torch.arange(6))
    assert (whole.data.dtype, *whole.data.shape) == (torch.float32, 6, 1, T)
    assert whole.modality.sample_rate == RATE  # type: ignore[attr-defined]
    assert whole.labels is not None
    assert whole.labels.tolist() == [0, 1, 2, 3, 0, 1]
    again = lm.sample(torch.arange(4, 6), {"label": torch.tensor([0, 1])})
    assert torch.equal(again.data, whole.data[4:])
    other = lm.sample(torch.arange(4, 6), {"label": torch.tensor([2, 3])})
    assert not torch.equal(other.data, again.data)
    short = lm.sample(torch.arange(1), sampler=TokenSampler(max_new_tokens=5 * LEVELS + 1)).data
    assert short.shape == (1, 1, T)
    assert short[..., : 5 * 16].any()
    assert not short[..., 5 * 16 :].any()


def test_a_label_is_learned() -> None:
    lm = model()
    optimizer = torch.optim.Adam(lm.parameters(), 3e-3)
    given = labelled()
    given["codes"] = torch.arange(4).view(4, 1, 1).expand(4, LEVELS, FRAMES)
    first = lm.losses(given)["loss"].detach()
    for _ in range(25):
        optimizer.zero_grad()
        loss = lm.losses(given)["loss"]
        loss.backward()
        optimizer.step()
    assert loss.detach() < 0.2 * first
    rows = TokenSampler(max_new_tokens=8, temperature=0).decode(lm, torch.arange(4)[:, None], torch.arange(4)).tokens
    assert torch.equal(rows[:, 1:], torch.arange(4)[:, None].expand(4, 8))
    assert not any("codec" in name for name, _ in lm.named_parameters())


class Source:
    def __len__(self) -> int:
        return 4

    def batch(self, ids: torch.Tensor, _: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: rows[ids] for name, rows in labelled().items() if name in ("audio", "label")}


def test_codes_are_attached_once() -> None:
    lm, attached = model(), {}
    rows = labelled()
    data = SimpleNamespace(source=lambda split: Source(), seed=1, finish=lambda given, split: given,
                           manifest=SimpleNamespace(identity=lambda split: ["codes", split]),
                           attach=lambda split, name, values: attached.update({(split, name): values}))  # fmt: skip
    lm.prepare(data, torch.device("cpu"))
    assert {*attached} == {("train", "codes"), ("val", "codes")}
    assert torch.equal(lm.rows({**rows, "codes": attached["train", "codes"]}), lm.rows(rows))


def test_what_cannot_be_is_refused_in_a_line() -> None:
    lm = model()
    lm.check_items(data_of(RATE))
    bare = codec(levels=1)
    cases: list[tuple[Any, str]] = [
        (lambda: model(codec=frozen(nn.Linear(2, 2))), "model.codec: my_codec is a Linear; expected a run of model="),
        (lambda: model(codec=frozen(bare)), "model.levels=2: my_codec has 1 levels"),
        (lambda: model(samples=1000), "data.samples=1000 is no multiple of the codec's 16"),
        (lambda: model(tokens=19), f"model.tokens=19: .* need {TOKENS}; set it"),
        (lambda: model(context=99), f"model.context=99: .* need {CONTEXT}; set it"),
        (lambda: lm.check_items(data_of(22050)), "data=mine is of 22050 Hz, model.codec, my_codec, of 8000 Hz"),
        (lambda: lm.check_items(data_of(RATE, ("audio",))), "have no label"),
        (lambda: lm.sample(torch.arange(1), sampler=TokenSampler(max_new_tokens=1)), "a frame is 2 codes; give"),
    ]  # fmt: skip
    for call, words in cases:
        with pytest.raises(ConfigError, match=words) as refusal:
            call()
        assert "\n" not in str(refusal.value)
