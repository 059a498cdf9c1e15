"""What is done with gradients between backward and the optimizer's step, for one player or several."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """L2 norm of all gradients together, a scalar tensor on their device; None where there is no gradient."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else None


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None, norm: Tensor | None) -> None:
    """Scales the gradients in place so that their norm, already computed, is at most `max_norm`."""
    if max_norm is not None and norm is not None:
        torch.nn.utils.clip_grads_with_norm_([p for p in parameters if p.grad is not None], max_norm, norm)


def keep_finite(parameters: Iterable[nn.Parameter], norm: Tensor | None) -> bool:
    """Whether a step may be taken. A gradient whose norm is not finite is dropped, and an optimizer leaves parameters
    without gradient, and its own state of them, as they are. Gradients are averages, so all ranks decide alike."""
    if norm is None or bool(torch.isfinite(norm)):
        return True
    for parameter in parameters:
        parameter.grad = None
    return False


def average(tensors: list[Tensor]) -> None:
    """Replaces tensors of one dtype and device by their means over ranks, in one all-reduce; nothing in one process."""
    if not tensors or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    flat = torch._utils._flatten_dense_tensors(tensors)
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    for tensor, mean in zip(tensors, torch._utils._unflatten_dense_tensors(flat, tensors), strict=True):
        tensor.copy_(mean)
