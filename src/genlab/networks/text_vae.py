"""Networks of VAEs for text: an encoder of whole texts, and a causal network that is told a latent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from genlab.networks.attention import whole_sequences
from genlab.networks.awd_lstm import LSTMState

Positive = Annotated[int, "gt 0"]


class TextEncoder(nn.Module):
    """Embedding, LSTM, the largest output of each unit over time (Long et al. 2019, arXiv 1911.03976), a linear head.

    Args:
        vocab_size: V, distinct tokens.
        latent_dim: D, dimensions of z.
        embedding: width of the embedding.
        width: of the hidden state.
        layers: LSTMs on top of one another.
    """

    def __init__(
        self, vocab_size: Positive, latent_dim: Positive, embedding: Positive = 256, width: Positive = 256,
        layers: Positive = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, tokens: Tensor, inside: Tensor) -> Tensor:
        """Tokens int64 [B, T], of the text where `inside`, bool [B, T] -> mu and logvar in one, [B, 2 D]."""
        h = self.lstm(self.embedding(tokens))[0]
        return self.head(h.masked_fill(~inside[..., None], -torch.inf).amax(1))


class LatentDecoder(nn.Module):
    """A causal network whose distribution of the next token depends on z.

    A recurrent network begins with the state (tanh(A z), A z) of each layer, and B z is added to each embedding (Bowman
    et al. 2016, arXiv 1511.06349; He et al. 2019, arXiv 1901.05534). Of a transformer B z is added likewise, or stands
    before the text as a token of its own (Li et al. 2020, arXiv 2004.04092, section 3.1). Without z it is the network.

    Args:
        network: as of genlab.models.autoregressive, with `get_input_embeddings` and the argument `inputs_embeds`.
        latent_dim: D, dimensions of z.
        latent: "added" or "prefix"; the latter needs one position more than the text has tokens.
    """

    def __init__(self, network: nn.Module, latent_dim: Positive, latent: Literal["added", "prefix"] = "added") -> None:
        super().__init__()
        self.network, self.latent = network, latent
        self.recurrent: bool = getattr(network, "recurrent", False)
        table: Any = network.get_input_embeddings()  # type: ignore[operator]
        self.to_embedding = nn.Linear(latent_dim, table.embedding_dim)
        self.widths = [layer.hidden_size for layer in network.layers] if self.recurrent else []  # type: ignore
        self.to_state = nn.Linear(latent_dim, sum(self.widths)) if self.recurrent else None

    def forward(
        self, tokens: Tensor, z: Tensor, cache: Any = None, kept: Tensor | None = None, use_cache: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits of the next token of each [B, T, V], and the state after the last where `use_cache`.

        Args:
            tokens: int64 [B, T].
            z: float [B, D].
            cache: state after the tokens before; None: the text begins.
            kept: float [B, T], 0 where the token is not to be seen; None: all are.
        """
        h = self.network.get_input_embeddings()(tokens)  # type: ignore[operator]
        if kept is not None:
            h = h * kept[..., None]
        told, prefixed = self.to_embedding(z)[:, None], self.latent == "prefix" and cache is None
        if self.latent == "added":
            h = h + told
        elif prefixed:
            h = torch.cat([told, h], 1)
        if self.to_state is not None and cache is None:
            cells = [cell.contiguous() for cell in self.to_state(z)[None].split(self.widths, 2)]
            cache = LSTMState([(cell.tanh(), cell) for cell in cells])
        if use_cache:
            output = self.network(inputs_embeds=h, cache=cache, use_cache=True)
        else:
            with whole_sequences(self.network):
                output = self.network(inputs_embeds=h, cache=cache, use_cache=False)
        return output.logits[:, 1:] if prefixed else output.logits, output.cache
