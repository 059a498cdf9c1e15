"""The state that a recurrent network carries from one batch of contiguous windows to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from genlab.errors import ConfigError
from genlab.networks.awd_lstm import LSTMState


class CarriedState:
    """Truncated back-propagation through time: states go on from window to window, gradients do not.

    In training the states of all rows of the stream are kept, on every rank (each trains its own rows, and gets those
    of the others after each forward pass), so that any rank's checkpoint is whole, and a run can go on with another
    number of devices. Elsewhere the batch before was of the same rows. A row whose state is no longer finite begins
    anew, from zero.
    """

    def __init__(self) -> None:
        self.kept: LSTMState | None = None  # in training: of all rows, [1, R, width]
        self.last: LSTMState | None = None  # elsewhere: of the batch before

    def before(self, batch: Mapping[str, Tensor], training: bool) -> LSTMState | None:
        """The state that the batch's windows begin with; zeros where a row begins.

        Args:
            batch: with "row" int64 [B] and "begins" bool [B] of `genlab.data.windows.Windows`.

        Raises:
            ConfigError: the windows are not contiguous.
        """
        if "row" not in batch:
            raise ConfigError("model.carried_state=true needs windows that go on: set data.windows=contiguous")
        rows, begins = batch["row"], batch["begins"]
        if training:
            if self.kept is None:
                return None
            self.kept = LSTMState([(h.to(rows.device), c.to(rows.device)) for h, c in self.kept.layers])
            return self.kept.rows(rows).where(~begins)
        if self.last is None or self.last.layers[0][0].shape[1] != len(rows):
            return None
        return self.last.where(~begins)

    def after(self, batch: Mapping[str, Tensor], state: LSTMState, training: bool, total: int) -> None:
        """Keeps the state after the batch.

        Args:
            total: R, rows of the training stream.
        """
        state = state.detach()
        finite = torch.stack([part[0].isfinite().all(1) for layer in state.layers for part in layer]).all(0)
        state = state.where(finite)
        if not training:
            self.last = state
            return
        rows = batch["row"]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            rows = _gathered(rows, 0)
            state = LSTMState([(_gathered(h, 1), _gathered(c, 1)) for h, c in state.layers])
        if self.kept is None:
            wide = [(h.new_zeros(1, total, h.shape[2]), c.new_zeros(1, total, c.shape[2])) for h, c in state.layers]
            self.kept = LSTMState(wide)
        for old, new in zip(self.kept.layers, state.layers, strict=True):
            for one, other in zip(old, new, strict=True):
                one[:, rows] = other

    def saved(self) -> list[list[Tensor]] | None:
        """For a checkpoint: h and c [1, R, width] of each layer; None where nothing has been trained."""
        return None if self.kept is None else [[h.clone(), c.clone()] for h, c in self.kept.layers]

    def load(self, saved: Any) -> None:
        """What `saved` gave."""
        self.kept = None if saved is None else LSTMState([(h, c) for h, c in saved])


def _gathered(part: Tensor, dim: int) -> Tensor:
    """Of all ranks, in their order, along `dim`; of the same shape on each."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim)
