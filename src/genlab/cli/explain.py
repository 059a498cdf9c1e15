"""Hydra's errors in one line, with the key or option that was meant; and the text of --help."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from genlab.cli.check import reserved, said, unknown
from genlab.cli.problem import Problem, leaves, nearest, one_line
from genlab.cli.signature import Definition, find, signature

SHORT = 90  # characters that --help shows of an option's first comment


def folders_of(arguments: Any, folder: str) -> list[str]:
    """The folder of configs and those that --config-dir or hydra.searchpath add to it."""
    given = [o.partition("=")[2] for o in arguments.overrides if o.lstrip("+").startswith("hydra.searchpath=")]
    more = [Path(part) for text in given for part in re.findall(r"file://([^,\]'\"]+)", text)]
    more += [Path(arguments.config_dir)] if arguments.config_dir else []
    return [folder, *(str(path) for path in more if path.is_dir())]


def composition(error: Exception, arguments: Any, config_name: str, folder: str) -> Problem | None:
    """What went wrong while Hydra composed, or None if the error is no mistake of the user."""
    if isinstance(error, OverrideParseException):
        return Problem(
            f"cannot parse {error.override!r}", "", "Write key=value, and quote what is not plain: 'key=\"a=b, c\"'",
            "command line",
        )  # fmt: skip
    text = one_line(str(error))
    if isinstance(error, MissingConfigException):
        return _missing(error, arguments, folder)
    if isinstance(error, TypeError) and "not iterable" in text:  # Hydra's own, at a list of options that holds a number
        groups = [o for o in arguments.overrides if "=[" in o and o.partition("=")[0] in _groups(folder)]
        return Problem(f"{groups[0]}: options are names", "", "See --help", "command line") if groups else None
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        mark = cause.problem_mark
        return Problem(f"not valid YAML: {cause.problem}", "", "", f"{mark.name}, line {mark.line + 1}")
    if not isinstance(error, (HydraException, OmegaConfBaseException, ValueError, OSError, yaml.YAMLError)):
        return None
    if found := re.search(r"Could not override '([^']*)'", text):
        key = found[1].partition("@")[0]
        if inside := re.search(r"In '([^']*)'", text):
            return Problem(f"cannot override {found[1]!r} from here", "", "", f"conf/{inside[1]}.yaml")
        groups = _groups(folder)
        if key in groups:  # a group of some options only, such as model/penalty
            parent = key.rpartition("/")[0]
            if not parent:
                return Problem(f"{config_name}.py takes no {key}", "", "", "command line")
            return Problem(f"the chosen {parent} has no {key}", "", f"Choose another {parent}", "command line")
        return _unknown(key, _without(arguments, config_name, folder, key), groups)
    if found := re.search(r"You must specify '([^']*)', e\.g", text):
        return Problem(f"choose a {found[1]}", found[1], f"Give {found[1]}=OPTION: {_listed(folder, found[1])}")
    if found := re.search(r"Multiple values for ([\w/.]+)\. To override a value use '?override [\w/.]+", text):
        return Problem(f"{found[1]} is given twice", found[1], "Give it once", "command line")
    if found := re.match(r"Ambiguous value for argument '([^=']+)=(.*?)' 1\. To use", text):
        plain = _without(arguments, config_name, folder, found[1])
        if not found[1].startswith("+") and found[1] not in {*leaves(plain), *_groups(folder)}:
            return _unknown(found[1], plain, _groups(folder))
        do = f"Add -m for a sweep, or write {found[1]}=[{found[2]}] for a list, '{found[1]}=\"{found[2]}\"' for a text"
        return Problem("is given several values", found[1], do, "command line")
    if found := re.match(r"Error merging override [+~]*([^=]+)=(.*)", text):
        return Problem(f"cannot be {found[2]}: {said(cause)}", found[1], "", "command line")
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        text = f"{text}: {said(cause)}"
    return Problem(text.removesuffix("."))


def _missing(error: MissingConfigException, arguments: Any, folder: str) -> Problem:
    """An option that its group does not have, or a config file that is not there."""
    path = error.missing_cfg_file or ""
    group, _, option = path.rpartition("/")
    listed = error.options or [p.stem for p in sorted((Path(folder) / group).glob("*.yaml")) if group]  # none of a list
    options = [str(o) for o in listed if not str(o).startswith("_")]
    inside = re.search(r"In '([^']*)'", str(error))
    chosen = any(o.partition("=")[0].lstrip("+~").partition("@")[0] == group for o in arguments.overrides)
    where = "command line" if chosen else f"conf/{inside[1]}.yaml" if inside else ""
    if not options:
        return Problem(f"no config {path!r}", "", f"Look in {folder}", where)
    close = nearest(option, options)
    do = f"Did you mean {group}={close}? " if close else ""
    return Problem(f"{group} has no option {option!r}", "", f"{do}Options: {', '.join(options)}", where)


def _unknown(key: str, plain: dict[str, Any], groups: list[str]) -> Problem:
    """A key that the configuration does not have; its target may take it all the same."""
    known = list(dict.fromkeys([*leaves(plain), *groups]))
    parent = key.rpartition(".")[0]
    node: Any = plain
    for part in parent.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    found = find(str(node["_target_"])) if isinstance(node, dict) and "_target_" in node else None
    takes = [f"{parent}.{name}" for name in signature(found).parameters] if isinstance(found, Definition) else []
    if problem := reserved(key):
        return problem
    if key in takes and isinstance(found, Definition):
        do = f"{found.node.name} takes it, so add it with a plus sign: +{key}=VALUE"
        return Problem(f"{key!r} is not set in the configuration", "", do, "command line")
    problem = unknown(key, [*known, *takes])
    problem.where = "command line"
    return problem


def _without(arguments: Any, config_name: str, folder: str, bad: str) -> dict[str, Any]:
    """The configuration as it would be without the faulty override, or without any, not resolved."""
    rest = [o for o in arguments.overrides if not re.match(rf"[+~]*{re.escape(bad)}(@[^=]*)?=", o)]
    extra = [f"hydra.searchpath=[file://{Path(arguments.config_dir).resolve()}]"] if arguments.config_dir else []
    for overrides in ([*rest, *extra], []):
        try:
            GlobalHydra.instance().clear()
            with initialize_config_dir(arguments.config_path or folder, version_base="1.3"):
                cfg = compose(arguments.config_name or config_name, [o for o in overrides if "," not in o])
        except Exception:  # a second fault: the first is the one to report
            continue
        plain = OmegaConf.to_container(cfg, resolve=False)
        return {str(k): v for k, v in plain.items()} if isinstance(plain, dict) else {}
    return {}


def _groups(folder: str) -> list[str]:
    """Such as model and model/generator."""
    found = (p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_dir() and any(p.glob("*.yaml")))
    return sorted(name for name in found if name.partition("/")[0] not in ("hydra", "chain"))  # no options of an entry


def _listed(folder: str, group: str) -> str:
    return ", ".join(sorted(p.stem for p in (Path(folder) / group).glob("[!_]*.yaml")))


def origin(key: str, settings: Any) -> str:
    """Where a key of the composed configuration came from: 'command line', or the file of its group's option."""
    key = key.partition("[")[0]
    if not key:
        return ""
    overrides = OmegaConf.to_container(settings.overrides.task, resolve=False)
    for override in map(str, overrides if isinstance(overrides, list) else []):
        name = override.lstrip("+~").partition("=")[0].partition("@")[0]
        touches = key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.")
        if touches and name not in settings.runtime.choices:
            return "command line"
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        group = "/".join(parts[:n])
        choice = settings.runtime.choices.get(group)
        if isinstance(choice, str):
            return f"conf/{group}/{choice}.yaml"
    return f"conf/{settings.job.config_name}.yaml"


def help_text(config_name: str, folders: list[str], summary: str) -> str:
    """The groups and their options with one line each: the first comment of each file. What begins with _ is no option,
    but what several have in common."""
    lines = [one_line(summary), "", f"Usage: python {config_name}.py [GROUP=OPTION ...] [KEY=VALUE ...]", ""]
    for group in sorted({group for folder in folders for group in _groups(folder)}):
        lines.append(f"{group}:")
        options = {path.stem: path for folder in folders for path in (Path(folder) / group).glob("[!_]*.yaml")}
        wide = max((len(name) for name in options), default=0)
        lines += [
            f"  {group}={name:<{wide}}  {_first_comment(path)}".rstrip() for name, path in sorted(options.items())
        ]
    lines += [
        "",
        "--cfg job            show the composed configuration",
        "-m seed=1,2,3        run a sweep",
        "--config-dir FOLDER  add a folder of configs of your own, laid out as conf/",
        "--hydra-help         Hydra's own flags, among them shell completion",
    ]
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if line.startswith("#"):
            said = line.lstrip("# ").strip()
            return said if len(said) <= SHORT else f"{said[:SHORT].rsplit(' ', 1)[0].rstrip(' ,:;')} ..."
        if line.strip():
            break
    return ""
