"""Conditions from what a user writes: values of a command line, and files of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.conditions import Condition, condition_named
from genlab.data.documents import HALF
from genlab.errors import ConfigError


def condition_rows(model: Any, wanted: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """Conditions as a user writes them -> tensors of n rows.

    Args:
        wanted: by name, a value for all items or a list of at most n, which is gone round; None: as if not there.

    Raises:
        ConfigError: an unknown condition, more values than items, a value that cannot be.
    """
    made = {}
    for name, value in wanted.items():
        if value is not None:
            condition = condition_named(model, name)
            values = [_parsed(condition, one) for one in _values(value)]
            if len(values) > n or not values:
                raise ConfigError(f"condition.{name}: {len(values)} values for {n} items.")
            rows = condition.rows(values, model)
            made[name] = rows[torch.arange(n) % len(rows)]
    return made


def read_conditions(path: Path, model: Any, key: str = "conditions") -> dict[str, list[Any]]:
    """Conditions of a file by name, as they stand there, each a value an item; each is checked.

    A .jsonl has an object of conditions a line, {"label": 3}; in any other file a line is a value of the model's first
    condition. Empty lines count for nothing.

    Raises:
        ConfigError: no such file, not UTF-8, no line in it, a condition that the model does not know or a value that
            cannot be; with the line.
    """
    try:
        content = path.expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}={path}: cannot be read ({error.strerror})") from None
    try:
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(10) + 1
        raise ConfigError(f"{path}:{number}: not UTF-8; convert the file") from None
    found: dict[str, list[Any]] = {}
    for number, line in enumerate(lines, 1):
        if line:
            try:
                row = _row(line, path.suffix == ".jsonl", model)
                if found and set(row) != set(found):
                    raise ConfigError(f"expected {', '.join(found)}, as in the lines before")
                for name, value in row.items():
                    condition = condition_named(model, name)
                    condition.rows([_parsed(condition, value)], model)
                    found.setdefault(name, []).append(value)
            except ConfigError as error:
                raise ConfigError(f"{path}:{number}: {error}") from None
    if not found:
        raise ConfigError(f"{key}={path}: holds no condition")
    return found


def _row(line: str, json_lines: bool, model: Any) -> dict[str, Any]:
    if json_lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not row:
            raise ConfigError('expected an object of conditions, such as {"label": 3}')
        if HALF.search(json.dumps(row, ensure_ascii=False)):
            raise ConfigError("half a surrogate pair, which is no character")
        return row
    if not model.conditions:
        raise ConfigError("this model knows no condition")
    return {model.conditions[0].name: line}


def _parsed(condition: Condition, value: Any) -> Any:
    return condition.parse(value) if isinstance(value, str) else value


def _values(value: Any) -> list[Any]:
    if isinstance(value, Tensor | np.ndarray):
        return list(torch.as_tensor(value).reshape(-1) if value.ndim == 0 else torch.as_tensor(value))
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
