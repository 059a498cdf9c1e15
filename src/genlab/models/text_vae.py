"""Variational autoencoders of texts (Bowman et al. 2016, arXiv 1511.06349): p(x | z) is a language model told z."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab import noise
from genlab.data.vocabulary import END
from genlab.data.windows import IGNORED
from genlab.decoding.reading import ENDED
from genlab.decoding.tokens import TokenSampler
from genlab.errors import ConfigError
from genlab.models.language import LanguageModel
from genlab.models.latent import Batch, GaussianLatents
from genlab.noise import Stream
from genlab.objectives import elbo

Count = Annotated[int, "ge 0"]


class TextVAE(LanguageModel, GaussianLatents):
    """An encoder that gives q(z | x) = N(mu, sigma), a causal decoder that gives p(x | z), and the prior N(0, 1).

    x are the tokens that labels name, the end of the text among them; all terms are nats a text. A decoder that can do
    without z lets the KL go to 0 ("posterior collapse"). Against it, in any combination: a rising weight of the KL,
    free bits, word dropout, an autoencoder phase, after which the decoder begins anew and the KL's weight rises (Li et
    al. 2019, arXiv 1909.00868), and a first phase in which the encoder moves more often than the decoder (He et al.
    2019, arXiv 1901.05534, whose inner loop has a length of its own; here it is `aggressive_every` - 1).

    Args:
        encoder: (tokens int64 [B, T], inside bool [B, T]) -> mu and logvar in one, [B, 2 latent_dim].
        decoder: (tokens, z, cache, kept, use_cache) -> (logits [B, T, V], cache): genlab.networks.text_vae.
        latent_dim: dimensions of z.
        block_size: T, tokens of the longest text.
        kl_weight: weight of the KL by samples since the autoencoder phase.
        free_bits: nats a latent dimension that cost as if they were used (see `elbo.free_bits`).
        word_dropout: share of input tokens, the first excepted, that the decoder does not see in training.
        autoencoder_samples: samples of the autoencoder phase, whose KL has weight 0; 0: there is none.
        reset_decoder: whether the decoder goes back to its initial weights after that phase.
        aggressive_samples: samples of the phase in which the decoder moves at each `aggressive_every`-th update only.
        aggressive_every: see there.
        start: text that a text begins with: what stands before its first token.
        chunk_size: rows that are sampled at a time (see GenerativeModel).

    Raises:
        ConfigError: a reset after no phase, a decoder of too few positions.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: Annotated[int, "gt 0"],
        block_size: Annotated[int, "gt 0"],
        kl_weight: elbo.KLWeight | None = None,
        free_bits: Annotated[float, "ge 0"] = 0.0,
        word_dropout: Annotated[float, "ge 0, lt 1"] = 0.0,
        autoencoder_samples: Count = 0,
        reset_decoder: bool = False,
        aggressive_samples: Count = 0,
        aggressive_every: Annotated[int, "gt 0"] = 10,
        start: str = END,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        if reset_decoder and not autoencoder_samples:
            raise ConfigError("model.reset_decoder=true: it is reset after model.autoencoder_samples, which is 0")
        config: Any = getattr(getattr(decoder, "network", None), "config", None)
        needed = block_size + (getattr(decoder, "latent", "added") == "prefix")
        if (positions := getattr(config, "max_position_embeddings", needed)) < needed:
            raise ConfigError(
                f"model.decoder.network.config.n_positions={positions}: texts of {block_size} tokens need {needed}; a "
                "latent that stands before them needs one"
            )
        self.encoder, self.decoder, self.latent_dim, self.latent_shape = encoder, decoder, latent_dim, (latent_dim,)
        self.block_size, self.context = block_size, None if getattr(decoder, "recurrent", False) else block_size
        self.kl_weight = kl_weight or elbo.KLWeight()
        self.free_bits, self.word_dropout = free_bits, word_dropout
        self.autoencoder_samples, self.reset_decoder = autoencoder_samples, reset_decoder
        self.aggressive_samples, self.aggressive_every = aggressive_samples, aggressive_every
        self.start, self.chunk_size = start, chunk_size
        # Not part of the state: a resumed run builds the same from the run's seed.
        self._initial = {k: v.clone() for k, v in decoder.state_dict().items()} if reset_decoder else {}

    # ---- training

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The bound's terms in nats a text, means over the batch; in validation also neg_elbo, the bound whatever is
        weighted, and nats_per_token, its share of a token of the batch."""
        keys, labels = self.keys(batch), batch["labels"]
        mu, logvar = self.encoded(batch)
        kept = None
        if self.training and self.word_dropout:
            kept = (noise.uniform(keys, (Stream.LOSS, 0), labels.shape[1:]) >= self.word_dropout).float()
            kept[:, 0] = 1
        reconstruction = self.nll(batch, self.drawn(mu, logvar, keys)[0], kept).mean()
        each = elbo.gaussian_kl(mu, logvar)
        kl = each.sum(1).mean()
        since = self._step_samples() - self.autoencoder_samples
        weight = (self.kl_weight(since) if since >= 0 else 0.0) if self.training else 1.0
        loss = reconstruction + weight * elbo.free_bits(each, self.free_bits)
        report = {"loss": loss, "reconstruction": reconstruction, "kl": kl}
        if not self.training:
            bound = reconstruction + kl
            report |= {"neg_elbo": bound, "nats_per_token": bound * len(labels) / (labels != IGNORED).sum()}
        return report

    def _step_samples(self) -> int:
        """Samples seen before this optimizer step, the same in all of its micro-batches."""
        return self.samples_seen - (self.samples_seen % self.plan.batch_size if self.plan else 0)

    def encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        mu, logvar = self.encoder(labels.clamp(min=0), labels != IGNORED).float().chunk(2, 1)
        return mu, logvar

    def nll(self, batch: Batch, z: Tensor, kept: Tensor | None = None) -> Tensor:
        count = len(z) // len(batch["labels"])
        logits = self.decoder(batch["input_ids"].repeat(count, 1), z, kept=kept)[0].flatten(0, 1).float()
        labels = batch["labels"].repeat(count, 1)  # flat: on a CPU four times as fast as [B, V, T]
        each = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
        return each.view_as(labels).sum(1)

    def values(self, name: str, nats: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Also the number of tokens, int64 [B]."""
        return {name: nats, "tokens": (batch["labels"] != IGNORED).sum(1)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Resets the decoder at the first step after the autoencoder phase, with the optimizer's state of it. In each
        micro-batch of that step, which changes nothing: its weights are still the initial ones."""
        after = self._step_samples() - self.autoencoder_samples
        if self.reset_decoder and 0 <= after < self._plan.batch_size:
            self.decoder.load_state_dict(self._initial)
            for optimizer in self.all_optimizers():
                for parameter in self.decoder.parameters():
                    optimizer.state.pop(parameter, None)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keeps the decoder as it is in the steps that are the encoder's alone: without a gradient nothing moves it."""
        aggressive = self._step_samples() < self.aggressive_samples
        if aggressive and (self.updates + 1) % self.aggressive_every:
            for parameter in self.decoder.parameters():
                parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    # ---- generation

    def reader(self, seeds: Tensor) -> LatentReader:
        """The decoder at z from the prior, a function of each seed."""
        return LatentReader(self, noise.normal(seeds, Stream.INITIAL, (self.latent_dim,)))

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """z [B, latent_dim] -> the likeliest token at each step, int64 [B, T], -1 after the end of a row."""
        greedy, seeds = TokenSampler(self.block_size, temperature=0.0), torch.zeros_like(z[:, 0]).long()
        return greedy.decode(LatentReader(self, z), self.begin(seeds), seeds).tokens

    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model was shown, and the greedy decoding of the posterior's mean: int64 [B, T] each, -1 after the
        end of a row."""
        labels = batch["labels"]
        return labels.masked_fill(labels == IGNORED, ENDED), self.decode(self.encode(batch))


class LatentReader:
    """A decoder at given latents, as a genlab.decoding.reading.Reader; its state is (z, cache).

    Args:
        model: whose decoder it is.
        z: float [B, latent_dim], one a row; of a search of k beams each is that of k rows in turn.
    """

    def __init__(self, model: TextVAE, z: Tensor) -> None:
        self.model, self.z, self.context, self.tokenizer = model, z, model.context, model.tokenizer
        self.end: int | None = model.tokenizer.token_to_id(END)
        self.longest = model.block_size

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        z, cache = state or (self.z.repeat_interleave(len(tokens) // len(self.z), 0), None)
        logits, cache = self.model.decoder(tokens, z, cache, use_cache=True)
        return logits[:, -1], (z, cache)

    def select(self, state: Any, rows: Tensor) -> Any:
        z, cache = state
        cache.reorder_cache(rows)  # in place
        return z[rows], cache

    def to_data(self, tokens: Tensor) -> list[str]:
        """Texts, which judges of best-of-n read."""
        return self.model.to_data(tokens)
