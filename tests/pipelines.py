"""Tiny folders of StableDiffusionPipeline, of random weights, and pictures with captions to train them on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers

MERGES = ["r e", "re d</w>", "h e", "a r", "he ar", "hear t</w>"]
SHAPE = (4, 8, 8)  # of the latents of pictures [3, 16, 16]
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """CLIP's bytes, a few merges, and its two special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def make_pipeline(folder: Path, pad: str = "<|endoftext|>", **scheduler: Any) -> Path:
    """A folder as diffusers' save_pretrained leaves it; its encoder gives the mode, as its deviation is 3e-7.

    Args:
        pad: of the tokenizer; 2.x has "!".
        scheduler: keys of scheduler_config.json that are not Stable Diffusion's.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    vocabulary, merges = clip_vocabulary()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1,
    ))  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=0.5,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30
        vae.decoder.conv_out.weight *= 2  # pictures with contrast
        for block in (unet.mid_block, unet.down_blocks[1], unet.up_blocks[0]):  # that say what the text says
            for attention in block.attentions:
                attention.proj_out.weight *= 4
    for name, part in (("tokenizer", tokenizer), ("text_encoder", text), ("unet", unet), ("vae", vae)):
        part.save_pretrained(folder / name)
    facts = {**SCHEDULER, **scheduler}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(facts))
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "safety_checker": [None, None],
        "feature_extractor": [None, None], "scheduler": ["diffusers", facts["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def captioned_pictures(folder: Path, pipeline: Path, size: int = 16, count: int = 20) -> list[str]:
    """Overrides for a folder of pictures of one colour each with its name, in the vocabulary of a pipeline."""
    folder.mkdir(parents=True)
    colours = {"a red heart": (200, 30, 40), "a blue heart": (30, 40, 200), "green": (40, 180, 60)}
    for i in range(count):
        name, colour = list(colours.items())[i % len(colours)]
        pixels = np.full((size, size, 3), colour, np.uint8) + np.uint8(i)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(name)
    return [
        "data=captioned_folder", f"data.root={folder}", f"data.shape=[3,{size},{size}]", "data.val_fraction=0.4",
        f"data.vocabulary={pipeline / 'tokenizer'}", f"data.vocab_size={len(clip_vocabulary()[0])}",
    ]  # fmt: skip
