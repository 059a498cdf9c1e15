"""Where configurations or records differ, said as shortly as possible; which runs differ only in their seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from genlab.runs.keys import NEUTRAL, SEEDS, without

TARGET = "_target_"
ABSENT = object()  # a key that this configuration does not have


def group_key(config: Mapping[str, Any]) -> str:
    """Equal for configurations that differ only in their seeds and in NEUTRAL keys."""
    return json.dumps(without(config, (*NEUTRAL, *SEEDS)), sort_keys=True, default=str)


def overrides(configs: Sequence[Mapping[str, Any]], seeds: bool) -> dict[str, list[Any]]:
    """The keys in which configurations differ, the model's first: key -> a value for each, or ABSENT.

    Args:
        seeds: whether a difference in the seed is one.
    """
    kept = [without(c, (*NEUTRAL, *(("data.seed",) if seeds else SEEDS))) for c in configs]
    found = differences(kept)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("model")))


def differences(nodes: Sequence[Any]) -> dict[str, list[Any]]:
    """Dotted key -> the value in each node (ABSENT where there is none), for the keys whose values differ.

    Where a `_target_` differs its short name says it; of the arguments only those are set side by side that all of the
    classes have, or that differ among nodes of one class.
    """
    found = _differences(nodes, "")
    return {
        key: [_at(node, key) if value is ABSENT else value for node, value in zip(nodes, values, strict=True)]
        for key, values in found.items()
    }


def _differences(nodes: Sequence[Any], key: str) -> dict[str, list[Any]]:
    if all(same(node, nodes[0]) for node in nodes):
        return {}
    places = [i for i, node in enumerate(nodes) if isinstance(node, Mapping)]
    if not places:
        return {key: list(nodes)}
    targets = dict.fromkeys(nodes[i].get(TARGET) for i in places)
    found: dict[str, list[Any]] = {}
    values = any(node is not ABSENT and not isinstance(node, Mapping) for node in nodes)
    if len(targets) > 1 or values or (len(places) < len(nodes) and None not in targets):
        found[key] = [_short(node) for node in nodes]
    for name in dict.fromkeys(name for i in places for name in nodes[i] if name != TARGET):
        having = [i for i in places if name in nodes[i]]
        if len(targets) == 1:
            parts = [places if key in found else range(len(nodes))]  # a plain group that some lack: key by key
        elif len(having) == len(places):
            parts = [places]
        else:
            parts = [[i for i in having if nodes[i].get(TARGET) == target] for target in targets]
        for part in parts:
            inner = [nodes[i].get(name, ABSENT) if isinstance(nodes[i], Mapping) else ABSENT for i in part]
            for path, row in _differences(inner, f"{key}.{name}" if key else str(name)).items() if inner else ():
                whole = found.setdefault(path, [ABSENT] * len(nodes))
                for i, value in zip(part, row, strict=True):
                    whole[i] = value
    return found


def _at(node: Any, path: str) -> Any:
    """What stands at a dotted path, or ABSENT."""
    for name in path.split("."):
        node = node.get(name, ABSENT) if isinstance(node, Mapping) else ABSENT
    return _short(node)


def _short(node: Any) -> Any:
    """A node as one word: the class of its target."""
    if isinstance(node, Mapping):
        return str(node[TARGET]).rpartition(".")[2] if TARGET in node else "..."
    return node


def same(a: Any, b: Any) -> bool:
    """Equal, and not merely 1 and True."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
