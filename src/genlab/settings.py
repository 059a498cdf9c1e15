"""Settings of objects, checked by the annotations of their class, as a configuration is checked before it is built."""

from __future__ import annotations

import operator
import re
import typing
from collections.abc import Mapping
from typing import Any

from genlab.errors import ConfigError

_BOUNDS = {"ge": (operator.ge, ">="), "gt": (operator.gt, ">"), "le": (operator.le, "<="), "lt": (operator.lt, "<")}


def within(value: Any, bounds: str) -> tuple[bool, str]:
    """Whether a number keeps to bounds such as "gt 0, le 1", and these in words; what is no number keeps to all."""
    ok, words = True, []
    for name, number in re.findall(r"\b(ge|gt|le|lt)\s+(-?[\d.]+(?:e-?\d+)?)", bounds):
        compare, symbol = _BOUNDS[name]
        words.append(f"{symbol} {number}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            ok = ok and compare(value, float(number))
    return ok, " and ".join(words)


def check_settings(owner: Any, settings: Mapping[str, Any], at: str) -> None:
    """Refuses what the annotations of a function or class do not allow: Annotated[float, "gt 0, le 1"], Literal[...].

    Args:
        owner: the class, or the function that takes the settings.
        at: what stands before a setting's name in a configuration ("sampler.").

    Raises:
        ConfigError: the first setting that is out of its bounds, or no integer where one is asked for.
    """
    try:
        hints = typing.get_type_hints(owner, include_extras=True)
    except NameError:  # a user's class, whose names are there for a type checker only
        return
    for name, hint in hints.items():
        if name not in settings or (value := settings[name]) is None:
            continue
        inside, words = within(value, ", ".join(re.findall(r"'((?:ge|gt|le|lt) [^']*)'", str(hint))))
        whole = isinstance(value, int) or "[int, '" not in str(hint)
        if not (inside and whole):
            raise ConfigError(f"{at}{name} is {value}: must be {words if whole else f'an integer {words}'}")
        if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
            choices = ", ".join(map(str, typing.get_args(hint)))
            raise ConfigError(f"{at}{name}={value}: choose one of {choices}")
