"""The arguments that a config node gives, against the signature and the annotations of what it names.

An annotation (`int`, `X | None`, `Literal[...]`, `Annotated[int, "ge 1"]`, ...) that is not understood accepts
everything: the check may miss a fault but never invents one.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Collection
from typing import Any

from genlab.cli.old_forms import new_keys
from genlab.cli.problem import Problem, nearest
from genlab.cli.signature import Definition, Value, dotted_name, last_name, look_up, signature
from genlab.settings import within

SPECIAL = {"_target_", "_partial_", "_convert_", "_recursive_"}
_SEQUENCES = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection", "MutableSequence", "set", "Set"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_OBJECTS = {"Tensor", "Module", "Callable", "type", "Type", "Generator", "Optimizer", "LightningModule"}
# Name: kinds of values that fit, and these in words.
_KINDS: dict[str, tuple[Any, str]] = {
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "text"),
    "Path": (str, "a path"),
    "None": (type(None), "null"),
    **dict.fromkeys(_SEQUENCES, (list, "a list")),
    **dict.fromkeys(_MAPPINGS, (dict, "a mapping")),
}


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


def fits(value: Any, annotation: ast.expr | None, module: str) -> tuple[bool, str]:
    """Whether `value` (plain Python, as YAML gives it) fits, and in words what would.

    Args:
        value: None, bool, int, float, str, list or dict. A dict with `_target_` fits everything: it is an object to be.
        annotation: expression whose names belong to `module`; None accepts everything.

    Returns:
        (fits, words); the words are empty if the annotation is not understood.
    """
    if isinstance(value, dict) and "_target_" in value:
        return True, ""
    match annotation:
        case ast.Constant(value=None):
            return value is None, "null"
        case ast.Constant(value=str(text)):  # a forward reference
            with contextlib.suppress(SyntaxError):
                return fits(value, ast.parse(text, mode="eval").body, module)
        case ast.BinOp(op=ast.BitOr()):
            return _any(value, [annotation.left, annotation.right], module)
        case ast.Subscript(slice=ast.Tuple(elts=inner)):
            return _subscript(value, last_name(annotation.value), inner, module)
        case ast.Subscript():
            return _subscript(value, last_name(annotation.value), [annotation.slice], module)
        case ast.Name() | ast.Attribute():
            return _name(value, annotation, module)
    return True, ""


def _name(value: Any, annotation: ast.expr, module: str) -> tuple[bool, str]:
    name = last_name(annotation)
    if name in _OBJECTS:
        return False, f"an object (a node with `_target_`) of type {name}"
    if name in _KINDS:
        kinds, words = _KINDS[name]
        return isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool)), words
    alias = look_up(module, dotted_name(annotation))
    return fits(value, alias.node, alias.module) if isinstance(alias, Value) else (True, "")


def _subscript(value: Any, outer: str, inner: list[ast.expr], module: str) -> tuple[bool, str]:
    if outer == "Literal":
        choices = [e.value for e in inner if isinstance(e, ast.Constant)]
        if len(choices) < len(inner):
            return True, ""
        ok = any(type(value) is type(choice) and value == choice for choice in choices)
        return ok, "one of " + ", ".join("null" if c is None else str(c) for c in choices)
    if outer in {"Optional", "Union"}:
        return _any(value, [*inner, ast.Constant(None)] if outer == "Optional" else inner, module)
    if outer == "Annotated":
        return _bounded(value, inner, module)
    if outer in {"Final", "Required", "InitVar", "ClassVar"}:
        return fits(value, inner[0], module)
    if outer in _SEQUENCES:
        if not isinstance(value, list):
            return False, "a list"
        fixed = outer in {"tuple", "Tuple"} and not any(isinstance(e, ast.Constant) and e.value is ... for e in inner)
        if fixed and len(value) != len(inner):
            return False, f"a list of {len(inner)}"
        for i, item in enumerate(value):
            ok, words = fits(item, inner[i] if fixed else inner[0], module)
            if not ok:
                return False, f"a list with {words} at place {i}"
        return True, "a list"
    if outer in _MAPPINGS:
        return isinstance(value, dict), "a mapping"
    return (False, f"an object of type {outer}") if outer in _OBJECTS else (True, "")


def _any(value: Any, options: list[ast.expr], module: str) -> tuple[bool, str]:
    results = [fits(value, option, module) for option in options]
    if any(ok for ok, _ in results):
        return True, " or ".join(dict.fromkeys(w for _, w in results if w))
    readable = [words for _, words in results if not words.startswith("an object")] or [w for _, w in results]
    return False, " or ".join(dict.fromkeys(w for w in readable if w))


def _bounded(value: Any, inner: list[ast.expr], module: str) -> tuple[bool, str]:
    """Annotated[int, "ge 1"] or Annotated[float, "gt 0, le 1"]."""
    ok, words = fits(value, inner[0], module)
    notes = [note.value for note in inner[1:] if isinstance(note, ast.Constant) and isinstance(note.value, str)]
    inside, limits = within(value, ", ".join(notes))
    return ok and inside, f"{words} {limits}".rstrip()
