"""Autoencoders of images, the first stage of latent models (arXiv 2112.10752): a KL, VQ or FSQ bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from genlab.errors import ConfigError
from genlab.models.adversarial import AdversarialModel, Player
from genlab.models.base import Rows
from genlab.models.latent import LatentSampler
from genlab.networks.bottlenecks import KL, Bottleneck, VectorQuantiser
from genlab.networks.ensemble import assemble
from genlab.networks.first_stage import FirstStage, StridedStage
from genlab.objectives.adversarial import tensors, total


class Autoencoder(AdversarialModel):
    """An encoder, a bottleneck and a decoder, trained on pixels, perhaps on perceptual distance, perhaps by a critic.

    It has no prior over its latents: what `sample` gives decodes independent draws, and is no sample of the data.
    Look at its reconstructions.

    Args:
        network: with encode, decode, latent_shape and last.
        bottleneck: from genlab.networks.bottlenecks.
        reconstruction: 'l1' or 'l2', a mean over pixels and channels.
        perceptual: (x, y) in [-1, 1] -> distances [B], e.g. genlab.networks.lpips.LPIPS; or null.
        perceptual_weight: of it.
        critic: images -> logits, one or a map an item or several of these (or a partial that makes one); or null.
        objective: of the game with the critic, from genlab.objectives.adversarial.
        adversarial_weight: of the critic's part, on top of the adaptive weight.
        adaptive: scale that part so that its gradient at the decoder's last weight is as long as that of the rest
            (Esser et al. 2021, arXiv 2012.09841, equation 7), for each micro-batch.
        adversarial_start: samples before which there is no game.
        critic_lr_scale: the critic's learning rate as a multiple of the autoencoder's.
        augment: (images, int64 keys [B]) -> images, in training, such as genlab.data.augment.Augment; or null.
        chunk_size: rows that are sampled at a time (see GenerativeModel).

    Attributes:
        item: what of a batch is encoded.

    Raises:
        ConfigError: a combination without meaning.
    """

    item = "image"
    sampled_by: ClassVar[str | None] = "latent"

    def __init__(
        self,
        network: FirstStage | StridedStage,
        bottleneck: Bottleneck,
        reconstruction: Literal["l1", "l2"] = "l1",
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        perceptual_weight: Annotated[float, "ge 0"] = 1.0,
        critic: Callable[..., nn.Module] | nn.Module | None = None,
        objective: Any = None,
        adversarial_weight: Annotated[float, "ge 0"] = 0.5,
        adaptive: bool = True,
        adversarial_start: Annotated[int, "ge 0"] = 0,
        critic_lr_scale: Annotated[float, "gt 0"] = 1.0,
        augment: Callable[[Tensor, Tensor], Tensor] | None = None,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        if (critic is None) != (objective is None):
            raise ConfigError("model.critic and model.objective: give both or neither")
        self.network, self.bottleneck, self.objective = network, bottleneck, objective
        self.critic = None if critic is None else assemble(critic, 1, "model.critic")
        self.latent_shape = network.latent_shape
        self.reconstruction, self.perceptual, self.perceptual_weight = reconstruction, perceptual, perceptual_weight
        self.adversarial_weight, self.adaptive, self.adversarial_start = adversarial_weight, adaptive, adversarial_start
        self.critic_lr_scale, self.augment, self.chunk_size = critic_lr_scale, augment, chunk_size

    def players(self) -> list[Player]:
        own = [Player("autoencoder", nn.ModuleList([self.network, self.bottleneck]))]
        if self.critic is None:
            return own
        start = self.adversarial_start
        return [Player("critic", self.critic, lr_scale=self.critic_lr_scale, start=start), *own]

    def sampled_parts(self) -> tuple[str, ...]:
        return ("network.", "bottleneck.")

    # ---- training

    def losses(self, batch: Mapping[str, Tensor], player: str | None = None) -> dict[str, Tensor]:
        x, keys = batch[self.item], self.keys(batch)
        if self.training and self.augment is not None:
            x = self.augment(x, keys)
        if player == "critic":
            assert self.critic is not None
            with torch.no_grad():
                back = self.decode(self.bottleneck(self.network.encode(x), keys, gather=False)[0])
            real, fake = self.critic(x), self.critic(back)
            means = {name: torch.stack([part.mean() for part in tensors(out)]).mean() for name, out in
                     (("real", real), ("fake", fake))}  # fmt: skip
            return {"loss": total(self.objective.critic, real, fake), **means}
        z, report = self.bottleneck(self.network.encode(x), keys)
        back = self.network.decode(z).float()
        distance = (back - x).abs() if self.reconstruction == "l1" else (back - x).square()
        loss = report["reconstruction"] = distance.mean()
        if self.perceptual is not None:
            report["perceptual"] = self.perceptual(back, x).mean()
            loss = loss + self.perceptual_weight * report["perceptual"]
        if player == "autoencoder" and self.critic is not None and self.samples_seen >= self.adversarial_start:
            report |= self.game(back, x)
            adversarial = report["adversarial"]
            weight = self._weight(loss, adversarial) if self.adaptive else torch.ones(())
            report["adversarial_scale"] = weight
            loss = loss + self.adversarial_weight * weight * adversarial
        return {"loss": loss + report.pop("bottleneck"), **report}

    def game(self, back: Tensor, x: Tensor) -> dict[str, Tensor]:
        """What the autoencoder loses to the critic: "adversarial" is minimised, others are reported."""
        assert self.critic is not None
        with torch.no_grad():
            real = self.critic(x) if getattr(self.objective, "paired", False) else None
        return {"adversarial": total(self.objective.generator, self.critic(back), real)}

    def _weight(self, rest: Tensor, adversarial: Tensor) -> Tensor:
        """Equation 7 of arXiv 2012.09841."""
        of_rest, of_game = (
            torch.autograd.grad(loss, self.network.last, retain_graph=True)[0].norm() for loss in (rest, adversarial)
        )
        return (of_rest / (of_game + 1e-4)).clamp(0, 1e4).detach()

    def moved(self, player: Player, finite: bool) -> None:
        if player.name == "autoencoder":
            self.bottleneck.moved(finite)

    # ---- sampling

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: LatentSampler) -> Tensor:
        return self.decode(sampler.truncation * self.bottleneck.draw(seeds, self.latent_shape))

    # ---- capabilities

    def encode(self, batch: Mapping[str, Tensor]) -> Tensor:
        """z [B, *network.latent_shape]: codes, or the mode of a Gaussian."""
        return self.bottleneck(self.network.encode(batch[self.item]), batch["id"])[0]

    def features(self, image: Tensor) -> Tensor:
        """Images [B, C, H, W] -> latents [B, *network.latent_shape] for a model of them: the mode of a Gaussian, or
        what becomes codes by `bottleneck.snap`."""
        h = self.network.encode(image)
        return h[:, : self.latent_shape[0]]

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """[B, *network.latent_shape] -> images [B, C, H, W] in about [-1, 1]."""
        return self.network.decode(z)

    def reconstruct(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The items, and what comes back."""
        return batch[self.item], self.decode(self.encode(batch))

    def to_diffusers(self, folded: bool = False) -> Any:
        """The same first stage as diffusers' AutoencoderKL or VQModel.

        Args:
            folded: also one that works on patches, of pictures whose patches are folded into channels already.

        Raises:
            ConfigError: diffusers has no such network or bottleneck.
        """
        import diffusers

        if not isinstance(self.network, FirstStage) or (self.network.patch > 1 and not folded):
            raise ConfigError(
                f"model.network: {type(self.network).__name__} is no network of diffusers; take FirstStage, patch 1"
            )
        state, facts = dict(self.network.state_dict()), dict(self.network.facts)
        if isinstance(self.bottleneck, KL):
            made: Any = diffusers.AutoencoderKL(**facts)
        elif isinstance(self.bottleneck, VectorQuantiser):
            codes, dim = self.bottleneck.codebook.shape
            made = diffusers.VQModel(**facts, num_vq_embeddings=codes, vq_embed_dim=dim)
            state["quantize.embedding.weight"] = self.bottleneck.codebook
        else:
            raise ConfigError(f"diffusers has no autoencoder with the bottleneck {type(self.bottleneck).__name__}")
        made.load_state_dict(state)
        return made.eval()
