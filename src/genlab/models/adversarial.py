"""Training of several players: the second of the two loops. A family lists its players and their losses; no more."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genlab.models.base import GenerativeModel
from genlab.models.gradients import average, clip, global_norm, keep_finite
from genlab.networks.spectral import iterated_once


@dataclass(frozen=True)
class Player:
    """One side of a game.

    Attributes:
        name: prefix of its losses in the log, and what `losses` is called with.
        module: what it trains.
        period: it moves at every `period`-th update of the run (n_critic for a generator).
        start: samples before which it does not move.
        lr_scale: multiple of the optimizer's learning rate (two time-scale rule, arXiv 1706.08500).
    """

    name: str
    module: nn.Module
    period: int = 1
    start: int = 0
    lr_scale: float = 1.0


class AdversarialModel(GenerativeModel):
    """Players move in turn at each update, in the order of `players()`; the last one is the one that is sampled from.

    An update takes `batch_size` real samples. Under accumulation its micro-batches are kept until the last has come;
    then each player in turn accumulates over all of them and moves, so the result is that of one large batch: the
    generator always answers the critic that has just moved.
    """

    automatic_optimization = False

    @abstractmethod
    def players(self) -> list[Player]:
        """In the order in which they move."""

    @abstractmethod
    def losses(self, batch: Mapping[str, Tensor], player: str | None = None) -> dict[str, Tensor]:
        """Losses of one player, with "loss" to be minimised; with player None (validation), those of the game as a
        whole, none of which needs a gradient."""

    def moved(self, player: Player, finite: bool) -> None:
        """After a player's step (left out where its gradient was not finite), for what follows it without gradients."""

    def configure_optimizers(self) -> Any:
        optimizers = []
        for player in self.players():
            optimizer = self.optimizer_of(player.module.parameters())
            for group in optimizer.param_groups:
                group["lr"] *= player.lr_scale
            optimizers.append(optimizer)
        return optimizers

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Norm, clipping and the count of updates belong to the player that moves: see `_move`."""

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        self._pending.append(batch)
        if len(self._pending) < self.accumulation:
            return {}
        update = self.samples_seen // self._plan.batch_size
        report: dict[str, Tensor] = {}
        self.grad_norm = None  # of this update: the generator may not move in it
        players = self.players()
        for player, optimizer in zip(players, self.all_optimizers(), strict=True):
            if (update + 1) % player.period == 0 and self.samples_seen >= player.start:
                report.update(self._move(player, optimizer, players))
        self._pending.clear()
        return report

    def _move(self, player: Player, optimizer: Any, players: list[Player]) -> dict[str, Tensor]:
        """One player's gradient over all pending micro-batches, averaged over ranks, and its step."""
        for other in players:
            other.module.requires_grad_(other is player)
        sums: dict[str, Tensor] = {}
        with iterated_once(self):
            for batch in self._pending:
                losses = self.losses(batch, player.name)
                self.manual_backward(losses["loss"] / len(self._pending))
                for key, value in losses.items():
                    name = f"{player.name}_{key}"
                    sums[name] = sums.get(name, torch.zeros_like(value.detach())) + value.detach() / len(self._pending)
        for other in players:
            other.module.requires_grad_(True)
        parameters = list(player.module.parameters())
        # Players are not wrapped in DistributedDataParallel: its reducer expects one backward a forward.
        average([p.grad for p in parameters if p.grad is not None])
        norm = global_norm(parameters)
        finite = keep_finite(parameters, norm)
        self.skipped += not finite
        clip(parameters, self._plan.clip_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.moved(player, finite)
        if player is players[-1]:
            self.updates += finite
            self.grad_norm = norm
        elif norm is not None:
            sums[f"{player.name}_grad_norm"] = norm
        return sums
