"""What a configuration may ask of Hydra itself, checked before Hydra acts on it.

Hydra builds callbacks and launchers, sets up logging and the environment from the node `hydra` before the task begins,
and any option file may fill that node. So each composed configuration is looked at as soon as it is there.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from genlab.cli.problem import Problem
from genlab.cli.signature import Definition, find
from genlab.cli.targets import is_inside, nodes, user_packages

# Emptied of what they can do elsewhere: (key below hydra, what does the same).
CLOSED = {
    "callbacks": "callbacks.extra takes callbacks of Lightning",
    "job.env_set": "set the variable in the shell",
    "job.env_copy": "set the variable in the shell",
}
LOGGING = ("job_logging", "hydra_logging")
# Sweepers and launchers are plugins of Hydra; theirs may name samplers of optuna.
PLUGINS = ("hydra_plugins", "hydra._internal.core_plugins", "optuna")
# Settings of launchers that end in a shell.
SHELL = ("setup", "srun_args", "python", "additional_parameters", "pre_dispatch")


def check_hydra(config: DictConfig) -> None:
    """Refuses a node `hydra` that would run code.

    Args:
        config: as Hydra has composed it, with `hydra`.

    Raises:
        Problem: the first key that is not for configurations.
    """
    node: Any = OmegaConf.to_container(config.hydra, resolve=False)
    for key, instead in CLOSED.items():
        value: Any = node
        for name in key.split("."):
            value = value.get(name)
        if value:
            raise _refused(key, instead)
    for key in LOGGING:
        if node[key] != _shipped(key, config.hydra.runtime.choices.get(f"hydra/{key}")):
            raise _refused(key, f"choose one of Hydra's: hydra/{key}=default")
    for key in ("sweeper", "launcher"):
        for inner, where in nodes(node[key], f"hydra.{key}"):
            target = str(inner["_target_"])
            definition = find(target)  # where it is really defined: a module of a plugin leads to whatever it imports
            packages = (*PLUGINS, *user_packages())
            if not isinstance(definition, Definition) or not is_inside(definition.module, packages):
                raise Problem(
                    f"target {target!r} is not allowed: it is no {key} of Hydra",
                    f"{where}._target_",
                    "Allow a package of your own by the environment variable GENLAB_ALLOW=PACKAGE",
                )
    overrides = [str(override).lstrip("+") for override in config.hydra.overrides.hydra]
    if not any(override.startswith("hydra/launcher=") for override in overrides):
        for name in SHELL:
            if node["launcher"].get(name):
                raise _refused(f"launcher.{name}", "it ends in a shell: choose the launcher on the command line")


def _refused(key: str, instead: str) -> Problem:
    return Problem(f"must not be set: Hydra acts on it before GenLab can check it; {instead}", f"hydra.{key}")


def _shipped(key: str, option: Any) -> Any:
    """The content of one of Hydra's own options; None where it has none of that name."""
    path = files("hydra.conf") / "hydra" / key / f"{option}.yaml"
    if not path.is_file():
        return None
    return OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=False)


_load = ConfigLoaderImpl.load_configuration


def _load_checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
    try:
        config = _load(self, *args, **kwargs)
    except KeyError as error:  # Hydra has looked up a variable that is not there
        raise _refused("job.env_copy", CLOSED["job.env_copy"]) from error
    check_hydra(config)
    return config


def install() -> None:
    """From here on every configuration that Hydra composes in this process is checked."""
    ConfigLoaderImpl.load_configuration = _load_checked  # type: ignore[method-assign]
