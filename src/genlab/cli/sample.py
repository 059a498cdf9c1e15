"""What sample.py calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genlab.callbacks.pictures import save_samples
from genlab.cli.build import set_threads
from genlab.cli.load import choose_sampler, load_run
from genlab.cli.ranks import place
from genlab.errors import ConfigError
from genlab.evaluation import generate
from genlab.evaluation.pictures import save_png


def sample(config: DictConfig) -> Path:
    """Writes a grid (or one text file) and single files; returns their folder."""
    here = place()
    set_threads(config.threads, here.local_world)
    if config.n < 1:
        raise ConfigError(f"n={config.n}: expected at least 1.")
    loaded = load_run(config.run, config.weights, config.checkpoint, config.device, config.runs_dir)
    sampler = choose_sampler(loaded, config.get("sampler"))
    condition: Any = OmegaConf.to_container(config.condition, resolve=True)
    seeds = torch.arange(config.seed, config.seed + config.n)
    samples = generate(loaded.model, seeds, loaded.condition(config.n, condition), sampler)
    used = sampler or loaded.model.sampler
    meta = {
        "model": str(loaded.config.name),
        "run": loaded.directory.path.name,
        "checkpoint": f"{loaded.checkpoint.name} at {loaded.model.samples_seen} samples, {loaded.weights} weights",
        "sampler": f"{type(used).__name__} {used}",
    }
    name = "-".join(["seed", str(config.seed), *(f"{k}-{v}" for k, v in condition.items() if k != "prompt")])
    out = Path(config.out) if config.out else loaded.directory.path / "samples" / name
    if here.rank:
        return out
    out.mkdir(parents=True, exist_ok=True)
    grid = save_samples(out / "grid", samples, config.columns, meta | {"seed": f"{config.seed} + index"})
    if samples.modality == "image":
        for i, image in enumerate(samples.data):
            own = {"seed": config.seed + i}
            if samples.labels is not None:
                own["label"] = int(samples.labels[i])
            save_png(out / f"{config.seed + i:06d}.png", image, meta | own)
    else:
        print(grid.read_text(encoding="utf-8"))
    print(f"{len(samples)} samples in {out}; see {grid}")
    return out
