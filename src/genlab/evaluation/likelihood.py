"""Capabilities of models that read given items; the metrics that need them are in evaluation.metrics.given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class LogLikelihood(Protocol):
    """A capability of a model: log-probability of given items."""

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum of log p over the counted tokens of each row in nats, float [B]; number of these tokens, int64 [B]."""


@runtime_checkable
class TextLogLikelihood(Protocol):
    """A capability of a model: log-probability of plain text, whatever it was trained on."""

    def text_log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `log_likelihood`, of windows with nothing put around them."""


@runtime_checkable
class LikelihoodBound(Protocol):
    """A capability of a model: a lower bound on the log-probability of given items."""

    def likelihood_bound(self, batch: Mapping[str, Tensor], terms: int | None = None) -> tuple[Tensor, Tensor]:
        """As `log_likelihood`; an estimate from `terms` draws, keyed by the batch's id."""


@runtime_checkable
class PseudoLogLikelihood(Protocol):
    """A capability of a model: the log-probability of each token of given items, given all others of its item."""

    def pseudo_log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `log_likelihood`."""


@runtime_checkable
class VariationalBound(Protocol):
    """A capability of a model: an upper bound of -log p(x) of given items."""

    def variational_bound(self, batch: Mapping[str, Tensor], terms: int | None = None) -> dict[str, Tensor]:
        """The bound first, then its parts, float64 [B] each: bits_per_dim, or neg_elbo in nats; of texts also "tokens",
        int64 [B], which are counted."""


@runtime_checkable
class ImportanceNLL(Protocol):
    """A capability of a model: -log p(x) of given items from importance samples."""

    def importance_nll(self, batch: Mapping[str, Tensor], draws: int) -> dict[str, Tensor]:
        """nll in nats, and bits_per_dim where that has a meaning, float64 [B] each; of texts also "tokens"."""


@runtime_checkable
class Posterior(Protocol):
    """A capability of a model: its posterior over latents whose prior is N(0, 1)."""

    def posterior(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x) = N(mu, exp(logvar)), diagonal, float [B, D] each."""


@runtime_checkable
class Reconstructs(Protocol):
    """A capability of a model: items through its latents and back."""

    def reconstruct(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the model was shown (perhaps a binarised image) and what came back, as the model's `to_data` takes it:
        images [B, C, H, W] in [-1, 1]; token ids."""


@runtime_checkable
class PairFeatures(Protocol):
    """A capability of a model: vectors of images and of texts in one space, float [B, E] of length 1."""

    def image_features(self, image: Tensor) -> Tensor:
        """Of images, float [B, C, H, W] in [-1, 1]."""

    def text_features(self, caption: Tensor) -> Tensor:
        """Of token ids of the model's tokenizer, int64 [B, L] with -1 after the end."""
