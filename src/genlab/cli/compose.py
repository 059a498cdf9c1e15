"""A configuration composed and checked without a command line: for notebooks, scripts and tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from genlab.cli.check import check
from genlab.cli.old_targets import modern
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


def _refuse_bombs(text: str, path: Path) -> None:
    """Aliases and endless nesting: GenLab writes neither, and a few lines of them can take any memory or time."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > 50:
            raise ConfigError(f"{path}: aliases (*name) and nesting deeper than 50 are not read")


def load_yaml(path: Path) -> DictConfig:
    """The configuration that a run has left in `path`.

    Raises:
        ConfigError: it is not there, not YAML, or not what a run leaves there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(text, path)
        config = OmegaConf.create(text)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is not a configuration")
    plain: Any = OmegaConf.to_container(config)
    return OmegaConf.create(modern(plain))
