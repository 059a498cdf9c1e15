"""A latent diffusion model that is told captions as parts of diffusers and transformers, without GenLab."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from genlab.diffusion.processes import VP
from genlab.diffusion.schedulers import scheduler_config
from genlab.errors import ConfigError
from genlab.files import read_json, write_bytes, write_json
from genlab.models.autoencoder import Autoencoder
from genlab.models.latent_diffusion import LatentDiffusion
from genlab.networks.text_encoder import TextEncoder


def write_parts(folder: Path, model: Any) -> tuple[str, dict[str, Any] | None]:
    """Writes vae/, unet/, text_encoder/, tokenizer/ and scheduler/. A KL autoencoder takes the mean and the deviation
    of the latents into its two 1x1 convolutions, so that its latents are those that the UNet knows.

    Returns:
        Python that makes a picture of them, where FOLDER and "..." (the prompt) stand for themselves; and, where they
        make a StableDiffusionPipeline, its model_index.json.

    Raises:
        ConfigError: the model is not told captions, or has a part that diffusers or transformers have not.
    """
    import diffusers
    from transformers import PreTrainedModel

    text = getattr(model, "text", None)
    if not isinstance(model, LatentDiffusion) or text is None:
        raise ConfigError("format=diffusers: only a latent model of pictures that is told captions has such a folder")
    encoder = text.network.on("cpu") if text.frozen else text.network
    for part, kind in ((model.network, diffusers.UNet2DConditionModel), (encoder, PreTrainedModel)):
        if not isinstance(part, kind):
            raise ConfigError(f"format=diffusers: {type(part).__name__} is no {kind.__name__}; leave it out")
    scheduler, (vae, patch) = scheduler_config(model.process, model.prediction, model.sampler), _vae(model)
    whole = {
        "vae is folded into patches": patch == 1,
        f"vae is a {type(vae).__name__}": type(vae).__name__ == "AutoencoderKL",
        "unet is told a pooled vector": not model.tells_pooled,
        "text_encoder is not CLIP's": type(encoder).__name__ == "CLIPTextModel",
        "texts are padded with a mask": text.fixed,
        "process is a flow": isinstance(model.process, VP),
    }
    for name, network in (("vae", vae), ("unet", model.network), ("text_encoder", encoder)):
        network.save_pretrained(folder / name, safe_serialization=True)
        config = read_json(folder / name / "config.json")
        config.pop("_name_or_path", None)  # of this machine
        write_json(folder / name / "config.json", config)
    tokenizer = _write_tokenizer(folder / "tokenizer", model.tokenizer, text)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    if all(whole.values()):
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers.__version__,
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", tokenizer],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        return PIPELINE.format(steps=model.sampler.steps, guidance=model.sampler.guidance_scale), index
    reasons = "; ".join(reason for reason, holds in whole.items() if not holds)
    return _assembly(model, text, type(vae).__name__, patch, scheduler["_class_name"], reasons), None


def _vae(model: LatentDiffusion) -> tuple[Any, int]:
    """The first stage in diffusers' class, and the side of the patches that are folded before and unfolded after it."""
    network = model.first_stage.on("cpu")
    own = isinstance(network, Autoencoder)
    vae = network.to_diffusers(folded=True) if own else copy.deepcopy(network)
    mean, std = model.latent_mean.cpu().flatten(), model.latent_std.cpu().flatten()
    if type(vae).__name__ == "AutoencoderKL":
        if not mean.any() and bool((std == std[0]).all()):
            vae.register_to_config(scaling_factor=float(f"{1 / std[0].item():.6g}"), shift_factor=None)
        else:
            normalise_latents(vae, mean, std)
    return vae, getattr(network.network, "patch", 1) if own else 1


@torch.no_grad()
def normalise_latents(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Makes the latents of an AutoencoderKL (z - mean) / std, mean and std [c], and its scaling_factor 1: in place, and
    exactly but for rounding, as both are affine in what its 1x1 convolutions give and take.

    Raises:
        ConfigError: it has no such convolutions.
    """
    first, last, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    if first is None or last is None:
        raise ConfigError("format=diffusers: the first stage has no quant_conv, which would take the latents' scale")
    first.weight[:channels] /= std.view(-1, 1, 1, 1)
    first.bias[:channels] = (first.bias[:channels] - mean) / std
    first.bias[channels:] -= 2 * std.log()  # of the log variance
    last.bias += last.weight[:, :, 0, 0] @ mean
    last.weight *= std.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0, shift_factor=None)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, text: TextEncoder) -> str:
    """The tokenizer as transformers reads it, with the frame and the padding that the encoder was trained with; CLIP's
    with the files that older programs read. Returns its class."""
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    _, (end,) = text.frame(tokenizer)
    if not tokenizer.encode("").ids:
        token = tokenizer.id_to_token(end)
        tokenizer.post_processor = TemplateProcessing(single=f"$A {token}", special_tokens=[(token, end)])
    pad = tokenizer.id_to_token(end if text.pad is None else text.pad)
    options: dict[str, Any] = {"pad_token": pad, "model_max_length": text.longest}
    inner = json.loads(tokenizer.to_str())["model"]
    if inner.get("end_of_word_suffix") == "</w>" and tokenizer.id_to_token(end) == "<|endoftext|>":
        merges: Any = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in inner["merges"]]
        made: Any = CLIPTokenizer(vocab=inner["vocab"], merges=merges, **options)
        write_json(folder / "vocab.json", inner["vocab"])
        write_bytes(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode())
    else:
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    made.save_pretrained(folder)
    return "CLIPTokenizer" if isinstance(made, CLIPTokenizer) else "PreTrainedTokenizerFast"


PIPELINE = """from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("FOLDER")
picture = pipeline("...", num_inference_steps={steps}, guidance_scale={guidance}).images[0]
picture.save("picture.png")"""

ASSEMBLY = """# No StableDiffusionPipeline: {reasons}.
import torch
from diffusers import {vae}, {scheduler}, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from transformers import AutoModel, AutoTokenizer

steps, guidance = {steps}, {guidance}
vae = {vae}.from_pretrained("FOLDER", subfolder="vae")
unet = UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")
scheduler = {scheduler}.from_pretrained("FOLDER", subfolder="scheduler")
encoder = AutoModel.from_pretrained("FOLDER/text_encoder")
tokenizer = AutoTokenizer.from_pretrained("FOLDER/tokenizer")
texts = tokenizer(["...", ""], padding={padding}, max_length={longest}, truncation=True, return_tensors="pt")
mask = texts.attention_mask
latents = torch.randn(1, {shape}, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    states = encoder(texts.input_ids{masked})[0]
    told = {{"encoder_hidden_states": states}}
{more}    scheduler.set_timesteps({times})
    for t in scheduler.timesteps:
        said, unsaid = unet(torch.cat([latents, latents]), t, **told).sample.chunk(2)
        latents = scheduler.step(unsaid + guidance * (said - unsaid), t, latents).prev_sample
    picture = vae.decode({latents}).sample
{unfold}VaeImageProcessor().postprocess(picture)[0].save("picture.png")"""

POOLED = {
    "mean": "(states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)",
    "first": "states[:, 0]",
    "end": "states[torch.arange(2), mask.sum(1) - 1]",
}


def _assembly(model: Any, text: TextEncoder, vae: str, patch: int, scheduler: str, reasons: str) -> str:
    """The code of parts that are no StableDiffusionPipeline."""
    more = [] if text.fixed else ['told["encoder_attention_mask"] = mask']
    if model.tells_pooled:
        length = f"{text.width**0.5!r} * torch.nn.functional.normalize(pooled, dim=1)" if text.normalise else "pooled"
        more += [f"pooled = {POOLED[text.pool]}", f'told["class_labels"] = {length}']
    scale, latents = _scale(model), "latents / vae.config.scaling_factor"
    if vae == "VQModel":
        latents = "latents * torch.tensor({}).view(1, -1, 1, 1) + torch.tensor({}).view(1, -1, 1, 1)".format(*scale)
    flow = scheduler.startswith("Flow")
    return ASSEMBLY.format(
        reasons=reasons, vae=vae, scheduler=scheduler, steps=model.sampler.steps,
        guidance=model.sampler.guidance_scale, longest=text.longest, shape=", ".join(map(str, model.shape)),
        padding='"max_length"' if text.fixed else "True", masked="" if text.fixed else ", attention_mask=mask",
        more="".join(f"    {line}\n" for line in more), latents=latents,
        times="sigmas=[1 - i / steps for i in range(steps)]" if flow else "steps",
        unfold=f"picture = torch.nn.functional.pixel_shuffle(picture, {patch})\n" if patch > 1 else "",
    )  # fmt: skip


def _scale(model: Any) -> tuple[list[float], list[float]]:
    std, mean = (value.flatten().tolist() for value in (model.latent_std, model.latent_mean))
    return std, mean
