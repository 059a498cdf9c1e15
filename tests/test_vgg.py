"""What VGG16 sees in pictures: by itself, as the locked tower of a dual encoder, as the states of a captioner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_captioner
import test_dual_encoder
import torch
from runs import vgg_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from genlab.data.augment import Augment
from genlab.errors import ConfigError
from genlab.modality import to_float
from genlab.models.captioner import Captioner
from genlab.models.dual_encoder import DualEncoder
from genlab.networks.frozen import frozen_parts
from genlab.networks.image_encoder import Components
from genlab.networks.image_states import GridStates
from genlab.networks.vgg import VGG16Grid
from genlab.objectives.contrastive import InfoNCE

CPU = torch.device("cpu")


def grid(layers: list[int] | None = None, size: int = 2) -> VGG16Grid:
    return VGG16Grid(layers or [2, 3], size, vgg_weights())


def pictures(count: int, size: int = 16) -> Tensor:
    return 2 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) - 1


def test_cells_are_means_of_features_of_length_one() -> None:
    seen, x = grid([3, 1]), pictures(3)
    assert (seen.width, seen.settings) == (3 + 5, [[1, 3], 2])
    maps = seen.features(x)
    for cell, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        expected = []
        for layer in (0, 2):
            part = maps[layer].unflatten(2, (2, -1)).unflatten(4, (2, -1))[:, :, row, :, column]
            expected.append(nn.functional.normalize(part, dim=1).mean((2, 3)))
        torch.testing.assert_close(seen(x)[:, cell], torch.cat(expected, 1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen(x[1:2]), seen(x)[1:2], rtol=1e-4, atol=1e-6)
    assert not seen.state_dict()


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    rows = torch.randn(40, 20, generator=torch.Generator().manual_seed(1)) * torch.linspace(3, 0.1, 20) + 1
    for evenness in (0.0, 0.5, 1.0):
        tower = Components(VGG16Grid([1, 2], 1, vgg_weights()), 5, evenness)
        tower.mean, tower.axes = torch.zeros(20), torch.zeros(20, 5)
        assert not tower.fitted
        state = torch.get_rng_state()
        tower.fit(rows)
        assert torch.equal(state, torch.get_rng_state())
        u, spread, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        expected = (u * spread)[:, :5] * (spread[:5] / spread[0]) ** -evenness
        torch.testing.assert_close(tower.project(rows).abs(), expected.abs(), rtol=1e-2, atol=1e-2)
        assert tower.fitted


def locked(width: int = 4, **options: Any) -> DualEncoder:
    torch.manual_seed(0)
    built = DualEncoder(Components(grid(), 4), test_dual_encoder.text_encoder(), width, InfoNCE(), 4, **options)
    built.tokenizer = test_dual_encoder.LETTERS
    return built


def prepared(model: Any) -> dict[str, dict[str, Tensor]]:
    """What a model attaches to each split of six pictures."""
    attached: dict[str, dict[str, Tensor]] = {"train": {}, "val": {}}
    source = test_dual_encoder.data()
    source.attach = lambda split, name, rows: attached[split].update({name: rows})
    source.manifest.splits = ("train", "val")
    source.source = lambda split: test_dual_encoder.Pictures(torch.arange(6))
    model.prepare(source, CPU)
    return attached


def test_a_locked_tower_is_measured_once_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    model = locked().train()
    rows = prepared(model)["train"]
    images = to_float(test_dual_encoder.pictures())
    vectors = nn.functional.normalize(rows["image_vector"], dim=1)
    torch.testing.assert_close(vectors, model.image_features(images), rtol=1e-2, atol=1e-2)  # kept in half precision
    assert frozen_parts(model)["model.image.network"].sha256 == model.image.network.sha256  # type: ignore[union-attr]

    batch = test_dual_encoder.Pictures(torch.arange(6)).batch(torch.arange(6), torch.arange(6))
    batch |= {"image": images, "id": torch.arange(6), "position": torch.arange(6), **rows}
    bare = {name: value for name, value in batch.items() if name != "image_vector"}
    model.eval()
    torch.testing.assert_close(model.losses(batch)["loss"], model.losses(bare)["loss"], rtol=1e-2, atol=1e-2)
    model.train().losses(batch)["loss"].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained >= {"text_projection.0.weight"}
    assert not [name for name in trained if name.startswith("image")]

    other = locked()
    other.load_state_dict(model.state_dict())
    axes = other.image.axes.clone()  # type: ignore[union-attr, operator]
    prepared(other)  # a run that goes on
    assert torch.equal(other.image.axes, axes)  # type: ignore[arg-type]


def test_captions_of_what_is_seen_once_are_those_of_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENLAB_DATA", str(tmp_path))
    encoder = GridStates(Components(grid(), 4), 32, whole=3).eval()
    model = Captioner(encoder, test_captioner.parts()[1], [3, 16, 16], test_captioner.CONTEXT).eval()
    model.tokenizer = test_captioner.tokenizer()
    assert encoder.grid == (2, 2)
    rows = prepared(model)["train"]["features"]
    images = to_float(test_dual_encoder.pictures())
    torch.testing.assert_close(encoder.states(rows), encoder(images), rtol=1e-2, atol=1e-2)
    assert encoder(images).shape == (6, 3 + 4, 32)
    assert frozen_parts(model)["model.encoder.seen.network"].source == "lpips"
    caption = torch.tensor([[5, 6, -1]] * 6)
    batch = {"image": images, "caption": caption, "id": torch.arange(6)}
    once = model.losses({**batch, "features": rows})["loss"]
    torch.testing.assert_close(once, model.losses(batch)["loss"], rtol=1e-2, atol=1e-2)
    attention = model.attention(batch)
    assert attention[0][0].shape == (3, 2, 2)
    assert 0 < attention[0][0].sum(dim=(1, 2)).max() < 1  # the rest is of the whole picture

    torch.manual_seed(0)
    hidden = GridStates(Components(grid(), 4), 32, dropout=0.0, hidden=0.5).train().states(rows.repeat(50, 1))
    cells = hidden[:, 4:].flatten(1).abs().sum(1) == 0
    assert 0.4 < cells.float().mean() < 0.6
    assert (hidden[:, :4].abs().sum((1, 2)) > 0).all()

    model.augment = Augment()
    assert not prepared(model)["train"]  # pictures that change are seen at each step


def test_words_that_are_hidden_are_read_as_padding() -> None:
    model = test_captioner.model(word_dropout=0.5)
    batch = test_captioner.batch_of() | {"caption": torch.arange(2, 14).repeat(12, 1), "id": torch.arange(12)}
    plain = torch.cat([torch.zeros(12, 1), torch.arange(2, 14).repeat(12, 1)], 1).long()
    assert torch.equal(model.before(batch), plain)
    seen = model.train().before(batch)
    hidden = seen[:, 1:] != plain[:, 1:]
    assert 0.35 < hidden.float().mean() < 0.65
    assert (seen[:, 1:][hidden] == model.pad).all()
    later = model.before({**batch, "position": batch["position"] + 12})
    assert torch.equal(seen, model.before(batch))
    assert not torch.equal(seen, later)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layers=\[0, 2\] of VGG16: choose from 1 \(relu1_2\) to 5 \(relu5_3\)"):
        grid([0, 2])
    with pytest.raises(ConfigError, match="no file nowhere"):
        VGG16Grid(weights="nowhere")
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(ConfigError, match="other is no safetensors file"):
        VGG16Grid(weights=str(tmp_path / "other"))
    save_file({"head": torch.zeros(1)}, tmp_path / "head")
    with pytest.raises(ConfigError, match=r"head has no features\.0\.weight, as torchvision names it"):
        VGG16Grid(weights=str(tmp_path / "head"))
    with pytest.raises(ConfigError, match="images of 4x4: VGG16's grid needs 8x8"):
        grid()(pictures(1, 4))
    with pytest.raises(ConfigError, match=r"model\.image is locked: set model\.width=4 and model\.augment=null"):
        locked(width=5)
    with pytest.raises(ConfigError, match=r"model\.image is locked"):
        locked(augment=Augment())
    with pytest.raises(ConfigError, match=r"model\.image\.width=4 components of 3 images of training; lower it"):
        Components(grid(), 4).fit(torch.zeros(3, 36))
