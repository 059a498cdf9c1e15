"""Does a value of a config fit an annotation? Reads `int`, `X | None`, `Literal[...]`, `Annotated[int, "ge 1"]`, ...

An annotation that is not understood accepts everything: the check may miss a fault but never invents one.
"""

from __future__ import annotations

import ast
from typing import Any

from genlab.cli.signature import Value, dotted_name, last_name, look_up
from genlab.settings import within

_SEQUENCES = {"list", "List", "tuple", "Tuple", "Sequence", "Iterable", "Collection", "MutableSequence", "set", "Set"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_OBJECTS = {"Tensor", "Module", "Callable", "type", "Type", "Generator", "Optimizer", "LightningModule"}
_WORDS = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}


def fits(value: Any, annotation: ast.expr | None, module: str) -> tuple[bool, str]:
    """Whether `value` (plain Python, as YAML gives it) fits, and in words what would.

    Args:
        value: None, bool, int, float, str, list or dict. A dict with `_target_` fits everything: it is an object to be.
        annotation: expression whose names belong to `module`; None accepts everything.

    Returns:
        (fits, words); the words are empty if the annotation is not understood.
    """
    if annotation is None or (isinstance(value, dict) and "_target_" in value):
        return True, ""
    if isinstance(annotation, ast.Constant):
        if annotation.value is None:
            return value is None, "null"
        if isinstance(annotation.value, str):  # a forward reference
            try:
                return fits(value, ast.parse(annotation.value, mode="eval").body, module)
            except SyntaxError:
                return True, ""
        return True, ""
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _any(value, [annotation.left, annotation.right], module)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice
        return _subscript(
            value, last_name(annotation.value), inner.elts if isinstance(inner, ast.Tuple) else [inner], module
        )
    return _name(value, annotation, module)


def _name(value: Any, annotation: ast.expr, module: str) -> tuple[bool, str]:
    name = last_name(annotation)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _WORDS:
        ok = {
            "int": isinstance(value, int) and number,
            "float": number,
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
            "None": value is None,
        }[name]
        return ok, _WORDS[name]
    if name in _SEQUENCES:
        return isinstance(value, list), "a list"
    if name in _MAPPINGS:
        return isinstance(value, dict), "a mapping"
    if name in _OBJECTS:
        return False, f"an object (a node with `_target_`) of type {name}"
    if name == "Path":
        return isinstance(value, str), "a path"
    alias = look_up(module, dotted_name(annotation)) if dotted_name(annotation) else None
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
