"""Autoregressive language models: p(x) = prod_t p(x_t | x_<t)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab import noise
from genlab.decoding.tokens import TokenSampler
from genlab.models.base import Condition, GenerativeModel


class AutoregressiveModel(GenerativeModel):
    """A causal network of the transformers library, trained by next-token cross-entropy.

    Args:
        network: (input_ids [B, T], past_key_values, use_cache) -> object with `.logits` [B, T, V] and
            `.past_key_values`, as transformers' causal models.
        block_size: longest context in tokens, for training and for generation.
        start: text that generation begins with where there is no prompt (nanoGPT: a newline).
        z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5); 0 for none.
    """

    modality = "text"
    conditions = ("prompt_ids",)

    def __init__(
        self,
        network: nn.Module,
        block_size: int,
        start: str = "\n",
        z_loss: float = 0.0,
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        self.network, self.block_size, self.start, self.z_loss = network, block_size, start, z_loss
        self.chunk_size = chunk_size

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = self.network(input_ids=batch["input_ids"], use_cache=False).logits
        nll = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), ignore_index=-100)
        if not (self.z_loss and self.training):
            return {"loss": nll}
        z = self.z_loss * logits.float().logsumexp(-1).square().mean()
        return {"loss": nll + z, "nll": nll, "z_loss": z}

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's labels given what stands before them in the row.

        Args:
            batch: input_ids int64 [B, T]; labels int64 [B, T], the token that follows each input, -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        labels = batch["labels"]
        logits = self.network(input_ids=batch["input_ids"], use_cache=False).logits
        nll = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
        return -nll.double().sum(1), (labels != -100).sum(1)

    def generate(self, seeds: Tensor, condition: Condition | None, sampler: TokenSampler) -> Tensor:
        """Token ids int64 [B, prompt + max_new_tokens]; all prompts of a batch have one length."""
        prompt = (condition or {}).get("prompt_ids")
        if prompt is None:
            ids = self.tokenizer.encode(self.start).ids
            prompt = torch.tensor(ids, device=seeds.device).expand(len(seeds), -1)
        tokens, cache = prompt, None
        fresh = tokens[:, -self.block_size :]  # what the network has not read yet
        # Of all tokens in one call, which costs as much as that of one token.
        steps, rows = sampler.max_new_tokens, len(seeds)
        k = torch.arange(steps, device=seeds.device).repeat_interleave(rows)
        uniforms = noise.uniform(seeds.repeat(steps), (noise.Stream.STEP, k), ()).view(steps, rows)
        for uniform in uniforms:
            output = self.network(input_ids=fresh, past_key_values=cache, use_cache=True)
            chosen = sampler.choose(output.logits[:, -1], uniform)[:, None]
            tokens, cache, fresh = torch.cat([tokens, chosen], 1), output.past_key_values, chosen
            if cache.get_seq_length() >= self.block_size:
                # Positions are absolute, so a full context cannot slide: read its later half again, which keeps the
                # cost of a token constant on average.
                cache, fresh = None, tokens[:, -(self.block_size // 2) :]
        return tokens

    def to_data(self, raw: Tensor) -> list[str]:
        return [self.tokenizer.decode(row) for row in raw.tolist()]
