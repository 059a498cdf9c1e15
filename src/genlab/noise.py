"""Random bits, uniforms and normals as a function of (seed, stream) for whole batches.

Row i of every result depends on `seeds[i]`, the stream and the shape of one item, never on the batch, its size or the
device: the same item gets the same noise in any chunk, on any rank. The generator is Philox4x32-10 of Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3" (SC 2011), in operators that torch and numpy share: eager, compiled and
numpy give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from operator import imul
from typing import Any

import torch
from torch import Tensor

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers of the rounds
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # what each round adds to the key (Weyl sequence)
_MASK = 0xFFFFFFFF

Words = tuple[Any, Any, Any, Any]  # int64 tensors or arrays of numpy
StreamKey = int | Tensor | tuple[int | Tensor, ...]


class Stream(IntEnum):
    """What a draw is for; different streams are independent. The numbers are part of every record: append only."""

    INITIAL = 0  # x_T, z: what a sample starts from
    STEP = 1  # (STEP, k): noise of the k-th sampler step, or the k-th token
    TIME = 2  # (TIME, k): diffusion times of training and bounds
    LOSS = 3  # (LOSS, k): noise of losses and bounds
    AUGMENT = 4  # (AUGMENT, epoch)
    WINDOW = 5  # (WINDOW, epoch): where a text window starts, or which of an item's texts is read
    LABEL = 6  # labels drawn for sampling; label drop
    FOLD = 7  # fold_in
    POSTERIOR = 8  # (POSTERIOR, k): k-th draw of a latent given x
    PENALTY = 10  # points at which a critic's gradient is penalised
    BINARISE = 11  # black or white by the grey value; levels of dequantisation
    CODES = 12  # latent codes: those drawn without an encoder, those that restart from data
    DIFFAUGMENT = 13  # (DIFFAUGMENT, k): k-th operation on what a critic sees


def fold_in(seeds: Tensor, value: int) -> Tensor:
    """New seeds [B] (int64), a hash of (seeds[i], value): e.g. `fold_in(ids, run_seed)` keys items by run and id.

    Args:
        value: any integer of 64 bits.
    """
    low, high = bits(seeds, (Stream.FOLD, value & _MASK), 2).unbind(1)
    folded = (high << 32) | low
    return folded if 0 <= value <= _MASK else fold_in(folded, (value >> 32) & _MASK)


def bits(seeds: Tensor, stream: StreamKey, n: int) -> Tensor:
    """n random 32-bit words an item.

    Args:
        seeds: int64 [B], any values; the result lies on their device.
        stream: one or two integers in [0, 2**32): ints, or int64 tensors [B] where each item has its own.
        n: words an item, at most 2**34. The first words do not depend on it.

    Returns:
        int64 [B, n], values in [0, 2**32).
    """
    return _interleaved(_words(seeds, stream, -(-n // 4)), torch.int64)[:, :n]


def uniform(seeds: Tensor, stream: StreamKey, shape: Sequence[int]) -> Tensor:
    """float32 [B, *shape] in [0, 1), multiples of 2**-24 (exact). Arguments as in `bits`."""
    words = bits(seeds, stream, math.prod(shape))
    return (words >> 8).to(torch.float32).mul_(2.0**-24).view(len(seeds), *shape)


def even(ids: Tensor) -> Tensor:
    """Multiples of the golden ratio modulo 1, float32 [B] of int64 [B]: any run of ids covers [0, 1) evenly."""
    return (ids.to(torch.float64) * ((math.sqrt(5) - 1) / 2)).frac().float()


def normal(seeds: Tensor, stream: StreamKey, shape: Sequence[int]) -> Tensor:
    """Standard normals, float32 [B, *shape], |z| < 6.77. Arguments as in `bits`.

    Box-Muller in float64, then rounded: in float32, libraries and compilers would differ in the last bits.
    """
    n = math.prod(shape)
    w0, w1, w2, w3 = _words(seeds, stream, -(-n // 4))
    z = _interleaved((*_box_muller(w0, w1), *_box_muller(w2, w3)), torch.float32)
    return z[:, :n].reshape(len(seeds), *shape)


def _box_muller(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Two words -> two normals, float64: r cos(a), r sin(a) with r = sqrt(-2 log U), U in (0, 1), a = 2 pi V."""
    r = u.to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    a = v.to(torch.float64).mul_(2 * math.pi * 2.0**-32)
    return a.cos().mul_(r), a.sin_().mul_(r)


def _interleaved(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """[B, blocks * len(parts)]: the first of all parts [B, blocks], then their second, ... (torch.stack is slower)."""
    whole = torch.empty(*parts[0].shape, len(parts), dtype=dtype, device=parts[0].device)
    for i, part in enumerate(parts):
        whole[..., i] = part
    return whole.flatten(1)


def _words(seeds: Tensor, stream: StreamKey, blocks: int) -> Words:
    """Philox of the counters (0..blocks-1, a, b, 0) under the keys `seeds`: 4 words, each int64 [B, blocks]."""
    assert seeds.dtype == torch.int64, f"seeds: expected int64 [B], got {seeds.dtype}"
    assert seeds.ndim == 1, f"seeds: expected int64 [B], got {tuple(seeds.shape)}"
    parts: Sequence[Any] = stream if isinstance(stream, tuple) else (stream,)
    assert len(parts) <= 2, f"stream: one or two integers, got {len(parts)}"
    keys: Any = seeds
    index: Any = torch.arange(blocks, device=seeds.device)
    # On a CPU by numpy, which starts an operation in a third of torch's time and multiplies integers faster.
    by_numpy = seeds.device.type == "cpu" and not torch.compiler.is_compiling()
    if by_numpy:
        keys, index, *parts = (x.numpy() if isinstance(x, Tensor) else x for x in (keys, index, *parts))
    zero = keys & 0
    a, b = ((zero + part)[:, None] for part in (*parts, 0)[:2])
    key = (keys & _MASK)[:, None], ((keys >> 32) & _MASK)[:, None]
    words = _philox((index[None], a, b, zero[:, None]), key)
    return tuple(map(torch.from_numpy, words)) if by_numpy else words  # type: ignore[return-value]


def _philox(counter: Words, key: tuple[Any, Any]) -> Words:
    """Philox4x32-10 (section 3.3 of the paper), elementwise over counter and key words, int64 in [0, 2**32).

    A word lies in the low half of an int64; products wrap modulo 2**64, which keeps their bits. Only what is multiplied
    next needs a clean high half, so the low product is carried unmasked and the round keys grow unmasked.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for i in range(10):
        # In place once they are of the full shape; before, they are the caller's, or the same for all rows or blocks.
        p0, p1 = (c0 * _M0, c2 * _M1) if i < 3 else (imul(c0, _M0), imul(c2, _M1))
        c0, c1 = (p1 >> 32) ^ c1, p1
        c0 ^= k0 + i * _W0
        c0 &= _MASK
        c2, c3 = (p0 >> 32) ^ c3, p0
        c2 ^= k1 + i * _W1
        c2 &= _MASK
    c1 &= _MASK
    c3 &= _MASK
    return c0, c1, c2, c3
