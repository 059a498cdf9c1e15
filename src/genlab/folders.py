"""Folders of networks, as `save_pretrained` of transformers and diffusers writes them: the one loader of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genlab.errors import ConfigError
from genlab.files import read_json

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors",
           "diffusion_pytorch_model.safetensors.index.json")  # fmt: skip


def load_folder(
    folder: Path, kind: Any, where: str, types: Collection[str] = (), unused: str | None = None
) -> nn.Module:
    """The network in a folder, float32, in eval mode. Nothing is fetched, no pickle is read, no code of it runs.

    Args:
        folder: with config.json and safetensors.
        kind: class of transformers or diffusers that reads it.
        where: the key of the configuration that names the folder, for messages.
        types: what config.json may call its model_type; empty: anything.
        unused: weights with this in their names may be lacking.

    Raises:
        ConfigError: no such folder; weights as a pickle only; an adapter; another model_type; weights that are damaged
            or lack a part of the network.
    """
    facts = read_json(folder / "config.json")
    absent = [] if (folder / "config.json").is_file() else ["config.json"]
    absent += [] if any((folder / name).is_file() for name in WEIGHTS) else [WEIGHTS[0]]
    if absent:
        raise ConfigError(
            f"{where}: no {' and no '.join(absent)} in {folder}, which `save_pretrained` would have written (other "
            "formats can run code and are not read: convert them)"
        )
    if not isinstance(facts, dict):
        raise ConfigError(f"{where}: config.json cannot be read as JSON")
    if (folder / "adapter_config.json").exists():
        raise ConfigError(f"{where}: holds an adapter; merge it into its base first")
    if types and facts.get("model_type") not in types:
        raise ConfigError(f"{where}: its model_type is {facts.get('model_type')!r}, expected {' or '.join(types)}")
    from transformers.utils import logging

    shown, name = logging.get_verbosity(), kind.__name__
    logging.set_verbosity_error()  # of weights that are left out on purpose
    dtype = "torch_dtype" if kind.__module__.startswith("diffusers.") else "dtype"
    options = {dtype: torch.float32, **({"trust_remote_code": False} if name.startswith("Auto") else {})}
    try:
        network, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )  # fmt: skip
    except Exception as error:  # the libraries' and safetensors' own, of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{where}: cannot be loaded as {name} ({type(error).__name__}: {reason})") from error
    finally:
        logging.set_verbosity(shown)
    lacking = [str(key) for key in (*report["missing_keys"], *report["mismatched_keys"])]
    if lacking := [key for key in lacking if unused is None or unused not in key]:
        raise ConfigError(f"{where}: the weights lack {len(lacking)} of {name}: {', '.join(sorted(lacking)[:3])}")
    return network.eval()
