"""The interface of feedback, and the reference that a policy is held against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from genlab.networks.frozen import weights_sha256


class Feedback(ABC):
    """Takes the place of a model's own losses in training and validation; `conf/feedback`.

    Attributes:
        reads: keys of a batch that it needs, in place of those that the model's own losses need; None: the same.
    """

    reads: tuple[str, ...] | None = None

    @abstractmethod
    def attach(self, model: Any) -> None:
        """Once before training, when the model has the weights that training begins with (also where a run goes on).

        Raises:
            ConfigError: the model cannot be trained so.
        """

    @abstractmethod
    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalars, means over the batch; "loss" is minimised. Draws are keyed by `model.keys(batch)`."""

    def at_step(self, model: Any) -> None:  # noqa: B027 - most have nothing to do
        """Once for each optimizer step, when its gradients are there."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Takes up the state of a checkpoint."""


class Reference:
    """A network as it was before: copies of the weights that are trained (those of an adapter, where there is one).

    Attributes:
        sha256: of these weights; a run goes on only with the same.
        source: for messages.
    """

    def __init__(self, network: nn.Module, source: str) -> None:
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}
        self.sha256, self.source = weights_sha256(self.weights), source

    @contextmanager
    def inside(self, network: nn.Module) -> Iterator[None]:
        """Within it, the network computes as it did before; no graph of gradients may reach across its borders."""
        parameters = dict(network.named_parameters())
        own = {name: parameters[name].data for name in self.weights}
        try:
            for name, weight in self.weights.items():
                if weight.device != own[name].device:
                    self.weights[name] = weight = weight.to(own[name].device)
                parameters[name].data = weight
            yield
        finally:
            for name, weight in own.items():
                parameters[name].data = weight


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it no dropout: with it, what is drawn and what is trained would be two policies."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
