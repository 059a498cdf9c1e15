"""The fields of a configuration that are not arguments of a class: types, ranges and choices, strictly.

One model an entry point (conf/train.yaml, conf/sample.yaml, conf/evaluate.yaml). Nodes with `_target_` (model, data,
optimizer, sampler, trainer, ...) are checked by the signature of what they name and are `Node` here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Samples = Annotated[int, Field(gt=0)]
Node = dict[str, Any]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Schedule(Strict):
    """conf/schedule: how long, how often, learning rate. Every length is in real samples drawn."""

    max_samples: Samples
    eval_every: Samples | None = None
    save_every: Samples | None = None
    log_every: Samples | None = None
    sample_every: Samples | None = None
    warmup: Annotated[int, Field(ge=0)] = 0
    shape: Literal["constant", "linear", "cosine", "rsqrt", "exponential"] = "constant"
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    half_life: Samples | None = None


class Train(Strict):
    model: Node
    data: Node
    optimizer: Node
    schedule: Schedule
    sampler: Node | None = None
    evaluation: Node | None = None
    callbacks: dict[str, Node | None] | None = None
    trainer: Node
    logger: dict[str, Node | None] | None = None
    seed: Seed
    name: str | None = None
    runs_dir: str
    resume: str = "auto"
    init_from: str | None = None
    paper: Node | None = None
    debug: Node | None = None


ENTRIES: dict[str, type[Strict]] = {"train": Train}

# The class that each node (or each entry of a mapping of nodes, "callbacks.*") must derive from; None asks for none.
BASES: dict[str, str | None] = {
    "model": "genlab.models.base.GenerativeModel",
    "data": "genlab.data.base.DataModule",
    "optimizer": "torch.optim.optimizer.Optimizer",
    "trainer": "pytorch_lightning.trainer.trainer.Trainer",
    "callbacks.*": "pytorch_lightning.callbacks.callback.Callback",
    "logger.*": "pytorch_lightning.loggers.logger.Logger",
    "sampler": None,
    "evaluation": None,
}

# Arguments that the program itself gives when it builds a node, so that the config need not.
SUPPLIED: dict[str, set[str]] = {}
