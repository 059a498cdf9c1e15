"""A model that is trained, and how: the loop that is written once for every family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from genlab import noise
from genlab.errors import ConfigError
from genlab.models.gradients import average, clip, global_norm, keep_finite
from genlab.models.schedule import Schedule
from genlab.networks.frozen import frozen_parts


@dataclass(frozen=True)
class Plan:
    """How a model is trained: what conf/optimizer, conf/schedule and conf/trainer say, in one object.

    Attributes:
        optimizer: takes parameter groups, returns the optimizer (a partial of a torch.optim class).
        schedule: how long, how often, and the learning rate, all in samples.
        batch_size: samples per optimizer step, over all devices and micro-batches.
        accumulation: micro-batches per optimizer step.
        clip_norm: largest gradient norm (global L2), or None.
        seed: root of every random choice of the run.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    batch_size: int
    accumulation: int = 1
    clip_norm: float | None = None
    seed: int = 0


class TrainedModel(pl.LightningModule, ABC):
    """A model that is trained, whether or not it generates: a classifier, a dual encoder and a reward model define
    `losses`, and have the loop, exact resume, records, EMA and export from here.

    Attributes:
        samples_seen: the one counter: real samples drawn since the run began, over all devices.
        updates: optimizer steps (for a GAN, of the generator).
        skipped: steps that were left out because their gradient was not finite (over all players).
        tokenizer: text only; set from the data or from the run directory.
        feedback: genlab.feedback.Feedback, which takes the place of `losses`; None: examples alone.
        reads: keys of a batch without which it cannot be trained, where the configuration does not show that already.
    """

    reads: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.samples_seen = 0
        self.updates = 0
        self.skipped = 0
        self.grad_norm: Tensor | None = None
        self.plan: Plan | None = None
        self.tokenizer: Any = None
        self.feedback: Any = None
        self._pending: list[Any] = []  # what was drawn for the micro-batches of a step

    # ---- what a family defines

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses, each a mean over the batch, as a dictionary with key "loss", the one that is minimised.

        Noise must be a function of `self.keys(batch)` (genlab.noise), so that losses and gradients do not depend on how
        many devices or micro-batches share a batch. Only what libraries draw inside a network (dropout) comes from
        torch's global generator, which is reseeded at every batch from (seed, position, rank).
        """

    def check_items(self, data: Any) -> None:
        """Refuses data whose items lack what the model reads.

        Raises:
            ConfigError: says what is lacking.
        """
        first = torch.zeros(1, dtype=torch.int64)
        items = data.source("train").batch(first, first)
        if getattr(data, "num_classes", None) and "label" not in items:
            origin = data.source("train").origin
            raise ConfigError(f"data.num_classes={data.num_classes}, but {origin} has no labels; set it to null: "
                              "data.num_classes=null")  # fmt: skip
        own = self.feedback is None or self.feedback.reads is None
        reader, reads = (self, self.reads) if own else (self.feedback, self.feedback.reads)
        if lacking := [key for key in reads if key not in items]:
            raise ConfigError(
                f"data={data.name}: its items have no {lacking[0]}, only {', '.join(items)}; {type(reader).__name__} "
                f"reads {' and '.join(reads)}: choose other data, or another model"
            )

    def prepare(self, data: Any, device: torch.device) -> None:
        """Once before training: what is computed of the data by parts that are not trained (`data.attach`), and what
        is measured of it. Nothing here; `device` is free for it."""

    def keys(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the noise of a batch is keyed by, int64 [B].

        In training a hash of the run's seed and the item's position in the run, so that an item gets fresh noise each
        time it comes; in validation the item's id, the same at every validation.
        """
        if not self.training:
            return batch["id"]
        return noise.fold_in(batch["position"], self.plan.seed if self.plan else 0)

    def sampled_parts(self) -> tuple[str, ...]:
        """Prefixes of the state that is used after training, which EMA tracks. Default: all."""
        return ("",)

    def frozen(self) -> dict[str, str]:
        """sha256 of the weights of each frozen part, by name."""
        return {name: part.sha256 for name, part in frozen_parts(self).items()}

    # ---- the plan of training

    @property
    def max_samples(self) -> int:
        return self._plan.schedule.max_samples

    @property
    def accumulation(self) -> int:
        return self._plan.accumulation

    @property
    def _plan(self) -> Plan:
        if self.plan is None:
            raise RuntimeError("the model has no Plan: set model.plan before training")
        return self.plan

    def decayed_groups(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """Two groups: weight decay falls on tensors of two or more dimensions only, not on biases and norms."""
        trained = [p for p in parameters if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.ndim >= 2]},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The plan's optimizer of `decayed_groups(parameters)`. Complex parameters are stepped without fused kernels,
        which have none for them."""
        optimizer = self._plan.optimizer(self.decayed_groups(parameters))
        for group in optimizer.param_groups:
            if group.get("fused") and not all(p.is_floating_point() for p in group["params"]):
                group["fused"] = None
        # Under 16-mixed a fused step would unscale gradients itself, after they have been clipped; so Lightning does.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer_of(self.parameters())

    def all_optimizers(self) -> list[Any]:
        """The optimizers as a list, whether there is one or several."""
        found = self.optimizers()
        return list(found) if isinstance(found, list) else [found]

    # ---- the loop

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        if self.feedback is None:
            return self.losses(batch)
        return self.feedback.losses(self, batch) if self.automatic_optimization else self._several_steps(batch)

    def _several_steps(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Several optimizer steps on what was drawn for one batch, with all its micro-batches."""
        self._pending.append(self.feedback.draw(self, batch))
        if len(self._pending) < self.accumulation:
            return {}
        report: dict[str, Tensor] = {}
        (optimizer,) = self.all_optimizers()
        for _ in range(self.feedback.updates):
            for drawn in self._pending:
                report = self.feedback.losses_of(self, drawn)
                self.manual_backward(report["loss"] / len(self._pending))
            average([p.grad for p in self.parameters() if p.grad is not None])
            clip(self.parameters(), self._plan.clip_norm, global_norm(self.parameters()))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._pending.clear()
        return {name: value.detach() for name, value in report.items()}

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.losses(batch) if self.feedback is None else self.feedback.losses(self, batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.grad_norm = global_norm(self.parameters())
        finite = keep_finite(self.parameters(), self.grad_norm)
        self.updates, self.skipped = self.updates + finite, self.skipped + (not finite)
        if self.feedback is not None:
            self.feedback.at_step(self)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        clip(self.parameters(), self._plan.clip_norm, self.grad_norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A resumed run starts a fresh Lightning loop whose data begins at `samples_seen`; Lightning's own position
        # would skip or repeat batches (see docs/design.md, exact resume).
        checkpoint.pop("loops", None)
        checkpoint["samples"] = self.samples_seen
        checkpoint["updates"] = self.updates
        checkpoint["skipped"] = self.skipped
        if frozen := self.frozen():
            checkpoint["frozen"] = frozen
        if self.feedback is not None:
            checkpoint["feedback"] = self.feedback.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.samples_seen = int(checkpoint.get("samples", 0))
        self.updates = int(checkpoint.get("updates", 0))
        self.skipped = int(checkpoint.get("skipped", 0))
        if self.feedback is not None:
            self.feedback.load_state_dict(checkpoint["feedback"])

    def compile_parts(self) -> None:
        """torch.compile of each part in place, which keeps the names in the state (`compile(module)` would not)."""
        for part in self.children():
            part.compile()
