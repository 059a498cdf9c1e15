"""Secrets leave no trace: not in a stored config, not in a log, not in a record."""

from __future__ import annotations

import os
import re
from typing import Any

from genlab.cli.problem import Problem, walk

HIDDEN = "[redacted]"

_NAME = (
    r"(?:api_?key|access_?key|private_?key|secret(?:_?key)?|(?:pg|db|mysql|redis)?_?pass(?:word|wd|phrase)|db_?pass"
    r"|credentials?|authorization|bearer|(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)(?<!start_)"
    r"(?<!end_)token)"
)
_UPPER = r"[A-Z0-9_]*_(?:KEY|PASS|PWD|SECRET)"  # as an environment variable is written
_NAMES = re.compile(rf"(?i:(?:^|[^a-z]){_NAME}$)|^{_UPPER}$")
# As on a command line or in a dictionary that is printed: name=value, 'name': 'value'.
_GIVEN = re.compile(
    rf"((?:(?i:(?:^|[^a-z]){_NAME})|\b{_UPPER})(?:=|['\"]:\s*)['\"]?(?i:(?:bearer|basic|token)\s+)?)[^\s'\",}}\]]+"
)
_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,}|glpat-[\w-]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{35}|wandb_v\d_\w{30,}|xox[abp]-[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{5,}"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?i:(?<=bearer )[\w.~+/-]{16,}=*|(?<=authorization: )[^\n'\"]{8,})"
    r"|(?i:(?<=[?&]sig=)|(?<=[?&]key=)|(?<=[?&]signature=)|(?<=[?&]token=)|(?<=-signature=)|(?<=_token=))[^&\s'\"]{8,}"
)
LONG = 16  # characters from which on a secret is a key, and no word that may stand in a path as well


def is_secret_name(name: str) -> bool:
    """True for names such as WANDB_API_KEY, hub_token, password; false for eos_token, tokenizer, max_tokens, seed."""
    return _NAMES.search(name) is not None


def redact(value: Any, name: str = "") -> Any:
    """A copy of plain containers in which nothing secret is left.

    Hidden are: text under a secret name, also as name=value within a text; text that looks like a key of a known
    service or a password in a URL; and, wherever it stands, the value of an environment variable with a secret name.

    Args:
        value: dict, list, str, number or None, nested.
        name: the key that `value` stands under.
    """
    return _redact(value, name, _secrets(8))


def without_paths(text: str) -> str:
    """Absolute paths of this machine (the script's own; a library's in its sources) cut down to the last name."""
    return re.sub(r"(?<=[\"'= ])/[\w./-]+/([\w.-]+)", r"\1", text)


def refuse_keys(value: Any, key: str = "") -> None:
    """Refuses a configuration that holds a key: it is written down as it was typed, for others to read.

    Args:
        value: plain containers.
        key: where it stands.

    Raises:
        Problem: a value that contains a key of a known form or of the environment, or one of LONG characters under a
            secret name.
    """
    secrets = _secrets(LONG)
    for place, text in walk(value, key):
        if not isinstance(text, str):
            continue
        where = re.sub(r"\[\d+\]", "", place)
        named = is_secret_name(where.rpartition(".")[2]) and len(text) >= LONG
        if named or _VALUES.search(text) or any(secret in text for secret in secrets):
            raise Problem(
                "is a key or password, which the run would keep",
                where,
                "Pass it by the environment (WANDB_API_KEY, HF_TOKEN, ...), or log in with the service's own command",
            )


def _secrets(least: int) -> list[str]:
    """Values of at least so many characters of environment variables with a secret name; a file's path is none."""
    named = (value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= least)
    return [value for value in named if not os.path.exists(value)]


def _redact(value: Any, name: str, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {k: _redact(v, str(k), secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redact(v, name, secrets) for v in value]
    if not isinstance(value, str) or not value:
        return value
    if is_secret_name(name):
        return HIDDEN
    for secret in secrets:
        value = value.replace(secret, HIDDEN)
    return _VALUES.sub(HIDDEN, _GIVEN.sub(rf"\1{HIDDEN}", value))
