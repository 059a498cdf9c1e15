"""A configuration composed and checked without a command line: for notebooks, scripts and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from genlab.cli.check import check


def compose_config(folder: str | Path, entry: str = "train", overrides: Sequence[str] = ()) -> DictConfig:
    """What `python ENTRY.py OVERRIDES` would work with, resolved.

    Args:
        folder: the folder of configs (conf/ of the repository).
        entry: 'train', 'sample' or 'evaluate'.
        overrides: as on the command line, each 'key=value'.

    Raises:
        ConfigError: `check` finds a fault.
        hydra.errors.HydraException: an override that Hydra cannot apply.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(Path(folder).resolve()), version_base="1.3"):
        config = compose(entry, list(overrides), return_hydra_config=True)
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)  # for ${hydra:...}
        with open_dict(config):
            del config["hydra"]
        check(config, entry)
        plain: Any = OmegaConf.to_container(config, resolve=True)
    finally:
        HydraConfig.instance().cfg = before
    return OmegaConf.create(plain)
