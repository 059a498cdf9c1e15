"""Is this configuration right? Asked before torch is imported, answered in one line.

`check(cfg, entry)` goes from the general to the particular: missing values and interpolations, the fields of `schema`,
every `_target_` against the source of what it names, then what must fit together (`cross`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from genlab.cli import cross, schema, targets
from genlab.cli.arguments import check_arguments, short
from genlab.cli.old_forms import new_keys
from genlab.cli.problem import Problem, leaves, nearest, one_line, walk
from genlab.cli.redact import refuse_keys
from genlab.data.facts import class_names, npz_facts
from genlab.settings import within

# ${genlab.first:A,B}: A where there is one, else B
OmegaConf.register_new_resolver("genlab.first", lambda *values: next((v for v in values if v), None), replace=True)
# ${genlab.class_names:FOLDER}; ${genlab.npz:FILE,KEY,ELSE}: what the data say of themselves
_FACTS: dict[str, Callable[..., Any]] = {
    "class_names": lambda root: class_names(str(root)),
    "classes": lambda root: len(class_names(str(root)) or ()) or None,
    "npz": lambda path, key, other: npz_facts(str(path)).get(key, other),
}
for _name, _read in _FACTS.items():
    OmegaConf.register_new_resolver(f"genlab.{_name}", _read, replace=True)


def check(cfg: DictConfig, entry: str) -> None:
    """Raises a Problem (a ConfigError, exit code 2) for the first fault of a composed configuration.

    Args:
        cfg: the composed configuration, without the node `hydra`.
        entry: 'train', 'sample' or 'evaluate': whose fields to expect. An entry that `schema.ENTRIES` does not know is
            checked in its targets only.
    """
    plain = resolved(cfg)
    refuse_keys(plain)
    model = schema.ENTRIES.get(entry)
    if model is not None:
        _check_fields(model, plain)
    for name, value in plain.items():
        check_node(value, str(name))
    targets.check_own(plain.get("sampler"), "sampler")
    for name in plain.get("trainer") or {}:
        if problem := reserved(f"trainer.{name}"):
            raise problem
    check_ranges(plain)
    _check_choices(plain)
    if plain.get("resume") in (None, "auto", "never"):  # else the run's own values count, once they are read
        cross.check(plain)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain dicts and lists with every interpolation resolved and no value missing."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or ""
        raise Problem("a value is needed", key, f"Give {key}=VALUE") from None
    except InterpolationResolutionError as error:
        key = error.full_key or ""
        raise _dangling(said(error), key, OmegaConf.to_container(cfg, resolve=False)) from None
    except OmegaConfBaseException as error:
        raise Problem(said(error), error.full_key or "") from None
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _dangling(message: str, key: str, raw: Any) -> Problem:
    """An interpolation that leads nowhere. A fact that a group is asked for and does not state is the usual case."""
    found = re.fullmatch(r"Interpolation key '([^']+)' not found", message)
    if found is None:
        return Problem(f"interpolation fails: {message}", key)
    group, _, fact = found[1].partition(".")
    close = nearest(found[1], [k for k in leaves(raw) if k != key])
    if fact and isinstance(raw.get(group), dict):
        beside = close is not None and close in get_close_matches(found[1], [close], 1, 0.85)
        do = f"Did you mean {close}?" if beside else f"Choose another {group}, or set {key}"
        return Problem(f"is taken from {found[1]}, which the chosen {group} does not have", key, do)
    return Problem(f"is taken from {found[1]}, which does not exist", key, f"Did you mean {close}?" if close else "")


def said(error: Exception) -> str:
    """The first line of an OmegaConf message; the others repeat the key and the types inside OmegaConf."""
    return one_line(str(error).partition("\n")[0])


def _check_fields(model: type[schema.Strict], plain: dict[str, Any]) -> None:
    try:
        model.model_validate(plain)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A wrong key explains a missing one: name it first. Members of a union give a fault each: keep the deepest.
        fault = min(
            faults, key=lambda f: (f["type"] != "extra_forbidden", -len(f["loc"]) if "union" in f["type"] else 0)
        )
        raise _problem(fault, model, plain) from None


def _problem(fault: Any, model: type[schema.Strict], plain: dict[str, Any]) -> Problem:
    """One line for a fault that pydantic found."""
    path: list[str] = []
    at: Any = plain
    for part in fault["loc"]:  # a union adds its member's name to the path: keep what is really in the configuration
        if (isinstance(at, dict) and part in at) or (isinstance(at, list) and part in range(len(at))):
            at = at[part]
        elif fault["type"] != "missing" or part is not fault["loc"][-1]:
            continue
        path.append(str(part))
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return unknown(key, [*leaves(plain), *model.model_fields])  # those too that the schema leaves at their defaults
    if fault["type"] == "missing":
        return Problem("a value is needed", key, f"Give {key}=VALUE")
    words = (
        fault["msg"].replace("Input should be", "must be").replace("a valid ", "a ").replace("a integer", "an integer")
    )
    if fault["type"] in {"dict_type", "model_type", "model_attributes_type"}:
        words = "must be a group of fields"
    do = ""
    if fault["type"] == "int_type" and isinstance(at, float) and at.is_integer():
        do = f"Write {int(at)}"
    return Problem(f"{words}, is {short(at)}", key, do)


def reserved(key: str) -> Problem | None:
    """What is wrong with a key of the trainer that the session gives itself, and what to set; None for any other."""
    do = schema.RESERVED.get(key.removeprefix("trainer.")) if key.startswith("trainer.") else None
    return Problem("is not for configurations: GenLab gives it itself", key, do) if do else None


def unknown(key: str, candidates: list[str]) -> Problem:
    if moved := new_keys(key, candidates):
        return Problem(f"unknown key {key!r}", "", f"It is now {' or '.join(moved)}")
    close = nearest(key, candidates)
    if close is None:
        parent = key.rpartition(".")[0]
        names = sorted({c.rpartition(".")[2] for c in candidates if c != key and c.rpartition(".")[0] == parent})
        do = f"{parent or 'The configuration'} has {', '.join(names)}" if names else "See --help and --cfg job"
        return Problem(f"unknown key {key!r}", "", do)
    return Problem(f"unknown key {key!r}", "", f"Did you mean {close}?")


def check_node(value: Any, key: str) -> None:
    """Every node with `_target_` below (and at) `key`: allowed, of the group's kind, and called with what it takes.

    Args:
        value: plain containers, interpolations resolved.
        key: where it stands, as 'sampler'; decides what kind of class is asked for.
    """
    for node, where in targets.nodes(value, key):
        pattern = next((p for p in schema.BASES if _matches(where, p)), "")
        found = targets.allowed(node["_target_"], f"{where}._target_", schema.BASES.get(pattern))
        check_arguments(found, node, where, schema.SUPPLIED.get(pattern, ()))


def _matches(key: str, pattern: str) -> bool:
    """`*` stands for one name, `**` for any number of them, `[]` for any place in a list."""
    key = re.sub(r"\[\d+\]", "[]", key)
    if pattern.startswith("**."):
        return key.endswith(pattern[2:])
    return key.count(".") == pattern.count(".") and fnmatchcase(key.replace("[", "("), pattern.replace("[", "("))


def check_ranges(config: Any) -> None:
    """Raises a Problem for the first number out of its bounds, in a composed configuration or a stored one."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    for key, value in walk(plain):
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        for pattern, bounds in schema.RANGES.items():
            if _matches(key, pattern):
                inside, words = within(value, bounds)
                if not inside:
                    raise Problem(f"must be {words}, is {value!r}", key)


def _check_choices(plain: dict[str, Any]) -> None:
    for key, allowed in schema.CHOICES.items():
        group, _, name = key.partition(".")
        value = (plain.get(group) or {}).get(name, allowed[0])
        if isinstance(value, str) and value not in allowed:
            close = nearest(str(value), list(allowed))
            do = f"Did you mean {close}?" if close else ""
            raise Problem(f"must be one of {', '.join(allowed)}, is {value!r}", key, do)
