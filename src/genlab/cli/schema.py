"""What a configuration must hold beyond arguments of classes: fields, ranges, and the kind of class a group names.

One model an entry point (conf/train.yaml, conf/sample.yaml, conf/evaluate.yaml). Nodes with `_target_` (model, data,
optimizer, schedule, sampler, trainer, ...) are `Node` here: their fields are the arguments of what they name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Node = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weights = Literal["ema", "raw"]
Checkpoint = Literal["last", "best", "previous"]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Ema(Strict):
    decay: Share
    ramp: bool = True


class Grid(Strict):
    count: Count
    columns: Positive = 8


class Best(Strict):
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"


class Latents(Strict):
    reconstructions: Count = 16
    final: bool = True


class Guard(Strict):
    skips: Count = 10


class Callbacks(Strict):
    """conf/callbacks."""

    guard: Guard = Guard()
    ema: Ema | None = None
    samples: Grid | None = None
    checkpoint: Best | None = None
    final: Grid | None = None
    latents: Latents = Latents()
    evaluate_every: Count = 0
    evaluate_n: Positive = 500
    extra: list[Node] = []


class Train(Strict):
    model: Node
    adapter: Node | None = None
    feedback: Node | None = None
    data: Node
    optimizer: Node
    schedule: Node
    sampler: Node | None = None
    evaluation: Node | None = None
    callbacks: Callbacks
    trainer: Node
    logger: dict[str, Node | None] | None = None
    seed: Seed
    name: str
    runs_dir: str
    resume: str = "auto"
    init_from: str | None = None
    weights: Weights = "ema"
    compile: bool = False
    threads: Positive | None = None
    rank_timeout_s: Positive = 1800
    paper: Node | None = None
    debug: Node | None = None


class FromRun(Strict):
    """What sample.py and evaluate.py have in common."""

    run: str
    runs_dir: str
    seed: Seed = 0
    device: str = "auto"
    devices: Positive = 1
    threads: Positive | None = None
    rank_timeout_s: Positive = 1800
    chunk_size: Positive | None = None
    sampler: Node | None = None


class Sample(FromRun):
    postprocess: dict[str, Node] | None = None
    weights: Weights = "ema"
    checkpoint: Checkpoint = "last"
    n: Positive
    condition: dict[str, int | float | str | list[int | float | str] | None] = {}
    conditions: str | None = None
    prompt: str | list[str] | None = None
    negative: str | list[str] | None = None
    each: Positive | None = None
    stream: bool = False
    chat: bool = False
    system: str | None = None
    template: str | None = None
    trace: bool = False
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = None
    out: str | None = None
    columns: Positive = 8


class Evaluate(FromRun):
    weights: Literal["ema", "raw", "both"] = "ema"
    checkpoint: Literal["last", "best", "previous", "all"] = "last"
    samples: str | None = None
    base: bool = False
    reference: str | None = None
    data: Node | None = None
    out: str | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    evaluation: Node | None = None


class Postprocess(Strict):
    images: str
    out: str
    postprocess: dict[str, Node]


ENTRIES: dict[str, type[Strict]] = {
    "train": Train, "sample": Sample, "evaluate": Evaluate, "postprocess": Postprocess
}  # fmt: skip

# Key (`*`: any name, `[]`: any place in a list) -> full name of the class that the target there must derive from.
BASES: dict[str, str] = {
    "model": "genlab.models.trained.TrainedModel",
    "adapter": "genlab.networks.adapter.Adapter",
    "feedback": "genlab.feedback.base.Feedback",
    "feedback.reward": "genlab.judges.Judge",
    "data": "genlab.data.module.DataModule",
    "optimizer": "torch.optim.optimizer.Optimizer",
    "schedule": "genlab.models.schedule.Schedule",
    "trainer": "pytorch_lightning.trainer.trainer.Trainer",
    "callbacks.extra[]": "pytorch_lightning.callbacks.callback.Callback",
    "logger.*": "pytorch_lightning.loggers.logger.Logger",
    "evaluation": "genlab.evaluation.protocol.Protocol",
    "postprocess.*": "genlab.postprocess.Step",
    "evaluation.metrics.*": "torchmetrics.metric.Metric",
    "evaluation.metrics.*.classifier": "genlab.evaluation.harm.TextClassifier",
}

# Arguments that the program itself gives when it builds a node, so that the configuration need not.
SUPPLIED: dict[str, set[str]] = {"logger.*": {"save_dir"}}

# Arguments that the session gives itself, so that the configuration must not, and what to set in their place.
_LENGTH = "The length of a run is schedule.max_samples"
RESERVED: dict[str, str] = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps"), _LENGTH),
    **dict.fromkeys(("val_check_interval", "check_val_every_n_epoch"), "Set schedule.eval_every, in samples"),
    "log_every_n_steps": "Set schedule.log_every, in samples",
    "logger": "Choose logger=NAME",
    "callbacks": "Set callbacks.extra, a list of nodes",
    **dict.fromkeys(
        ("default_root_dir", "num_sanity_val_steps", "use_distributed_sampler", "enable_model_summary", "plugins"),
        "Leave it out",
    ),
}

# Values of arguments that Lightning looks at only after seconds of imports.
CHOICES: dict[str, tuple[str, ...]] = {
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.strategy": ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"),
}

# Bounds of arguments whose annotation states none: those of libraries, and sizes and shares wherever they stand.
RANGES: dict[str, str] = {
    "schedule.max_samples": "gt 0",
    "schedule.*": "ge 0",
    "schedule.final_lr": "le 1",
    "data.val_fraction": "ge 0, lt 1",
    "optimizer.lr": "gt 0",
    "optimizer.weight_decay": "ge 0",
    "optimizer.eps": "ge 0",
    "optimizer.betas[]": "ge 0, lt 1",
    "optimizer.momentum": "ge 0",
    "trainer.devices": "gt 0",
    "trainer.num_nodes": "gt 0",
    "trainer.accumulate_grad_batches": "gt 0",
    "trainer.gradient_clip_val": "gt 0",
    "**.dropout": "ge 0, lt 1",
    "**.num_classes": "ge 0",
    "**.chunk_size": "gt 0",
    # Numbers of modules: a million of them in a run that someone sent would take hours to build.
    "model.ensemble": "le 256",
    "**.n_layer": "le 256",
    "**.num_hidden_layers": "le 256",
    "**.layers": "le 256",
    "**.layers_per_block": "le 256",
    "**.blocks": "le 256",
}
