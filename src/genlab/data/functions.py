"""Functions of Python's standard library as pairs: signature and docstring, and the body."""

from __future__ import annotations

import ast
import json
import platform
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from genlab.data.documents import find_files, fingerprint, name_of
from genlab.data.manifest import digest
from genlab.data.prepare import SPLITS
from genlab.errors import ConfigError
from genlab.files import cache_root, made_once

# Modules and packages that are held out. Of test: those with the most functions whose examples tell a right body from
# none (50 of 64 in Python 3.11); a split by a hash has two of them, or none.
HELD_OUT = {
    "val": ("urllib", "pathlib", "threading", "pickle", "zipfile"),
    "test": ("statistics", "pickletools", "typing", "difflib", "ipaddress", "enum", "shutil"),
}
FORMAT = 2  # of the file: raise it where it changes
FUNCTIONS = "python:functions"  # as data.path
EXCLUDE = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "ensurepip",
           "idlelib", "turtledemo", "pydoc_data")  # fmt: skip
LEAST, MOST = 20, 1500  # characters of a body; most of what stands before it
Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_functions(root: Path | None = None) -> Path:
    """A folder in the cache, made at first use: train.jsonl, val.jsonl and test.jsonl of `function_pairs`.

    Args:
        root: folder of a library; None: that of this Python.

    Raises:
        ConfigError: no function in it.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    files = find_files(root, (".py",), EXCLUDE)
    key = digest([FORMAT, platform.python_version(), fingerprint(root, files)])

    def make(folder: Path) -> None:
        records = list(function_pairs(root, files))
        if not records:
            raise ConfigError(f"{root}: has no function with a docstring")
        for split in SPLITS:
            own = [record for record in records if split_of(record["group"]) == split]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own), encoding="utf-8")

    return made_once(cache_root() / "text" / f"functions-{key[:24]}", make)


def split_of(group: str) -> str:
    """The split of a module or package at the top."""
    return next((split for split, names in HELD_OUT.items() if group in names), "train")


def modules_of_functions() -> dict[str, str]:
    """The module of each function of this Python's standard library, by its "source"."""
    files = [python_functions() / f"{split}.jsonl" for split in SPLITS]
    records = (json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return {record["source"]: record["module"] for record in records}


def function_pairs(root: Path, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Functions and methods that have a docstring and more than that, once each, unindented, without decorators.

    "source" is the lines up to the docstring's end; "target" the lines after it, whose first has lost its indentation
    as texts of pairs do (`joined` puts it back); "group" the module or package at the top: json, os, ...; "module" the
    whole name of the module.
    """
    seen = set()
    for path in files:
        try:
            with tokenize.open(path) as file:
                text = file.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of strange escapes, which are valid
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # examples of what is wrong are shipped too
        module = name_of(root, path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for node in ast.walk(tree):
            if isinstance(node, Function) and (pair := _pair(node, text.split("\n"))) and pair not in seen:
                seen.add(pair)
                yield {"source": pair[0], "target": pair[1], "group": module.split(".")[0], "module": module}


def _pair(node: Function, lines: Sequence[str]) -> tuple[str, str] | None:
    if ast.get_docstring(node) is None or len(node.body) < 2:
        return None
    first, last = node.body[0].end_lineno or 0, node.end_lineno or 0
    if node.body[1].lineno <= first:  # on the docstring's line
        return None
    whole = textwrap.dedent("\n".join(lines[node.lineno - 1 : last])).split("\n")
    head, body = (
        "\n".join(part).strip() for part in (whole[: first - node.lineno + 1], whole[first - node.lineno + 1 :])
    )
    if not (LEAST <= len(body) <= MOST and len(head) <= MOST) or not parsed(joined(head, body)):
        return None
    return head, body


def joined(source: str, target: str) -> str:
    """A function of its two halves."""
    head = parsed(source)
    return f"{source}\n{' ' * (4 if head is None else head.body[0].col_offset)}{target}"


def parsed(text: str) -> Function | None:
    """The function that a text is, and nothing else; None: it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # null bytes; brackets nested too deeply
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Function) else None
