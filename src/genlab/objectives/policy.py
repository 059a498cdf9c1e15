"""Policy gradients of groups of answers to one question, in plain functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Advantage = Literal["reinforce", "rloo", "grpo", "dr_grpo"]
SMALLEST_DEVIATION = 1e-4  # added to a group's deviation, as trl does


def advantages(rewards: Tensor, kind: Advantage) -> Tensor:
    """How much better than expected each answer is, float [P, G].

    reinforce: the reward itself (Williams 1992).
    rloo: less the mean of the others (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, equation 9).
    grpo: (r - mean) / deviation of the group (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).
    dr_grpo: r - mean (Liu et al. 2025, arXiv 2503.20783, section 3.2).

    Args:
        rewards: float [P, G], of G answers to each of P questions.
    """
    if kind == "reinforce":
        return rewards
    centred = rewards - rewards.mean(1, keepdim=True)
    if kind == "rloo":
        return centred * (rewards.shape[1] / (rewards.shape[1] - 1))
    return centred / (rewards.std(1, keepdim=True) + SMALLEST_DEVIATION) if kind == "grpo" else centred


def k3(log_p: Tensor, reference: Tensor) -> Tensor:
    """Unbiased estimate of KL(pi || ref) from samples of pi, never negative: q / p - 1 - log q / p, float of any shape
    (Schulman, "Approximating KL divergence"; equation 4 of arXiv 2402.03300).

    Args:
        log_p: of the policy, in nats.
        reference: of the reference.
    """
    ratio = reference - log_p
    return ratio.exp() - 1 - ratio


def clipped_surrogate(log_p: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip) A) with r = pi / pi_old, of each token: Schulman et al. 2017,
    arXiv 1707.06347, equation 7. At the first step after the answers were drawn r is 1, and its gradient A grad log pi.
    """
    ratio = (log_p - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_share(log_p: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Share of tokens whose gradient the clip takes away, a scalar."""
    ratio = (log_p - old).exp()
    return (((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))).float().mean()


def answer_means(values: Tensor, answer: Tensor, count: int, length: int | None = None) -> Tensor:
    """Mean over each answer of its tokens' values, float [count]; with `length`, their sum over it (dr_grpo: answers
    of any length weigh alike a token; rloo and reinforce: 1, the sum).

    Args:
        values: float [N].
        answer: int64 [N], the answer that each token is of.
    """
    sums = values.new_zeros(count).index_add(0, answer, values)
    if length is not None:
        return sums / length
    return sums / torch.bincount(answer, minlength=count).clamp(min=1)
