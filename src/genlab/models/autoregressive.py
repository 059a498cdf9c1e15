"""Autoregressive language models: p(x) = prod_t p(x_t | x_<t)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genlab.data.windows import IGNORED
from genlab.errors import ConfigError
from genlab.modality import Text
from genlab.models.carried import CarriedState
from genlab.models.causal import CausalModel
from genlab.networks.attention import logits_at, whole_sequences

Weight = Annotated[float, "ge 0"]


class AutoregressiveModel(CausalModel):
    """A causal network of the transformers library (or genlab.networks.awd_lstm), trained by next-token cross-entropy.

    Windows of a batch are independent: a recurrent network starts each from a zero state, unless it is carried. A batch
    with "position_ids" (`genlab.data.chat.ChatSource`) has rows of several documents, none of which sees another, and
    few labels: logits are computed there alone.

    Args:
        network: (input_ids [B, T], cache, use_cache) -> object with `.logits` [B, T, V] and
            `.cache`, which has `reorder_cache(rows)`, as transformers' causal models.
        block_size: longest context in tokens, for generation; None: no limit (a recurrent network).
        start: text that generation begins with where there is no prompt (nanoGPT: a newline).
        z_loss: weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5); 0 for none.
        gradient_checkpointing: keep only each block's input for the backward pass and compute the rest again: less
            memory, a third more time. Networks of transformers only.
        carried_state: truncated back-propagation through time: each window begins with the state that the one before
            ended with, in training and in validation, of data with windows=contiguous. Recurrent networks only.
        activation_reg: alpha of AR, alpha mean(h^2) of the last layer's output after dropout (Merity et al. 2018,
            arXiv 1708.02182, section 4.6), in training; 0 for none. Recurrent networks only.
        temporal_reg: beta of TAR, beta mean((h_t - h_{t+1})^2) of the same before dropout; likewise.
        modality: what the texts are, where they are more than text: `genlab.modality.Music`.

    Raises:
        ConfigError: an option that the network has not.
    """

    modality = Text()

    def __init__(
        self,
        network: nn.Module,
        block_size: int | None,
        start: str = "\n",
        z_loss: float = 0.0,
        gradient_checkpointing: bool = False,
        carried_state: bool = False,
        activation_reg: Weight = 0.0,
        temporal_reg: Weight = 0.0,
        chunk_size: int = 16,
        modality: Text | None = None,
    ) -> None:
        super().__init__()
        self.modality = modality or self.modality
        self.network, self.context, self.start, self.z_loss = network, block_size, start, z_loss
        self.chunk_size = chunk_size
        self.activation_reg, self.temporal_reg = activation_reg, temporal_reg
        self.carried = CarriedState() if carried_state else None
        for key in ("carried_state", "activation_reg", "temporal_reg"):
            if locals()[key] and not getattr(network, "recurrent", False):
                raise ConfigError(f"model.{key}: {type(network).__name__} is not recurrent; leave it out")
        if gradient_checkpointing:
            self.checkpoint_gradients(network)

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "position_ids" in batch:
            return self._losses_of_answers(batch)
        output, labels = self._read(batch), batch["labels"]
        logits = output.logits
        if "weight" in batch:  # rows differ in the number of tokens that count
            each = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
            nll = (each.sum(1) * batch["weight"]).sum()
        else:
            nll = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        parts: dict[str, Tensor] = {}
        if self.training and self.z_loss:
            parts["z_loss"] = self.z_loss * logits.float().logsumexp(-1).square().mean()
        if self.training and self.activation_reg:
            parts["activation_reg"] = self.activation_reg * output.dropped.float().square().mean()
        if self.training and self.temporal_reg and output.raw.shape[1] > 1:
            parts["temporal_reg"] = self.temporal_reg * output.raw.float().diff(dim=1).square().mean()
        if not parts:
            return {"loss": nll}
        return {"loss": nll + sum(parts.values()), "nll": nll, **parts}

    def _answers(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits where there are labels, float [N, V]; -log p of these in nats, float32 [N]; their rows, int64 [N]."""
        labels = batch["labels"]
        chosen = labels != IGNORED
        logits = logits_at(self.network, chosen, batch["input_ids"], batch["position_ids"])
        return logits, F.cross_entropy(logits.float(), labels[chosen], reduction="none"), chosen.nonzero()[:, 0]

    def _losses_of_answers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits, each, row = self._answers(batch)
        nll = (each * batch["weight"][row]).sum() if "weight" in batch else each.mean()
        if not (self.training and self.z_loss):
            return {"loss": nll}
        z_loss = self.z_loss * logits.float().logsumexp(-1).square().mean()
        return {"loss": nll + z_loss, "nll": nll, "z_loss": z_loss}

    def _read(self, batch: Mapping[str, Tensor]) -> Any:
        """The network's output on a batch, after the carried state where there is one."""
        if self.carried is None:
            with whole_sequences(self.network):
                return self.network(input_ids=batch["input_ids"], use_cache=False)
        before = self.carried.before(batch, self.training)
        output = self.network(input_ids=batch["input_ids"], cache=before, use_cache=True)
        total = self.plan.batch_size if self.plan else len(batch["row"])
        self.carried.after(batch, output.cache, self.training, total)
        return output

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.carried is not None:
            checkpoint["carried_state"] = self.carried.saved()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.carried is not None:
            self.carried.load(checkpoint.get("carried_state"))

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's labels given what stands before them in the row (and, with a carried state, in
        the rows of the calls before, where they are of the same stream).

        Args:
            batch: input_ids int64 [B, T]; labels int64 [B, T], the token that follows each input, -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        labels = batch["labels"]
        if "position_ids" in batch:
            _, each, row = self._answers(batch)
            sums = torch.zeros(len(labels), dtype=torch.float64, device=each.device)
            return sums.index_add(0, row, -each.double()), (labels != IGNORED).sum(1)
        logits = self._read(batch).logits
        nll = F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
        return -nll.double().sum(1), (labels != -100).sum(1)

    # ---- what feedback asks

    def check_prompts(self, tokens: int) -> None:
        """Refuses more tokens to go on from than the context holds."""
        if self.context is not None and tokens >= self.context:
            raise ConfigError(f"feedback.prompt_tokens={tokens}: the context has {self.context}; take fewer")

    def prompts_of(self, batch: Mapping[str, Tensor], tokens: int, keys: Tensor) -> tuple[Tensor, dict[str, list[str]]]:
        """What the items of a batch go on from, int64 [B, P]: their own first tokens, or the model's start; and what a
        judge is told of it."""
        prompts = batch["input_ids"][:, :tokens] if tokens else self.begin(keys)
        return prompts, {
            "prompt": [str(self.tokenizer.decode(row, skip_special_tokens=False)) for row in prompts.tolist()]
        }

    def answer_text(self, ids: list[int]) -> str:
        """Text of a continuation's tokens."""
        return str(self.tokenizer.decode(ids))
