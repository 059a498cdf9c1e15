"""environment.json: what a run ran on. Free of torch, so the parent process can write it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from genlab.files import versions

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "torch-fidelity", "hydra-core", "omegaconf",
            "wandb", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "pillow")  # fmt: skip


def library_versions() -> dict[str, str]:
    """Version of GenLab and of each library that can change a number."""
    return versions(("genlab", *PACKAGES))


def code_version() -> dict[str, Any]:
    """Git commit of GenLab's source and whether it had changes; empty outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def environment(command: list[str]) -> dict[str, Any]:
    """The record of machine, versions and command."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "command": command,
        "code": code_version(),
        "versions": library_versions(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "executable": Path(sys.executable).name,
    }
