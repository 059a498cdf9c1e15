"""Losses of pairs of answers of which one is preferred, by the log-ratios of a policy to its reference."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PreferenceLoss = Literal["dpo", "ipo", "kto"]
SIDES = ("chosen", "rejected")  # of a pair, in a batch


def preference_loss(
    kind: PreferenceLoss, chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0
) -> Tensor:
    """Loss of each pair, float [B].

    dpo: -log sigma(beta (h_w - h_l)), Rafailov et al. 2023, arXiv 2305.18290, equation 7; with a share `smoothing` of
    preferences that are taken to be turned round (conservative DPO).
    ipo: (h_w - h_l - 1 / (2 beta))^2, Azar et al. 2023, arXiv 2310.12036, equation 17; beta is the paper's tau.
    kto: Ethayarajh et al. 2024, arXiv 2402.01306, equation 8, with lambda_D = lambda_U = 1; each side is held against
    the mean log-ratio of the other side in the batch, at least 0 (the reference point z_0, without a gradient).

    Args:
        chosen: h_w = log pi(y_w|x) - log ref(y_w|x) in nats, float [B]; for ipo, of the mean token.
        rejected: h_l, likewise.
        beta: how dear it is to leave the reference.
    """
    margin = chosen - rejected
    if kind == "dpo":
        return -(1 - smoothing) * F.logsigmoid(beta * margin) - smoothing * F.logsigmoid(-beta * margin)
    if kind == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    chosen_point, rejected_point = (side.detach().mean().clamp(min=0) for side in (chosen, rejected))
    good = 1 - torch.sigmoid(beta * (chosen - rejected_point))
    bad = 1 - torch.sigmoid(beta * (chosen_point - rejected))
    return (good + bad) / 2


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigma(r_w - r_l) of rewards, float [B]: Ouyang et al. 2022, arXiv 2203.02155, equation 1."""
    return -F.logsigmoid(chosen - rejected)
