"""Readers of files from outside, and mutations of valid files for them."""

from __future__ import annotations

import os
import random
import re
import signal
import struct
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from genlab import sound
from genlab.cli.load import load_run
from genlab.data.audio import AudioFolder
from genlab.data.folder import ImageFolder
from genlab.data.readers import read_idx, read_npz
from genlab.errors import GenlabError, OutOfMemory
from genlab.evaluation.judged import Folder, texts_from
from genlab.files import read_rows, sha256_of, write_json

LEAST = 12  # cases
CASE_S = 30.0  # a case that takes longer hangs


@dataclass
class Reader:
    """What is fuzzed.

    Attributes:
        originals: valid files, as bytes.
        target: the file that is replaced by a mutation.
        read: reads it; may raise GenlabError.
        text: whether mutations of words make sense.
        seal: gives the mutated file its hash, or takes it away; called with a random generator.
    """

    originals: list[bytes]
    target: Path
    read: Callable[[], Any]
    text: bool = False
    seal: Callable[[random.Random], None] | None = None


def idx(folder: Path) -> Reader:
    image, label = folder / "images", folder / "labels"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    image.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 20, 8, 8) + pixels.tobytes())
    label.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + bytes(range(20)))

    def read() -> None:
        source = read_idx(image, label)
        if len(source):
            source.batch(torch.tensor([0]), torch.tensor([0]))

    return Reader([image.read_bytes(), label.read_bytes()], image, read)


def png(folder: Path) -> Reader:
    """A folder of pictures of every format that is read, as a data set and as samples of another program."""
    root = folder / "pictures"
    root.mkdir()
    rng = np.random.default_rng(0)
    originals = []
    for i, (mode, name) in enumerate(
        [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("I;16", "png"), ("RGB", "jpeg"),
         ("RGB", "gif"), ("RGB", "tiff"), ("RGB", "webp"), ("RGB", "bmp"), ("RGB", "ppm")]
    ):  # fmt: skip
        shape = {"RGB": (9, 12, 3), "RGBA": (9, 12, 4)}.get(mode, (9, 12))
        dtype = np.uint16 if mode == "I;16" else np.uint8
        picture = Image.fromarray(rng.integers(0, 200, shape).astype(dtype))
        if mode in ("P", "1"):
            picture = picture.convert(mode)
        picture.save(root / f"x.{name}", exif=Image.Exif() if name == "jpeg" else b"")
        originals.append((root / f"x.{name}").read_bytes())
        (root / f"x.{name}").unlink()
        if i == 0:
            picture.save(root / "good.png")
    turn = [0]

    def read() -> None:
        turn[0] += 1
        cache_max = 0 if turn[0] % 2 else 10**9
        data = ImageFolder("f", root=str(root), shape=[3, 8, 8], val_fraction=0.5, batch_size=1, cache_max=cache_max)
        for split in ("train", "val"):
            list(data.batches(data.eval_loader(split)))
        Folder(root).source("folder").batch(torch.tensor([0]), torch.tensor([0]))

    return Reader(originals, root / "a.png", read)


def audio(folder: Path) -> Reader:
    """A folder of sounds of every format that is read, with soundfile and without."""
    import soundfile

    root = folder / "sounds"
    root.mkdir()
    values = np.random.default_rng(0).uniform(-0.9, 0.9, (500, 2))
    originals = []
    for kind, form in (("PCM_16", "WAV"), ("PCM_24", "WAV"), ("PCM_U8", "WAV"), ("FLOAT", "WAV"), ("PCM_16", "FLAC"),
                       ("VORBIS", "OGG")):  # fmt: skip
        soundfile.write(root / "x", values, 8000, kind, format=form)
        originals.append((root / "x").read_bytes())
    (root / "x").unlink()
    (root / "good.wav").write_bytes(originals[0])
    turn = [0]

    def read() -> None:
        turn[0] += 1
        library = soundfile if turn[0] % 2 else None
        with mock.patch.object(sound, "_soundfile", return_value=library):
            data = AudioFolder("f", root=str(root), samples=400, sample_rate=8000, val_fraction=0.5, batch_size=1)
            for split in ("train", "val"):
                list(data.batches(data.eval_loader(split)))

    return Reader(originals, root / "a.wav", read)


def npz(folder: Path) -> Reader:
    path, originals = folder / "x.npz", []
    image = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(path, image=image, label=np.arange(20))
        originals.append(path.read_bytes())
    np.savez(path, np.array([{"a": 1}], dtype=object))
    originals.append(path.read_bytes())

    def read() -> None:
        for shape in ((3, 8, 8), None):
            read_npz(path, shape)

    return Reader(originals, path, read)


def jsonl(folder: Path) -> Reader:
    path = folder / "x.jsonl"
    texts = '{"text": "a b", "reference": "c"}\n{"text": "床前", "references": ["明月光", "\\u5e8a"]}\n' * 5
    rows = '{"samples": 8, "time": 1.5, "train/loss": 0.25}\n{"samples": 16, "time": 2.5, "val/loss": null}\n' * 5

    def read() -> None:
        try:
            judged = texts_from(path, None)
            [text.encode() for text in judged.read(0, judged.n).data]
        finally:
            assert all(isinstance(row["samples"], int) for row in read_rows(path))

    return Reader([texts.encode(), rows.encode()], path, read, text=True)


def config(run: Path) -> Reader:
    """RUN/config.yaml, read as sample.py does."""
    return Reader(
        [(run / "config.yaml").read_bytes()], run / "config.yaml", lambda: load_run(run, device="cpu"), text=True
    )


def checkpoint(run: Path) -> Reader:
    last = run / "checkpoints" / "last.ckpt"
    for name in ("previous.ckpt", "previous.ckpt.sha256.json"):
        (run / "checkpoints" / name).unlink(missing_ok=True)
    sidecar = last.with_name("last.ckpt.sha256.json")
    state = torch.load(last, weights_only=True)
    originals = [last.read_bytes()]
    torch.save({"state_dict": state["state_dict"], "samples": 1}, last, _use_new_zipfile_serialization=False)
    originals.append(last.read_bytes())
    for evil in ({**state, "x": _Touch(run / "marker")}, {**state, "hyper_parameters": {"_instantiator": "os.system"}}):
        torch.save(evil, last)
        originals.append(last.read_bytes())

    def seal(rng: random.Random) -> None:
        sidecar.unlink(missing_ok=True)
        if rng.random() < 0.6:
            write_json(sidecar, {"sha256": [sha256_of(last)]})

    def read() -> None:
        for weights in ("ema", "raw"):
            load_run(run, weights, device="cpu")

    return Reader(originals, last, read, seal=seal)


def export(folder: Path) -> Reader:
    """A folder that scripts/export.py has written: its JSON and its safetensors in turn."""
    weights, facts = folder / "model.safetensors", folder / "config.json"
    good = facts.read_bytes()
    turn = [0]

    def seal(rng: random.Random) -> None:
        turn[0] += 1
        if turn[0] % 2:  # the weights are what is mutated: give them their hash
            content = re.sub(rb'"sha256": "[0-9a-f]+"', f'"sha256": "{sha256_of(weights)}"'.encode(), good, count=1)
            facts.write_bytes(content)
        else:
            facts.write_bytes(mutated(good, rng, text=True))

    return Reader([weights.read_bytes()], weights, lambda: load_run(folder, device="cpu"), seal=seal)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


# ---- mutations

NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
WORDS = (b"null", b"-1", b"0", b"1e400", b".nan", b".inf", b"999999999", b"[]", b"{}", b"\"\"", b"true", b"${a.b}",
         b"${oc.env:HOME}", b"&a", b"*a", b"!!python/name:os.system", b"???", b"- ", b"\xff\xfe", b"\\ud800", b"\n",
         "床".encode(), b"os.system", b"torch.load", b"_target_", b"'", b"\t", b"\0", b"[" * 200,
         b"{a: " * 200)  # fmt: skip


def mutated(original: bytes, rng: random.Random, text: bool = False) -> bytes:
    """A few changes at random places."""
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        span = min(len(data) - at, rng.choice((1, 2, 4, 16, 64, 1000)))
        kind = rng.randrange(11 if text else 8)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + span] = rng.randbytes(span)
        elif kind == 2:
            del data[at : at + span]
        elif kind == 3:
            data[at:at] = data[rng.randrange(len(data)) :][:span]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            value = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 6:
            data[at : at + span] = bytes([data[at]]) * span
        elif kind == 7:
            data[at:at] = rng.choice(WORDS)
        else:  # a whole word or number of a text
            words = list(re.finditer(rb"[\w.+-]+", bytes(data)))
            if words:
                word = rng.choice(words)
                other = rng.choice((*WORDS, rng.choice(words).group()))
                data[word.start() : word.end()] = other
    return bytes(data)


# ---- the loop


@dataclass
class Report:
    """What became of the cases: how many, by outcome, and the faults with the bytes that made them."""

    cases: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for an error of the file."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(reader: Reader, seconds: float, seed: int, keep: Path) -> Report:
    """Mutates and reads for `seconds`, and LEAST times on a machine that is busy.

    A hang, and what is no GenlabError of one line, is a fault, kept in `keep`.
    """
    rng, report, began = random.Random(seed), Report(), time.monotonic()
    while time.monotonic() - began < seconds or report.cases < LEAST:
        case = mutated(rng.choice(reader.originals), rng, reader.text)
        reader.target.write_bytes(case)
        if reader.seal is not None:
            reader.seal(rng)
        started, fault = time.monotonic(), ""
        try:
            with time_limit(CASE_S), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read()
            outcome = "read"
        except GenlabError as error:
            outcome = type(error).__name__
            if "\n" in str(error) or not str(error):
                fault = f"{outcome} of several lines or none: {str(error)[:200]!r}"
            elif error.exit_code not in (2, 65, 76) and not isinstance(error, OutOfMemory):
                fault = f"exit code {error.exit_code}: {error}"
        except Hang:
            outcome = "hang"
            fault = f"took more than {CASE_S:.0f} s"
        except Exception as error:
            outcome = f"uncaught {type(error).__name__}"
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
            fault = f"{outcome}: {str(error)[:200]!r} at {where}"
        report.slowest = max(report.slowest, time.monotonic() - started)
        report.outcomes[outcome] += 1
        if fault:
            report.faults.append(fault)
            (keep / f"case-{report.cases}").write_bytes(case)
        report.cases += 1
    report.seconds = time.monotonic() - began
    return report
