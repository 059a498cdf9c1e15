"""The row `latent` of benchmark.py: a text-to-image model against diffusers' training loop and pipeline."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers

from genlab.data.captioned import CaptionedFolder
from genlab.diffusion.samplers import DDIM
from genlab.models.stable_diffusion import StableDiffusion
from genlab.models.trained import Plan

PROMPTS = ["a red heart", "waving hand", "a smiling face with sunglasses", "green circle"]
BATCH, STEPS, GUIDANCE = 32, 20, 7.5


def make_folder(folder: Path) -> Path:
    """A StableDiffusionPipeline of random weights, its UNet that of experiment=emoji_t2i without the pooled vector."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1,
    ))  # fmt: skip
    unet = UNet2DConditionModel(
        8, block_out_channels=(80, 160), layers_per_block=1, cross_attention_dim=384, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=8, sample_size=64,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    parts: Any = (vae, text, tokenizer, unet, scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


def make_pictures(folder: Path, count: int = 256) -> Path:
    """Pictures of noise with captions."""
    from PIL import Image

    folder.mkdir()
    pixels = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i in range(count):
        Image.fromarray(pixels[i].numpy()).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(PROMPTS[i % len(PROMPTS)])
    return folder


class Trained:
    """A training step of both on the same batch: GenLab's `losses`, and that of diffusers' train_text_to_image.py."""

    def __init__(self, folder: Path, data: Any, once: bool) -> None:
        self.model = StableDiffusion(str(folder), [3, 64, 64], compute_once=once)
        self.model.plan, self.model.tokenizer = Plan(torch.optim.AdamW, None, BATCH), data.tokenizer  # type: ignore[arg-type]
        if once:
            self.model.prepare(data, torch.device("cpu"))
        loader = data.train_loader(0, BATCH * 1000)
        self.batches = data.batches(loader)
        self.model.train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, 1e-5, fused=True)
        self.theirs = torch.optim.AdamW(parameters, 1e-5, fused=True)
        from diffusers import DDPMScheduler

        self.scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.encoder, self.vae = self.model.text.network.on("cpu"), self.model.first_stage.on("cpu")  # type: ignore[union-attr]

    def genlab(self, batch: dict[str, Any]) -> None:
        self.update(self.model.losses(batch)["loss"], self.optimizer)

    def diffusers(self, batch: dict[str, Any]) -> None:
        """Once, as GenLab's: latents and states that are computed before training; else at each step, as the script."""
        with torch.no_grad():
            if "latent" in batch:
                latents, states = batch["latent"] * self.vae.config.scaling_factor, batch["text_states"]
            else:
                latents = self.vae.encode(batch["image"]).latent_dist.sample() * self.vae.config.scaling_factor
                assert self.model.text is not None
                states = self.encoder(self.model.text.framed(batch["caption"], self.model.tokenizer)[0])[0]
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (len(latents),))
        noisy = self.scheduler.add_noise(latents, noise, times)
        output = self.model.network(noisy, times, states, return_dict=False)[0]
        self.update(F.mse_loss(output.float(), noise.float()), self.theirs)

    def update(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()


def compared(repeats: int) -> dict[str, list[float]]:
    """GenLab's images a CPU second over diffusers', of steps that alternate: training with latents and texts computed
    once and at each step, and sampling of four pictures by 20 guided steps of DDIM."""
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    ratios: dict[str, list[float]] = {}

    def pair(name: str, ours: Any, theirs: Any) -> None:
        seconds = []
        for function in (ours, theirs):
            began = time.process_time()
            function()
            seconds.append(time.process_time() - began)
        ratios.setdefault(name, []).append(seconds[1] / seconds[0])

    with tempfile.TemporaryDirectory() as temporary:
        folder = make_folder(Path(temporary) / "pipeline")
        root = make_pictures(Path(temporary) / "pictures")
        size = len(json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
        for once in (True, False):
            data = CaptionedFolder(
                "pictures", root=str(root), shape=[3, 64, 64], vocabulary=str(folder / "tokenizer"), vocab_size=size,
                batch_size=BATCH, val_fraction=0.1,
            )  # fmt: skip
            data.setup()
            both = Trained(folder, data, once)
            name = f"training, {'computed once' if once else 'computed at each step'}"
            for i in range(repeats + 2):
                batch = next(both.batches)
                pair(name, lambda b=batch, both=both: both.genlab(b), lambda b=batch, both=both: both.diffusers(b))  # type: ignore[misc]
                if i == 1:
                    ratios[name].clear()  # warm-up
        pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        model = both.model.eval()
        model.chunk_size = len(PROMPTS)
        caption = next(known for known in model.conditions if known.name == "caption").rows(PROMPTS, model)
        sampler = DDIM(steps=STEPS, spacing="leading_to_1", guidance_scale=GUIDANCE)
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        for _ in range(max(3, repeats // 4)):
            pair(
                "sampling",
                lambda: model.sample(torch.arange(len(PROMPTS)), {"caption": caption}, sampler),
                lambda: pipeline(PROMPTS, height=64, width=64, **options),
            )
    return ratios
