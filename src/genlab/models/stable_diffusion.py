"""Stable Diffusion 1.x and 2.x: a latent diffusion model made of the parts in a folder of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab.data.vocabulary import folder_tokenizer
from genlab.diffusion.parameterisation import Weighting
from genlab.diffusion.processes import VP
from genlab.diffusion.schedulers import read_scheduler
from genlab.errors import ConfigError
from genlab.files import folder_or_cached, read_json
from genlab.folders import load_folder
from genlab.models.latent_diffusion import LatentDiffusion
from genlab.networks.frozen import Frozen
from genlab.networks.text_encoder import TextEncoder

INDEX = "model_index.json"
PARTS = {"vae": "config.json", "unet": "config.json", "text_encoder": "config.json",
         "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {  # of the libraries, which need not write them
    "vae": {"latent_channels": 4, "out_channels": 3, "scaling_factor": 0.18215, "block_out_channels": [64]},
    "unet": {"in_channels": 4, "cross_attention_dim": 1280},
    "text_encoder": {"hidden_size": 512, "max_position_embeddings": 77},
}
# Of a UNet that is told more than its time and a text: SDXL's, LCM's, those of captions' vectors.
MORE = ("addition_embed_type", "class_embed_type", "encoder_hid_dim", "num_class_embeds", "time_cond_proj_dim")


def pipeline_parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The configurations in a folder of a StableDiffusionPipeline, by part.

    Raises:
        ConfigError: another pipeline; a part is lacking, or is no part of one that GenLab reads.
    """
    index = read_json(folder / INDEX)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != "StableDiffusionPipeline":
        raise ConfigError(f"{folder / INDEX}: expected a StableDiffusionPipeline, got {kind!r}")
    parts: dict[str, dict[str, Any]] = {}
    for name, file in PARTS.items():
        facts = read_json(folder / name / file)
        if not isinstance(facts, dict):
            raise ConfigError(
                f"{folder}: {name} is lacking, no {name}/{file} can be read; copy it from where the folder is from"
            )
        parts[name] = {**DEFAULTS.get(name, {}), **facts}
    unet, vae, text = (parts[name] for name in ("unet", "vae", "text_encoder"))
    if odd := next((name for name in MORE if unet.get(name) is not None), None):
        raise ConfigError(f"{folder}/unet: {odd}={unet[odd]}: not a network of Stable Diffusion 1.x or 2.x")
    for name, own, where, wanted in (
        ("unet: in_channels", unet["in_channels"], "vae: latent_channels", vae["latent_channels"]),
        ("unet: cross_attention_dim", unet["cross_attention_dim"], "text_encoder: hidden_size", text["hidden_size"]),
    ):  # fmt: skip
        if own != wanted:
            raise ConfigError(f"{folder}/{name}={own} does not fit {where}={wanted}")
    if text.get("model_type") != "clip_text_model" or vae.get("_class_name") != "AutoencoderKL":
        found = f"{text.get('model_type')} and {vae.get('_class_name')}"
        raise ConfigError(f"{folder}: expected text_encoder clip_text_model and vae AutoencoderKL, got {found}")
    return parts


def latent_scale(vae: dict[str, Any]) -> float:
    """Standard deviation of the latents that an autoencoder's config.json states; their mean is taken to be 0."""
    return 1 / float(vae["scaling_factor"])


def pipeline_state(folder: Path) -> dict[str, Tensor]:
    """The folder's weights under the names of a model's state.

    Raises:
        ConfigError: as `pipeline_parts` and `load_folder`.
    """
    from diffusers import UNet2DConditionModel

    vae = pipeline_parts(folder)["vae"]
    network = load_folder(folder / "unet", UNet2DConditionModel, f"{folder}/unet")
    mean = torch.zeros(vae["latent_channels"], 1, 1)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    return {**state, "latent_mean": mean, "latent_std": torch.full_like(mean, latent_scale(vae))}


class StableDiffusion(LatentDiffusion):
    """Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752) from a folder of diffusers' StableDiffusionPipeline: the
    UNet, which is trained, the autoencoder and CLIP's text model, which are frozen, tokenizer, process and prediction.

    A run that is trained from it keeps its own weights of the UNet, but needs the folder again to be built. Nothing is
    fetched, no pickle is read, no code of the folder runs; its safety_checker is not read.

    Args:
        path: of the folder.
        shape: [C, H, W] of the pictures, H and W divisible by the autoencoder's factor; null: as the UNet was trained.
        gradient_checkpointing: of the UNet: less memory, a third more time.
        weighting: see LatentDiffusion, as the rest.

    Raises:
        ConfigError: no such folder; see `pipeline_parts`.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int] | None = None,
        gradient_checkpointing: bool = False,
        weighting: Weighting = "own",
        caption_drop: Annotated[float, "ge 0, lt 1"] = 0.1,
        channels_last: bool = False,
        compute_once: bool = True,
        chunk_size: int = 4,
    ) -> None:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        folder = folder_or_cached(path)
        parts = pipeline_parts(folder)
        vae, factor = parts["vae"], 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
        if shape is None:
            size = parts["unet"].get("sample_size")
            if not size:
                raise ConfigError(f"{folder}/unet/config.json says no sample_size; set model.shape")
            sides = [size, size] if isinstance(size, int) else size
            shape = [vae["out_channels"], *(factor * side for side in sides)]
        if shape[1] % factor or shape[2] % factor:
            raise ConfigError(f"model.shape={list(shape)}: height and width must be multiples of {factor}")
        kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
        loaded = {name: load_folder(folder / name, kind, f"{path}/{name}") for name, kind in kinds.items()}
        frozen = {name: Frozen(loaded[name], f"{path}/{name}") for name in ("vae", "text_encoder")}
        tokenizer, pad, longest = folder_tokenizer(folder / "tokenizer")
        text, scheduler = parts["text_encoder"], read_scheduler(parts["scheduler"], f"{path}/scheduler")
        network: Any = loaded["unet"].train()
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        super().__init__(
            network=network,
            process=VP(**scheduler.process),
            shape=shape,
            first_stage=frozen["vae"],
            latent_shape=[vae["latent_channels"], shape[1] // factor, shape[2] // factor],
            text=TextEncoder(
                frozen["text_encoder"], text["hidden_size"], "end", normalise=False, fixed=True, pad=pad,
                longest=min(longest, text["max_position_embeddings"]),
            ),
            latent_mean=0.0,
            latent_std=latent_scale(vae),
            prediction=scheduler.prediction,
            weighting=weighting,
            caption_drop=caption_drop,
            channels_last=channels_last,
            compute_once=compute_once,
            chunk_size=chunk_size,
        )  # fmt: skip
        self.tokenizer = tokenizer
