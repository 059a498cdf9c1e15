"""Which keys of a configuration matter for what: the one place that lists them. A node's name means all of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Where and how a run is executed or watched, not what it computes: a change of these still continues the same run.
EXECUTION = ("runs_dir", "resume", "logger", "rank_timeout_s", "data.num_workers", "data.resident_max",
             "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.enable_progress_bar")  # fmt: skip
SEEDS = ("seed", "data.seed")
# Also what is measured during or after it: no difference between two runs. How values were measured is compared record
# by record (genlab.cli.comparison.protocols).
NEUTRAL = (*EXECUTION, "name", "threads", "evaluation", "callbacks.samples", "callbacks.final", "callbacks.latents",
           "callbacks.evaluate_every", "callbacks.evaluate_n")  # fmt: skip
# Of the model and the data: what leaves the meaning of val/loss as it is.
LOSS_NEUTRAL = ("data.batch_size", "data.val_batch_size", "data.resident_max", "data.num_workers", "data.seed",
                "data.random_flip", "model.chunk_size", "model.channels_last", "model.label_drop", "model.penalty",
                "model.penalty_every", "model.n_critic", "model.critic_lr_scale")  # fmt: skip
# May be changed when a run goes on: how long, where, and what is watched. Anything else is another run.
CHANGEABLE = ("schedule.", "trainer.", "callbacks.", "logger.", "evaluation.", "data.num_workers", "data.resident_max",
              "compile", "threads")  # fmt: skip
# What makes two runs the same experiment, whatever their seed, devices and length.
RECIPE, RECIPE_SCHEDULE = ("model", "adapter", "feedback", "data", "optimizer"), ("warmup", "decay", "final_lr")
RECIPE_NEUTRAL = (*EXECUTION, "data.seed", "data.limit_val", "data.val_batch_size", "optimizer.fused")
# What says what a model is and how it is sampled and judged, for an export; the rest is how it was trained.
EXPORTED = ("name", "seed", "model", "adapter", "sampler", "data", "evaluation")


def without(node: Any, keys: Collection[str], prefix: str = "") -> Any:
    """A copy of nested dicts and lists without the dotted `keys`."""
    if isinstance(node, Mapping):
        return {k: without(v, keys, f"{prefix}{k}.") for k, v in node.items() if f"{prefix}{k}" not in keys}
    return [without(value, keys, prefix) for value in node] if isinstance(node, list) else node
