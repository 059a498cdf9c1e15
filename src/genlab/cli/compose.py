"""A configuration composed and checked without a command line: for notebooks, scripts and tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf._utils import get_yaml_loader  # OmegaConf's own reading of numbers; refuses a key that comes twice
from omegaconf.errors import OmegaConfBaseException

from genlab.cli.check import check
from genlab.errors import ConfigError


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


def refuse_bombs(text: str, path: Path) -> None:
    """Aliases and endless nesting: GenLab writes neither, and a few lines of them can take any memory or time."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 50:
            raise ConfigError(f"{path}: aliases (*name) and nesting deeper than 50 are not read")


def literal(value: Any) -> Any:
    """Plain containers for OmegaConf.create, in which `${` is text: what is stored has been resolved.

    It may come from anyone: a resolver would read the environment, and a few lines of interpolations fill any memory.
    """
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def load_yaml(path: Path) -> DictConfig:
    """The configuration that a run has left in `path`; no interpolation in it is resolved.

    Raises:
        ConfigError: it is not there, not YAML, or not what a run leaves there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        refuse_bombs(text, path)
        config = OmegaConf.create(literal(yaml.load(text, get_yaml_loader())))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is not a configuration")
    return config
