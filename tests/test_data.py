"""The stream of positions, batches, splits, the resident path and the loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import cache as cache  # imports genlab, so it comes before Lightning
from data_files import module, npz, same
from pytorch_lightning import LightningModule, Trainer

from genlab.data.order import Order, micro_batches, permutation, shards
from genlab.errors import ConfigError


def test_permutation_is_fixed_for_ever() -> None:
    assert permutation(10, seed=3, epoch=1).tolist() == [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]
    assert sorted(permutation(1000, 0, 0)) == list(range(1000))
    assert not np.array_equal(permutation(1000, 0, 0), permutation(1000, 0, 1))
    assert not np.array_equal(permutation(1000, 0, 0), permutation(1000, 1, 0))
    assert not np.array_equal(permutation(1000, 1, 0), permutation(1000, 0, 1))


@pytest.mark.parametrize("start", [0, 1, 6, 17, 18, 40])
def test_every_id_once_an_epoch_and_resume_from_anywhere(tmp_path: Path, start: int) -> None:
    data = module(tmp_path)
    n = len(data.source("train"))
    assert n == 18  # 23 without 20 %; batches of 6 divide it only by straddling when start does not
    ids = torch.cat([b["id"] for b in data.batches(data.train_loader(start, start + 10 * n))])
    whole = torch.cat([b["id"] for b in data.batches(data.train_loader(0, 20 * n))])
    assert torch.equal(ids, whole[start : start + len(ids)])
    for epoch in range(20):
        assert sorted(whole[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_batches_straddle_epochs_and_none_is_partial(tmp_path: Path) -> None:
    data = module(tmp_path, batch_size=7)
    loader = data.train_loader(0, 50)
    batches = list(data.batches(loader))
    assert len(batches) == len(loader) == 8  # 50 rounded up to whole batches
    assert {len(b["id"]) for b in batches} == {7}
    assert torch.equal(torch.cat([b["position"] for b in batches]), torch.arange(56))
    straddling = batches[2]
    assert straddling["position"].tolist() == [14, 15, 16, 17, 18, 19, 20]
    order = Order(18, seed=5)
    assert straddling["id"].tolist() == [*permutation(18, 5, 0)[14:], *permutation(18, 5, 1)[:3]]
    assert torch.equal(order.ids(14, 40), torch.cat([order.ids(14 + i, 1) for i in range(40)]))


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3), (3, 2)])
def test_ranks_and_accumulation_cover_the_same_positions(tmp_path: Path, world: int, accumulation: int) -> None:
    data = module(tmp_path, batch_size=12)
    one = list(data.batches(data.train_loader(12, 60)))
    loaders = [data.train_loader(12, 60, accumulation=accumulation, rank=r, world_size=world) for r in range(world)]
    assert {len(loader) for loader in loaders} == {4 * accumulation}
    ranks = [list(data.batches(loader)) for loader in loaders]
    for step, batch in enumerate(one):
        micro = [ranks[r][step * accumulation + m] for m in range(accumulation) for r in range(world)]
        assert same(batch, {key: torch.cat([part[key] for part in micro]) for key in batch})


@pytest.mark.faults(21)
def test_batch_that_cannot_be_divided_or_is_larger_than_the_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size=6 .*trainer.devices.*accumulate_grad_batches = 2 x 2"):
        module(tmp_path).train_loader(0, 60, accumulation=2, world_size=2)
    with pytest.raises(ConfigError, match=r"batch_size=2 .*= 3 x 1"):
        module(tmp_path, batch_size=2).train_loader(0, 60, world_size=3)
    with pytest.raises(ConfigError, match="batch_size=19 is larger than the train split of 'tiny', which has 18"):
        module(tmp_path, batch_size=19).setup()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 100, 101])
@pytest.mark.parametrize("batch", [1, 3, 10, 1000])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards(n: int, batch: int, world: int) -> None:
    if n < world:
        return
    parts = [shards(n, batch, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert all(hi > lo for part in parts for lo, hi in part)
    assert sum(hi - lo for lo, hi in next(zip(*parts, strict=True))) <= max(batch, 2 * world)
    ids = [i for step in zip(*parts, strict=True) for lo, hi in step for i in range(lo, hi)]
    assert ids == list(range(n))


def test_validation_is_each_id_once_over_the_ranks(tmp_path: Path) -> None:
    data = module(tmp_path, val_batch_size=2, limit_val=4)
    assert len(data.source("val")) == 5
    one = torch.cat([b["id"] for b in data.batches(data.eval_loader("val"))])
    assert one.tolist() == [0, 1, 2, 3]
    three = [list(data.batches(data.eval_loader("val", rank=r, world_size=3))) for r in range(3)]
    assert sorted(i for rank in three for b in rank for i in b["id"].tolist()) == [0, 1, 2, 3]
    assert all(torch.equal(b["position"], b["id"]) for rank in three for b in rank)
    assert torch.cat([b["id"] for b in data.batches(data.eval_loader("test"))]).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"4 items for trainer\.devices=5"):
        data.eval_loader("val", world_size=5)


def test_len_and_start_follow_the_counter(tmp_path: Path) -> None:
    seen = 12
    data = module(tmp_path)
    loader = data.train_loader(lambda: seen, 36)
    assert len(loader) == 4
    assert next(iter(loader))["position"][0] == 12
    seen = 36
    assert list(loader) == []
    assert list(micro_batches(40, 36, 6)) == []


# ---- resident and loader


@pytest.mark.parametrize("workers", [0, 2])
def test_resident_equals_loader_bit_for_bit(tmp_path: Path, workers: int) -> None:
    path = npz(tmp_path)
    resident, loader = module(tmp_path, path=path), module(tmp_path, path=path, resident_max=0, num_workers=workers)
    assert resident.resident("train")
    assert not loader.resident("train")
    assert set(next(iter(resident.train_loader(0, 6)))) == {"id", "position", "_split"}
    for split in ("train", "val"):
        a, b = (d.train_loader(7, 70) if split == "train" else d.eval_loader("val") for d in (resident, loader))
        pairs = list(zip(resident.batches(a), loader.batches(b), strict=True))
        assert len(pairs) == len(a) == len(b)
        assert all(same(x, y) for x, y in pairs)
        image, label = pairs[-1][0]["image"], pairs[-1][0]["label"]
    assert image.dtype == torch.float32
    assert image.shape == (5, 3, 4, 6)
    assert label.dtype == torch.int64
    assert -1 <= image.min() <= image.max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_leaves_the_global_generator_alone(tmp_path: Path, workers: int) -> None:
    data = module(tmp_path, resident_max=0, num_workers=workers)
    before = torch.get_rng_state()
    list(data.batches(data.train_loader(0, 36)))
    list(data.batches(data.eval_loader("val")))
    assert torch.equal(before, torch.get_rng_state())


def test_flip_is_a_function_of_seed_epoch_and_id(tmp_path: Path) -> None:
    path = npz(tmp_path, n=400)
    plain, flipped = module(tmp_path, path=path, random_flip=False), module(tmp_path, path=path)
    n = len(plain.source("train"))
    choice: dict[int, list[bool]] = {}
    for a, b in zip(
        plain.batches(plain.train_loader(0, 2 * n)), flipped.batches(flipped.train_loader(0, 2 * n)), strict=True
    ):
        for i, x, y in zip(a["id"].tolist(), a["image"], b["image"], strict=True):
            assert torch.equal(y, x) or torch.equal(y, x.flip(-1))
            choice.setdefault(i, []).append(not torch.equal(y, x))
    first, second = (np.array([choice[i][e] for i in range(n)]) for e in range(2))
    assert 0.4 < first.mean() < 0.6
    assert 0.4 < (first == second).mean() < 0.6
    for a, b in zip(plain.batches(plain.eval_loader("val")), flipped.batches(flipped.eval_loader("val")), strict=True):
        assert same(a, b)


class Recorder(LightningModule):
    """The least that the data asks of a model; remembers ids."""

    def __init__(self, seen: int, stop: int, accumulation: int) -> None:
        super().__init__()
        self.samples_seen, self.max_samples, self.accumulation = seen, stop, accumulation
        self.layer = torch.nn.Linear(1, 1)
        self.train_ids: list[int] = []
        self.val_ids: list[int] = []

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        assert set(batch) == {"id", "position", "image", "label"}
        self.train_ids += batch["id"].tolist()
        if (index + 1) % self.accumulation == 0:
            self.samples_seen += len(batch["id"]) * self.accumulation
        return self.layer(batch["image"].mean((1, 2, 3))[:, None]).mean()

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        self.val_ids += batch["id"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("resident_max", [0, 10**9])
def test_under_a_trainer(tmp_path: Path, resident_max: int) -> None:
    data, model = module(tmp_path, resident_max=resident_max), Recorder(12, 48, 2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    assert model.samples_seen == 48
    assert model.train_ids == Order(18, 5).ids(12, 36).tolist()
    assert model.val_ids == list(range(5))


# ---- rows computed once


@pytest.mark.parametrize("resident_max", [0, 1000, 10**9])  # nothing, rows alone, all on the device
def test_attached_rows_come_with_their_items_and_change_nothing_else(tmp_path: Path, resident_max: int) -> None:
    path = npz(tmp_path)
    plain, data = (module(tmp_path, path=path, resident_max=resident_max) for _ in range(2))
    n, held = len(data.source("train")), len(data.source("val"))
    rows = torch.from_numpy(np.memmap(tmp_path / "rows", np.float32, "w+", shape=(n, 2, 3)))
    rows.copy_(torch.rand(n, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert (data.attached("train"), data.attached("val")) == ((), ())
    data.attach("train", "latent", rows)
    data.attach("train", "number", torch.arange(n))
    data.attach("val", "latent", torch.arange(held) + 0.5)
    assert (data.attached("train"), data.attached("test")) == (("latent", "number"), ("latent",))  # an alias of val
    for split in ("train", "val", "test"):
        a, b = (d.train_loader(7, 70) if split == "train" else d.eval_loader(split) for d in (plain, data))
        for before, batch in zip(plain.batches(a), data.batches(b), strict=True):
            latent = batch.pop("latent")
            assert torch.equal(latent, rows[batch["id"]] if split == "train" else batch["id"] + 0.5)
            assert split != "train" or torch.equal(batch.pop("number"), batch["id"])
            assert same(before, batch)
    with pytest.raises(AssertionError, match="5 rows for the 18 items of train"):
        data.attach("train", "latent", torch.zeros(5))
    data.attach("val", "image", torch.zeros(held))
    with pytest.raises(AssertionError, match="image: batches of tiny have that already"):
        next(iter(data.batches(data.eval_loader("val"))))


def test_attached_rows_are_there_after_a_resume(tmp_path: Path) -> None:
    data = module(tmp_path)
    data.attach("train", "number", 10 * torch.arange(18))
    whole = list(data.batches(data.train_loader(0, 60)))
    again = list(data.batches(data.train_loader(24, 60)))
    assert all(same(a, b) for a, b in zip(whole[4:], again, strict=True))
    assert all(torch.equal(batch["number"], 10 * batch["id"]) for batch in again)
