"""Configurations that are stored: resolved when they were written, and read as what anyone may have changed since."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader  # OmegaConf's own reading of numbers; refuses a key that comes twice
from omegaconf.errors import OmegaConfBaseException

from genlab.cli.old_forms import modern
from genlab.errors import ConfigError


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
        plain = yaml.load(text, get_yaml_loader())
        config = OmegaConf.create(literal(modern(plain))) if isinstance(plain, dict) else None
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())[:300]}") from error
    if config is None:
        raise ConfigError(f"{path} is not a configuration")
    return config
