"""Masked language models: p(x_i | the tokens that are not masked), and texts by unmasking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab import noise
from genlab.models.language import LanguageModel
from genlab.noise import Stream
from genlab.objectives.masking import MaskedDiffusion, Masking


class MaskedModel(LanguageModel):
    """A bidirectional network of the transformers library that tells masked tokens; a genlab.decoding.unmasking.Filler.

    It counts the tokens that an autoregressive model counts, the labels of a batch, given the one before the first:
    its windows are one token longer than input_ids. Padding is not attended to; the token before the first and those
    that a document is conditioned on are seen and never masked.

    [MASK] is an id of the network's own, the first after the data's; there is no logit of it. With that, and as only
    masked tokens are drawn or counted, the network is MDLM's SUBS parameterisation (arXiv 2406.07524, section 3.2.3).

    Args:
        network: (input_ids [B, L], attention_mask int64 [B, L]) -> object with `.logits` [B, L, at least vocab_size],
            for ids up to vocab_size, as transformers' masked models.
        vocab_size: V, tokens of the data.
        block_size: T, longest input of the data; the network has T + 1 positions.
        objective: what is masked, and how much it counts (genlab.objectives.masking).
        start: text that generation begins with where there is no prompt.
        gradient_checkpointing: keep only each block's input for the backward pass and compute the rest again.
        chunk_size: rows that are sampled at a time (see GenerativeModel).

    Raises:
        ConfigError: gradient_checkpointing of a network that has none.
    """

    context: int
    sampled_by: ClassVar[str | None] = "gaps"

    def __init__(
        self,
        network: nn.Module,
        vocab_size: int,
        block_size: int,
        objective: Masking,
        start: str = "\n",
        gradient_checkpointing: bool = False,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        self.network, self.objective, self.start, self.chunk_size = network, objective, start, chunk_size
        self.vocab_size = self.mask_id = vocab_size
        self.context = block_size + 1
        if gradient_checkpointing:
            self.checkpoint_gradients(network)

    def token_logits(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """See genlab.decoding.unmasking.Filler."""
        output = self.network(input_ids=tokens, attention_mask=attended.to(torch.int64))
        return output.logits[..., : self.vocab_size].float()

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nats a token: an estimate for each row, all rows summed, over a number of tokens.

        In training that number is B x T, a constant, and not that of the tokens that a micro-batch happens to have: so
        the mean over micro-batches and ranks is that of the whole batch, and each token counts alike. (Where items are
        padded the loss is lower than nats a token by the share of padding.) In validation it is that of the labels.

        How much of a row is masked is stratified over the items of an optimizer step, whoever reads them, as MDLM's
        times over a batch; in validation over the ids.
        """
        tokens, counted, attended = windows(batch)
        keys = self.keys(batch)
        if self.training:
            size = self.plan.batch_size if self.plan else 1
            u = (batch["position"] % size + noise.uniform(keys, Stream.TIME, ())) / size
        else:
            u = noise.even(keys)
        nats = self._nats(self.objective, tokens, counted, attended, keys, u)
        return {"loss": nats.sum() / (batch["labels"].numel() if self.training else counted.sum())}

    def _nats(
        self, objective: Masking, tokens: Tensor, counted: Tensor, attended: Tensor, keys: Tensor, u: Tensor
    ) -> Tensor:
        """The objective's estimate of the nats of each row, [B]."""
        seen = objective(tokens, counted, keys, u, self.mask_id)
        return seen.weight * self._nll(seen.tokens, tokens, seen.chosen, attended)

    def _nll(self, seen: Tensor, tokens: Tensor, chosen: Tensor, attended: Tensor) -> Tensor:
        """Sum of -log p of the chosen tokens of each row, [B], where the network sees `seen`."""
        logits = self.token_logits(seen, attended)
        labels = tokens.masked_fill(~chosen, -100)
        return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)

    # ---- capabilities

    def likelihood_bound(self, batch: Mapping[str, Tensor], terms: int | None = None) -> tuple[Tensor, Tensor]:
        """A lower bound, in expectation, on the log-probability of each row's labels given its first input.

        It is that of the diffusion process that ancestral unmasking runs backwards in infinitely many steps (see
        genlab.objectives.masking), whatever objective the network was trained by.

        Args:
            batch: input_ids and labels, int64 [B, T], -100 = not counted; id int64 [B], which keys the noise.
            terms: random draws of how many tokens are masked, one in each of `terms` equal parts of 1 .. n; None: T,
                so that a row of T tokens has each number once.

        Returns:
            Estimates of the bound in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        tokens, counted, attended = windows(batch)
        ids, terms = batch["id"], terms or batch["labels"].shape[1]
        total = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        places = noise.uniform(ids, Stream.TIME, (terms,)).double()
        for j in range(terms):
            u, keys = (j + places[:, j]) / terms, noise.fold_in(ids, j)
            total += self._nats(MaskedDiffusion(), tokens, counted, attended, keys, u)
        return -total / terms, counted.sum(1)

    def pseudo_log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum over the tokens of log p(x_i | all others), one network call each (Salazar et al. 2020, arXiv 1910.14659,
        equation 1): not the log-probability of anything, and no bound.

        Args:
            batch: input_ids and labels, int64 [B, T], -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        tokens, counted, attended = windows(batch)
        total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for i in range(tokens.shape[1]):
            chosen = torch.zeros_like(counted)
            chosen[:, i] = counted[:, i]
            if bool(chosen.any()):
                total += self._nll(tokens.masked_fill(chosen, self.mask_id), tokens, chosen, attended)
        return -total, counted.sum(1)


def windows(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The first input and the labels after it, as one row of tokens.

    Args:
        batch: input_ids and labels, int64 [B, T]; labels[b, t] is the token after input_ids[b, t], -100 where that is
            no token of the text: padding, or what the text is conditioned on.

    Returns:
        tokens, int64 [B, T + 1]; counted, bool: the labels; attended, bool: all up to the last label.
    """
    inputs, labels = batch["input_ids"], batch["labels"]
    known = F.pad(inputs[:, 1:], (0, 1))  # a condition is an input, but no label
    counted = F.pad(labels != -100, (1, 0))
    tokens = torch.cat([inputs[:, :1], torch.where(counted[:, 1:], labels, known)], 1)
    attended = counted.flip(1).cumsum(1).flip(1) > 0
    attended[:, 0] = True
    return tokens, counted, attended
