"""Classes of data under the names that they had before a text was one class: stored configurations read as of today.

The table is history: nothing new is added to it. No torch is imported, as configs are checked without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT = "genlab.data.text.Text"
# Old target: arguments that have another name now, and those that say which rule it was.
OLD: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "genlab.data.text.CharacterText": ({}, {"split": "share", "tokenizer": "characters"}),
    "genlab.data.text.TokenizedText": ({"tokenizer": "vocabulary"}, {"split": "share", "tokenizer": "characters"}),
    "genlab.data.words.WordText": ({}, {"split": "files", "tokenizer": "words"}),
    "genlab.data.corpus.Corpus": ({}, {"split": "documents"}),
    "genlab.data.corpus.PythonLibrary": ({}, {"split": "documents", "path": "python:stdlib"}),
}


def successor(target: str) -> str:
    """What stands in the place of an old target, for whoever still writes it; "" of another."""
    names, rule = OLD.get(target, ({}, {}))
    changes = [f"{key}: {value}" for key, value in rule.items()] + [f"{new} for {old}" for old, new in names.items()]
    return f"{TEXT} with {', '.join(changes)}" if target in OLD else ""


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration, plain containers, whose data has its target of today; another comes back as it is."""
    data = config.get("data")
    if not isinstance(data, Mapping) or not isinstance(target := data.get("_target_"), str) or target not in OLD:
        return dict(config)
    names, rule = OLD[target]
    return {**config, "data": {**{names.get(k, k): v for k, v in data.items()}, **rule, "_target_": TEXT}}
