"""A chain's file: its stages, what each is named by later ones, and whether their commands are right. Free of torch."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader  # refuses a key that comes twice

from genlab.cli import explain
from genlab.cli.compose import compose_config
from genlab.cli.hydra_main import readable
from genlab.cli.problem import Problem, one_line
from genlab.cli.stored import refuse_bombs
from genlab.errors import ConfigError

FREE = {"train": (), "evaluate": ("sampler",), "sample": ("sampler", "condition")}  # as in the entry points
OWN = {"train": ("runs_dir", "resume"), "evaluate": ("out",), "sample": ("out",)}  # keys that the chain itself gives
NAME = re.compile(r"[A-Za-z]\w*")
REFERENCE = re.compile(r"\$\{(\w+)\}")  # ${a.b} and ${a:b} are Hydra's own


@dataclass(frozen=True)
class Stage:
    """One command of a chain.

    Attributes:
        name: letters, digits and underscores.
        entry: train, evaluate or sample: the script.
        arguments: of the script, in which ${NAME} stands for the run directory of an earlier stage.
        digest: eight hex digits of the command and of those of the stages that it names.
    """

    name: str
    entry: str
    arguments: tuple[str, ...]
    digest: str

    @property
    def command(self) -> str:
        """As it would be typed, from the repository."""
        return f"python {self.entry}.py {' '.join(self.arguments)}"


def find_chain(chain: str, folder: Path) -> Path:
    """The file of a chain that is named, or given by its path.

    Args:
        folder: conf/chain.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    path = Path(chain) if chain.endswith((".yaml", ".yml")) else folder / f"{chain}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(shipped.stem for shipped in folder.glob("*.yaml")))
        raise ConfigError(f"no chain {chain!r}. Name one of {known}, or give the path of a .yaml.")
    return path


def read_chain(path: Path, overrides: Sequence[str] = ()) -> list[Stage]:
    """The stages of a file, in order.

    Args:
        overrides: each STAGE.KEY=VALUE, put in the place of the stage's own KEY=..., or added to its arguments.

    Raises:
        ConfigError: it cannot be read; no stages; a stage that is no command, or names one that does not come before
            it; an override of a stage that is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        refuse_bombs(text, path)
        plain = yaml.load(text, get_yaml_loader())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"cannot read the chain {path}: {one_line(str(error))[:300]}") from error
    nodes = plain.get("stages") if isinstance(plain, dict) else None
    if not isinstance(nodes, dict) or not nodes or set(plain) != {"stages"}:
        raise ConfigError(f"{path}: a chain has one node, stages, with a stage or more: 'NAME: {{train: KEY=VALUE}}'.")
    commands = {str(name): _command(str(name), node) for name, node in nodes.items()}
    for override in overrides:
        _override(commands, override)
    stages: dict[str, Stage] = {}
    for name, (entry, arguments) in commands.items():
        _check_keys(name, entry, arguments)
        named = [_earlier(name, other, stages, list(commands)) for other in REFERENCE.findall(" ".join(arguments))]
        whole = json.dumps([entry, arguments, [stage.digest for stage in named]])
        stages[name] = Stage(name, entry, tuple(arguments), hashlib.sha256(whole.encode()).hexdigest()[:8])
    return list(stages.values())


def _command(name: str, node: Any) -> tuple[str, list[str]]:
    """The script and its arguments, of a node {train: "KEY=VALUE KEY=VALUE"} or {train: [KEY=VALUE, ...]}."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"stage {name!r}: a name is letters, digits and underscores, and begins with a letter.")
    entry = next(iter(node)) if isinstance(node, dict) and len(node) == 1 else None
    if entry not in FREE:
        shown = ", ".join(map(str, node)) if isinstance(node, dict) else node
        raise ConfigError(f"stage {name}: must be one of {', '.join(FREE)}, with its arguments; is {shown!r}.")
    given = node[entry]
    if isinstance(given, str):
        try:
            given = shlex.split(given)
        except ValueError as error:
            raise ConfigError(f"stage {name}: {given!r} cannot be parsed ({error}).") from error
    if not isinstance(given, list) or not all(isinstance(argument, str) for argument in given):
        raise ConfigError(f"stage {name}: {entry} takes its arguments as on a command line, or as a list of them.")
    return entry, given


def _override(commands: dict[str, tuple[str, list[str]]], override: str) -> None:
    name, _, argument = override.partition(".")
    if name not in commands or "=" not in argument:
        raise ConfigError(f"{override!r}: write STAGE.KEY=VALUE, where STAGE is one of {', '.join(commands)}.")
    _, arguments = commands[name]
    same = [i for i, old in enumerate(arguments) if _key(old) == _key(argument)]
    if same:
        arguments[same[0]] = argument
    else:
        arguments.append(argument)


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _check_keys(name: str, entry: str, arguments: Sequence[str]) -> None:
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"stage {name}: {argument!r} is a flag; a stage is one job, its arguments are KEY=VALUE.")
        if _key(argument) in OWN[entry]:
            raise ConfigError(f"stage {name}: {_key(argument)} is what the chain decides; leave it out.")
    if entry != "train" and not any(_key(argument) in ("run", "samples") for argument in arguments):
        raise ConfigError(f"stage {name}: {entry} of what? Name an earlier stage: run=${{STAGE}}.")


def _earlier(name: str, other: str, before: dict[str, Stage], names: Sequence[str]) -> Stage:
    """The stage that `name` names as `other`."""
    stage = before.get(other)
    if stage is not None and stage.entry == "train":
        return stage
    why = "trains nothing" if stage else "does not come before it" if other in names else "is no stage"
    trained = ", ".join(stage.name for stage in before.values() if stage.entry == "train") or "none"
    raise ConfigError(f"stage {name} names ${{{other}}}, which {why}. Stages that train before it: {trained}.")


def fill(arguments: Sequence[str], runs: dict[str, str]) -> list[str]:
    """The arguments with the run directories in the place of the stages' names."""
    return [REFERENCE.sub(lambda match: runs[match[1]], argument) for argument in arguments]


def check_stage(stage: Stage, conf: Path) -> None:
    """Composes and checks the command of a stage, whose runs need not be there.

    Raises:
        ConfigError: what its script would say, with the name of the stage.
    """
    runs = {name: name for name in REFERENCE.findall(" ".join(stage.arguments))}
    arguments = [readable(argument, FREE[stage.entry]) for argument in fill(stage.arguments, runs)]
    given = SimpleNamespace(overrides=arguments, config_dir=None, config_path=None, config_name=None)
    try:
        compose_config(conf, stage.entry, arguments)
    except Exception as error:
        known = error if isinstance(error, ConfigError) else explain.composition(error, given, stage.entry, str(conf))
        if known is None:
            raise
        if isinstance(known, Problem):
            known.where = ""
        raise ConfigError(f"stage {stage.name}: {known}") from error
