"""Folders of StableDiffusionPipeline: diffusers' pixels, training in full, and export, which is read without GenLab."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command
from omegaconf import OmegaConf
from PIL import Image
from pipelines import SHAPE, captioned_pictures, clip_vocabulary, make_pipeline
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTokenizer

from genlab import noise
from genlab.cli.build import build_model, load_config
from genlab.cli.export import export
from genlab.cli.load import load_run
from genlab.data.vocabulary import encode, folder_tokenizer, read_vocabulary
from genlab.diffusion.samplers import DDIM
from genlab.errors import ConfigError
from genlab.modality import to_uint8
from genlab.noise import Stream
from genlab.runs.directory import RunDirectory
from genlab.runs.export import write_export

SEEDS, STEPS = torch.tensor([5, 6, 7]), 5
PROMPTS = ["a red heart", "green", "Red  HEARTS, 12 of them!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("sd") / "pipeline")


def with_scheduler(folder: Path, target: Path, **facts: Any) -> Path:
    """A copy of a folder with other facts in its scheduler_config.json."""
    shutil.copytree(folder, target)
    path = target / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(changed := {**json.loads(path.read_text()), **facts}))
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"][1] = changed["_class_name"]
    (target / "model_index.json").write_text(json.dumps(index))
    return target


def of_diffusers(folder: Path, kind: str = "", prompts: Any = tuple(PROMPTS), **options: Any) -> Tensor:
    """Pictures of diffusers' own pipeline with the noise of SEEDS, uint8."""
    import diffusers

    pipeline = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if not kind:
        options["latents"] = noise.normal(SEEDS, Stream.INITIAL, SHAPE)
    pictures = pipeline(list(prompts), num_inference_steps=STEPS, output_type="np", **options).images
    return torch.from_numpy(pictures * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


def ours(folder: Path, prompts: Any = tuple(PROMPTS), sampler: Any = None, **conditions: Any) -> Tensor:
    loaded = load_run(folder, device="cpu")
    sampler = sampler or {}
    changed = type(loaded.generative.sampler)(**{**vars(loaded.generative.sampler), "steps": STEPS, **sampler})
    rows = loaded.condition(3, {"caption": list(prompts), **conditions})
    return loaded.generative.sample(SEEDS, rows, changed).data


def equal(a: Tensor, b: Tensor) -> None:
    """Within one grey level, of pictures that are no grey."""
    assert a.shape == b.shape
    assert int((a.int() - b.int()).abs().max()) <= 1
    assert float(a.float().std()) > 20
    assert int((a[0].int() - a[1].int()).abs().max()) > 20


SCHEDULERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "v": {"prediction_type": "v_prediction"},
    "x0": {"prediction_type": "sample", "set_alpha_to_one": True},
    "pndm": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing", "prediction_type": "v_prediction",
               "set_alpha_to_one": True},
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "beta_start": 1e-4,
            "beta_end": 0.02},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pixels_are_those_of_diffusers(name: str, folder: Path, tmp_path: Path) -> None:
    changed = with_scheduler(folder, tmp_path / name, **SCHEDULERS[name])
    equal(ours(changed), of_diffusers(changed))


def test_a_negative_prompt(folder: Path) -> None:
    plain, other = ours(folder), ours(folder, negative=["blue", "a heart", "green"])
    equal(other, of_diffusers(folder, negative_prompt=["blue", "a heart", "green"]))
    assert int((plain.int() - other.int()).abs().max()) > 20


def test_each_picture_is_a_function_of_its_seed_and_prompt(folder: Path) -> None:
    loaded, sampler = load_run(folder, device="cpu"), DDIM(steps=2, guidance_scale=7.5)
    alone = loaded.sample(1, seed=6, sampler=sampler, caption=PROMPTS[1]).data
    among = loaded.sample(6, seed=5, sampler=sampler, caption=PROMPTS).data
    assert torch.equal(alone[0], among[1])


def a_picture(seed: int = 3) -> Tensor:
    """uint8 [3, 16, 16]."""
    return to_uint8(noise.normal(torch.tensor([seed]), 0, (3, 4, 4)).repeat_interleave(4, 2).repeat_interleave(4, 3))[0]


def with_our_noise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pipeline draws is the noise of SEEDS; its autoencoder draws elsewhere, and hardly matters."""
    module = importlib.import_module(f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{kind}")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise.normal(SEEDS, Stream.INITIAL, SHAPE))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_from_a_picture(strength: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_our_noise("img2img", monkeypatch)
    picture = Image.fromarray(a_picture().permute(1, 2, 0).numpy())
    picture.save(tmp_path / "a.png")
    theirs = of_diffusers(folder, "Img2Img", image=[picture] * 3, strength=strength)
    equal(ours(folder, sampler={"strength": strength}, image=str(tmp_path / "a.png")), theirs)


def test_filling_in(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_our_noise("inpaint", monkeypatch)
    picture, mask = Image.fromarray(a_picture().permute(1, 2, 0).numpy()), np.zeros((16, 16), np.uint8)
    mask[4:12, 6:16] = 255
    picture.save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = {"image": str(tmp_path / "a.png"), "mask": str(tmp_path / "mask.png")}
    made = ours(folder, sampler={"strength": 0.6}, **options)
    theirs = of_diffusers(
        folder, "Inpaint", image=[picture] * 3, mask_image=[Image.fromarray(mask)] * 3, strength=0.6,
        height=16, width=16,
    )  # fmt: skip
    inside = torch.from_numpy(mask > 0).expand(3, 3, -1, -1)
    equal(made[inside].view(3, -1), theirs[inside].view(3, -1))
    assert torch.equal(made[~inside], a_picture().expand(3, -1, -1, -1)[~inside]), "the rest is the picture itself"
    anew = ours(folder, **options)
    assert not torch.equal(anew[inside], made[inside])


def test_half_precision(folder: Path) -> None:
    whole = ours(folder)
    with torch.autocast("cpu", torch.bfloat16):
        half = ours(folder)
    difference = (whole.int() - half.int()).abs().float()
    assert 0 < float(difference.mean()) < 6
    assert half.dtype == torch.uint8


# ---- the vocabulary


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_texts_are_read_as_by_transformers(pad: str, tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "a", pad)
    vocabulary, merges = clip_vocabulary()
    theirs = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
    tokenizer, found, longest = folder_tokenizer(folder / "tokenizer")
    assert (found, longest) == (vocabulary[pad], 77)
    texts = [*PROMPTS[:2], "Red  HEARTS, 12 of them", "  it's\tÉtÉ é  ", "x" * 200, "心 a"]
    for text in texts:
        assert tokenizer.encode(text).ids == theirs(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text).ids) == theirs.decode(theirs(text)["input_ids"], True)
    model: Any = load_run(folder, device="cpu").model
    caption = model.conditions[0].rows(texts[:4], model)
    tokens, _ = model.text.framed(caption, model.tokenizer)
    whole = theirs(texts[:4], padding="max_length", max_length=77, truncation=True)
    assert tokens.tolist() == whole["input_ids"]
    again = Tokenizer.from_str(read_vocabulary(str(folder / "tokenizer"), len(vocabulary)).to_str())
    assert encode(again, "a red heart", False) == theirs("a red heart")["input_ids"][1:-1]
    with pytest.raises(ConfigError, match=f"set data.vocab_size={len(vocabulary)}"):
        read_vocabulary(str(folder / "tokenizer"), 5)


def test_a_folder_of_older_libraries_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, old := tmp_path / "old")
    vocabulary, merges = clip_vocabulary()
    (old / "tokenizer" / "tokenizer.json").unlink()
    (old / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (old / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n")
    weights = old / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name}": value for name, value in load_file(weights).items()}
    save_file({**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, weights)
    weights = old / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    for now, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {name.replace(f".{now}.", f".{before}."): value for name, value in state.items()}
    save_file(state, weights)
    assert torch.equal(ours(old), ours(folder))


def test_a_prompt_that_is_too_long_is_cut_and_said(folder: Path) -> None:
    with pytest.warns(UserWarning, match="only 75 of 76 tokens are read"):
        long = ours(folder, ["a " * 75 + "red"] * 3)
    equal_prompts = ours(folder, ["a " * 75] * 3)
    assert torch.equal(long, equal_prompts)


# ---- bad folders


BROKEN = [
    ("unet", None, "unet is lacking, no unet/config.json can be read"),
    ("scheduler", None, "scheduler is lacking"),
    ("tokenizer", None, "tokenizer is lacking"),
    ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "_class_name 'LCMScheduler' is not known"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas=.* has no counterpart here"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type 'flow' is not known"),
    ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "expected a StableDiffusionPipeline, got"),
    ("unet/config.json", {"in_channels": 9}, "unet: in_channels=9 does not fit vae: latent_channels=4"),
    ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type=text_time: not a network of"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "change", "words"), BROKEN)
def test_what_cannot_be_read_is_one_line(part: str, change: Any, words: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    path = tmp_path / "a" / part
    if change is None:
        shutil.rmtree(path)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError, match=words) as caught:
        load_run(tmp_path / "a", device="cpu")
    assert "\n" not in str(caught.value)


def test_pickles_are_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    weights = tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ConfigError, match=r"other formats can run code and are not read"):
        load_run(tmp_path / "a", device="cpu")


def test_what_is_done_in_another_way_is_said(folder: Path, tmp_path: Path) -> None:
    changed = with_scheduler(
        folder, tmp_path / "a", _class_name="DPMSolverMultistepScheduler", use_karras_sigmas=True,
        timestep_spacing="leading",
    )  # fmt: skip
    index = json.loads((changed / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (changed / "model_index.json").write_text(json.dumps(index))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_run(changed, device="cpu")
    words = " ".join(str(one.message) for one in said)
    for part in ("use_karras_sigmas=True", "timestep_spacing 'leading'", "safety_checker is not read"):
        assert part in words


# ---- the commands, training, export


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps from the folder."""
    place = tmp_path_factory.mktemp("trained")
    done = command(
        "train.py", "model=stable_diffusion", f"model.path={folder}", *captioned_pictures(place / "pictures", folder),
        "trainer=debug", "logger=none", "evaluation=none", "data.num_workers=0", "optimizer.lr=0.01",
        "debug.schedule.max_samples=8", "sampler.steps=3", folder=place,
        environment={"GENLAB_DATA": str(place / "cache")},
    )  # fmt: skip
    assert done.code == 0, done.output
    (run,) = (place / "runs").glob("*/*")
    return run


def test_the_commands_take_a_folder(folder: Path, tmp_path: Path) -> None:
    done = command(
        "sample.py", f"run={folder}", "n=2", "seed=5", "condition.caption=a red heart", "sampler.steps=2", "out=s",
        folder=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.output
    assert np.array(Image.open(tmp_path / "s" / "000006.png")).shape == (16, 16, 3)
    done = command(
        "evaluate.py", f"run={folder}", "evaluation=reconstruction_10k_test", "evaluation.n=8", "data.batch_size=4",
        *captioned_pictures(tmp_path / "pictures", folder), "data.num_workers=0", folder=tmp_path,
        environment={"GENLAB_DATA": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.code == 0, done.output
    assert "psnr_8_test" in done.output


def test_a_run_from_a_folder_trains_its_network(trained: Path, folder: Path) -> None:
    before, after = (load_run(path, "raw", device="cpu").model.state_dict() for path in (folder, trained))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(before["latent_std"], after["latent_std"])
    assert float(before["latent_std"][0]) == 2.0
    loaded = load_run(trained, device="cpu")
    assert loaded.sample(2, caption="a red heart").data.shape == (2, 3, 16, 16)
    assert loaded.model.frozen().keys() == {"model.first_stage", "model.text.network"}


# What is in README.md of each folder, in a process where genlab cannot be imported; the operators stand in for those of
# torchvision, see test_interchange.
ALONE = """
import os, re, sys
import numpy as np
import torch
sys.modules["genlab"] = None
if not torch.version.cuda:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import diffusers, transformers
prompt, folders = sys.argv[1], sys.argv[2:]
for folder in folders:
    latents = torch.from_numpy(np.load(f"{folder}.npy"))
    torch.randn = lambda *shape, latents=latents, **options: latents
    code = open(f"{folder}/README.md").read().partition("```python\\n")[2].partition("```")[0]
    code = code.replace("FOLDER", folder).replace('"..."', repr(prompt)).replace("picture.png", f"{folder}.png")
    exec(compile(code, folder, "exec"), {})
"""
CLIP = {
    "_target_": "transformers.models.clip.modeling_clip.CLIPTextModel",
    "config": {
        "_target_": "transformers.models.clip.configuration_clip.CLIPTextConfig", "vocab_size": 520, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5,
        "eos_token_id": 519,
    },
}  # fmt: skip
BERT = {
    "_target_": "transformers.models.bert.modeling_bert.BertModel",
    "config": {
        "_target_": "transformers.models.bert.configuration_bert.BertConfig", "vocab_size": 520, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5,
    },
}  # fmt: skip


def exported(place: Path, model: dict[str, Any], sampler: Any = None, tokenizer: Path | None = None) -> Path:
    """A model of random weights as scripts/export.py leaves it; its latents have a mean and a deviation."""
    config = {"name": place.name, "seed": 1, "model": model, "sampler": sampler, "data": {}, "evaluation": None}
    built = build_model(OmegaConf.create(config))
    state = {name: value.clone() for name, value in built.state_dict().items()}
    if "latent_mean" in state:
        state["latent_mean"] += torch.linspace(-0.5, 0.5, 4).view(4, 1, 1)
        state["latent_std"] *= torch.linspace(0.3, 2.0, 4).view(4, 1, 1)
    else:
        state["network.decoder.conv_out.weight"] *= 4
    write_export(place, state, "ema", (0, 0), {"config": config}, tokenizer)
    return place


def latent_model(place: Path, patch: int, **changes: Any) -> Path:
    """An export of a latent diffusion model, and one of its first stage."""
    shape, levels = [3, 16 * patch, 16 * patch], "genlab.networks.first_stage.FirstStage"
    stage = {"_target_": levels, "shape": shape, "latent_channels": 4, "widths": [8, 8], "double": True, "patch": patch}
    first = exported(place / f"stage{patch}", {
        "_target_": "genlab.models.autoencoder.Autoencoder", "network": stage,
        "bottleneck": {"_target_": "genlab.networks.bottlenecks.KL", "shape": list(SHAPE)},
    })  # fmt: skip
    pooled = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if patch > 1 else {}
    network = {
        "_target_": "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel", "sample_size": 8,
        "block_out_channels": [8, 16], "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "norm_num_groups": 4, "in_channels": 4,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "out_channels": 4, **pooled,
    }  # fmt: skip
    model = {
        "_target_": "genlab.models.latent_diffusion.LatentDiffusion", "network": network, "shape": shape,
        "latent_shape": list(SHAPE), "first_stage": {"_target_": "genlab.parts.FrozenPart", "path": str(first)},
        **changes,
    }  # fmt: skip
    kind = "Euler" if patch > 1 else "DPMSolverPP"
    sampler = {"_target_": f"genlab.diffusion.samplers.{kind}", "steps": 5, "guidance_scale": 3.0}
    return exported(place / f"run{patch}", model, sampler, place / "tokenizer.json")


def test_exports_make_the_same_pictures_where_genlab_cannot_be_imported(trained: Path, tmp_path: Path) -> None:
    read_vocabulary(str(load_config(RunDirectory(trained)).data.vocabulary), 520).save(str(tmp_path / "tokenizer.json"))
    text = {"_target_": "genlab.networks.text_encoder.TextEncoder", "width": 16}
    vp = {"_target_": "genlab.diffusion.processes.VP", "schedule": "cosine", "steps": 500}
    runs = {
        "folder": trained,
        "own": latent_model(
            tmp_path, 1, text={**text, "network": CLIP, "pool": "end", "fixed": True}, process=vp, prediction="v"
        ),
        "parts": latent_model(
            tmp_path, 2, text={**text, "network": BERT, "longest": 20}, prediction="velocity",
            process={"_target_": "genlab.diffusion.processes.Flow"},
        ),
    }  # fmt: skip
    for name, run in runs.items():
        export(str(run), tmp_path / name, format="diffusers")
        np.save(tmp_path / f"{name}.npy", noise.normal(SEEDS[:1], Stream.INITIAL, SHAPE).numpy())
    folders = [str(tmp_path / name) for name in runs]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, PROMPTS[0], *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, run in runs.items():
        loaded = load_run(run, device="cpu")
        made = loaded.sample(1, seed=5, caption=PROMPTS[0]).data[0].int()
        theirs = torch.from_numpy(np.array(Image.open(tmp_path / f"{name}.png"))).permute(2, 0, 1).int()
        assert int((made - theirs).abs().max()) <= 1, name
        assert float(made.float().std()) > 20, name
        written = (tmp_path / name / "genlab.json").read_text() + (tmp_path / name / "unet" / "config.json").read_text()
        assert str(tmp_path.parent) not in written, "a path of this machine"
        if name != "parts":
            back = load_run(tmp_path / name, device="cpu")
            again = back.sample(1, seed=5, sampler=loaded.generative.sampler, caption=PROMPTS[0]).data[0].int()
            assert int((made - again).abs().max()) <= 1, name
            assert back.weights == "ema"
    assert not (tmp_path / "parts" / "model_index.json").exists()
    for reason in ("vae is folded into patches", "unet is told a pooled vector", "process is a flow"):
        assert reason in (tmp_path / "parts" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"out=.* holds something else"):
        export(str(trained), tmp_path, format="diffusers")
    with pytest.raises(ConfigError, match="only a latent model of pictures that is told captions"):
        export(str(tmp_path / "stage1"), tmp_path / "no", format="diffusers")


def test_an_export_of_our_own_form_is_the_run(trained: Path, tmp_path: Path) -> None:
    export(str(trained), tmp_path / "own")
    a, b = (load_run(path, device="cpu").sample(2, caption=PROMPTS[:2]).data for path in (trained, tmp_path / "own"))
    assert torch.equal(a, b)
