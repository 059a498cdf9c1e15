"""The arguments that a config node gives, against the signature of what it names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from genlab.cli.annotations import fits
from genlab.cli.old_protocol import new_keys
from genlab.cli.problem import Problem, nearest
from genlab.cli.signature import Definition, signature

SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_"}


def check_arguments(found: Definition, node: dict[str, Any], key: str, supplied: Collection[str] = ()) -> None:
    """Every argument is one that the target takes and fits its annotation; none that it needs is missing.

    Args:
        found: what `node["_target_"]` leads to.
        node: plain containers, interpolations resolved.
        key: where the node stands.
        supplied: arguments that the program adds.

    Raises:
        Problem: the first fault.
    """
    check_special(node, key)
    takes, name = signature(found), found.node.name
    for argument, value in node.items():
        if argument in SPECIAL:
            continue
        at = f"{key}.{argument}" if key else str(argument)
        parameter = takes.parameters.get(argument)
        if parameter is None:
            if takes.open:
                continue
            close = nearest(argument, takes.parameters)
            if moved := new_keys(at, [f"{key}.metrics.{name}" for name in node.get("metrics") or ()]):
                raise Problem(f"unknown key {at!r}", "", f"It is now {' or '.join(moved)}")
            options = f"Did you mean {key}.{close}?" if close else f"It takes {', '.join(takes.parameters)}"
            raise Problem(f"unknown key {at!r}: {name} takes no {argument!r}", "", options)
        fit, words = fits(value, parameter.annotation, parameter.module)
        if not fit:
            close = nearest(value, words.replace(",", " ").split()) if isinstance(value, str) else None
            raise Problem(
                f"must be {words}, is {short(value)}",
                at,
                f"Did you mean {close}?" if close and "one of" in words else "",
            )
    if not node.get("_partial_", False):
        for argument, parameter in takes.parameters.items():
            if parameter.required and argument not in node and argument not in supplied:
                at = f"{key}.{argument}" if key else argument
                raise Problem(f"{name} needs {argument!r}", at, f"Give {at}=VALUE")


def check_special(node: dict[str, Any], key: str) -> None:
    """Hydra's own keys: `_partial_` as Hydra has it; containers are plain, inner nodes are built, keywords only."""
    if "_args_" in node:
        raise Problem("arguments are given by name, _args_ is not allowed", f"{key}._args_")
    for name, values in (
        ("_partial_", (True, False)),
        ("_recursive_", (True,)),
        ("_convert_", ("all", "partial", "object")),
    ):
        if name in node and node[name] not in values:
            raise Problem(f"{name} must be {' or '.join(map(str, values))}, is {node[name]!r}", f"{key}.{name}")


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
