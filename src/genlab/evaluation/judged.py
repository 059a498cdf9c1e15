"""What is judged: items that a model makes, that lie in files, or that are real."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genlab.conditions import UNCONDITIONED
from genlab.data.documents import HALF
from genlab.data.folder import Decode, ImageFiles, list_images
from genlab.data.manifest import Manifest
from genlab.data.readers import read_npz
from genlab.data.sources import Source, keyed
from genlab.errors import ConfigError, DataError
from genlab.evaluation.metrics.base import Items, plain
from genlab.evaluation.protocol import Protocol
from genlab.evaluation.reference import data_modality, read_items, real_batch, real_items
from genlab.evaluation.sound_files import SoundFolder
from genlab.files import sha256_of
from genlab.modality import Modality, Text
from genlab.samples import Samples


@dataclass
class Judged:
    """n items that can be had in parts.

    Attributes:
        n: how many.
        unit: items that must stay together (a model's chunk); parts begin at multiples of it.
        group: items read at a time, a multiple of `unit`.
        read: (start, stop) -> items start .. stop - 1.
        facts: what made them, for the record.
        items: all that is known of them beforehand: modality, condition, prompts, references.
        split: of real images, (data, split) whose features may be in the cache.
    """

    n: int
    unit: int
    group: int
    read: Callable[[int, int], Samples]
    facts: dict[str, Any]
    items: Items = field(default_factory=Items)
    split: tuple[Any, str] | None = None


# ---- made by a model


def generated_by(model: Any, data: Any, protocol: Protocol, sampler: Any, seed: int) -> Judged:
    """protocol.n items (None: one for each of the reference split); item i has the seed `keyed(i, seed)`, which is
    seed * 2^32 + i below 2^31: two share no item.

    What the model is told about them, and their references, come from its conditions (`Condition.draw`).

    Raises:
        ConfigError: a condition that the data or the protocol cannot give.
    """
    n = protocol.n or len(data.source(protocol.reference_split))
    draws = model.draw(n, data, protocol)
    conditions = {name: draw.rows for name, draw in draws.items() if draw.rows is not None}
    seeds = keyed(torch.arange(n), seed)
    unit, used = int(model.chunk_size), sampler if sampler is not None else model.sampler
    for draw in draws.values():
        used = replace(used, **draw.sampler) if draw.sampler else used
    references = next((draw.references for draw in draws.values() if draw.references is not None), None)
    name, shown = next(((name, draw.shown) for name, draw in draws.items() if draw.shown is not None), ("prompt", None))

    def read(start: int, stop: int) -> Samples:
        condition = {name: rows[start:stop] for name, rows in conditions.items()}
        samples = model.sample(seeds[start:stop], condition or None, used)
        return model.answers(samples)

    facts = {"n": n, "seeds": {"seed": seed, "first": int(seeds[0]), "count": n}}
    facts |= {} if draws else UNCONDITIONED
    for draw in draws.values():
        facts |= draw.facts
    facts |= sampling_facts(model, used)
    items = Items(None, prompts=shown, prompt_name=name, references=references, condition=conditions)
    items.modality = model.modality
    return Judged(n, unit, unit * -(-protocol.chunk // unit), read, facts, items)


def reconstructions_of(model: Any, data: Any, protocol: Protocol) -> Judged:
    """Items of the reference split (a fixed random choice of protocol.n) that a model has encoded and decoded."""
    device, split = torch.device(model.device), protocol.reference_split
    source, ids = real_items(data, split, protocol.n)

    def read(start: int, stop: int) -> Samples:
        with torch.no_grad():
            back = model.reconstruct(read_items(data, source, ids[start:stop], device))[1]
        return Samples(model.modality, model.modality.to_data(back).cpu())

    facts = {"n": len(ids), "reconstructions_of": split, "sha256": data.manifest.identity(split)}
    return Judged(len(ids), 1, protocol.chunk, read, facts, _known(source, ids, model.modality))


def sampling_facts(model: Any, sampler: Any) -> dict[str, Any]:
    """How a model samples, for the record."""
    used = sampler if sampler is not None else getattr(model, "sampler", None)
    return {
        "sampler": describe(used),
        "nfe": getattr(used, "nfe", None),
        "guidance_scale": getattr(used, "guidance_scale", None),
        "chunk_size": int(model.chunk_size),
    }


def describe(value: Any) -> Any:
    """An object of a config as primitives: its own `record()`, its fields if it is a dataclass, else its name."""
    return plain(value, _described)


def _described(value: Any) -> Any:
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    named = {"_target_": f"{type(value).__module__}.{type(value).__qualname__}"}
    if callable(getattr(value, "record", None)):
        return named | describe(value.record())
    if is_dataclass(value) and not isinstance(value, type):
        return named | describe(asdict(value))
    return named


# ---- from files, or real


class _FilesManifest(Manifest):
    """Of files, which their content alone identifies."""

    def identity(self, split: str | None = None) -> str:
        return self.splits["folder"]["sha256"]


class Folder:
    """A folder or .npz of images in the place of a data set, with one split called "folder".

    Args:
        path: images, in class folders (labels: their places in alphabetical order) or not; or an .npz with `image` and
            perhaps `label` (or arr_0 and arr_1), uint8.
        like: see SoundFolder; images keep their own size.

    Raises:
        ConfigError: nothing there.
        DataError: a file that cannot be read, or images of unequal sizes.
    """

    def __init__(self, path: Path, like: Any = None) -> None:
        if path.is_dir():
            self._source: Source
            self._source, digest, told = _open_folder(path)
        elif path.suffix == ".npz":
            self._source, digest, told = read_npz(path, None), sha256_of(path), {}
        else:
            raise ConfigError(f"{path}: expected a folder of images or an .npz file")
        labels = self._source.labels
        facts = {"num_classes": None if labels is None else int(labels.max()) + 1, **told}
        self.manifest = _FilesManifest(path.name, "image", facts, {"folder": {"sha256": digest}})

    def source(self, split: str) -> Source:
        return self._source


def _open_folder(path: Path) -> tuple[Source, str, dict[str, str]]:
    classes = sorted(p.name for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    paths, labels = list_images(path, classes)
    if not paths:
        raise ConfigError(f"{path}: holds 0 images")
    from PIL import Image as Pillow

    try:
        with Pillow.open(paths[0]) as first:
            size, grey = first.size, first.mode in ("1", "L")
            steps = str(first.info.get("postprocess", ""))[:500]
    except Exception as error:  # as in Decode: Pillow raises nearly everything on a broken file
        raise DataError(f"{paths[0]}: cannot be read ({error}); repair or remove it") from error
    digest = hashlib.sha256()
    for file in paths:
        digest.update(f"{file.relative_to(path)} {sha256_of(file)}\n".encode())
    decode = Decode((1 if grey else 3, size[1], size[0]), resize="none", crop="none")
    label = torch.tensor(labels, dtype=torch.int64) if classes else None
    if steps:
        warnings.warn(f"{path}: post-processed pictures, not those that a model has made: {steps}")
    return ImageFiles(paths, label, decode, str(path)), digest.hexdigest(), {"postprocess": steps} if steps else {}


FOLDERS = {
    "image": Folder,
    "audio": SoundFolder,
}  # by modality: what reads files of other programs, where it is no text


def items_from(data: Any, split: str, protocol: Protocol) -> Judged:
    """protocol.n images or sounds of a split of a data set (or of a Folder), in the place of generated ones."""
    source, ids = real_items(data, split, protocol.n, "samples")
    modality = data_modality(data)

    def read(start: int, stop: int) -> Samples:
        return Samples(modality, real_batch(source, ids[start:stop])["item"])

    facts = {"n": len(ids), "data": data.manifest.name, "split": split, "sha256": data.manifest.identity(split)}
    facts |= {key: data.manifest.facts[key] for key in ("postprocess",) if key in data.manifest.facts}
    return Judged(len(ids), 1, protocol.chunk, read, facts, _known(source, ids, modality), (data, split))


def _known(source: Source, ids: Tensor, modality: Modality) -> Items:
    """What is known of items of a split."""
    condition = {name: rows[ids] for name, rows in source.known.items()}
    return Items(condition=condition, references=source.references(ids), modality=modality)


def texts_from(path: Path, n: int | None) -> Judged:
    """Lines of a .jsonl: {"text": ..., "reference": "..." or "references": [...], "source": ...}; the references, and
    the sources that the texts were made from, in all or none.

    Raises:
        ConfigError: no such file, or it is empty.
        DataError: a line that is no such object; names it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file (samples)")
    texts: list[str] = []
    references: list[list[str]] = []
    sources: list[str] = []
    try:
        data = path.read_bytes()
        whole = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: not UTF-8 at offset {error.start}, line {number}; convert the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    lines = whole.removesuffix("\n").split("\n") if whole else []  # not splitlines: texts may hold other separators
    for number, line in enumerate(lines[:n], 1):
        try:
            row = json.loads(line)
            text, several = row["text"], row.get("references", [row["reference"]] if "reference" in row else [])
            source = [row["source"]] if "source" in row else []
            fine = isinstance(several, list) and all(isinstance(one, str) for one in (text, *several, *source))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fine = False
        if not fine:
            raise DataError(f'{path}, line {number}: expected {{"text": "...", "reference": "..."}}')
        if HALF.search("".join((text, *several, *source))):
            raise DataError(f"{path}, line {number}: half a surrogate pair (\\ud800 to \\udfff) is no text")
        texts.append(text)
        references += [several] if several else []
        sources += source
        for kind, rows in (("reference", references), ("source", sources)):
            if rows and len(rows) != number:
                raise DataError(f"{path}, line {number}: all lines must have a {kind}, or none")
    if not texts:
        raise ConfigError(f"{path}: holds 0 texts")
    facts = {"n": len(texts), "data": path.name, "sha256": sha256_of(path)}

    def read(start: int, stop: int) -> Samples:
        return Samples(Text(), texts[start:stop])

    items = Items(prompts=sources or None, prompt_name="source", references=references or None, modality=Text())
    return Judged(len(texts), 1, len(texts), read, facts, items)
