"""What a class or function accepts, read from its source by `ast`: nothing is imported and nothing runs.

So a wrong argument in a config is found in milliseconds, before torch is imported, and a hostile module never runs.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# Bases that add no argument.
_PLAIN = {"object", "ABC", "Protocol", "Generic", "ABCMeta"}
# A package with more star imports than this is not searched through them: transformers.models has 400, which take 15 s.
_STARS = 30


@dataclass(frozen=True)
class Definition:
    """A class or function: the module whose source defines it, its name there, and the statement."""

    module: str
    node: ast.ClassDef | ast.FunctionDef

    @property
    def name(self) -> str:
        return f"{self.module}.{self.node.name}"

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)


@dataclass(frozen=True)
class Value:
    """An assigned expression (such as an alias of a type), whose names belong to `module`."""

    module: str
    node: ast.expr


@dataclass(frozen=True)
class Parameter:
    """One argument. `annotation` is an expression whose names belong to `module`; `default` one, or None."""

    name: str
    required: bool
    annotation: ast.expr | None
    module: str
    default: ast.expr | None = None


@dataclass(frozen=True)
class Signature:
    """Keyword arguments by name; `open` if any other keyword is accepted too (**kwargs that end nowhere we can see)."""

    parameters: dict[str, Parameter] = field(default_factory=dict)
    open: bool = False


@cache
def _spec(module: str) -> ModuleSpec | None:
    """The module's spec. `importlib.util.find_spec` would import the parents, so the path is walked here instead."""
    parent = module.rpartition(".")[0]
    if parent:
        above = _spec(parent)
        if above is None or above.submodule_search_locations is None:
            return None
        return PathFinder.find_spec(module, above.submodule_search_locations)
    try:
        return PathFinder.find_spec(module) or importlib.util.find_spec(module)
    except (ValueError, ImportError):  # a module without a spec, such as __main__
        return None


@cache
def _tree(module: str) -> ast.Module | None:
    spec = _spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    with open(spec.origin, "rb") as source:
        return ast.parse(source.read(), spec.origin)


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of the module that `from ... import` names inside `module`."""
    if not node.level:
        return node.module or ""
    spec = _spec(module)
    package = module if spec is not None and spec.submodule_search_locations is not None else module.rpartition(".")[0]
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for block in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _statements(getattr(statement, block, []))


@cache
def _bindings(module: str) -> tuple[dict[str, ast.AST | str], list[str]]:
    """Top-level names of a module -> definition, assigned expression or dotted import; and its star imports."""
    names: dict[str, ast.AST | str] = {}
    stars: list[str] = []
    tree = _tree(module)
    for statement in _statements(tree.body if tree else []):
        match statement:
            case ast.ClassDef() | ast.FunctionDef():
                if "overload" not in {last_name(d) for d in statement.decorator_list}:
                    names.setdefault(statement.name, statement)
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                stars.append(_absolute(module, statement))
            case ast.ImportFrom():
                source = _absolute(module, statement)
                for alias in statement.names:
                    names.setdefault(alias.asname or alias.name, f"{source}.{alias.name}")
            case ast.Import():
                for alias in statement.names:
                    root = alias.name.partition(".")[0]
                    names.setdefault(alias.asname or root, alias.name if alias.asname else root)
            case (
                ast.Assign(targets=[ast.Name(id=name), *_]) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr())
            ):
                assert statement.value is not None
                names.setdefault(name, statement.value)
    return names, stars


def last_name(expression: ast.expr) -> str:
    """The last name of `a.b.c`, `a.b.c[...]` or `a.b.c(...)`; '' for anything else."""
    if isinstance(expression, ast.Call):
        return last_name(expression.func)
    if isinstance(expression, ast.Subscript):
        return last_name(expression.value)
    return getattr(expression, "attr", getattr(expression, "id", ""))


def dotted_name(expression: ast.expr) -> str:
    """`a.b.c` as a string; '' for anything else."""
    text = ast.unparse(expression)
    return text if all(name.isidentifier() for name in text.split(".")) else ""


@cache
def look_up(module: str, name: str, depth: int = 20) -> Definition | Value | None:
    """What `name` (possibly dotted) means inside `module`: a definition, an assigned value, or None if not found."""
    if not name or depth == 0:
        return None
    first, _, rest = name.partition(".")
    names, stars = _bindings(module)
    bound = names.get(first)
    if isinstance(bound, str):
        return find(f"{bound}.{rest}" if rest else bound, depth - 1)
    if rest:
        return find(f"{module}.{name}", depth - 1) if bound is None and _spec(f"{module}.{first}") else None
    if isinstance(bound, (ast.ClassDef, ast.FunctionDef)):
        return Definition(module, bound)
    if isinstance(bound, ast.expr):
        alias = dotted_name(bound)
        return look_up(module, alias, depth - 1) if alias and alias != name else Value(module, bound)
    for star in stars if len(stars) <= _STARS else ():
        found = look_up(star, name, depth - 1)
        if found is not None:
            return found
    return None


def find(dotted: str, depth: int = 20) -> Definition | Value | None:
    """The definition that a full dotted name leads to, through re-exports. None if there is none to be read."""
    module = dotted
    while "." in module:
        module = module.rpartition(".")[0]
        if _spec(module) is not None:
            rest = dotted[len(module) + 1 :]
            return look_up(module, rest, depth) if "." not in rest else None
    return None


def names_in(module: str) -> list[str]:
    """Public classes and functions that a module defines or imports by name, for 'did you mean'."""
    names = _bindings(module)[0]
    return [name for name, bound in names.items() if not name.startswith("_") and not isinstance(bound, ast.expr)]


def is_module(name: str) -> bool:
    return _spec(name) is not None


def _bases(definition: Definition) -> Iterator[Definition | None]:
    """The base classes; None where one cannot be read."""
    assert isinstance(definition.node, ast.ClassDef)
    for expression in definition.node.bases:
        if last_name(expression) in _PLAIN:
            continue
        inner = expression.value if isinstance(expression, ast.Subscript) else expression
        found = look_up(definition.module, dotted_name(inner))
        yield found if isinstance(found, Definition) and found.is_class else None


def derives(definition: Definition, wanted: Collection[str]) -> bool | None:
    """Whether a class is, or has among its bases, one of these full names; None if a base could not be read.

    A base that is imported under one of the names is recognised without reading where it comes from, which for
    transformers' and diffusers' models saves most of the time.
    """
    if definition.name in wanted:
        return True
    assert isinstance(definition.node, ast.ClassDef)
    for expression in definition.node.bases:
        first, _, rest = dotted_name(expression).partition(".")
        bound = _bindings(definition.module)[0].get(first)
        if isinstance(bound, str) and (f"{bound}.{rest}" if rest else bound) in wanted:
            return True
    results = [None if base is None else derives(base, wanted) for base in _bases(definition)]
    return True if True in results else None if None in results else False


def assigned(definition: Definition, name: str) -> Value | None:
    """What the body of a class, or of the nearest of its bases, gives a name; None: nothing that can be read."""
    assert isinstance(definition.node, ast.ClassDef)
    for statement in definition.node.body:
        match statement:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                pairs = dict(zip(map(ast.unparse, names), values, strict=False))
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                pairs = {target: value}
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                pairs = {target: value}
            case _:
                continue
        if name in pairs:
            return Value(definition.module, pairs[name])
    above = (assigned(base, name) for base in _bases(definition) if base is not None)
    return next((value for value in above if value is not None), None)


def signature(definition: Definition) -> Signature:
    """The keyword arguments of a class or function."""
    return _read(definition) or Signature()


@cache
def defaults(target: Any) -> dict[str, Any]:
    """Arguments of what a full name leads to that have a literal default, with it; tuples as lists."""
    found = find(target) if isinstance(target, str) else None
    values = {}
    for name, parameter in signature(found).parameters.items() if isinstance(found, Definition) else ():
        with contextlib.suppress(ValueError):
            if parameter.default is not None:
                value = ast.literal_eval(parameter.default)
                values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _from_function(module: str, node: ast.FunctionDef, skip: int) -> Signature:
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    first_default = len(plain) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * first_default, *arguments.defaults, *arguments.kw_defaults]
    parameters = {
        a.arg: Parameter(a.arg, default is None, a.annotation, module, default)
        for a, default in zip([*plain, *arguments.kwonlyargs], defaults, strict=True)
    }
    for a in plain[:skip]:
        del parameters[a.arg]
    extra = arguments.kwarg
    if extra is not None and isinstance(extra.annotation, ast.Subscript) and last_name(extra.annotation) == "Unpack":
        options = look_up(module, dotted_name(extra.annotation.slice))
        if isinstance(options, Definition) and options.is_class:  # **options: Unpack[a TypedDict]
            return Signature({**parameters, **{k: replace(v, required=False) for k, v in _fields(options).items()}})
    return Signature(parameters, extra is not None)


def _read(definition: Definition) -> Signature | None:
    """None of a class that does not say what it takes, nor any of its bases."""
    node = definition.node
    if isinstance(node, ast.FunctionDef):
        return _from_function(definition.module, node, skip=0)
    if any(last_name(d) in {"dataclass", "strict", "dataclass_transform"} for d in node.decorator_list):
        return Signature(_fields(definition))
    above = (Signature(open=True) if base is None else _read(base) for base in _bases(definition))
    inherited = (known for known in above if known is not None)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            own = _from_function(definition.module, statement, skip=1)
            return _merged(own, statement, next(inherited, None)) if own.open else own
    return next(inherited, None)


def _merged(own: Signature, node: ast.FunctionDef, above: Signature | None) -> Signature:
    """`**kwargs` handed on to `super().__init__(**kwargs)` take what the base takes, less what is given there."""
    assert node.args.kwarg is not None
    for call in ast.walk(node):
        if above is not None and isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            starred = [k.value for k in call.keywords if k.arg is None]
            if any(isinstance(value, ast.Name) and value.id == node.args.kwarg.arg for value in starred):
                given = {k.arg for k in call.keywords if k.arg} | set(list(above.parameters)[: len(call.args)])
                rest = {k: v for k, v in above.parameters.items() if k not in given and k not in own.parameters}
                return Signature(own.parameters | rest, above.open)
    return own


def _fields(definition: Definition) -> dict[str, Parameter]:
    """The fields of a dataclass and of its bases, as arguments."""
    assert isinstance(definition.node, ast.ClassDef)
    parameters: dict[str, Parameter] = {}
    for base in reversed(list(_bases(definition))):
        parameters |= _fields(base) if base is not None else {}
    for statement in definition.node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, kind, value = statement.target.id, last_name(statement.annotation), statement.value
            options = {k.arg: ast.unparse(k.value) for k in value.keywords} if isinstance(value, ast.Call) else {}
            if kind in {"ClassVar", "KW_ONLY"} or options.get("init") == "False":
                continue
            bare = isinstance(value, ast.Call) and last_name(value) == "field"
            required = value is None or (bare and not options.keys() & {"default", "default_factory"})
            default = None if bare else value
            parameters[name] = Parameter(name, required, statement.annotation, definition.module, default)
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id  # a new default for an inherited field
            if name in parameters:
                parameters[name] = replace(parameters[name], required=False)
    return parameters
