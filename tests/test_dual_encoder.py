"""Dual encoders: losses against a plain reference and over ranks, retrieval and judged pictures against brute force."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import command
from processes import together
from runs import log, make_pretrained, new_run, small_run, work
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from genlab.cli.load import load_run
from genlab.conditions import Caption
from genlab.data.characters import Alphabet
from genlab.data.sources import Source
from genlab.decoding.reading import padded
from genlab.dual_judge import DualJudge
from genlab.errors import ConfigError
from genlab.evaluation import Protocol, evaluate, evaluate_samples
from genlab.evaluation.judged import items_from
from genlab.evaluation.metrics import DualScore, Retrieval
from genlab.evaluation.metrics.matching import places
from genlab.modality import Image, to_float
from genlab.models.base import GenerativeModel
from genlab.models.dual_encoder import DualEncoder
from genlab.networks.image_encoder import ImageEncoder, VisionModel
from genlab.networks.text_encoder import TextEncoder
from genlab.objectives.contrastive import Contrastive, InfoNCE, SigLIP, compare, keys_of
from genlab.parts import FrozenPart
from genlab.runs.directory import RunDirectory
from genlab.samples import Samples

CPU = torch.device("cpu")
NAMES = ["red heart", "blue heart", "wave, dark skin tone", "wave, light skin tone", "wave", "red heart"]  # one twice
FACTS = [{"name": name.split(",")[0], "tone": name.partition(", ")[2].removesuffix(" skin tone")} for name in NAMES]
LETTERS = Alphabet(sorted(set("".join(NAMES)))).tokenizer()


def vectors(rows: int, width: int = 5, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, width), dim=1)


# ---- losses


def info_nce(image: Tensor, text: Tensor, keys: list[int], scale: float) -> float:
    """Figure 3 of the paper, a pair at a time; pairs of equal keys are left out of the sums."""
    total = 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(len(keys)):
            logits = {j: scale * (a[i] @ b[j]).item() for j in range(len(keys)) if j == i or keys[j] != keys[i]}
            total -= logits[i] - math.log(sum(math.exp(value) for value in logits.values()))
    return total / 2 / len(keys)


def sig_lip(image: Tensor, text: Tensor, keys: list[int], scale: float, bias: float) -> float:
    """Algorithm 1 of the paper, likewise."""
    total = 0.0
    for i in range(len(keys)):
        for j in range(len(keys)):
            if j == i or keys[j] != keys[i]:
                z = 1 if i == j else -1
                total += math.log1p(math.exp(-z * (scale * float(image[i] @ text[j]) + bias)))
    return total / len(keys)


@pytest.mark.parametrize("keys", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 2, 2]])
def test_losses_are_those_of_the_papers(keys: list[int]) -> None:
    image, text = vectors(6), vectors(6, seed=1)
    similarity = compare(image, text, torch.tensor(keys))
    assert InfoNCE(0.2)(similarity).item() == pytest.approx(info_nce(image, text, keys, 5.0), rel=1e-5)
    assert SigLIP(0.5, -3.0)(similarity).item() == pytest.approx(sig_lip(image, text, keys, 2.0, -3.0), rel=1e-5)


def test_recall_in_the_batch() -> None:
    image = torch.eye(4)
    text = image[[0, 1, 3, 2]] + 0.1 * image  # the last two lie nearer to each other's image
    found = compare(image, text, torch.arange(4)).recall()
    assert {name: value.item() for name, value in found.items()} == {"image_to_text_r1": 0.5, "text_to_image_r1": 0.5}
    assert compare(image, text, torch.tensor([0, 1, 2, 2])).recall()["image_to_text_r1"] == 1  # no negatives
    assert compare(image[:1].expand(4, 4), image, torch.arange(4)).recall()["text_to_image_r1"] == 0  # all alike


def test_keys_of_captions() -> None:
    rows = torch.randint(0, 1000, (500, 7), generator=torch.Generator().manual_seed(0))
    rows[0, 4:] = rows[1, 4:] = -1
    rows[1, :4] = rows[0, :4]
    keys = keys_of(rows)
    assert keys[0] == keys[1] == keys_of(rows[:1, :4])[0]
    assert len(keys.unique()) == len(rows.unique(dim=0)) == 499
    assert keys_of(torch.tensor([[1, 2], [2, 1], [0, -1], [-1, -1]])).unique().numel() == 4


def test_the_temperature_is_bounded_and_comes_back() -> None:
    loss = InfoNCE(0.001).train()
    similarity = compare(vectors(6), vectors(6, seed=1), torch.arange(6))
    loss(similarity).backward()
    assert loss.logit_scale.exp().item() == pytest.approx(100)
    assert loss.logit_scale.grad is not None
    assert loss.logit_scale.grad.abs() > 1e-3


def _of_a_rank(kind: type[Contrastive], shares: list[int], even: bool) -> dict[str, Tensor]:
    """The loss and the gradients of a rank's share of twelve pairs, through a linear map of each side."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    start = sum(shares[:rank])
    own = slice(start, start + shares[rank])
    image, text = (nn.Linear(5, 4, bias=False) for _ in range(2))
    for seed, layer in enumerate((image, text)):
        nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(seed))
    loss = kind(0.3)
    unit = functools.partial(nn.functional.normalize, dim=1)
    similarity = compare(
        unit(image(vectors(12)[own])), unit(text(vectors(12, seed=1)[own])), torch.arange(12)[own] // 2, even
    )
    value = loss(similarity)
    value.backward()
    parameters = {"image": image.weight, "text": text.weight, **dict(loss.named_parameters())}
    return {"loss": value.detach(), **{name: parameter.grad for name, parameter in parameters.items()}}  # type: ignore[dict-item]


@pytest.mark.parametrize("kind", [InfoNCE, SigLIP])
@pytest.mark.parametrize("shares", [[6, 6], [7, 5]])
def test_two_ranks_have_the_loss_and_gradients_of_one(kind: type[Contrastive], shares: list[int]) -> None:
    """As DistributedDataParallel averages them; with unequal shares, as validation has them, weighted by these."""
    (whole,) = together(1, _of_a_rank, kind, [12], True)
    parts = together(2, _of_a_rank, kind, shares, shares[0] == shares[1])
    for name, value in whole.items():
        mean = sum(share * part[name] for share, part in zip(shares, parts, strict=True)) / 12
        if name == "loss" or shares[0] == shares[1]:
            torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
    assert min(value.abs().max() for value in whole.values()) > 1e-4


# ---- the model


def clip_folder(folder: Path, text: bool = True) -> Path:
    """A tiny CLIP of random weights, as `save_pretrained` leaves it, with a vocabulary of letters."""
    from transformers import CLIPConfig, CLIPModel

    letters = {letter: i for i, letter in enumerate(sorted(set("A photo depicts " + "".join(NAMES))))}
    size = len(letters) + 2
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "projection_dim": 8}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, "vocab_size": size, "max_position_embeddings": 50, "bos_token_id": size - 2,
                     "eos_token_id": size - 1, "pad_token_id": size - 1},
        vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8,
    )  # fmt: skip
    network = CLIPModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(5)  # so that two vectors are not nearly alike
    network.save_pretrained(folder)
    if text:
        start, end = ("<|startoftext|>", size - 2), ("<|endoftext|>", size - 1)
        tokenizer = Tokenizer(models.WordLevel(letters | dict([start, end])))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.post_processor = processors.TemplateProcessing(f"{start[0]} $A {end[0]}", None, [start, end])
        tokenizer.add_special_tokens([start[0], end[0]])
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def text_encoder(width: int = 8, pooler: bool = False) -> TextEncoder:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=LETTERS.get_vocab_size(), hidden_size=width, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=8, max_position_embeddings=40)  # fmt: skip
    return TextEncoder(BertModel(config, add_pooling_layer=pooler), width, longest=40)


def model(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    image = ImageEncoder(3, widths=(8, 16), groups=4)
    built = DualEncoder(image, text_encoder(), width=6, **{"objective": InfoNCE(), "text_hidden": 4, **options}).eval()
    built.tokenizer = LETTERS
    return built


class Pictures(Source):
    """A picture for each of NAMES."""

    def __init__(self, which: Tensor) -> None:
        self.which = which

    def __len__(self) -> int:
        return len(self.which)

    def batch(self, ids: Tensor, epochs: Tensor) -> Any:
        captions = padded([LETTERS.encode(name).ids for name in NAMES])
        return {"image": pictures()[self.which[ids]], "caption": captions[self.which[ids]]}

    def references(self, ids: Tensor) -> list[list[str]]:
        return [[NAMES[i], "another name"] for i in self.which[ids].tolist()]

    def select(self, ids: Any) -> Source:
        raise AssertionError("it is not cut")


def pictures(size: int = 16) -> Tensor:
    return torch.randint(0, 256, (len(NAMES), 3, size, size), generator=torch.Generator().manual_seed(1)).byte()


def data(split: list[int] | None = None) -> Any:
    """`test` has some of the pictures, `train` all; without facts of captions where `split` is None."""
    ids = {"train": torch.arange(len(NAMES)), "test": torch.tensor(split or [0, 2, 3, 5])}
    manifest = SimpleNamespace(
        name="pictures", modality="image", splits=tuple(ids), identity=lambda split: f"sha of {split}", facts={}
    )
    return SimpleNamespace(
        name="pictures", manifest=manifest, tokenizer=LETTERS, source=lambda split: Pictures(ids[split]),
        facts=lambda split: [FACTS[i] for i in ids[split].tolist()],
        finish=lambda batch, split: {**batch, "image": to_float(batch["image"])},
    )  # fmt: skip


def test_vectors_have_length_one_and_depend_on_no_other_row() -> None:
    ours, batch = model(), data().source("train").batch(torch.arange(6), torch.arange(6))
    image, text = ours.image_features(to_float(batch["image"])), ours.text_features(batch["caption"])
    for rows, one in ((image, ours.image_features(to_float(batch["image"][2:3]))),
                      (text, ours.text_features(batch["caption"][2:3, :20]))):  # fmt: skip
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(rows[2:3], one, rtol=1e-4, atol=1e-6)
        assert (rows[2] - rows[1]).abs().max() > 1e-3
    losses = ours.losses({"image": to_float(batch["image"]), "caption": batch["caption"], "id": torch.arange(6)})
    expected = info_nce(image, text, [0, 1, 2, 3, 4, 0], 1 / 0.07)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert set(losses) == {"loss", "image_to_text_r1", "text_to_image_r1"}


def test_augmented_in_training_alone() -> None:
    seen: list[Tensor] = []

    def augment(x: Tensor, keys: Tensor) -> Tensor:
        seen.append(keys)
        return -x

    ours, batch = model(augment=augment), {"image": vectors(6, 3 * 16 * 16).view(6, 3, 16, 16)}
    batch |= {"caption": padded([LETTERS.encode(name).ids for name in NAMES]), "id": torch.arange(6),
              "position": torch.arange(6) + 60}  # fmt: skip
    ours.losses(batch)
    assert not seen
    ours.train().losses(batch)
    assert torch.equal(seen[0], ours.keys(batch))


def test_a_frozen_encoder_reads_each_caption_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path / "cache"))
    text_encoder(pooler=True).network.save_pretrained(tmp_path / "bert")  # type: ignore[union-attr, operator]
    ours = model()
    ours.text = TextEncoder(FrozenPart(str(tmp_path / "bert")), 8, longest=40)
    attached: dict[str, Tensor] = {}
    source = data()
    source.attach = lambda split, name, rows: attached.update({split: rows})
    source.manifest.splits, source.source = ("train", "val"), lambda split: Pictures(torch.arange(6))
    ours.prepare(source, CPU)
    caption = padded([LETTERS.encode(name).ids for name in NAMES])
    with torch.no_grad():
        torch.testing.assert_close(attached["train"], ours.text(caption, LETTERS).pooled)
    monkeypatch.setattr(TextEncoder, "forward", lambda *_: pytest.fail("it is not asked again"))
    again: dict[str, Tensor] = {}
    source.attach = lambda split, name, rows: again.update({name: rows})
    ours.prepare(source, CPU)  # from the cache
    batch = {"image": to_float(pictures()), "caption": caption, "id": torch.arange(6), **again}
    assert torch.equal(again["text_pooled"], attached["val"])
    assert ours.losses(batch)["loss"].isfinite()
    assert not [name for name in ours.state_dict() if name.startswith("text.")]


def test_a_vision_model_of_a_folder(tmp_path: Path) -> None:
    from transformers import CLIPVisionModel

    folder = clip_folder(tmp_path / "clip", text=False)
    images = to_float(pictures(16))
    encoder = VisionModel(
        FrozenPart(str(folder), "vision_model"), 16, size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    pixels = (pictures(16) / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = CLIPVisionModel.from_pretrained(folder).eval()(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-4)
    assert encoder(images[:2, :1, :9, :12]).shape == (2, 16)  # grey, and of another size
    assert not list(encoder.parameters())
    with pytest.raises(ConfigError, match=r"output has 16 numbers; set model\.image\.width=16"):
        VisionModel(FrozenPart(str(folder), "vision_model"), 12)
    with pytest.raises(ConfigError, match=r"model\.image\.groups=8 does not divide the widths \[12, 24\]"):
        ImageEncoder(3, widths=(12, 24))


def test_items_that_it_cannot_read_are_refused(tmp_path: Path) -> None:
    ours, source = model(), data()
    source.tokenizer = Alphabet("abcdefghijklmnopqrstuvwxyz, ").tokenizer()
    words = f"model.text knows {LETTERS.get_vocab_size()} tokens, data=pictures has 28; give it as many"
    with pytest.raises(ConfigError, match=re.escape(words)):
        ours.check_items(source)
    folder = tmp_path / "bert"
    text_encoder(pooler=True).network.save_pretrained(folder)  # type: ignore[union-attr, operator]
    LETTERS.save(str(folder / "tokenizer.json"))
    ours.text = TextEncoder(FrozenPart(str(folder)), 8, longest=40)
    ours.check_items(data())
    words = f"of {folder} has learned other tokens than those of data=pictures: set data.vocabulary={folder}"
    with pytest.raises(ConfigError, match=re.escape(words)):
        ours.check_items(source)
    bare = SimpleNamespace(name="bare", source=lambda _: SimpleNamespace(batch=lambda *_: {"image": pictures()}))
    with pytest.raises(ConfigError, match="its items have no caption, only image; DualEncoder reads image and caption"):
        ours.check_items(bare)


# ---- retrieval


def test_places_are_those_of_a_sorted_list() -> None:
    rows, columns = vectors(40), vectors(30, seed=1)
    columns[7], columns[8] = columns[3], columns[4]  # ties
    right = torch.rand(40, 30, generator=torch.Generator().manual_seed(2)) < 0.1
    right[torch.arange(40), torch.arange(40) % 30] = True
    near = rows @ columns.T
    for i, place in enumerate(places(rows, columns, right).tolist()):
        order = sorted(range(30), key=lambda j: (-round(float(near[i, j]), 5), bool(right[i, j])))
        assert place == 1 + next(k for k, j in enumerate(order) if right[i, j])
    alike = places(rows[:1].expand(5, -1), rows[:1].expand(5, -1), torch.eye(5, dtype=torch.bool))
    assert alike.tolist() == [5] * 5, "vectors that are all alike find nothing"


@pytest.mark.parametrize("captions", ["split", "all"])
def test_retrieval(captions: Any) -> None:
    """Pictures 0, 2, 3 and 5, of which the first and the last have one caption."""
    ours, source = model(), data()
    protocol = Protocol(metrics={"retrieval": Retrieval(captions, batch=3)}, reference_split="test")
    record = evaluate(ours, source, protocol, progress=False)
    images = ours.image_features(to_float(pictures())).detach()[[0, 2, 3, 5]]
    names = list(dict.fromkeys(NAMES))
    gallery = {name: ours.text_features(padded([LETTERS.encode(name).ids])).detach()[0] for name in names}
    asked = [NAMES[i] for i in (0, 2, 3, 5)]
    among = dict.fromkeys(asked) if captions == "split" else gallery
    right = [
        sum(image @ gallery[other] >= image @ gallery[name] for other in among if other != name) < 1
        for image, name in zip(images, asked, strict=True)
    ]
    found = []
    for name in dict.fromkeys(asked):
        best = max(float(image @ gallery[name]) for image, own in zip(images, asked, strict=True) if own == name)
        found.append(all(float(i @ gallery[name]) < best for i, own in zip(images, asked, strict=True) if own != name))
    suffix = "test" if captions == "split" else "test_all"
    values = record["values"]
    assert values[f"image_to_text_r1_{suffix}"] == pytest.approx(sum(right) / 4)
    assert values[f"text_to_image_r1_{suffix}"] == pytest.approx(sum(found) / 3)
    assert values[f"image_to_text_r5_{suffix}"] == values[f"text_to_image_r5_{suffix}"] == 1
    assert record["reference"]["captions"] == {"split": 3, "all": 5}[captions]
    assert record["reference"]["items"] == 4


# ---- judged pictures


def judged(judge: Any, split: str = "test") -> dict[str, Any]:
    protocol = Protocol(metrics={"dual_score": DualScore(judge)}, reference_split="test", floor=False)
    source = data()
    return evaluate_samples(
        lambda wanted: items_from(source, split, wanted), source, protocol, device=CPU, progress=False
    )


class Known(DualJudge):
    """Knows the vectors of names, and takes a picture for that of a name by its place."""

    def __init__(self, taken_for: list[int]) -> None:
        super().__init__("known")
        self.taken_for = taken_for

    encoder: Any = SimpleNamespace(sha256="abc")

    def image_features(self, images: Tensor) -> Tensor:
        which = [next(i for i, known in enumerate(pictures()) if torch.equal(image, known)) for image in images]
        return self.text_features([NAMES[self.taken_for[i]] for i in which])

    def text_features(self, texts: Any) -> Tensor:
        return torch.eye(6)[[NAMES.index(text) for text in texts]]


def test_shape_and_tone_are_those_of_the_nearest_name() -> None:
    """Of the pictures 0, 2, 3 and 5 the first is taken for a blue heart, the second for one of another tone."""
    record = judged(Known([1, 1, 3, 3, 4, 5]))
    values = {name.removesuffix("_4_test.proxy"): value for name, value in record["values"].items()}
    assert values["dual_score"] == values["dual_r1"] == 0.5
    assert values["dual_shape"] == 0.75
    assert values["dual_tone"] == 0.5, "of the two that are to have a tone"
    assert all(values[f"real_{name}"] == values[name] for name in ("dual_score", "dual_r1", "dual_shape", "dual_tone"))
    assert record["protocol"]["metrics"]["dual_score"]["judge"] == "dual encoder, sha256 abc"
    assert record["notes"] == ["dual_score: among 5 captions, by a dual encoder, sha256 abc"]
    json.dumps(record)


def test_clip_score_is_that_of_transformers(tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = clip_folder(tmp_path / "clip")
    judge = DualJudge(str(folder), batch=4, device="cpu")
    record = judged(judge, "train")
    tokenizer, network = Tokenizer.from_file(str(folder / "tokenizer.json")), CLIPModel.from_pretrained(folder).eval()
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.48145466, 0.4578275, 0.40821073],
                                                          [0.26862954, 0.26130258, 0.27577711]))  # fmt: skip
    names = list(dict.fromkeys(NAMES))
    encoded = [tokenizer.encode(f"A photo depicts {name}").ids for name in names]
    ids = torch.tensor([row + [row[-1]] * (50 - len(row)) for row in encoded])  # CLIP's own padding
    with torch.no_grad():
        out = network(input_ids=ids, pixel_values=(pictures() / 255 - mean) / std)
        cosine = out.logits_per_image / network.logit_scale.exp()
    own = [names.index(name) for name in NAMES]
    values = record["values"]
    expected = 2.5 * cosine[torch.arange(6), own].clamp(min=0).double()
    assert values["clip_score_6_test.proxy"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert 0 < int((expected == 0).sum()) < 6, "some cosines are negative"
    assert values["clip_r1_6_test.proxy"] == pytest.approx(
        float((cosine.argmax(1) == torch.tensor(own)).float().mean())
    )
    scores = judge(Samples(Image(), pictures()), {"caption": NAMES})
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert f"clip encoder, sha256 {judge.encoder.sha256}, prefix 'A photo depicts '" == judge.name
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.json there; save CLIP's fast tokenizer"):
        judged(DualJudge(str(folder), device="cpu"))


class Painter(GenerativeModel):
    """Paints the picture of a caption, but for a wave without a tone when another is asked for."""

    chunk_size = 2
    conditions = (Caption(),)

    def losses(self, batch: Any) -> Any:
        raise AssertionError("it is not trained")

    def generate(self, seeds: Tensor, condition: Any, sampler: Any) -> Tensor:
        asked = self.shown(condition)["caption"]
        return to_float(pictures()[[4 if name.startswith("wave") else NAMES.index(name) for name in asked]])


def test_generated_pictures_are_judged_by_what_they_were_asked_to_be() -> None:
    painter = Painter()
    painter.tokenizer = LETTERS
    protocol = Protocol(metrics={"dual_score": DualScore(Known([0, 1, 2, 3, 4, 0]))}, floor=False)
    record = evaluate(painter, data(), protocol, progress=False)
    values = {name.removesuffix("_4_test.proxy"): value for name, value in record["values"].items()}
    expected = {"dual_score": 0.5, "dual_r1": 0.5, "dual_shape": 1.0, "dual_tone": 0.0}
    assert values == expected | {f"real_{name}": 1.0 for name in expected}
    assert record["generated"]["caption"] == "of test"


# ---- a run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    trained = new_run(small_run("model=dual_encoder", tmp_path_factory.mktemp("dual")))
    assert work(trained) == 0, log(trained)
    return trained


def test_a_run_is_a_judge(run: RunDirectory) -> None:
    loaded = load_run(run.path, device="cpu")
    source, ours = loaded.data(), loaded.model
    judge = DualJudge(str(run.path), device="cpu", batch=7)
    protocol = Protocol(metrics={"dual_score": DualScore(judge)}, reference_split="val", floor=False)
    record = evaluate_samples(lambda wanted: items_from(source, "val", wanted), source, protocol, device=CPU,
                              progress=False)  # fmt: skip
    items = source.source("val").batch(torch.arange(6), torch.zeros(6, dtype=torch.int64))
    with torch.no_grad():
        image, text = ours.image_features(to_float(items["image"])), ours.text_features(items["caption"])  # type: ignore[operator]
    values = record["values"]
    assert values["dual_score_6_val.proxy"] == pytest.approx(float((image * text).sum(1).mean()), abs=1e-5)
    assert values["real_dual_score_6_val.proxy"] == values["dual_score_6_val.proxy"]
    assert record["missing"]["dual_tone_6_val.proxy"] == "the data tells nothing of it"
    assert judge.name.startswith(f"dual encoder, sha256 {judge.encoder.sha256}")
    assert DualJudge(str(run.path), "raw", device="cpu").encoder.sha256 != judge.encoder.sha256
    with pytest.raises(ConfigError, match=r"reads images \[3, 64, 64\], these are \[3, 16, 16\]"):
        judge.image_features(pictures())
    with pytest.raises(ConfigError, match="judges pictures by their captions: these have none"):
        judge(Samples(Image(), pictures()), {"label": [0] * 6})


def test_from_the_command_line(run: RunDirectory, tmp_path: Path) -> None:
    done = command("evaluate.py", f"run={run.path}", "evaluation=retrieval_test", "evaluation.reference_split=val",
                   "evaluation.metrics.retrieval.captions=all", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.output
    record = json.loads((run.path / "evaluation" / "retrieval_val_all.json").read_text())
    assert set(record["values"]) == {f"{name}_val_all" for name in Retrieval.outputs}
    assert record["model"]["frozen"].keys() == {"model.text.network"}
    root = load_run(run.path, device="cpu").config.data.root
    words = ("evaluate.py", "samples=val", "data=captioned_folder", f"data.root={root}", "data.tokenizer=characters",
             "data.vocab_size=19", "evaluation=dual_score_test", "evaluation.reference_split=val",
             "data.batch_size=8", "out=judged.json")  # fmt: skip
    done = command(*words, f"evaluation.metrics.dual_score.judge.path={run.path}", folder=tmp_path)
    assert done.code == 0, done.output
    assert json.loads((tmp_path / "judged.json").read_text())["values"]["dual_score_6_val.proxy"] is not None
    command(*words, folder=tmp_path).line(2, "set judge.path to a run of a dual encoder")


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    folder = make_pretrained(tmp_path / "gpt2", LETTERS.get_vocab_size())
    LETTERS.save(str(folder / "tokenizer.json"))
    with pytest.raises(ConfigError, match="AutoregressiveModel has no vectors of images and texts; name a run of"):
        judged(DualJudge(str(folder), device="cpu"))
    protocol = Protocol(metrics={"retrieval": Retrieval()})
    with pytest.raises(ConfigError, match=r"Painter cannot give a retrieval, it has no image_features\(\)"):
        evaluate(Painter(), data(), protocol, progress=False)
    bare = data()
    bare.source = lambda split: SimpleNamespace(references=lambda ids: None)
    with pytest.raises(ConfigError, match="the pictures of pictures have no captions; take data that have"):
        evaluate(model(), bare, protocol, progress=False)
