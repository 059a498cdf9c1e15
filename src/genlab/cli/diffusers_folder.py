"""A folder of diffusers' StableDiffusionPipeline as a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from genlab.cli.pretrained import counted
from genlab.diffusion.schedulers import read_scheduler
from genlab.files import read_json
from genlab.models.stable_diffusion import pipeline_parts, pipeline_state
from genlab.runs.directory import PIPELINE


def pipeline_config(folder: Path) -> dict[str, Any]:
    """What would stand in a run's config.yaml: a model without data, and how it is sampled. What is not as in diffusers
    is said.

    Raises:
        ConfigError: as `pipeline_parts` and `read_scheduler`.
    """
    scheduler = read_scheduler(pipeline_parts(folder)["scheduler"], f"{folder}/scheduler/scheduler_config.json")
    notes = list(scheduler.notes)
    if ((read_json(folder / PIPELINE) or {}).get("safety_checker") or [None])[0]:
        notes.append("its safety_checker is not read: pictures are not checked")
    for note in notes:
        warnings.warn(f"{folder}: {note}")
    model = {"_target_": "genlab.models.stable_diffusion.StableDiffusion", "path": str(folder), "chunk_size": 4}
    common = {"name": folder.resolve().name, "seed": 0, "data": None, "evaluation": None}
    return {**common, "model": model, "sampler": scheduler.sampler}


def pipeline_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder's weights in the form of a checkpoint, as `genlab.cli.pretrained.pretrained_checkpoint`."""
    return counted(folder, pipeline_state(folder))
