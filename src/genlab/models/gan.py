"""Generative adversarial networks (Goodfellow et al. 2014, arXiv 1406.2661), with gradient penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from genlab import noise
from genlab.conditions import class_labels
from genlab.models.adversarial import AdversarialModel, Player
from genlab.models.base import Rows
from genlab.models.latent import LatentSampler
from genlab.networks.ensemble import assemble
from genlab.objectives.adversarial import Output, total


class GAN(AdversarialModel):
    """A generator and a critic. Real and fake always pass the critic with the same labels.

    Args:
        generator: (z [B, latent_dim], labels [B] or None) -> images [B, C, H, W]; has `latent_dim`. A partial that
            makes one (`_partial_: true`), or the network itself.
        critic: (images, labels or None) -> logits [B], or a list of tensors [B, ...], whose losses are added. As above.
        objective: has critic(real, fake) and generator(fake, real) of logits: genlab.objectives.adversarial.
        penalty: (critic, real, fake, keys of the noise) -> scalar, from genlab.objectives.penalties, or None.
        penalty_every: critic's updates between penalties; the weight grows by the same factor (lazy regularisation,
            arXiv 1912.04958, section 3.1).
        n_critic: the generator moves at every n-th update.
        critic_lr_scale: the critic's learning rate as a multiple of the generator's.
        augment: (images, keys) -> images, differentiable: what the critic sees instead, real and fake, in training
            (genlab.objectives.diffaugment), or None.
        ensemble: k generators and k critics, each of its own initial weights, whose images and logits are averaged.
        num_classes: classes of the condition; None or 0 for none.
    """

    sampled_by: ClassVar[str | None] = "latent"

    def __init__(
        self,
        generator: Callable[..., nn.Module] | nn.Module,
        critic: Callable[..., nn.Module] | nn.Module,
        objective: Any,
        penalty: Callable[..., Tensor] | None = None,
        penalty_every: Annotated[int, "gt 0"] = 1,
        n_critic: Annotated[int, "gt 0"] = 1,
        critic_lr_scale: Annotated[float, "gt 0"] = 1.0,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
        ensemble: Annotated[int, "gt 0"] = 1,
        num_classes: int | None = None,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        self.generator = assemble(generator, ensemble, "model.generator")
        self.critic = assemble(critic, ensemble, "model.critic")
        self.latent_dim = int(self.generator.latent_dim)  # type: ignore[arg-type]
        self.latent_shape = (self.latent_dim,)
        self.objective, self.penalty, self.augment = objective, penalty, augment
        self.penalty_every, self.n_critic, self.critic_lr_scale = penalty_every, n_critic, critic_lr_scale
        self.num_classes, self.conditions = num_classes or 0, class_labels(num_classes)
        self.chunk_size = chunk_size

    def players(self) -> list[Player]:
        return [
            Player("critic", self.critic, lr_scale=self.critic_lr_scale),
            Player("generator", self.generator, period=self.n_critic),
        ]

    def sampled_parts(self) -> tuple[str, ...]:
        return ("generator.",)

    def losses(self, batch: Mapping[str, Tensor], player: str | None = None) -> dict[str, Tensor]:
        real = batch["image"]
        labels = batch["label"] if self.conditions else None
        keys, moves = self.keys(batch), int(player == "generator")
        z = noise.normal(keys, (noise.Stream.LOSS, moves), (self.latent_dim,))

        def judged(x: Tensor, number: int = 0) -> Output:
            """The critic of x as it sees it: fresh augmentation for each player, of real (0) and fake (1)."""
            if self.augment is not None and player is not None:
                x = self.augment(x, noise.fold_in(keys, 2 * moves + number))
            return self.critic(x, labels)

        if player == "generator":
            fake_logits = judged(self.generator(z, labels), 1)
            with torch.no_grad():
                real_logits = judged(real) if getattr(self.objective, "paired", False) else None
            return {"loss": total(self.objective.generator, fake_logits, real_logits)}
        with torch.no_grad():
            fake = self.generator(z, labels)
        real_logits, fake_logits = judged(real), judged(fake, 1)
        loss = total(self.objective.critic, real_logits, fake_logits)
        report = {"loss": loss, "real": total(torch.mean, real_logits), "fake": total(torch.mean, fake_logits)}
        if player == "critic" and self.penalty is not None:
            update = self.samples_seen // self._plan.batch_size
            if update % self.penalty_every == 0:
                penalty = self.penalty(judged, real, fake, keys)
                report |= {"loss": loss + self.penalty_every * penalty, "penalty": penalty}
        return report

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: LatentSampler) -> Tensor:
        return self.decode(sampler.draw(seeds, self.latent_shape), (condition or {}).get("label"))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """The capability behind interpolations: z [B, latent_dim], labels int64 [B] or None -> [B, C, H, W]."""
        return self.generator(z, label)
