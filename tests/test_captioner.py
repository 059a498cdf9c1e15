"""Captions of pictures: losses and decoding against transformers, augmentation, metrics, the cycle, refusals."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer
from scipy import ndimage
from torch import Tensor, nn

from genlab import noise
from genlab.cli.condition_values import condition_rows
from genlab.cli.export import for_transformers
from genlab.conditions import Caption
from genlab.data.augment import Augment
from genlab.data.order import subset
from genlab.data.sources import Source
from genlab.data.vocabulary import PAD, train_tokenizer
from genlab.decoding.beam import BeamSearch
from genlab.decoding.best_of import BestOf
from genlab.decoding.reading import lengths_of
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate
from genlab.evaluation.latents import Panels
from genlab.evaluation.metrics import Captioning, Cycle, Items, measure
from genlab.evaluation.texts import table_columns
from genlab.modality import to_float, to_uint8
from genlab.models.base import GenerativeModel
from genlab.models.captioner import Captioner
from genlab.networks.frozen import Frozen
from genlab.networks.image_states import ImageStates

END, V, CONTEXT, SHAPE = 0, 40, 24, [3, 16, 16]
LIKELIEST = BeamSearch(beams=4, alpha=1.0, offset=0.0)
CLEAN = Augment(shift=0, scale=1, rotate=0, brightness=0, tint=0, contrast=0, saturation=0, blur=0)
Rows = dict[str, Tensor]


@functools.cache
def tokenizer() -> Any:
    """END, [PAD], then letters and digits."""
    return train_tokenizer("characters", V, [], "-+0123456789abcdefghijklmnopqrstuvwxyz", ["<|endoftext|>", PAD])


@functools.cache
def parts() -> tuple[ImageStates, Any]:
    from transformers.models.marian import MarianConfig, MarianMTModel

    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=V, max_position_embeddings=CONTEXT, d_model=32, encoder_layers=0, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, dropout=0.0,
        activation_dropout=0.0, attention_dropout=0.0, eos_token_id=END, pad_token_id=END, decoder_start_token_id=END,
        forced_eos_token_id=None, init_std=0.3, scale_embedding=True,
    )  # fmt: skip
    network = MarianMTModel(config).eval()
    network.final_logits_bias[0, END] = 3.0  # captions end, here and there
    encoder = ImageStates(SHAPE, 32, [8, 16], patch=2, groups=4).eval()
    encoder.body.conv_out.weight.data.mul_(10)  # pictures differ
    return encoder, network


def model(**options: Any) -> Captioner:
    captioner = Captioner(*parts(), SHAPE, CONTEXT, **options).eval()
    captioner.tokenizer = tokenizer()
    return captioner


def pictures(count: int) -> Tensor:
    """Of grey levels, so that to_uint8 and back is they themselves."""
    return to_float(to_uint8(2 * noise.uniform(torch.arange(count), 0, SHAPE) - 1))


def captions(rows: int) -> Tensor:
    """int64 [rows, 12]: of 0 to 9 tokens, so that the data's longest is none of theirs."""
    lengths = torch.arange(rows) % 10
    ids = (7 * torch.arange(12) + torch.arange(rows)[:, None]) % (V - 2) + 2
    return ids.masked_fill(torch.arange(12) >= lengths[:, None], -1)


def batch_of(rows: int = 12) -> Rows:
    return {"image": pictures(rows), "caption": captions(rows), "position": torch.arange(rows)}


def encoded(image: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=parts()[0](image))


# ---- what is learned


def test_losses_are_those_of_transformers() -> None:
    """Of MarianMTModel with the same states, of the trainer's LabelSmoother with smoothing; per caption, not token."""
    from transformers.trainer_pt_utils import LabelSmoother

    ours, batch = model(label_smoothing=0.1), batch_of()
    labels = ours.labels(batch)
    assert labels.shape == (12, 10), "as wide as the longest of the batch with its end"
    assert labels[0].tolist() == [END, *[-100] * 9], "an empty caption ends at once"
    assert labels[9].tolist() == [*captions(12)[9, :9].tolist(), END]
    with torch.no_grad():
        theirs = parts()[1](encoder_outputs=encoded(batch["image"]), labels=labels)
        tokens = int((labels != -100).sum())
        assert ours.losses(batch)["loss"].item() == pytest.approx(theirs.loss.item() * tokens / 12, rel=1e-6)
        sums, counts = ours.log_likelihood(batch)
        assert counts.tolist() == (lengths_of(batch["caption"]) + 1).tolist()
        assert -sums.sum().item() / tokens == pytest.approx(theirs.loss.item(), rel=1e-6)
        ours.train()
        smooth = ours.losses(batch)["loss"].item()
        assert smooth == pytest.approx(LabelSmoother(epsilon=0.1)(theirs, labels).item() * tokens / 12, rel=1e-6)
        halves = [ours.losses({name: rows[i : i + 6] for name, rows in batch.items()})["loss"] for i in (0, 6)]
        assert torch.stack(halves).mean().item() == pytest.approx(smooth, rel=1e-6), "whatever their lengths"


@pytest.mark.parametrize("beams", [1, 5])
def test_decoding_is_that_of_transformers(beams: int) -> None:
    """60 pictures, in one batch there and in chunks here; by the mean log p a token."""
    ours, image = model(chunk_size=16), pictures(60)
    sampler: Any = TokenSampler(temperature=0.0) if beams == 1 else BeamSearch(beams=beams, alpha=1.0, offset=0.0)
    with torch.no_grad():
        chunks = [ours.generate(torch.arange(len(part)), {"image": part}, sampler) for part in image.split(16)]
        theirs = parts()[1].generate(
            encoder_outputs=encoded(image), attention_mask=torch.ones(60, 16).long(), do_sample=False, num_beams=beams,
            max_new_tokens=CONTEXT, length_penalty=1.0, early_stopping="never", forced_eos_token_id=END,
        )[:, 1:].tolist()  # fmt: skip
    lengths = [row.index(END) + 1 for row in theirs]
    assert min(lengths) < 6 < CONTEXT == max(lengths), "captions that end, and some that the limit ends"
    got = [[token for token in row if token != -1] for chunk in chunks for row in chunk.tolist()]
    assert got == [row[:length] for row, length in zip(theirs, lengths, strict=True)]


@pytest.mark.parametrize("sampler", [TokenSampler(top_p=0.9), BestOf(n=3), LIKELIEST])
def test_an_item_depends_on_its_seed_and_picture_alone(sampler: Any) -> None:
    ours, image = model(chunk_size=4), pictures(10)
    whole = ours.sample(torch.arange(10), {"image": image}, sampler)
    assert ours.sample(torch.arange(4, 7), {"image": image[4:7]}, sampler).data == whole.data[4:7]
    assert len(set(whole.data)) > 5, "it looks at the pictures"
    assert not any("<|endoftext|>" in text for text in whole.data)


# ---- augmentation


def test_augmentation_is_keyed_by_item_and_moves_as_it_says() -> None:
    image, keys = pictures(6), torch.arange(6) + 5
    wild = Augment(shift=0.3, scale=2, rotate=90, brightness=0.5, tint=0.5, contrast=0.5, saturation=1, blur=1)
    whole = wild(image, keys)
    assert whole.shape == image.shape
    assert whole.abs().max() <= 1
    assert not torch.isclose(whole, image).all()
    torch.testing.assert_close(wild(image[2:4], keys[2:4]), whole[2:4])
    torch.testing.assert_close(CLEAN(image, keys), image, atol=1e-5, rtol=0)
    u = 2 * noise.uniform(keys, (noise.Stream.AUGMENT, 0), (12,)) - 1
    moved = Augment(**{**vars(CLEAN), "shift": 0.25})(image, keys)  # bilinear, the border repeated
    by = (-0.25 * 16 * u[:, [4, 3]]).tolist()
    shifts = [ndimage.shift(x.numpy(), (0, *own), order=1, mode="nearest") for x, own in zip(image, by, strict=True)]
    torch.testing.assert_close(moved, torch.stack(list(map(torch.from_numpy, shifts))), atol=1e-4, rtol=0)
    grey = Augment(**{**vars(CLEAN), "saturation": 1.0})(image, keys)
    mean = image.mean(1, keepdim=True)
    torch.testing.assert_close(grey, (mean + (1 + u[:, 7, None, None, None]) * (image - mean)).clamp(-1, 1),
                               atol=1e-5, rtol=0)  # fmt: skip
    with pytest.raises(ConfigError, match=r"model.augment.scale is 0.5: must be >= 1"):
        Augment(scale=0.5)


def test_only_training_is_augmented_by_position() -> None:
    ours, batch = model(augment=Augment()), batch_of(4) | {"id": torch.arange(4)}
    with torch.no_grad():
        assert ours.losses(batch)["loss"] == model().losses(batch)["loss"]
        ours.train()
        first, again = (ours.losses(batch)["loss"] for _ in range(2))
        later = ours.losses(batch | {"position": torch.arange(4) + 4})["loss"]
    assert first == again != later
    assert abs(first - later) > 1e-4


# ---- evaluation

NAMES = [["abc", "b"], ["def"], ["Gh  i"], ["j"], ["kl", "m n"], ["no pq"]]


class Named(Source):
    """Six pictures with names and captions."""

    def __init__(self, names: list[list[str]] | None = NAMES) -> None:
        self.names = names

    def __len__(self) -> int:
        return 6

    def batch(self, ids: Tensor, epochs: Tensor) -> Rows:
        return {"image": to_uint8(pictures(6))[ids], "caption": captions(6)[ids]}

    def references(self, ids: Tensor) -> list[list[str]] | None:
        return None if self.names is None else [self.names[i] for i in ids.tolist()]

    def select(self, ids: Any) -> Source:
        raise AssertionError("it is not cut")


def data_of(source: Source, shape: list[int] = SHAPE) -> Any:
    manifest = SimpleNamespace(
        name="named", modality="image", splits=("val", "test"), identity=lambda split: f"sha of {split}",
        facts={"shape": shape},
    )  # fmt: skip
    return SimpleNamespace(source=lambda split: source, manifest=manifest, name="named", tokenizer=tokenizer(),
                           finish=lambda batch, split: {**batch, "image": pictures(6)[batch["id"]]})  # fmt: skip


def by_hand(texts: list[str], names: list[list[str]]) -> dict[str, float]:
    """The best name of each text for each kind, by rouge-score's own functions."""
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer, exact, sums = RougeScorer(kinds), 0, dict.fromkeys(kinds, 0.0)
    for text, several in zip(texts, names, strict=True):
        exact += " ".join(text.split()).lower() in [" ".join(name.split()).lower() for name in several]
        for kind in kinds:
            sums[kind] += max(scorer.score(name, text)[kind].fmeasure for name in several)
    return {"exact_name": exact / len(texts), **{kind: value / len(texts) for kind, value in sums.items()}}


def test_captions_are_judged_as_by_hand() -> None:
    texts = ["ABC", "de f", " gh i", "j k", "m", "pq no"]
    measured = measure({"captioning": Captioning()}, Items(texts, references=NAMES))
    assert measured.values == pytest.approx(by_hand(texts, NAMES), abs=1e-9)
    assert measured.values["exact_name"] == pytest.approx(2 / 6)
    assert len(set(measured.values.values())) == 4
    assert measured.columns["exact"] == [True, False, True, False, False, False]
    assert "nrefs:var" in measured.signatures["rougeL"]
    assert set(measure({"captioning": Captioning()}, Items(texts)).missing.values()) == {"the texts have no references"}


def test_all_pictures_of_a_split_are_named(tmp_path: Path) -> None:
    ours, protocol = model(chunk_size=4), Protocol(metrics={"captioning": Captioning()}, floor=False)
    ours.sampler = LIKELIEST
    protocol.check(ours, data_of(Named()), "text")
    record = evaluate(ours, data_of(Named()), protocol, table=tmp_path / "table", progress=False)
    texts = ours.sample(torch.arange(6), {"image": pictures(6)}).data
    assert record["name"] == "captioning_test"
    expected = {f"{name}_test": value for name, value in by_hand(texts, NAMES).items()}
    assert record["values"] == pytest.approx(expected, abs=1e-9)
    columns, rows = table_columns(tmp_path / "table")
    assert columns == ["number", "image", "generated", "references", "exact"]
    assert [row[1:3] for row in rows] == [[f"test {i}", texts[i]] for i in range(6)]
    told = ours.examples(8, data_of(Named()))["image"]
    assert torch.equal(told, pictures(6)[torch.arange(8) % 6])
    with pytest.raises(ConfigError, match="references: named has none; take data of pairs, such as data=captioned_f"):
        protocol.check(ours, data_of(Named(None)), "text")


class Painter(GenerativeModel):
    """Paints the picture of its caption, but for the last, by heart."""

    conditions = (Caption(),)
    chunk_size = 4

    def losses(self, batch: Any) -> Any:
        raise AssertionError("it is not trained")

    def generate(self, seeds: Tensor, condition: Any, sampler: Any) -> Tensor:
        known = captions(6)
        rows = [int((known == row).all(1).nonzero()[0]) for row in condition["caption"]]
        return torch.where((torch.tensor(rows) == 5)[:, None, None, None], -1.0, pictures(6)[rows])


def test_generated_pictures_are_named_beside_real_ones() -> None:
    """The cycle from text to picture to text: names that the captioner gives to real pictures are the right ones."""
    captioner = model(chunk_size=4)
    captioner.sampler, captioner.tokenizer = LIKELIEST, tokenizer()
    called = captioner.sample(torch.arange(6), {"image": pictures(6)}).data
    names = [[name, "other"] for name in called]
    painter, data = Painter(), data_of(Named(names))
    painter.tokenizer = tokenizer()
    frozen = Frozen(captioner, "some/run")
    protocol = Protocol(metrics={"cycle": Cycle(frozen)}, floor=False)
    protocol.check(painter, data, "image")
    record = evaluate(painter, data, protocol, progress=False)
    assert record["name"] == "cycle_6_test.proxy"
    blank = captioner.sample(torch.arange(1), {"image": torch.full((1, *SHAPE), -1.0)}).data
    expected = by_hand(called[:5] + blank, names)
    values = {name.removesuffix("_6_test.proxy"): value for name, value in record["values"].items()}
    assert values == pytest.approx({
        "cycle_exact_name": expected["exact_name"], "cycle_rougeL": expected["rougeL"],
        "cycle_real_exact_name": 1.0, "cycle_real_rougeL": by_hand(called, names)["rougeL"],
    }, abs=1e-6)  # fmt: skip
    assert values["cycle_exact_name"] == pytest.approx(5 / 6)
    metric = record["protocol"]["metrics"]["cycle"]
    assert metric["captioner"] == f"run, sha256 {frozen.sha256}"
    with pytest.raises(ConfigError, match=r"some/run reads pictures of \[3, 16, 16\], these are \[3, 8, 8\]"):
        protocol.check(painter, data_of(Named(names), [3, 8, 8]), "image")
    with pytest.raises(ConfigError, match="captioner: a/folder makes no texts of pictures; give a run of model=capt"):
        Cycle(Frozen(nn.Linear(1, 1), "a/folder"))
    items = Items(to_uint8(pictures(2)))
    assert set(measure({"cycle": Cycle(frozen)}, items, items).missing.values()) == {"the pictures have no names"}


def test_attention_is_drawn_over_the_picture(tmp_path: Path) -> None:
    ours = model()
    batch = {"image": pictures(3), "caption": captions(3)}
    with torch.no_grad():
        maps = ours.attention(batch)
    assert parts()[1].config._attn_implementation == "sdpa"
    for i, (weights, rows, picture) in enumerate(maps):
        assert rows == [*captions(3)[i, :i].tolist(), END]
        assert weights.shape == (i + 1, 4, 4)
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(i + 1))
        assert torch.equal(picture, to_uint8(pictures(3))[i])
    path = Panels(ours, data_of(Named())).attention(tmp_path / "attention")
    assert path is not None
    words = 1 + int(subset(6, 3).max())  # of the longest caption, its end among them
    assert Image.open(path).size == (120 * (1 + words), 140 * 3)


# ---- bad input


def test_pictures_of_files_and_what_cannot_be(tmp_path: Path) -> None:
    ours = model()
    with pytest.raises(ConfigError, match=r"needs an image: condition\.image=FILE, or conditions=FILE, the path of"):
        ours.sample(torch.arange(2))
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (condition_rows(ours, {"image": str(tmp_path / "clear.png")}, 1)["image"] == 1).all(), "it lies on white"
    with pytest.raises(ConfigError, match=r"condition\.image=none\.png: no such file"):
        condition_rows(ours, {"image": "none.png"}, 1)
    with pytest.raises(ConfigError, match=r"pictures are \[3, 8, 8\], model\.shape is \[3, 16, 16\]"):
        ours.losses({"image": torch.zeros(1, 3, 8, 8), "caption": captions(1)})
    long = {"image": pictures(1), "caption": torch.full((1, CONTEXT), 5)}
    with pytest.raises(ConfigError, match=r"a caption of 25 tokens, its end included: raise model\.context=24"):
        ours.losses(long)
    run: Any = SimpleNamespace(model=ours, directory=SimpleNamespace(path=tmp_path))
    with pytest.raises(ConfigError, match=r"format=transformers: .* also has encoder, which transformers lacks"):
        for_transformers(tmp_path / "out", run, {})
    ours.check_items(data_of(Named()))
    ours.end = 5
    with pytest.raises(ConfigError, match=r"eos_token_id=5 is '1', of which captions .* 0 \(<\|endoftext\|>\), 1 \(\["):
        ours.check_items(data_of(Named()))
    for options, message in (
        (([3, 18, 16], 32, [8, 16], 2), "18x16 images do not divide by 4, which is patch=2 times 2"),
        ((SHAPE, 32, [8, 12], 2), "groups=8 does not divide the widths"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImageStates(*options)
