"""Latent diffusion: frozen parts, captions and guidance, what is computed once, pictures to change and to fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from runs import make_captioned, make_first_stage, make_text_encoder, new_run, small_run, work
from torch import Tensor, nn

from genlab import noise
from genlab.cli.load import LoadedRun, load_run
from genlab.cli.sample import sample
from genlab.cli.train import pin_runs
from genlab.data.captioned import CaptionedFolder
from genlab.diffusion.editing import Remainder
from genlab.diffusion.processes import VP, Flow
from genlab.diffusion.samplers import DDIM, Euler
from genlab.diffusion.trace import Traced
from genlab.drawing import read_meta
from genlab.errors import ConfigError
from genlab.models.diffusion import DiffusionModel
from genlab.models.latent_diffusion import LatentDiffusion
from genlab.networks.text_encoder import TextEncoder
from genlab.noise import Stream
from genlab.parts import FrozenPart
from genlab.picture_conditions import Mask

SHAPE, LATENT = (3, 16, 16), (4, 4, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    return {
        "vae": make_first_stage(root / "vae", SHAPE, LATENT),
        "text": make_text_encoder(root / "text", 19),
        "data": make_captioned(root / "data", (3, 32, 32), 40),
    }


def unet(pooled: bool = True) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    more = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if pooled else {}
    return UNet2DConditionModel(
        4, 4, 4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn", **more,
    )  # fmt: skip


def data(folders: dict[str, Path]) -> CaptionedFolder:
    module = CaptionedFolder(
        "captioned", root=str(folders["data"]), shape=SHAPE, tokenizer="characters", vocab_size=19, batch_size=8,
        val_fraction=0.3,
    )  # fmt: skip
    module.setup()
    return module


def model(folders: dict[str, Path], **options: Any) -> LatentDiffusion:
    text = TextEncoder(FrozenPart(str(folders["text"])), 16, longest=24)
    settings = {"shape": SHAPE, "latent_shape": LATENT, "text": text, "prediction": "velocity", "chunk_size": 4}
    network = options.pop("network", None) or unet()
    made = LatentDiffusion(network, Flow(), first_stage=FrozenPart(str(folders["vae"])), **(settings | options))
    made.tokenizer = data(folders).tokenizer
    return made.eval()


def batch_of(module: CaptionedFolder, split: str = "val", count: int = 6) -> dict[str, Tensor]:
    ids = torch.arange(count)
    raw = {"id": ids, "position": ids, **module.source(split).batch(ids, torch.zeros_like(ids))}  # type: ignore[arg-type]
    return module.finish(raw, "val")


def test_what_is_computed_once_is_what_is_computed_at_each_step(folders: dict[str, Path]) -> None:
    module, one = data(folders), model(folders)
    one.prepare(module, torch.device("cpu"))
    assert set(module.attached("train")) == {"latent", "text_states", "text_mask", "text_pooled"}
    batch = next(iter(module.batches(module.eval_loader("val"))))
    assert batch["latent"].shape == (len(batch["image"]), *LATENT)
    bare = {name: rows for name, rows in batch.items() if name not in module.attached("val")}
    torch.testing.assert_close(one.losses(batch)["loss"], one.losses(bare)["loss"], rtol=1e-4, atol=1e-5)
    latents = torch.cat([b["latent"] for b in module.batches(module.eval_loader("train"))])
    normal = (latents - one.latent_mean) / one.latent_std
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_loss_is_that_of_a_diffusion_model_of_the_latents(folders: dict[str, Path]) -> None:
    batch = batch_of(data(folders))
    one = model(folders, text=None, network=Plain())
    latents = one.coder.encode(batch["image"])
    plain = DiffusionModel(Plain(), Flow(), LATENT, "velocity").eval()
    torch.testing.assert_close(one.losses(batch)["loss"], plain.losses({"image": latents, "id": batch["id"]})["loss"])


class Plain(nn.Module):
    """Predicts what it sees."""

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Tensor:
        return 0.5 * sample


def test_captions_guide_and_rows_are_their_own(folders: dict[str, Path]) -> None:
    module, one = data(folders), model(folders)
    rows = {"caption": batch_of(module)["caption"]}
    seeds, sampler = torch.arange(6), Euler(steps=2, guidance_scale=3.0)
    whole = one.sample(seeds, rows, sampler).data
    for i in (0, 5):  # in another chunk, at another place
        own = one.sample(seeds[i : i + 1], {"caption": rows["caption"][i : i + 1]}, sampler).data
        assert torch.equal(own[0], whole[i])
    latent = noise.normal(seeds, Stream.INITIAL, LATENT)
    told, null = one.told(rows, 6)
    c, u = (one(latent, torch.ones(6), what) for what in (told, null))
    assert not torch.allclose(c, u)
    guided = one.denoiser(rows, 6, 3.0)(latent, 1.0)
    torch.testing.assert_close(guided.eps - guided.x_0, u + 3 * (c - u), atol=1e-4, rtol=1e-4)
    nothing = one.denoiser({}, 6, 3.0)(latent, 1.0)  # no caption: the empty one, whatever the scale
    torch.testing.assert_close(nothing.eps - nothing.x_0, u, atol=1e-4, rtol=1e-4)
    away = one.denoiser(rows | {"negative": rows["caption"].flip(0)}, 6, 3.0)(latent, 1.0)
    n = one(latent, torch.ones(6), one.told({"caption": rows["caption"].flip(0)}, 6)[0])
    torch.testing.assert_close(away.eps - away.x_0, n + 3 * (c - n), atol=1e-4, rtol=1e-4)


def test_dropped_captions_are_the_empty_one(folders: dict[str, Path]) -> None:
    module = data(folders)
    one, never = (model(folders, caption_drop=share) for share in (0.999999, 0.0))
    batch = batch_of(module)
    empty = {**batch, "caption": torch.full_like(batch["caption"], -1)}
    for each in (one, never):
        each.train()
    torch.testing.assert_close(one.losses(batch)["loss"], never.losses(empty)["loss"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(never.losses(batch)["loss"], never.losses(empty)["loss"])


def test_a_longer_caption_is_cut_which_is_said(folders: dict[str, Path]) -> None:
    one = model(folders)
    caption = next(known for known in one.conditions if known.name == "caption")
    with pytest.warns(UserWarning, match="only 23 of 45 tokens are read; cut: "):
        rows = caption.rows(["square 0 " * 5], one)
    assert rows.shape == (1, 23)
    with pytest.raises(ConfigError, match=r"condition.caption is empty"):
        caption.rows([""], one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_shape": (4, 8, 8)}, r"model.latent_shape=\[4, 8, 8\]: latents of .* are \[4, 4, 4\]"),
        ({"num_classes": 3}, "captions or labels"),
        ({"first_stage": "text"}, "model.first_stage: .* expected a run of model=autoencoder"),
    ],
)
def test_parts_that_do_not_fit(folders: dict[str, Path], options: dict[str, Any], message: str) -> None:
    if "first_stage" in options:
        with pytest.raises(ConfigError, match=message):
            LatentDiffusion(Plain(), Flow(), SHAPE, FrozenPart(str(folders["text"])), LATENT)
        return
    with pytest.raises(ConfigError, match=message):
        model(folders, **options)


# ---- editing


@pytest.mark.parametrize("steps", [10, 7])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.31])
def test_the_end_of_a_grid_is_that_of_diffusers(steps: int, strength: float) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(1000, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    start = max(steps - min(int(steps * strength), steps), 0)  # StableDiffusionImg2ImgPipeline.get_timesteps
    times = Remainder(VP(), strength).grid(steps, "trailing")
    assert [int(t) - 1 for t in times[:-1]] == scheduler.timesteps[start:].tolist()
    with pytest.raises(ConfigError, match="leaves none of 7 steps"):
        Remainder(VP(), 0.1).grid(7, "trailing")


@pytest.mark.parametrize("sampler", [DDIM(steps=8, strength=0.5), Euler(steps=8, strength=0.5)])
def test_a_picture_to_begin_from_and_to_fill_in(sampler: Any) -> None:
    torch.manual_seed(0)
    one = DiffusionModel(Plain(), VP(), (1, 8, 8), "x0").eval()
    start, seeds = torch.rand(2, 1, 8, 8) * 2 - 1, torch.arange(2)
    changed = one.sample(seeds, {"image": start}, sampler)
    assert not torch.equal(changed.data, one.sample(seeds, {"image": -start}, sampler).data)
    mask = torch.full((2, 1, 8, 8), -1.0)
    mask[..., 4:] = 1
    filled = one.sample(seeds, {"image": start, "mask": mask}, sampler).data
    assert torch.equal(filled[..., :4], one.to_data(start)[..., :4])
    assert not torch.equal(filled[..., 4:], one.to_data(start)[..., 4:])
    with pytest.raises(ConfigError, match=r"name it with condition.image=FILE"):
        one.sample(seeds, {"mask": mask}, sampler)
    with pytest.raises(ConfigError, match=r"sampler.strength"):
        DDIM(steps=8, strength=1.5)


def test_masks_are_black_and_white_and_of_the_size(tmp_path: Path) -> None:
    mask = Mask((1, 8, 8))
    picture = Pillow.new("L", (8, 8))
    picture.paste(255, (2, 2, 5, 5))
    picture.save(tmp_path / "mask.png")
    (rows,) = mask.rows([str(tmp_path / "mask.png")], None)
    assert rows[0, 3, 3] == 1
    assert rows[0, 0, 0] == -1
    picture.resize((4, 8)).save(tmp_path / "small.png")
    with pytest.raises(ConfigError, match=r"small.png: \[8, 4\] pixels, the pictures have \[8, 8\]"):
        mask.rows([str(tmp_path / "small.png")], None)
    picture.putpixel((0, 0), 100)
    picture.save(tmp_path / "grey.png")
    with pytest.raises(ConfigError, match=r"must be black .* and white"):
        mask.rows([str(tmp_path / "grey.png")], None)


def test_the_steps_of_a_sampler_are_kept() -> None:
    one = DiffusionModel(Plain(), VP(), (1, 8, 8), "x0", chunk_size=2).eval()
    traced = Traced(DDIM(steps=3))
    samples = one.sample(torch.arange(3), None, traced)
    steps = traced.pictures(3, one.to_picture)
    assert steps.shape == (3, 4, 1, 8, 8)
    assert torch.equal(one.to_data(steps[:, -1]), samples.data)
    assert torch.equal(samples.data, one.sample(torch.arange(3), None, DDIM(steps=3)).data)


# ---- as a user has it


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    folder = tmp_path_factory.mktemp("run")
    one = new_run(small_run("model=latent_diffusion", folder, "debug.schedule.max_samples=8"))
    assert work(one) == 0, (one.path / "log").read_text()
    return load_run(one.path, device="cpu")


def test_sample_command(run: LoadedRun, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from runs import ROOT

    def made(*overrides: str) -> Path:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("sample", [f"run={run.directory.path}", "+sampler.steps=2", *overrides])
        return sample(config)

    out = made('prompt=["square 1","square 2"]', "each=3", "trace=true", f"out={tmp_path / 'a'}")
    names = sorted(path.name for path in out.glob("0*.png"))
    assert names == [f"00{p}-00000{s}.png" for p in range(2) for s in range(3)]
    assert (out / "steps.webp").is_file()
    assert read_meta(out / "001-000002.png")["caption"] == "square 2"
    one = made("prompt=square 2", "n=3", "precision=32-true", f"out={tmp_path / 'b'}")
    assert (one / "000002.png").read_bytes()[-200:] == (out / "001-000002.png").read_bytes()[-200:]
    pixels = [torch.tensor(list(Pillow.open(path).getdata())) for path in (one / "000002.png", out / "001-000002.png")]
    assert torch.equal(*pixels)
    half = made("prompt=square 2", "n=1", "precision=bf16-mixed", f"out={tmp_path / 'c'}")
    assert read_meta(half / "000000.png")["precision"] == "bf16-mixed"
    with pytest.raises(ConfigError, match="the same: give one"):
        made("prompt=square 2", "+condition.caption=square 1")


def test_names_of_runs_become_their_paths(tmp_path: Path) -> None:
    for name in ("stage-000001-aaaa", "stage-000002-bbbb"):
        (tmp_path / "2026-01-01" / name).mkdir(parents=True)
        for file in ("config.yaml", "status.json"):
            (tmp_path / "2026-01-01" / name / file).write_text("{}")
    part = {"_target_": "genlab.parts.FrozenPart"}
    model = {"first": {**part, "path": "stage"}, "more": [{**part, "path": "absent"}, {**part, "path": str(tmp_path)}]}
    pin_runs(model, tmp_path)
    assert model["first"]["path"] == str(tmp_path / "2026-01-01" / "stage-000002-bbbb")  # type: ignore[call-overload]
    assert [node["path"] for node in model["more"]] == ["absent", str(tmp_path)]
