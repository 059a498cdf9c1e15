"""`python -m genlab doctor`: one page on what is installed, what is missing, what is broken, each with what to do."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

import genlab
from genlab.cli.start import known_bad
from genlab.errors import GenlabError
from genlab.files import cache_root

State = Literal["ok", "note", "BAD"]
Finding = tuple[State, str, str]  # state, subject, what was found and what to do
LEAST_FREE = 5 * 2**30  # bytes


def doctor() -> int:
    """Prints the page; returns 1 if anything is broken, else 0."""
    worst = 0
    for check in (packages, imports, devices, threads, storage, data, weights, tracking):
        for state, subject, found in _safely(check):
            print(f"{state:<5} {subject:<22} {found}")
            worst |= state == "BAD"
    print("\nsomething is broken: see the lines marked BAD" if worst else "\nall that GenLab needs is there")
    return int(worst)


def _safely(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check that fails is a finding, and the others still run
        yield "BAD", check.__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def packages() -> Iterator[Finding]:
    """Versions against what GenLab asks for."""
    yield "ok", "python", f"{platform.python_version()} on {platform.platform()}"
    for text in importlib.metadata.requires("genlab") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield "BAD", requirement.name, f"not installed: pip install '{requirement}'"
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        words = version if fits else f"{version} installed: pip install '{requirement}'"
        yield "ok" if fits else "BAD", requirement.name, words
    for name, why in known_bad():
        yield "BAD", name, why


def imports() -> Iterator[Finding]:
    """Whether torch, torchvision and what stands on them load together."""
    for name in ("torch", "torchvision", "pytorch_lightning", "diffusers", "transformers", "torch_fidelity"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(name)
            except Exception as error:
                why = " ".join(str(error).split())[:160]
                yield "BAD", f"import {name}", f"does not load: {why}: install torch and torchvision of one kind"
                return
    import torch

    operators = genlab._TorchvisionOperators.library  # declared in the place of those of the extension
    pairing = "its compiled operators are not there, and not needed" if operators else "whole"
    yield "ok", "imports", f"torch {torch.__version__}, torchvision ({pairing})"


def devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        words = f"none; torch is built for {built}: look at the driver" if built else "none; torch is a CPU build"
        yield "note", "GPU", words
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield "ok", f"GPU {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"


def threads() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS")
    yield "ok", "CPU", f"{cores} cores, OMP_NUM_THREADS {given or 'not set'}, load {os.getloadavg()[0]:.1f}"
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    native = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    words = f"{', '.join(native)}: trainer.precision=bf16-mixed may pay: docs/training.md" if native else "not native"
    yield "note", "bfloat16 of the CPU", words


def storage() -> Iterator[Finding]:
    """Free space where runs, data and temporary files go."""
    runs = Path(os.environ.get("GENLAB_RUNS", "runs")).absolute()
    for name, folder in (("runs", runs), ("data and weights", cache_root())):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK):
            yield "BAD", name, f"{folder} cannot be written: set GENLAB_RUNS or GENLAB_DATA"
        else:
            state: State = "ok" if free >= LEAST_FREE else "note"
            yield state, name, f"{folder}, {free / 2**30:.0f} GiB free"
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < 2**28:
        yield "note", "/dev/shm", f"{free / 2**20:.0f} MiB free: loader workers may die; take data.num_workers=0"


def data() -> Iterator[Finding]:
    from genlab.data.fetch import present
    from genlab.data.registry import DATASETS

    for name in sorted(DATASETS):
        here = present(name)
        yield ("ok" if here else "note"), name, "in the cache" if here else f"python scripts/fetch_data.py {name}"


def weights() -> Iterator[Finding]:
    """The extractors that an evaluation may need."""
    from genlab.evaluation import load_extractor

    for name in ("mnist-cnn", "fashion-cnn", "inception-v3-compat"):
        try:
            extractor = load_extractor(name)
        except GenlabError as error:
            shipped = not re.match("inception", name)
            yield ("BAD" if shipped else "note"), name, str(error)
        else:
            words = f"sha256 {extractor.sha256[:8]}"
            yield "ok", name, words if extractor.has_logits else f"{words}, without logits: no Inception Score"


def tracking() -> Iterator[Finding]:
    import wandb

    if (mode := os.environ.get("WANDB_MODE", "online")) != "online":
        yield "note", "W&B", f"WANDB_MODE={mode}"
        return
    try:
        logged_in: Any = wandb.login(prompt=False)
    except Exception as error:
        yield "note", "W&B", f"runs will be offline: {' '.join(str(error).split())[:160]}"
        return
    yield ("ok", "W&B", "logged in") if logged_in else ("note", "W&B", "not logged in, runs are offline: wandb login")
