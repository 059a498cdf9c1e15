"""Rewards of pictures: gradients through the last steps (DRaFT), and policy gradients over the steps (DDPO)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any

import torch
from torch import Tensor

from genlab import noise
from genlab.diffusion.samplers import DDIM, Denoise, Noise, Sampler
from genlab.errors import ConfigError
from genlab.feedback.base import Feedback, Reference, evaluating
from genlab.judges import DifferentiableJudge, Judge
from genlab.objectives.policy import advantages, clipped_surrogate
from genlab.samples import Samples

Rows = dict[str, Tensor]


class PictureFeedback(Feedback):
    """What both have in common: a diffusion model is told what the items of a batch show, and draws them anew.

    Attributes:
        weight: of the distance to the model before training.
    """

    reads = ()
    weight: float

    def attach(self, model: Any) -> None:
        if not hasattr(model, "denoiser"):
            raise ConfigError(
                f"feedback: {type(model).__name__} does not make pictures step by step; take model=ddpm, ..."
            )
        if self.weight:
            model.reference = Reference(model.network, "the model before feedback")

    @staticmethod
    def told(model: Any, batch: Mapping[str, Tensor]) -> Rows:
        """Conditions of a batch's items."""
        return {known.name: batch[known.name] for known in model.conditions if known.drawn and known.name in batch}


class LastSteps:
    """A sampler whose last calls of the denoiser have gradients; of the others, what they return is a constant.

    Args:
        sampler: see genlab.diffusion.samplers.
        last: number of these calls.
        distance: called with x_t, t and what the model expects there, in each of them.
    """

    def __init__(self, sampler: Sampler, last: int, distance: Any) -> None:
        self.sampler, self.last, self.distance = sampler, last, distance

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def __call__(self, denoise: Denoise, x: Tensor, process: Any, noise: Noise) -> Tensor:
        calls = 0

        def call(x_t: Tensor, t: float) -> Any:
            nonlocal calls
            calls += 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and calls > self.sampler.evaluations - self.last):
                at = denoise(x_t, t)
            if calls > self.sampler.evaluations - self.last:
                self.distance(x_t, t, at)
            return at

        return self.sampler(call, x, process, noise)


class DRaFT(PictureFeedback):
    """Reward fine-tuning by its gradient through the last K steps of sampling: Clark et al. 2024, arXiv 2309.17400,
    algorithm 1 (DRaFT-K).

    Args:
        reward: through which gradients flow.
        sampler: how pictures are drawn in training.
        last: K.
        distance: weight of the mean squared difference of the expected x_0 to that of the model before training.
    """

    def __init__(
        self,
        reward: DifferentiableJudge,
        sampler: Sampler,
        last: Annotated[int, "gt 0"] = 1,
        distance: Annotated[float, "ge 0"] = 0.0,
    ) -> None:
        if not isinstance(reward, DifferentiableJudge):
            raise ConfigError(f"feedback.reward: no gradient flows through {reward.name}; take feedback=ddpo")
        if last > sampler.evaluations:
            raise ConfigError(
                f"feedback.last={last}: the sampler has {sampler.evaluations} steps; take at most as many"
            )
        self.reward, self.sampler, self.last, self.weight = reward, sampler, last, distance

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reward, which rises as the loss falls, and the distance."""
        keys, rows, distances = model.keys(batch), self.told(model, batch), list[Tensor]()

        def distance(x_t: Tensor, t: float, at: Any) -> None:
            if self.weight:
                with torch.no_grad(), model.reference.inside(model.network):
                    before = model.denoiser(rows, len(keys), self.sampler.guidance_scale, self.sampler.clip)(x_t, t)
                distances.append((at.x_0 - before.x_0).square().mean())

        with evaluating(model):
            images = model.generate(keys, rows or None, LastSteps(self.sampler, self.last, distance))
            reward = self.reward.score(images, rows).mean()
        away = torch.stack(distances).mean() if distances else reward.new_zeros(())
        return {"loss": self.weight * away - reward, "reward": reward.detach(), "distance": away.detach()}


class DDPO(PictureFeedback):
    """Denoising as decisions: Black et al. 2024, arXiv 2305.13301, section 4.3 (DDPO-IS): each step of a stochastic
    sampler is an action with a normal distribution; rewards are compared within groups of one condition.

    Args:
        reward: a judge of pictures; it need not be differentiable.
        sampler: DDIM with eta > 0.
        group: pictures of each item's condition.
        trained_steps: steps of each trajectory whose gradient is taken, the same for a whole batch; null: all.
        clip: of the ratio of probabilities (1e-4 in the authors' code).
        distance: weight of the KL of a step to the model before training, in nats a dimension.

    Raises:
        ConfigError: a sampler without noise; one picture a group.
    """

    def __init__(
        self,
        reward: Judge,
        sampler: DDIM,
        group: Annotated[int, "gt 1"] = 8,
        trained_steps: Annotated[int, "gt 0"] | None = None,
        clip: Annotated[float, "gt 0, lt 1"] = 1e-4,
        distance: Annotated[float, "ge 0"] = 0.0,
    ) -> None:
        if not isinstance(sampler, DDIM) or not sampler.eta:
            raise ConfigError("feedback.sampler: ddpo needs steps that are drawn; take DDIM with eta=1")
        self.reward, self.sampler, self.group = reward, sampler, group
        self.trained_steps, self.clip, self.weight = trained_steps, clip, distance

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The surrogate of the chosen steps; reward, its deviation in a group, and the KL of a step."""
        keys = model.keys(batch)
        rows = {name: value.repeat_interleave(self.group, 0) for name, value in self.told(model, batch).items()}
        seeds = torch.stack([noise.fold_in(keys, k) for k in range(self.group)], 1).flatten()
        with evaluating(model):
            denoise = model.denoiser(rows, len(seeds), self.sampler.guidance_scale, self.sampler.clip)
            with torch.no_grad():
                path, reward = self.draw(model, rows, seeds, denoise)
            advantage = advantages(reward.view(-1, self.group).float(), "grpo").flatten()
            losses, distances = [], []
            for x_t, x_s, t, s in self.chosen(path, model):
                log_p, mean, std = self.log_p(denoise, model.process, x_t, x_s, t, s)
                losses.append(clipped_surrogate(log_p, log_p.detach(), advantage, self.clip).mean())
                if self.weight:
                    with torch.no_grad(), model.reference.inside(model.network):
                        before = self.log_p(denoise, model.process, x_t, x_s, t, s)[1]
                    distances.append((mean - before).square().mean() / (2 * std**2))
        away = torch.stack(distances).mean() if distances else reward.new_zeros(())
        return {
            "loss": torch.stack(losses).mean() + self.weight * away,
            "reward": reward.mean(),
            "reward_deviation": reward.view(-1, self.group).std(1).mean(),
            "kl": away.detach(),
        }

    def draw(self, model: Any, rows: Rows, seeds: Tensor, denoise: Denoise) -> tuple[list[Any], Tensor]:
        """Trajectories: (x_t, x_s, t, s) of each step that is drawn; and the rewards of their ends, float [B]."""
        x, path = noise.normal(seeds, noise.Stream.INITIAL, model.shape), []
        for k, (t, s) in enumerate(pairwise(model.process.grid(self.sampler.steps, self.sampler.spacing))):
            after, std = self.sampler.transition(denoise(x, t), model.process, t, s)
            if std > 0:
                after = after + std * noise.normal(seeds, (noise.Stream.STEP, k), model.shape)
                path.append((x, after, t, s))
            x = after
        told = {name: value.tolist() for name, value in rows.items()}
        scores = self.reward(Samples(model.modality, model.to_data(model.to_picture(x)).cpu()), told)
        return path, scores.to(x)

    def chosen(self, path: list[Any], model: Any) -> list[Any]:
        """Steps of a trajectory whose gradient is taken: those of the smallest random numbers."""
        if self.trained_steps is None or self.trained_steps >= len(path):
            return path
        seed = torch.tensor([model.samples_seen])  # the same on every device
        order = noise.uniform(seed, noise.Stream.TIME, (len(path),))[0].argsort()[: self.trained_steps]
        return [path[i] for i in sorted(order.tolist())]

    def log_p(
        self, denoise: Denoise, process: Any, x_t: Tensor, x_s: Tensor, t: float, s: float
    ) -> tuple[Tensor, Tensor, float]:
        """log N(x_s; mean, std) without constants, in nats a dimension, float [B], as the authors' code; mean, std."""
        mean, std = self.sampler.transition(denoise(x_t, t), process, t, s)
        return -((x_s - mean) ** 2).flatten(1).mean(1) / (2 * std**2), mean, std
