"""genlab.noise: known answers, equality with an independent numpy version, distribution, independence of rows."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from genlab import noise
from genlab.data.sources import keyed
from genlab.noise import Stream

with contextlib.suppress(ImportError):  # now: Inductor imports it, which fails once the old distutils has been imported
    import setuptools  # noqa: F401

SEEDS = torch.tensor([0, 1, 2, -1, 2**31, 2**32, -(2**63), 2**63 - 1, 123456789012345])


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # kat_vectors of Random123 1.14, "philox4x32 10"
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    words = noise._philox(*(tuple(torch.tensor(int(w, 16)) for w in text.split()) for text in (counter, key)))
    assert " ".join(f"{int(w):08x}" for w in words) == answer


def numpy_bits(seeds: torch.Tensor, a: int, b: int, n: int) -> np.ndarray:
    """Philox4x32-10 written apart from the package: uint64 arithmetic, one counter array [B, blocks, 4]."""
    low = np.uint64(0xFFFFFFFF)
    seed = seeds.numpy().view(np.uint64)[:, None]
    k0, k1 = seed & low, seed >> np.uint64(32)
    blocks = -(-n // 4)
    c = np.zeros((len(seeds), blocks, 4), np.uint64)
    c[..., 0], c[..., 1], c[..., 2] = np.arange(blocks, dtype=np.uint64), np.uint64(a), np.uint64(b)
    for _ in range(10):
        p0, p1 = c[..., 0] * np.uint64(0xD2511F53), c[..., 2] * np.uint64(0xCD9E8D57)
        c = np.stack(
            [(p1 >> np.uint64(32)) ^ c[..., 1] ^ k0, p1 & low, (p0 >> np.uint64(32)) ^ c[..., 3] ^ k1, p0 & low], -1
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c.reshape(len(seeds), -1)[:, :n]


def numpy_normal(seeds: torch.Tensor, a: int, b: int, n: int) -> np.ndarray:
    words = numpy_bits(seeds, a, b, -(-n // 4) * 4).astype(np.float64)
    r = np.sqrt(-2 * np.log((words[:, 0::2] + 0.5) * 2.0**-32))
    angle = words[:, 1::2] * (2 * np.pi * 2.0**-32)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], -1).reshape(len(seeds), -1)[:, :n].astype(np.float32)


def test_eager_equals_numpy() -> None:
    assert np.array_equal(
        noise.bits(SEEDS, (3, 70000), 1003).numpy(), numpy_bits(SEEDS, 3, 70000, 1003).astype(np.int64)
    )
    assert np.array_equal(
        noise.normal(SEEDS, (3, 70000), (17, 59)).numpy().reshape(9, -1), numpy_normal(SEEDS, 3, 70000, 1003)
    )
    u = noise.uniform(SEEDS, 5, (1003,)).numpy()
    assert np.array_equal(u, (numpy_bits(SEEDS, 5, 0, 1003) >> np.uint64(8)).astype(np.float32) / np.float32(2**24))


@pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)
def test_compiled_equals_eager() -> None:
    compiled = torch.compile(noise.normal, fullgraph=True)
    assert torch.equal(compiled(SEEDS, (Stream.STEP, 7), (2, 501)), noise.normal(SEEDS, (Stream.STEP, 7), (2, 501)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_differs_from_the_cpu_by_one_ulp_at_most_once_in_a_million() -> None:
    seeds, shape = torch.arange(1000), (10_000,)
    cpu, cuda = noise.normal(seeds, Stream.STEP, shape), noise.normal(seeds.cuda(), Stream.STEP, shape).cpu()
    different = cpu != cuda
    assert int(different.sum()) <= 10
    assert torch.equal(torch.nextafter(cpu, cuda)[different], cuda[different])
    assert torch.equal(noise.bits(seeds, 1, 100), noise.bits(seeds.cuda(), 1, 100).cpu())


def test_shapes_and_dtypes() -> None:
    assert noise.normal(SEEDS, 0, (3, 5, 7)).shape == (9, 3, 5, 7)
    assert noise.normal(SEEDS, 0, ()).shape == (9,)
    assert noise.uniform(SEEDS, 0, ()).dtype == noise.normal(SEEDS, 0, (1,)).dtype == torch.float32
    assert noise.bits(SEEDS, 0, 5).dtype == torch.int64
    assert noise.normal(SEEDS[:0], 0, (3,)).shape == (0, 3)
    with pytest.raises(AssertionError, match="int64"):
        noise.bits(SEEDS.int(), 0, 1)


def test_rows_depend_on_their_own_seed_only() -> None:
    whole = noise.normal(SEEDS, (Stream.STEP, 4), (3, 11))
    for order in ([8, 0, 3], [5], [2, 2, 1, 0]):
        assert torch.equal(noise.normal(SEEDS[order], (Stream.STEP, 4), (3, 11)), whole[order])
    assert torch.equal(noise.bits(SEEDS, 1, 5), noise.bits(SEEDS, 1, 64)[:, :5])  # and a word not on how many follow
    steps = torch.arange(9)  # a stream of each row's own
    own = noise.uniform(SEEDS, (Stream.AUGMENT, steps), (4,))
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(own[i], noise.uniform(SEEDS[i : i + 1], (Stream.AUGMENT, step), (4,))[0])
    assert torch.equal(noise.bits(SEEDS, 6, 8), noise.bits(SEEDS, (6, 0), 8))


def test_distribution() -> None:
    z = noise.normal(torch.arange(200), Stream.INITIAL, (5000,)).double().numpy().ravel()  # 1e6 values
    n = z.size
    assert stats.kstest(z, "norm").pvalue > 1e-3
    for k, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**k).mean() - moment) < 4 * np.sqrt(variance / n)
    assert 4.5 < np.abs(z).max() < 6.77
    u = noise.uniform(torch.arange(200), Stream.TIME, (5000,)).numpy().ravel()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.min() >= 0
    assert u.max() < 1
    ones = (noise.bits(torch.arange(200), 3, 5000)[..., None] >> torch.arange(32)) & 1  # every bit is fair
    assert ((ones.double().mean((0, 1)) - 0.5).abs() < 4.5 * 0.5 / np.sqrt(n)).all()


def correlations(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of each row of x with the same row of y, in units of its standard deviation under independence."""
    x, y = (v.double() - v.double().mean(1, keepdim=True) for v in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)) * x.shape[1] ** 0.5


def test_neighbours_are_uncorrelated() -> None:
    seeds, n = torch.arange(1000), (1000,)
    z = noise.normal(seeds, (Stream.STEP, 0), n)
    others = {
        "next seed": noise.normal(seeds + 1, (Stream.STEP, 0), n),
        "far seed": noise.normal(seeds + 2**32, (Stream.STEP, 0), n),
        "negative": noise.normal(-seeds - 1, (Stream.STEP, 0), n),
        "next step": noise.normal(seeds, (Stream.STEP, 1), n),
        "other stream": noise.normal(seeds, (Stream.LOSS, 0), n),
        "swapped stream": noise.normal(seeds, (0, Stream.STEP), n),
        "folded": noise.normal(noise.fold_in(seeds, 0), (Stream.STEP, 0), n),
        "next value": z.roll(1, 1),
    }
    for name, other in others.items():
        c = correlations(z, other)
        assert stats.kstest(c.numpy(), "norm").pvalue > 1e-4, name
        assert c.abs().max() < 5.5, name
        assert abs(float(c.mean())) < 4 / 1000**0.5, name
    spread = (z.double().sum(0) / 1000**0.5).numpy()  # down the seeds, a column is a sample too
    assert stats.kstest(spread, "norm").pvalue > 1e-4


def test_fold_in() -> None:
    ids = torch.arange(10000)
    folded = noise.fold_in(ids, 7)
    assert folded.dtype == torch.int64
    assert len(torch.cat([folded, noise.fold_in(ids, 8), ids]).unique()) == 30000
    assert torch.equal(noise.fold_in(ids[5:6], 7), folded[5:6])


def test_large_seeds_repeat_nothing() -> None:
    """Seeds of 63 bits give items, noise and training streams of their own; the small ones are as they were."""
    ids = torch.arange(100)
    seeds = [5, 5 + (1 << 31), 5 + (1 << 32), 5 + (1 << 33), 5 + (1 << 62), (1 << 63) - 1]
    assert len(torch.cat([noise.fold_in(ids, seed) for seed in seeds]).unique()) == 100 * len(seeds)
    assert len(torch.cat([keyed(ids, seed) for seed in seeds]).unique()) == 100 * len(seeds)
    assert torch.equal(keyed(ids, 5), ids + (5 << 32))
    assert (
        len(torch.cat([noise.bits(keyed(ids, seed), noise.Stream.AUGMENT, 2)[:, 0] for seed in seeds]).unique()) > 598
    )
