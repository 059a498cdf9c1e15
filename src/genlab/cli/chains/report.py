"""The report of a chain: what its stages have left, as Markdown and as a page that needs no other file.

It is a function of results alone: no time, no name or path of a run. So a chain that was killed ends with the same.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from genlab.cli.chains.pages import Block, Code, Heading, Picture, Table, Words, html, markdown
from genlab.cli.chains.stages import Stage
from genlab.cli.chains.work import REPORT, Chain
from genlab.cli.comparison.compared import BOOKKEEPING, compare
from genlab.cli.comparison.curves import draw
from genlab.cli.comparison.numbers import NONE, number
from genlab.cli.comparison.page import read_png
from genlab.cli.comparison.read import read_run
from genlab.cli.redact import redact, without_paths
from genlab.errors import ConfigError
from genlab.files import read_json, write_bytes

ITEMS, FINAL = 20, 4  # texts that are shown of a stage that samples, and of a training
CHARACTERS = 1500  # of a text
RULE = "\n" + "-" * 80 + "\n"  # between the texts of one file: genlab.modality.Text.rule
Record = tuple[str, dict[str, Any]]  # a stage's name, with the protocol where it has several; and a metric record


def write_report(chain: Chain) -> list[Path]:
    """report.md, its pictures in pictures/, and report.html, in the folder of a chain whose stages are all finished.

    Raises:
        ConfigError: what a stage has left cannot be read.
        StorageError: the folder cannot be written.
    """
    blocks = report(chain)
    shutil.rmtree(chain.folder / "pictures", ignore_errors=True)
    for block in blocks:
        if isinstance(block, Picture):
            write_bytes(chain.folder / "pictures" / f"{block.name}.png", block.png)
    title = f"Chain {chain.name}"
    for name, text in zip(REPORT, (markdown(title, blocks), html(title, blocks)), strict=True):
        write_bytes(chain.folder / name, text.encode("utf-8", "replace"))
    return [chain.folder / name for name in REPORT]


def report(chain: Chain) -> list[Block]:
    """Evaluations by one protocol side by side, then each stage by itself."""
    records = [record for stage in chain.stages for record in _records(chain, stage)]
    blocks = list(_side_by_side(records))
    for stage in chain.stages:
        blocks += [Heading(2, stage.name), Code(without_paths(redact(stage.command)))]
        blocks += _training(chain, stage) if stage.entry == "train" else ()
        for label, record in records:
            blocks += _evaluation(record) if label == stage.name else ()
        blocks += _samples(chain.folder_of(stage) / "samples" / "grid", stage.name, ITEMS)
    return blocks


# ---- training


def _training(chain: Chain, stage: Stage) -> Iterator[Block]:
    """The last value of each metric, and the curves."""
    run = chain.run_of(stage)
    result = read_json(run.path / "result.json") if run is not None else None
    if run is None or not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
        raise ConfigError(
            f"stage {stage.name}: its run has no result.json: remove {chain.folder_of(stage)} to repeat it."
        )
    rows = [["samples seen", number(result.get("samples"))]]
    rows += [[name, number(value)] for name, value in sorted(result["metrics"].items()) if name not in BOOKKEEPING]
    yield Table(["metric", "last value"], rows)
    picture = draw(compare([replace(read_run(run.path), name=stage.name)]))
    if picture is not None:
        yield Picture(f"{stage.name}-curves", _plain(picture))
    yield from _samples(run.path / "samples" / "final", stage.name, FINAL)


# ---- evaluations


def _records(chain: Chain, stage: Stage) -> list[Record]:
    """The metric records of a stage that evaluates, in the order of their names."""
    if stage.entry != "evaluate":
        return []
    read = [read_json(path) for path in sorted((chain.folder_of(stage) / "records").glob("*.json"))]
    if not all(isinstance(record, dict) and isinstance(record.get("values"), dict) for record in read):
        raise ConfigError(f"stage {stage.name}: a record cannot be read: remove {chain.folder_of(stage)} to repeat it.")
    return [(stage.name, record) for record in read]


def _side_by_side(records: list[Record]) -> Iterator[Block]:
    """Of each protocol by which several stages were measured: their values, and how far the last is from the first."""
    ordered = sorted(records, key=lambda one: _protocol(one[1]))  # stable: stages stay in order
    for protocol, group in groupby(ordered, key=lambda one: _protocol(one[1])):
        several = list(group)
        if len({label for label, _ in several}) < 2:
            continue
        yield Heading(2, f"{' | '.join(label for label, _ in several)}, by {protocol}")
        values = [record["values"] for _, record in several]
        rows = []
        for name in dict.fromkeys(name for one in values for name in one):
            cells = [one.get(name) for one in values]
            rows.append([name, *map(number, cells), _difference(cells[0], cells[-1])])
        yield Table(["value", *(label for label, _ in several), "difference"], rows)


def _protocol(record: Mapping[str, Any]) -> str:
    """The protocol's name, and the number of items that were judged where it says one."""
    n = (record.get("generated") or {}).get("n")
    return f"{record.get('name')}" + (f", n = {n:,}" if isinstance(n, int) else "")


def _difference(first: Any, last: Any) -> str:
    if first is None or last is None:
        return NONE
    return f"{'+' if last > first else ''}{number(last - first)}"


def _evaluation(record: Mapping[str, Any]) -> Iterator[Block]:
    weights = (record.get("model") or {}).get("weights")
    yield Words(f"Protocol {_protocol(record)}" + (f", {weights} weights." if weights else "."))
    real, missing = (record.get("floor") or {}).get("values", {}), record.get("missing") or {}
    rows = [
        [name, f"missing: {without_paths(str(missing.get(name)))}" if value is None else number(value)]
        + ([number(real.get(name))] if real else [])
        for name, value in record["values"].items()
    ]
    yield Table(["value", "measured", *(["real data"] if real else [])], rows)


# ---- samples


def _samples(stem: Path, name: str, items: int) -> Iterator[Block]:
    """The picture of all, or the first texts: what the modality shows to a person. stem: path without suffix."""
    if (path := stem.with_suffix(".png")).is_file():
        yield Picture(f"{name}-samples", _plain(read_png(path)))
    elif (path := stem.with_suffix(".txt")).is_file():
        texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split(RULE)
        if len(texts) > items:
            yield Words(f"The first {items} of {len(texts):,}:")
        for text in texts[:items]:
            yield Code(text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} …")


def _plain(png: bytes) -> bytes:
    """The picture without its metadata, which name the run."""
    with Image.open(io.BytesIO(png)) as picture:
        file = io.BytesIO()
        picture.save(file, format="PNG")
    return file.getvalue()
