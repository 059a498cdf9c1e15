"""Rows 41 to 44 of the faults: parts that do not fit each other, pictures that cannot be made, arguments of others."""

from __future__ import annotations

import errno
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command, runs_in, train_arguments
from omegaconf import OmegaConf
from PIL import Image
from runs import ROOT, SMALL, compose_train, log, make_images, new_run, small_run, work

from genlab.cli.build import build_data, build_model
from genlab.cli.compose import compose_config
from genlab.cli.problem import leaves
from genlab.data.images import UserDataset
from genlab.drawing import guarded
from genlab.errors import ConfigError, StorageError
from genlab.evaluation.latents import Panels

CONF = ROOT / "conf"
IMAGES = ("data=npz", "data.path=x.npz", "data.shape=[1,28,28]", "data.num_classes=10")

# ---- 41: told by the configuration alone, before torch is imported


@pytest.mark.faults(41)
@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["model=ddpm", "sampler=latent"], ("LatentSampler", "DiffusionModel", "sampler=ddim_50")),
        (["model=flow", "sampler=nucleus", "trainer=debug"], ("TokenSampler", "sampler=ddim_50")),
        (["model=gan", "sampler=ddim_50"], ("DDIM", "GAN", "sampler=latent")),
        (["model=vae", "sampler=dpmpp_20"], ("DPMSolverPP", "VAE", "sampler=latent")),
        (["model=gan", "~sampler"], ("is not there", "sampler=latent")),
        (["model=gpt", "sampler=unmasking"], ("Unmasking", "sampler=nucleus")),
        (["model=text_vae", "sampler=latent"], ("LatentSampler", "TextVAE", "sampler=nucleus")),
        (["model=masked_diffusion", "sampler=beam_5"], ("BeamSearch", "MaskedModel", "sampler=unmasking")),
        (["model=ddpm", "evaluation=text_likelihood"], ("text_likelihood", "judges text", "makes image")),
        (["model=gpt", "evaluation=fid_1k_test.proxy"], ("judges image", "makes text")),
        (["model=gpt", "model.network.config.n_head=3"], ("n_head", "n_embd=128", "Take 2")),
        (["model=llama", "model.network.config.num_attention_heads=6"], ("hidden_size=128", "Take 4")),
        (["model=seq2seq", "model.network.config.d_model=30"], ("attention_heads", "d_model=30", "Take 3")),
        (["model=gpt", "model.network.config.vocab_size=50"], ("vocab_size", "65", "config.vocab_size=65")),
        (["model=lstm", "model.network.vocab_size=50"], ("vocab_size", "65")),
        (["model=gpt", "model.block_size=512"], ("n_positions", "model.block_size=512")),
        (["model=gpt", "model.network.config.n_positions=16"], ("n_positions", "data.block_size=64")),
    ],
)
def test_parts_that_do_not_fit_are_told_from_the_source(chosen: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(CONF, "train", chosen)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.faults(41)
def test_the_samplers_that_a_message_names_are_of_the_kind(tmp_path: Path) -> None:
    from genlab.kinds import KINDS

    models = {"process": "ddpm", "latent": "gan", "tokens": "gpt", "gaps": "masked_diffusion"}
    for kind, (_, options) in KINDS.items():
        for option in re.split(", | or ", options):
            config = compose_config(CONF, "train", [f"model={models[kind]}", f"sampler={option}"])
            assert config.sampler._target_


# ---- 41: told when the parts are built, before an item is decoded


@pytest.mark.faults(41)
@pytest.mark.parametrize(
    ("chosen", "overrides", "words"),
    [
        ("model=flow", ["sampler=ddim_50_guided"], ("sampler.spacing", "leading_to_1")),
        ("model=flow", ["sampler=euler_50", "sampler.coordinates=angle"], ("sampler.coordinates", "angle")),
        ("model=ddpm", ["sampler=ddim_50", "model.process.steps=2"], ("sampler.steps", "1 to 2")),
        ("model=ddpm", ["data.num_classes=null", "model.num_classes=null"], ("has none", "sampler.guidance_scale=1")),
        ("model=ddpm", ["model.label_drop=0"], ("never dropped", "sampler.guidance_scale=1")),
        ("model=ddpm", ["model.prediction=eps", "sampler.guidance_scale=1"], ("eps", "sampler.clip=true")),
        ("model=ddpm", ["model.network.network.norm_num_groups=5"], ("model.network", "divisible by num_groups")),
        ("model=vae", ["model/encoder=conv", "model/decoder=conv", "data.shape=[1,30,30]"], ("30x30", "divide by 4")),
        ("model=vae", ["model/encoder=conv", "model/decoder=conv", "data.shape=[1,31,29]"], ("31x29", "divide by 4")),
        ("model=vae", ["model/decoder=conv", "data.shape=[1,33,33]"], ("model.decoder", "33x33", "model/decoder=mlp")),
        ("model=vae", ["data.shape=[2,28,28]"], ("2,", "1 (grey), 3 (RGB) or 4 (RGBA)")),
    ],
)
def test_parts_that_do_not_fit_are_told_before_the_data_is_read(
    chosen: str, overrides: list[str], words: tuple[str, ...], tmp_path: Path
) -> None:
    config = compose_train([chosen, "trainer=debug", "logger=none", "evaluation=none", *IMAGES,
                            *SMALL.get(chosen, ()), f"runs_dir={tmp_path}", *overrides])  # fmt: skip
    run = new_run(config)
    assert work(run) == 2
    message = run.status()["message"]
    assert all(word in message for word in words), message


@pytest.mark.faults(41)
def test_remedies_of_parts_that_do_not_fit_work(tmp_path: Path) -> None:
    for overrides in (
        ["model.prediction=eps", "sampler.guidance_scale=1", "sampler.clip=true"],
        ["model.label_drop=0", "sampler.guidance_scale=1"],
    ):
        run = new_run(small_run("model=ddpm", tmp_path, *overrides, "schedule.max_samples=4"))
        assert work(run) == 0


@pytest.mark.faults(41)
@pytest.mark.parametrize("model", ["gpt", "masked_diffusion"])
def test_a_text_begins_with_what_its_vocabulary_has(model: str, tmp_path: Path) -> None:
    (tmp_path / "dna.txt").write_text("ACGT" * 1000)
    given = ("train.py", f"model={model}", "trainer=debug", "data=text_file", f"data.path={tmp_path / 'dna.txt'}",
             "data.vocab_size=4", "data.num_workers=0", "logger=none", "evaluation=none", "schedule.max_samples=4",
             *SMALL[f"model={model}"])  # fmt: skip
    line = command(*given, folder=tmp_path).line(2, "model.start='\\n'", "data=text_file has no such token")
    remedy = line.rpartition(" ")[2]
    assert remedy == "model.start=A"
    assert command(*given, remedy, folder=tmp_path).code == 0


@pytest.mark.faults(41)
@pytest.mark.parametrize("model", [("model=gan",), ("model=vae", "model.num_classes=10"), ("model=ddpm",)])
def test_classes_without_labels_are_told_before_training(model: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "bare.npz"
    np.savez(path, image=np.zeros((40, 28, 28), np.uint8))
    given = [a for a in train_arguments(tmp_path) if not a.startswith(("data.path=", "model"))]
    done = command(*given, f"data.path={path}", *model, *SMALL.get(model[0], ()), folder=tmp_path)
    done.line(2, "data.num_classes=10", str(path), "has no labels", "data.num_classes=null")


@pytest.mark.faults(41)
def test_pictures_with_transparency_train_to_the_end(tmp_path: Path) -> None:
    given = [a for a in train_arguments(tmp_path) if not a.startswith(("data.path=", "data.shape=", "callbacks"))]
    path = make_images(tmp_path / "rgba.npz", [4, 28, 28])
    done = command(*given, f"data.path={path}", "data.shape=[4,28,28]", "schedule.max_samples=8", folder=tmp_path)
    assert done.code == 0, done.output
    (run,) = runs_in(tmp_path)
    assert (run.path / "samples" / "final.png").stat().st_size > 0


class Halves:
    """Floats from `least` to 1."""

    def __init__(self, least: float) -> None:
        self.least = least

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.linspace(self.least, 1, 64).view(1, 8, 8)


@pytest.mark.faults(41)
def test_floats_from_0_to_1_are_not_taken_for_those_from_minus_1() -> None:
    def load(dataset: Any) -> None:
        data = UserDataset("own", dataset=dataset, shape=[1, 8, 8], val_fraction=0.2, batch_size=4)
        data.setup("fit")

    for least in (-1.0, -0.2):
        load(Halves(least))
    for least in (0.0, 0.3):
        with pytest.raises(ConfigError, match=r"\[0.*, 1\], not in \[-1, 1\]; give 2 \* image - 1, or uint8"):
            load(Halves(least))


@pytest.mark.faults(41)
def test_pictures_show_the_classes_that_the_data_was_cut_to(tmp_path: Path) -> None:
    given = [a for a in train_arguments(tmp_path) if not a.startswith("callbacks.final")]
    assert command(*given, "data.subset=[3,7]", "schedule.max_samples=8", folder=tmp_path).code == 0
    (run,) = runs_in(tmp_path)
    with Image.open(run.path / "samples" / "final.png") as picture:
        assert json.loads(picture.text["label"]) == [3, 7, 3, 7]  # type: ignore[attr-defined]
    assert command("sample.py", "run=last", "n=3", folder=tmp_path).code == 0
    assert sorted(path.name for path in run.path.glob("samples/seed-0/*.png")) == [
        "000000.png", "000001.png", "000002.png", "grid.png"]  # fmt: skip
    with Image.open(run.path / "samples" / "seed-0" / "grid.png") as picture:
        assert json.loads(picture.text["label"]) == [3, 7, 3]  # type: ignore[attr-defined]


@pytest.mark.faults(41)
@pytest.mark.parametrize("model", ["ddpm", "gan"])
def test_classes_and_their_names_are_those_of_the_folders(model: str, tmp_path: Path) -> None:
    for i in range(40):
        folder = tmp_path / "photos" / ("one", "three", "two")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 6 * i).save(folder / f"{i}.png")
    given = ("train.py", f"model={model}", "trainer=debug", "data=image_folder", f"data.root={tmp_path / 'photos'}",
             "data.shape=[1,28,28]", "data.num_workers=0", "logger=none", "evaluation=none", "schedule.max_samples=8",
             *SMALL[f"model={model}"])  # fmt: skip
    assert command(*given, folder=tmp_path, environment={"GENLAB_DATA": str(tmp_path / "cache")}).code == 0
    (run,) = runs_in(tmp_path)
    config = OmegaConf.load(run.config)
    assert (config.data.num_classes, config.model.num_classes) == (3, 3)
    assert config.data.class_names == ["one", "three", "two"]
    done = command("sample.py", "run=last", "n=2", "condition.label=three", f"out={tmp_path / 'out'}", folder=tmp_path)
    assert done.code == 0, done.output
    with Image.open(tmp_path / "out" / "grid.png") as picture:
        assert json.loads(picture.text["label"]) == ["three", "three"]  # type: ignore[attr-defined]
    wrong = command("sample.py", "run=last", "n=2", "condition.label=thre", folder=tmp_path)
    wrong.line(2, "condition.label=thre", "0 to 2 or one, three, two")


@pytest.mark.faults(41)
def test_shape_and_classes_are_those_of_the_npz_unless_they_are_given(tmp_path: Path) -> None:
    path, image = tmp_path / "a.npz", np.zeros((5, 8, 12, 3), np.uint8)
    for arrays, facts in (
        ({"image": image, "label": np.arange(5)}, ([3, 8, 12], 5)),
        ({"image": image.transpose(0, 3, 1, 2)}, ([3, 8, 12], None)),
        ({"arr_0": image[..., 0], "arr_1": np.arange(5) % 2}, ([1, 8, 12], 2)),
        ({"image": image, "label": np.array([{}] * 5, dtype=object)}, ([3, 8, 12], None)),
        ({"other": image}, ([3, 32, 32], None)),
    ):
        np.savez(path, **arrays)
        data = compose_config(CONF, "train", ["model=vae", "data=npz", f"data.path={path}"]).data
        assert (data.shape, data.num_classes) == facts
    path.write_bytes(b"PK")
    given = ["model=vae", "data=npz", f"data.path={path}", "data.shape=[1,4,4]", "data.num_classes=null"]
    data = compose_config(CONF, "train", given).data
    assert (data.shape, data.num_classes) == ([1, 4, 4], None)


# ---- 42: a run that goes on


@pytest.mark.faults(42)
def test_the_runs_own_values_count_when_it_goes_on(tmp_path: Path) -> None:
    given = train_arguments(tmp_path, "data.batch_size=6", "schedule.max_samples=12")
    assert command(*given, folder=tmp_path).code == 0
    (run,) = runs_in(tmp_path)
    more = ("train.py", f"resume={run.path}", "schedule.max_samples=24")
    for share in (4, 5):  # 4 divides the 64 of the defaults
        done = command(*more, f"trainer.accumulate_grad_batches={share}", folder=tmp_path)
        done.line(2, "data.batch_size", f"= {share}", "is 6")
    done = command(*more, "trainer.accumulate_grad_batches=3", folder=tmp_path)
    assert done.code == 0, done.output
    assert run.status()["samples"] == 24


# ---- 43: pictures and tables


@pytest.mark.faults(43)
@pytest.mark.parametrize(
    ("chosen", "panels"),
    [
        (("model=vae", "model.latent_dim=2", "model.num_classes=10"), {"classes", "map", "traversal"}),
        (("model=autoencoder",), set()),
    ],
)
def test_panels_of_any_number_of_items(chosen: tuple[str, ...], panels: set[str], tmp_path: Path) -> None:
    for share, count in ((0.02, 1), (0.04, 2), (0.15, 9)):
        config = small_run(chosen[0], tmp_path, *chosen[1:], f"data.val_fraction={share}")
        data, model = build_data(config), build_model(config)
        data.setup("fit")
        assert len(data.source("val")) == count
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = Panels(model, data).save(tmp_path / str(count))
        assert set(drawn) == {"reconstructions", *panels, *(["interpolation"] if count > 1 else [])}


@pytest.mark.faults(43)
@pytest.mark.parametrize(("chosen", "protocol"), [("model=vae", "none"), ("model=gpt", "text_coherence_200_val.proxy")])
def test_a_picture_that_cannot_be_made_does_not_fail_a_run(
    chosen: str, protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> None:
        raise ValueError("zip() argument 2 is shorter than argument 1")

    config = small_run(chosen, tmp_path, f"evaluation={protocol}", "schedule.max_samples=8", "schedule.eval_every=4")
    if protocol != "none":
        config.evaluation.n = 2
    for module, name in (("drawing", "save_grid"), ("drawing", "save_map"), 
                         ("cli.session", "save_samples"), ("callbacks.pictures", "save_samples"),
                         ("evaluation.texts", "write_table")):  # fmt: skip
        monkeypatch.setattr(f"genlab.{module}.{name}", fail)
    run = new_run(config)
    assert work(run) == 0, log(run)
    assert run.status()["state"] == "finished"
    assert "final could not be made (ValueError: zip() argument 2 is shorter" in log(run)
    if chosen == "model=vae":
        assert "reconstructions could not be made" in log(run)
    else:
        (record,) = (run.path / "evaluation").glob("*.json")
        assert "table" not in json.loads(record.read_text())


@pytest.mark.faults(43)
def test_a_full_disk_is_no_fault_of_a_picture() -> None:
    for error in (StorageError("full"), OSError(errno.ENOSPC, "full", "x.png")):
        with pytest.raises(type(error)), guarded("x.png"):
            raise error
    with pytest.warns(UserWarning, match="x.png could not be made"), guarded("x.png"):
        raise IndexError("0")


# ---- 44: arguments that GenLab gives itself, and other programs' names


@pytest.mark.faults(44)
@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("trainer.max_epochs=3", "schedule.max_samples"),
        ("+trainer.max_epochs=3", "schedule.max_samples"),
        ("+trainer.max_steps=3", "schedule.max_samples"),
        ("+trainer.val_check_interval=5", "schedule.eval_every"),
        ("trainer.log_every_n_steps=5", "schedule.log_every"),
        ("+trainer.callbacks=[]", "callbacks.extra"),
        ("+trainer.enable_model_summary=true", "Leave it out"),
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("schedule.max_steps=5", "schedule.max_samples"),
    ],
)
def test_what_is_set_in_the_place_of_an_argument_exists(given: str, remedy: str, tmp_path: Path) -> None:
    command("train.py", given, folder=tmp_path).line(2, given.lstrip("+").partition("=")[0], remedy)
    if "." in remedy:
        assert remedy in leaves(OmegaConf.to_container(compose_config(CONF, "train")))


@pytest.mark.faults(44)
def test_a_run_of_wandb_has_the_name_that_is_given(tmp_path: Path) -> None:
    given = [a for a in train_arguments(tmp_path) if a != "logger=none"]
    given += ["logger=wandb", "schedule.max_samples=4"]
    offline = {"WANDB_MODE": "offline"}
    assert command(*given, "+logger.wandb.name=foo", folder=tmp_path, environment=offline).code == 0
    (run,) = runs_in(tmp_path)
    (stored,) = run.path.glob("wandb/offline-run-*/*.wandb")
    for _ in range(100):  # W&B's own process writes it
        if b"foo" in stored.read_bytes():
            break
        time.sleep(0.1)
    assert b"foo" in stored.read_bytes()
    command(*given, "+logger.wandb.mode=foo", "resume=never", folder=tmp_path).line(2, "mode=foo", "online, offline")
