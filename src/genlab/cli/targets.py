"""Which classes a config may name, and how they are built.

A config can come from anywhere: a command line, a run that someone sent, a checkpoint. So `_target_` is no way to call
whatever Python has: it must lead to a class of GenLab or of the libraries below, of the kind stated there; what else a
user wants to name is a matter of the environment, `GENLAB_ALLOW=mypackage`, never of a config. Checked twice: by name,
from source, before anything is imported; and as the resolved object, when it is built.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from genlab.cli.arguments import SPECIAL, check_arguments
from genlab.cli.old_forms import successor
from genlab.cli.problem import Problem, nearest, one_line, walk
from genlab.cli.signature import Definition, derives, find, is_module, names_in

# The last two and "torch.nn.Module" are how sources name them: recognised without reading torch.
_MODULE = (
    "torch.nn.modules.module.Module",
    "torch.nn.Module",
    "diffusers.models.modeling_utils.ModelMixin",
    "transformers.modeling_utils.PreTrainedModel",
)

# (where the class is really defined, one of these is among its bases). A re-export is followed to the definition first.
LIBRARIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torch.optim", ("torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler")),
    ("torch.nn.modules", _MODULE),
    ("pytorch_lightning.trainer.trainer", ("pytorch_lightning.trainer.trainer.Trainer",)),
    ("pytorch_lightning.callbacks", ("pytorch_lightning.callbacks.callback.Callback",)),
    ("pytorch_lightning.loggers", ("pytorch_lightning.loggers.logger.Logger",)),
    ("pytorch_lightning.strategies", ("pytorch_lightning.strategies.strategy.Strategy",)),
    ("pytorch_lightning.profilers", ("pytorch_lightning.profilers.profiler.Profiler",)),
    ("torchmetrics", ("torchmetrics.metric.Metric",)),
    ("diffusers.models", _MODULE),
    ("transformers.models", (*_MODULE, "transformers.configuration_utils.PreTrainedConfig")),
)
# Functions of GenLab that a config may name: mathematics, which touches no file. Classes: anywhere but in cli and runs.
_FUNCTIONS = ("genlab.networks", "genlab.objectives", "genlab.diffusion", "genlab.decoding")
_CLOSED = ("genlab.cli", "genlab.runs")


_settled: list[str] | None = None  # what GENLAB_ALLOW said when the command began


def settle() -> None:
    """Reads GENLAB_ALLOW for the rest of the process: what sets it later, a configuration say, changes nothing."""
    global _settled
    _settled = None
    _settled = user_packages()


def user_packages() -> list[str]:
    """The packages of GENLAB_ALLOW (comma-separated)."""
    if _settled is not None:
        return _settled
    return [name.strip() for name in os.environ.get("GENLAB_ALLOW", "").split(",") if name.strip()]


def is_inside(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of the packages, or in one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def _refused(target: str, key: str, why: str) -> Problem:
    return Problem(
        f"target {target!r} is not allowed: {why}",
        key,
        "Name a class of genlab, torch.optim, torch.nn, pytorch_lightning, torchmetrics, diffusers or transformers; "
        "allow a package of your own by the environment variable GENLAB_ALLOW=PACKAGE",
    )


def allowed(target: Any, key: str, base: str | None = None) -> Definition:
    """The definition that a `_target_` leads to, if a config may name it. Reads source only, imports nothing.

    Args:
        target: full dotted name.
        key: where it stands in the config, for the message.
        base: full name of a class that must be among its bases; None where the group asks for none.

    Raises:
        Problem: not text, not allowed, not found, or not a `base`.
    """
    if not isinstance(target, str):
        raise Problem(f"_target_ must be the full name of a class, is {target!r}", key)
    root = target.partition(".")[0]
    if root not in {"genlab", *(library.partition(".")[0] for library, _ in LIBRARIES), *user_packages()}:
        raise _refused(target, key, f"{root!r} is not among the allowed packages")
    if new := successor(target):
        raise Problem(f"target {target!r} is no more", key, f"It is now {new}")
    found = find(target)
    if not isinstance(found, Definition):
        module, _, name = target.rpartition(".")
        if not is_module(module):
            raise _refused(target, key, "it is no class of a module")
        close = nearest(name, names_in(module))
        do = f"Did you mean {module}.{close}?" if close else "Write the full name, with the module that defines it"
        raise Problem(f"target {target!r} not found: {module} has no such class", key, do)
    _check(found.module, found.is_class, lambda wanted: derives(found, wanted) is not False, target, key)
    if base is not None and found.is_class and derives(found, [base]) is False:
        raise Problem(f"target {target!r} is not a {base.rpartition('.')[2]}", key, f"Name a subclass of {base}")
    return found


def _check(module: str, is_class: bool, has_base: Callable[[Collection[str]], bool], target: str, key: str) -> None:
    """The rules, in one place for names and objects. `has_base(names)`: is one of these full names among the bases?"""
    if is_inside(module, user_packages()):
        return
    if is_inside(module, ["genlab"]):
        if is_inside(module, _CLOSED):
            raise _refused(target, key, f"{module} is not for configs")
        if not is_class and not is_inside(module, _FUNCTIONS):
            raise _refused(target, key, "it is a function, not a class")
        return
    for library, bases in LIBRARIES:
        if is_inside(module, [library]):
            if not is_class or not has_base(bases):
                raise _refused(
                    target, key, f"it is not a {' or '.join(dict.fromkeys(b.rpartition('.')[2] for b in bases))}"
                )
            return
    raise _refused(target, key, f"it is defined in {module!r}")


def _load(found: Definition, target: str, key: str, base: type | None) -> Any:
    """The class or function itself, imported from where it is defined and checked as an object."""
    thing = getattr(importlib.import_module(found.module), found.node.name, None)
    is_class = isinstance(thing, type)
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or not isinstance(module, str) or name != found.node.name:
        raise _refused(target, key, f"it resolves to {thing!r}")
    above = {f"{c.__module__}.{c.__qualname__}" for c in thing.__mro__} if isinstance(thing, type) else set()
    _check(module, is_class, lambda wanted: not above.isdisjoint(wanted), target, key)
    if base is not None and isinstance(thing, type) and not issubclass(thing, base):
        raise Problem(
            f"target {target!r} is not a {base.__name__}", key, f"Name a subclass of {base.__module__}.{base.__name__}"
        )
    return thing


def check_own(node: Any, key: str) -> None:
    """Refuses a `_target_` of a library where only GenLab's classes, and those of the user's packages, have a place.

    Raises:
        Problem: it is one.
    """
    if isinstance(node, Mapping) and "_target_" in node:
        found = allowed(node["_target_"], f"{key}._target_")
        if not is_inside(found.module, ["genlab", *user_packages()]):
            raise Problem(f"target {node['_target_']!r} is no {key} of GenLab", f"{key}._target_", f"Choose {key}=NAME")


def nodes(value: Any, key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every mapping with `_target_` in a plain value, outermost first, with its key."""
    return ((node, where) for where, node in walk(value, key) if isinstance(node, dict) and "_target_" in node)


def instantiate(node: Any, base: type | None = None, /, **kwargs: Any) -> Any:
    """Builds what a config node names; the one way from a config to an object.

    As hydra.utils.instantiate with `_convert_: all`, but every `_target_` in the node is resolved and checked before
    any is called. A node without `_target_` (a mapping or list of nodes) gives a dict or list; `_partial_: true` gives
    a functools.partial.

    Args:
        node: DictConfig, ListConfig, dict or list; interpolations are resolved. None gives None.
        base: the outermost object must be an instance of it (for a partial of a class: a subclass).
        kwargs: further arguments of the outermost target, stronger than those of the node.

    Raises:
        ConfigError: a target that is not allowed, not found or not a `base`.
    """
    if node is None:
        return None
    key = ""
    if isinstance(node, (DictConfig, ListConfig)):
        key = str(node._get_full_key(None) or "")
        node = OmegaConf.to_container(node, resolve=True)
    if base is not None and not (isinstance(node, dict) and "_target_" in node):
        raise Problem(f"a node with _target_ is needed, that of a {base.__name__}", key)
    found: list[tuple[dict[str, Any], str, Definition]] = []
    for inner, where in nodes(node, key):  # all by name, then all as objects, and only then is anything called
        definition = allowed(inner["_target_"], f"{where}._target_")
        check_arguments(definition, inner, where, kwargs if inner is node else ())
        found.append((inner, where, definition))
    loaded = {
        id(inner): _load(definition, inner["_target_"], f"{where}._target_", base if inner is node else None)
        for inner, where, definition in found
    }
    result = _build(node, key, loaded, kwargs)
    if base is not None and not isinstance(result, (base, functools.partial)):
        raise Problem(f"target {node['_target_']!r} gave a {type(result).__name__}, not a {base.__name__}", key)
    return result


def _build(value: Any, key: str, loaded: dict[int, Any], kwargs: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_build(inner, f"{key}[{i}]", loaded, {}) for i, inner in enumerate(value)]
    if not isinstance(value, dict):
        return value
    built = {
        name: _build(inner, f"{key}.{name}", loaded, {})
        for name, inner in value.items()
        if name not in SPECIAL and name not in kwargs
    }
    if "_target_" not in value:
        return {**built, **kwargs}
    make = loaded[id(value)]
    if value.get("_partial_", False):
        return functools.partial(make, **built, **kwargs)
    if is_inside(
        make.__module__, ["torchmetrics"]
    ):  # YAML has no tuples, and where these ask for one a list is refused
        wanted = inspect.signature(make).parameters
        built = {
            name: tuple(inner)
            if isinstance(inner, list) and name in wanted and "tuple[" in str(wanted[name].annotation)
            else inner
            for name, inner in built.items()
        }
    try:
        return make(**built, **kwargs)
    except Exception as error:
        where, networks = key or value["_target_"], [*(library for library, _ in LIBRARIES), "genlab.networks"]
        if isinstance(error, ValueError | TypeError) and is_inside(make.__module__, networks):
            raise Problem(f"{make.__name__} refuses these values: {one_line(str(error))[:200]}", where) from error
        error.add_note(f"while building {where} ({value['_target_']})")
        raise
