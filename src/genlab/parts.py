"""Parts of a model that come from elsewhere: a run, an export, a folder of transformers or diffusers."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Literal

from torch import nn

from genlab.errors import ConfigError
from genlab.files import folder_or_cached, read_json
from genlab.folders import load_folder
from genlab.networks.frozen import Frozen
from genlab.runs.directory import find_run


class FrozenPart(Frozen):
    """A network that a model uses and does not train: `model.X={_target_: genlab.parts.FrozenPart, path: ...}`.

    Nothing is fetched, no pickle is read, no code of a folder runs.

    Args:
        path: a run (path, name or "last"), an export, a folder that `save_pretrained` of transformers or diffusers has
            written, or a name that scripts/fetch_data.py knows.
        part: attribute of the network that is meant, such as "network" or "critic.body"; None: all of it.
        weights: of a run.

    Raises:
        ConfigError: nothing there, or not readable; no such part.
    """

    def __init__(self, path: str, part: str | None = None, weights: Literal["ema", "raw"] = "ema") -> None:
        folder = folder_or_cached(path)
        facts = read_json(folder / "config.json")
        kind = facts if isinstance(facts, dict) else {}
        if "model_type" in kind:
            network = _of_library("transformers", "AutoModel", folder, path)
        elif "_class_name" in kind:
            network = _of_library("diffusers", str(kind["_class_name"]), folder, path)
        else:
            from genlab.cli.load import load_run  # a run may have frozen parts itself

            run = find_run(path, Path(os.environ.get("GENLAB_RUNS", "runs")))
            network = load_run(run.path, weights, device="cpu").model
        for name in part.split(".") if part else ():
            inner = getattr(network, name, None)
            if not isinstance(inner, nn.Module):
                known = ", ".join(name for name, _ in network.named_children())
                raise ConfigError(f"{path}: part={part}: {type(network).__name__} has no {name} (it has: {known})")
            network = inner
        super().__init__(network, f"{path}{f':{part}' if part else ''}")


def _of_library(library: str, name: str, folder: Path, path: str) -> nn.Module:
    kind = getattr(importlib.import_module(library), name, None)
    if not hasattr(kind, "from_pretrained"):
        raise ConfigError(f"{folder / 'config.json'}: {library} has no {name}")
    return load_folder(folder, kind, path)
