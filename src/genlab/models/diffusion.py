"""Diffusion and flow matching on images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from genlab import noise
from genlab.conditions import Condition, class_labels
from genlab.diffusion import bound, parameterisation
from genlab.diffusion.editing import Remainder, filled_in, made_anew
from genlab.diffusion.guidance import Told, check_scale, guided, where
from genlab.diffusion.parameterisation import Denoised, Prediction, Weighting
from genlab.diffusion.processes import VP, Flow, Process
from genlab.diffusion.samplers import Denoise, Sampler
from genlab.errors import ConfigError
from genlab.models.base import GenerativeModel, Rows
from genlab.networks.patch import as_tensor
from genlab.noise import Stream
from genlab.picture_conditions import Mask, Start


class DiffusionModel(GenerativeModel):
    """A network that sees x_t, t and perhaps a label, and predicts what separates data from noise.

    Args:
        network: called as network(sample [B,C,H,W], timestep [B], class_labels int64 [B] or None), as diffusers' UNets.
            With labels it must know num_classes + 1 of them: the last is the null class (`guidance.with_null`).
        process: VP or Flow.
        shape: [C, H, W] of the images.
        prediction: what the network puts out: 'eps', 'x0', 'v' or 'velocity' (see genlab.diffusion.parameterisation).
        weighting: of the loss over times (see `parameterisation.loss_weight`).
        num_classes: number of labels; 0 or None for an unconditional model.
        label_drop: share of training items whose label is replaced by the null class, which guidance needs.
        channels_last: memory layout of network and images; the same results, often faster on a GPU.
        chunk_size: rows that are sampled at a time (see GenerativeModel).

    Raises:
        ConfigError: a combination without meaning.
    """

    sampled_by: ClassVar[str | None] = "process"

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        shape: Sequence[int],
        prediction: Prediction = "eps",
        weighting: Weighting = "own",
        num_classes: int | None = None,
        label_drop: Annotated[float, "ge 0, lt 1"] = 0.1,
        channels_last: bool = False,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        if isinstance(process, Flow) and prediction == "eps":
            raise ConfigError("model.prediction: eps says nothing of x_0 at t = 1 of a flow; take velocity, v or x0")
        parameterisation.check(prediction, weighting)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.process = process
        self.shape = tuple(shape)
        self.prediction, self.weighting = prediction, weighting
        self.num_classes = num_classes or 0
        self.label_drop, self.chunk_size = label_drop, chunk_size
        self.reads = ("image", "label") if num_classes else ("image",)
        self.conditions: tuple[Condition, ...] = (*class_labels(num_classes), *self.edits(self.shape))

    @staticmethod
    def edits(shape: Sequence[int]) -> tuple[Condition, ...]:
        """The conditions of editing: a picture [C, H, W] to begin from or to fill in, and where."""
        return Start(tuple(shape)), Mask((1, *shape[1:]))  # type: ignore[arg-type]

    def forward(self, x_t: Tensor, t: Tensor, told: Told = None) -> Tensor:
        """The network's output [B,C,H,W] for x_t [B,C,H,W] at times t [B] of the process.

        Args:
            told: labels int64 [B]; or tensors of B rows by the names of the network's arguments; or None.
        """
        x_t, time = x_t.to(memory_format=self.layout), self.process.network_time(t)
        return as_tensor(self.network(x_t, time, **told) if isinstance(told, dict) else self.network(x_t, time, told))

    # ---- what a family on other than pixels and labels says otherwise

    bounds: Any = (-1, 1)  # of x_0: numbers, or tensors that broadcast

    def clean(self, batch: Mapping[str, Tensor]) -> Tensor:
        """x_0 of a batch, [B, *shape]: here the images."""
        return batch["image"]

    def told(self, rows: Mapping[str, Tensor], count: int) -> tuple[Told, Told]:
        """What the network is told of `count` items, and what in its place where nothing is said; None where it is
        never told anything.

        Args:
            rows: a batch, or conditions by name; without a label the null class.
        """
        if not self.num_classes:
            return None, None
        null = torch.full((count,), self.num_classes, device=self.device)
        return rows.get("label", null), null

    def to_picture(self, x_0: Tensor) -> Tensor:
        """What the process ends with -> images in about [-1, 1]."""
        return x_0

    def from_picture(self, image: Tensor) -> Tensor:
        """Images in [-1, 1] -> x_0."""
        return image

    # ---- training

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted squared error of the prediction at random times: algorithm 1 of DDPM, eq. 2 of 2403.03206.

        Time, noise and the dropping of the label are functions of `self.keys(batch)`. In validation times lie at
        multiples of the golden ratio modulo 1, so that any run of ids covers them evenly, and no label is dropped.
        """
        x_0, keys = self.clean(batch), self.keys(batch)
        told, null = self.told(batch, len(keys))
        if self.training:
            u = noise.uniform(keys, Stream.TIME, ())
            if told is not None:
                told = where(noise.uniform(keys, Stream.LABEL, ()) < self.label_drop, null, told)
        else:
            u = noise.even(keys)
        eps = noise.normal(keys, Stream.LOSS, self.shape)
        t = self.process.quantile(u)
        alpha, sigma = self.process.coefficients(t, x_0)
        output = self(alpha * x_0 + sigma * eps, t, told)
        wanted = parameterisation.target(self.prediction, x_0, eps, alpha, sigma)
        weight = parameterisation.loss_weight(self.weighting, self.prediction, alpha, sigma)
        return {"loss": (weight * (output.float() - wanted) ** 2).mean()}

    # ---- sampling

    def check_sampler(self, sampler: Any) -> None:
        """Also that the process has its times, and that guidance and the prediction mean something there."""
        super().check_sampler(sampler)
        if not isinstance(sampler, Sampler):
            return
        alpha, sigma = self.process.at(sampler.check(self.process))
        told = any(known.drawn for known in self.conditions)
        check_scale(sampler.guidance_scale, told, bool(self.label_drop))
        if not sampler.clip:
            parameterisation.check_start(self.prediction, alpha, sigma)

    def generate(self, seeds: Tensor, condition: Rows | None, sampler: Sampler) -> Tensor:
        """Images [B,C,H,W] in about [-1, 1]. Without a label a conditional model takes the null class. With `image`
        the process begins from it, noised to the last `sampler.strength` of the grid; with `mask`, too, only the
        white part of it is made anew."""
        rows = condition or {}
        eps = noise.normal(seeds, Stream.INITIAL, self.shape)
        denoise = self.denoiser(rows, len(seeds), sampler.guidance_scale, sampler.clip)
        process: Any = self.process
        x, start, mask, anew = eps, rows.get("image"), rows.get("mask"), None
        if start is None and (mask is not None or sampler.strength < 1):
            raise ConfigError("condition.mask and sampler.strength change a picture: name it with condition.image=FILE")
        if start is not None:
            known = self.from_picture(start)
            process = Remainder(process, sampler.strength)
            alpha, sigma = process.at(process.grid(sampler.steps, sampler.spacing)[0])
            if mask is None or sampler.strength < 1:  # else what is made anew begins as noise alone
                x = alpha * known + sigma * eps
            if mask is not None:
                anew = made_anew(mask, known)
                denoise = filled_in(denoise, process, known, eps, anew)
        x = sampler(denoise, x, process, lambda k, shape: noise.normal(seeds, (Stream.STEP, k), shape))
        if anew is not None:
            x = torch.where(anew, x, known)  # also where a sampler ends before t = 0
        picture = self.to_picture(x)
        return picture if start is None or mask is None else torch.where(mask > 0, picture, start)

    def denoiser(self, rows: Rows, count: int, guidance_scale: float = 1.0, clip: bool = False) -> Denoise:
        """The function that samplers call: (x_t [B,C,H,W], t) -> Denoised, with guidance and clipping of x_0 inside."""
        told, null = self.told(rows, count)
        if told is None and guidance_scale != 1:
            raise ConfigError(f"sampler.guidance_scale: {guidance_scale} needs a model with labels or captions; take 1")
        if told is null:
            guidance_scale = 1.0
        label = rows.get("label")
        if label is not None and not 0 <= int(label.min()) <= int(label.max()) <= self.num_classes:
            raise ConfigError(f"condition.label: expected 0 to {self.num_classes - 1}, got {label.tolist()}")

        bounds = self.bounds

        def denoise(x_t: Tensor, t: float) -> Denoised:
            times = torch.full((len(x_t),), t, dtype=torch.float32, device=x_t.device)
            output = guided(self, x_t, times, told, null, guidance_scale)
            alpha, sigma = self.process.at(t)
            result = parameterisation.denoised(self.prediction, output.to(x_t.dtype), x_t, alpha, sigma)
            return parameterisation.clipped(result, x_t, alpha, sigma, bounds) if clip else result

        return denoise

    # ---- the capability `variational_bound`

    @torch.no_grad()
    def variational_bound(
        self, batch: Mapping[str, Tensor], terms: int | None = None, variance: str = "beta", clip: bool = True
    ) -> dict[str, Tensor]:
        """DDPM's bound on -log2 p(x_0), in bits a dimension, by its terms; discrete VP only.

        Args:
            batch: image [B,C,H,W], 8 bits scaled to [-1, 1]; id int64 [B], which keys the noise; label if conditional.
            terms: how many of the T - 1 terms L_{t-1}, t > 1, are computed: one at a random place in each of `terms`
                equal parts of time, scaled up to the sum, which leaves it unbiased. None computes all: T network calls.
            variance: of the reverse steps, 'beta' or 'beta_tilde'.
            clip: clip the predicted x_0 to [-1, 1].

        Returns:
            L_T, L_t (the sum over 1 < t <= T), L_0 and and bits_per_dim, their sum, first; each float64 [B].

        Raises:
            ConfigError: the process is not VP.
        """
        process, x_0, ids = self.process, batch["image"], batch["id"]
        if not isinstance(process, VP):
            raise ConfigError("variational_bound: DDPM's bound is defined for process VP only")
        assert not self.training, "variational_bound: call model.eval() first, so that dropout is off"
        told, _ = self.told(batch, len(ids))

        def predicted_x_0(t: Tensor) -> Tensor:
            eps = noise.normal(ids, (Stream.LOSS, t), self.shape)
            alpha, sigma = process.coefficients(t, x_0)
            x_t = alpha * x_0 + sigma * eps
            output = self(x_t, t, told).float()
            found = parameterisation.denoised(self.prediction, output, x_t, alpha, sigma).x_0
            return found.clamp(-1, 1) if clip else found

        count = int(process.end) - 1
        terms = count if terms is None else terms
        middle = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
        places = noise.uniform(ids, Stream.TIME, (terms,)).to(torch.float64)
        for j in range(terms):
            t = 2 + ((j + places[:, j]) / terms * count).long().clamp(max=count - 1)
            middle += bound.transition_term(process, x_0, predicted_x_0(t), t, variance) * (count / terms)
        first = torch.ones_like(ids)
        nats = {
            "L_T": bound.prior_term(process, x_0),
            "L_t": middle,
            "L_0": bound.decoder_term(process, x_0, predicted_x_0(first), variance),
        }
        bits = {name: value / (math.prod(self.shape) * math.log(2)) for name, value in nats.items()}
        return {"bits_per_dim": sum(bits.values(), torch.zeros_like(middle)), **bits}
