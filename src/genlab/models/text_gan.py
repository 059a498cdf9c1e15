"""Generative adversarial networks for text: a generator of discrete tokens, by three estimators of its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genlab import noise
from genlab.models.adversarial import AdversarialModel, Player
from genlab.models.gradients import average
from genlab.models.language import LanguageModel

Estimator = Literal["gumbel", "straight_through", "reinforce"]


class TextGAN(LanguageModel, AdversarialModel):
    """A recurrent generator against a critic of sequences of the data's window length T.

    A fake goes on from the first token of a real window, token by token, x_t = argmax(logits + g) with Gumbel noise g,
    which draws from softmax(logits) exactly (arXiv 1611.01144, equation 1). What the critic is shown and how the
    generator gets its gradient is the estimator's:

    gumbel: softmax((logits + g) / temperature) in the token's place, for the critic and as the next input (equation 2
        there); differentiable, but the critic sees mixtures that no text has.
    straight_through: the token forward, the gradient of that softmax backward (section 2.2 there); biased.
    reinforce: tokens; the gradient of log p(fake) times (reward - baseline) with reward = sigmoid(critic), as SeqGAN
        (arXiv 1609.05473, equations 1 and 6), with the reward of the whole sequence at every token in place of its
        Monte Carlo search, and a moving average as the baseline; without bias, of large variance.

    Before that, the generator is trained by maximum likelihood. Validation's "loss" is its negative log-likelihood in
    nats a token whatever the phase, since a critic's loss compares with nothing.

    Args:
        generator: (tokens [B,T] or distributions [B,T,V], state or None) -> (logits [B,T,V], state), e.g.
            genlab.networks.lstm.TokenLSTM; has `vocab_size`.
        critic: tokens or distributions -> logits [B].
        objective: has critic(real_logits, fake_logits) and generator(fake_logits): genlab.objectives.adversarial.
            reinforce uses the former alone.
        estimator: of the generator's gradient.
        temperature: of the softmax (gumbel, straight_through).
        pretrain_samples: the generator learns by maximum likelihood for so many samples; at least schedule.max_samples:
            by nothing else.
        critic_warmup: the critic begins so many samples before the end of that.
        n_critic: thereafter the generator moves at every n-th update.
        critic_lr_scale: the critic's learning rate as a multiple of the generator's.
        baseline_decay: of the moving average of rewards, an update.
        start: text that generation begins with where there is no prompt.
    """

    baseline: Tensor

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        objective: Any,
        estimator: Estimator = "straight_through",
        temperature: Annotated[float, "gt 0"] = 1.0,
        pretrain_samples: Annotated[int, "ge 0"] = 0,
        critic_warmup: Annotated[int, "ge 0"] = 0,
        n_critic: Annotated[int, "gt 0"] = 1,
        critic_lr_scale: float = 1.0,
        baseline_decay: float = 0.95,
        start: str = "\n",
        chunk_size: int = 16,
    ) -> None:
        super().__init__()
        self.generator, self.critic, self.objective = generator, critic, objective
        self.vocab_size = int(generator.vocab_size)  # type: ignore[arg-type]
        self.estimator, self.temperature = estimator, temperature
        self.pretrain_samples, self.critic_warmup = pretrain_samples, critic_warmup
        self.n_critic, self.critic_lr_scale, self.baseline_decay = n_critic, critic_lr_scale, baseline_decay
        self.start, self.chunk_size = start, chunk_size
        self.register_buffer("baseline", torch.tensor(0.5))  # the reward of a fake that cannot be told from real

    @property
    def pretraining(self) -> bool:
        """Whether the generator learns by maximum likelihood now."""
        return self.samples_seen < self.pretrain_samples

    def players(self) -> list[Player]:
        begins = self.pretrain_samples - self.critic_warmup
        return [
            Player("critic", self.critic, start=begins, lr_scale=self.critic_lr_scale),
            Player("generator", self.generator, period=1 if self.pretraining else self.n_critic),
        ]

    def sampled_parts(self) -> tuple[str, ...]:
        return ("generator.",)

    def losses(self, batch: Mapping[str, Tensor], player: str | None = None) -> dict[str, Tensor]:
        if player == "generator" and self.pretraining:
            return {"loss": self._nll(batch)}
        inputs, keys = batch["input_ids"], self.keys(batch)
        stream = (noise.Stream.LOSS, int(player == "generator"))
        uniform = noise.uniform(keys, stream, (inputs.shape[1], self.vocab_size))  # below 1, but 0 may come
        gumbel = -(-uniform.clamp(min=2.0**-25).log()).log()
        if player == "generator":
            if self.estimator == "reinforce":
                return self._reinforce(inputs[:, :1], gumbel)
            return {"loss": self.objective.generator(self.critic(self.rollout(inputs[:, :1], gumbel)))}
        with torch.no_grad():
            fake = self.rollout(inputs[:, :1], gumbel)
        # The end of a split is padded; in validation's last window the critic reads token 0 there.
        real = F.one_hot(batch["labels"].clamp(min=0), self.vocab_size).to(fake.dtype)
        real_logits, fake_logits = self.critic(real), self.critic(fake)
        report = {"loss": self.objective.critic(real_logits, fake_logits)}
        report |= {"real": real_logits.mean(), "fake": fake_logits.mean()}
        return report if player == "critic" else {**report, "critic": report["loss"], "loss": self._nll(batch)}

    def rollout(self, first: Tensor, gumbel: Tensor) -> Tensor:
        """Fakes as the critic sees them: distributions over tokens, or tokens as one-hot rows.

        Args:
            first: int64 [B, 1], the token that comes before.
            gumbel: [B, T, V], noise of the tokens.

        Returns:
            float [B, T, V], with gradients by the generator unless the estimator is reinforce.
        """
        shown, state = F.one_hot(first, self.vocab_size).to(gumbel.dtype), None
        out = []
        for g in gumbel.split(1, dim=1):
            logits, state = self.generator(shown, state)
            soft = ((logits + g) / self.temperature).softmax(-1)
            if self.estimator == "gumbel":
                shown = soft
            else:
                shown = F.one_hot(soft.argmax(-1), self.vocab_size).to(soft.dtype)
                if self.estimator == "straight_through":
                    shown = shown + (soft - soft.detach())
            out.append(shown)
        return torch.cat(out, 1)

    def _reinforce(self, first: Tensor, gumbel: Tensor) -> dict[str, Tensor]:
        """The gradient of the mean reward, a token; tokens are drawn without a graph, then read again in one call."""
        with torch.no_grad():
            fake = self.rollout(first, gumbel)
            reward = self.critic(fake).sigmoid()
        tokens = fake.argmax(-1)
        log_p = -self._token_nll(torch.cat([first, tokens[:, :-1]], 1), tokens).sum(1)
        loss = -((reward - self.baseline) * log_p).mean() / tokens.shape[1]
        return {"loss": loss, "reward": reward.mean()}

    def _move(self, player: Player, optimizer: Any, players: list[Player]) -> dict[str, Tensor]:
        report = super()._move(player, optimizer, players)
        if "generator_reward" in report:  # after the update, so that all its micro-batches share one baseline
            reward = report["generator_reward"].clone()
            average([reward])
            moved = torch.lerp(reward, self.baseline, self.baseline_decay)
            self.baseline.copy_(torch.where(reward.isfinite(), moved, self.baseline))
        return report

    def _token_nll(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """-log p of each label, [B, T]; 0 where it is -100."""
        logits = self.generator(inputs)[0]
        return F.cross_entropy(logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")

    def _nll(self, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        return self._token_nll(batch["input_ids"], labels).sum() / (labels != -100).sum()

    def log_likelihood(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's labels given what stands before them in the row, by the generator.

        Args:
            batch: input_ids int64 [B, T]; labels int64 [B, T], the token that follows each input, -100 = not counted.

        Returns:
            Sums in nats, float64 [B]; numbers of tokens counted, int64 [B].
        """
        nll = self._token_nll(batch["input_ids"], batch["labels"])
        return -nll.double().sum(1), (batch["labels"] != -100).sum(1)

    def next_logits(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = self.generator(tokens, state)
        return logits[:, -1], state

    def select(self, state: Any, rows: Tensor) -> Any:
        return tuple(part[:, rows] for part in state)
