"""Metrics of images against torch-fidelity, naive implementations and closed forms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from synthetic import blobs
from torch import Tensor

import genlab.evaluation.neighbours as neighbours
from genlab.data.fetch import present
from genlab.data.images import StandardImages
from genlab.errors import ConfigError
from genlab.evaluation import load_extractor
from genlab.evaluation.extractors import NetworkExtractor
from genlab.evaluation.metrics import (
    FID,
    KID,
    InceptionScore,
    IntraFID,
    Items,
    Metric,
    NearestNeighbours,
    PrecisionRecall,
    measure,
)
from genlab.evaluation.metrics.fidelity import fid
from genlab.evaluation.neighbours import closest_pairs, density_coverage, memorisation, nearest
from genlab.evaluation.reference import subset

N = 500


def values_of(metric: Metric, generated: Tensor, real: Tensor) -> tuple[float, ...]:
    metric.update(Items(features=generated, logits=generated), Items(features=real))
    return metric.compute()


SETTINGS = KID(subsets=20, subset_size=200)
NAMES = {  # ours -> torch-fidelity's
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "kid_std": "kernel_inception_distance_std",
    "precision": "precision",
    "recall": "recall",
    "inception_score": "inception_score_mean",
    "inception_score_std": "inception_score_std",
}


def synthetic(channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Two sets of N images that differ."""
    seeds = torch.arange(N)
    return blobs(seeds, 0.0, channels, size), blobs(10_000 + seeds, 0.5, channels, size)


def real(name: str, n: int) -> tuple[Tensor, Tensor]:
    """n train and n test images of a data set."""
    if not present(name):
        pytest.skip(f"{name} is not in the cache: python scripts/fetch_data.py {name}")
    data = StandardImages(name, shape=[3, 32, 32] if name == "cifar10" else [1, 28, 28], num_classes=10)
    first, second = (data.source(split) for split in ("train", "test"))
    ids = [torch.from_numpy(subset(len(source), n)) for source in (first, second)]
    a, b = (s.batch(i, torch.zeros_like(i))["image"] for s, i in zip((first, second), ids, strict=True))
    return a, b


@pytest.fixture(scope="module")
def cnn() -> NetworkExtractor:
    return load_extractor("mnist-cnn")


@pytest.fixture(scope="module")
def features(cnn: NetworkExtractor) -> list[Tensor]:
    """By mnist-cnn, of two synthetic sets, [500, 128] each."""
    return [cnn.features(images)["features"] for images in synthetic(1, 28)]


# ---- against torch-fidelity


class Listed(torch.utils.data.Dataset):
    """uint8 [N, C, H, W] as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def theirs(first: Tensor, second: Tensor, extractor: str, isc: bool, **options: Any) -> dict[str, float]:
    """torch_fidelity.calculate_metrics, by our names."""
    import torch_fidelity

    values = torch_fidelity.calculate_metrics(
        input1=Listed(first), input2=Listed(second), feature_extractor=extractor, batch_size=100,
        fid=True, kid=True, isc=isc, prc=True, kid_subsets=SETTINGS.subsets,
        kid_subset_size=SETTINGS.subset_size, cuda=False, save_cpu_ram=True, cache=False, verbose=False, **options,
    )  # fmt: skip
    return {name: values[key] for name, key in NAMES.items() if key in values}


def assert_equal(ours: dict[str, float | None], expected: dict[str, float]) -> None:
    assert ours == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}
    assert expected["fid"] > 0.1  # the sets differ, so that a relative comparison means something


@pytest.fixture
def registered(cnn: NetworkExtractor) -> Iterator[str]:
    """Name of an extractor of torch-fidelity that runs mnist-cnn's network."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    class Registered(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.network = cnn.network

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            out = dict(zip(("features", "logits"), self.network(images), strict=True))
            return tuple(out[name] for name in self.features_list)

    torch_fidelity.register_feature_extractor("test-mnist-cnn", Registered)
    yield "test-mnist-cnn"
    del FEATURE_EXTRACTORS_REGISTRY["test-mnist-cnn"]


@pytest.mark.parametrize("source", ["synthetic", pytest.param("mnist", marks=pytest.mark.data)])
def test_equal_to_torch_fidelity(source: str, cnn: NetworkExtractor, registered: str) -> None:
    """All its metrics, Inception Score too, with mnist-cnn as the extractor of both."""
    first, second = synthetic(1, 28) if source == "synthetic" else real(source, N)
    metrics = {**METRICS, "inception_score": InceptionScore()}
    found = measure(metrics, Items(**cnn.features(first)), Items(**cnn.features(second)))
    ours, missing = found.values, found.missing
    assert not missing
    assert_equal(ours, theirs(first, second, registered, isc=True))


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our Inception's weights as torch-fidelity's own file; skipped where there are none."""
    try:
        extractor = load_extractor("inception-v3-compat")
    except ConfigError as error:
        pytest.skip(str(error))
    state = extractor.network.net.state_dict()
    if not extractor.has_logits:
        state |= {key: torch.zeros_like(state[key]) for key in ("fc.weight", "fc.bias")}
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def by_inception(first: Tensor, second: Tensor, weights: Path) -> tuple[dict[str, float], list[Tensor]]:
    """torch-fidelity's values by its own Inception, and the features [N, 2048] that it made of both sets."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    seen, forward = [], FeatureExtractorInceptionV3.forward

    def recorded(self: FeatureExtractorInceptionV3, images: Tensor) -> tuple[Tensor, ...]:
        seen.append(forward(self, images))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "forward", recorded)
        colour = [images.expand(-1, 3, -1, -1) for images in (first, second)]
        values = theirs(*colour, "inception-v3-compat", False, feature_extractor_weights_path=str(weights))
    return values, list(torch.cat([rows for (rows,) in seen]).split([len(first), len(second)]))


METRICS = {"fid": FID(), "kid": SETTINGS, "precision_recall": PrecisionRecall()}


@pytest.mark.data
def test_inception_on_synthetic_images(inception_file: Path) -> None:
    """Of 500 images, half against half: torch-fidelity's features are ours, and give its values."""
    first, second = (images[: N // 2] for images in synthetic(3, 32))
    expected, made = by_inception(first, second, inception_file)
    ours = measure(METRICS, *(Items(features=rows) for rows in made)).values
    assert_equal(ours, expected)
    for name, tolerance in (("inception-v3-compat", 1e-5), ("inception-v3-compat-fast", 1e-4)):
        rows = load_extractor(name, batch=20).features(first[:20])["features"]
        assert (rows - made[0][:20]).abs().max() < tolerance
    assert made[0].std() > 0.1


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("source", ["cifar10", "mnist"])
def test_inception_on_real_images(source: str, inception_file: Path) -> None:
    """Of 500 images, train against test, each way through its own Inception: the same values."""
    first, second = real(source, N // 2)
    extractor = load_extractor("inception-v3-compat")
    ours = measure(METRICS, Items(**extractor.features(first)), Items(**extractor.features(second))).values
    expected, _ = by_inception(first, second, inception_file)
    print(source, {key: (ours[key], expected[key]) for key in expected})
    assert_equal(ours, expected)


# ---- closed forms and naive implementations


def test_metrics_closed_forms() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor([1.0, 0, 0, -2.0, 0, 0])
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x + offset, x) == pytest.approx(5, rel=1e-5)  # equal covariances: |difference of the means|^2
    # A = 3 x has covariance 9 S: tr(S + 9 S - 2 sqrt(9 S^2)) = 4 tr S
    centred = (x - x.mean(0)).double()
    trace = (centred.square().sum(0) / 399).sum().item()
    assert fid(3 * centred, centred) == pytest.approx(4 * trace, rel=1e-9)
    assert values_of(PrecisionRecall(), x, x) == (1.0, 1.0)
    assert values_of(PrecisionRecall(), x + 100, x) == (0.0, 0.0)
    assert values_of(KID(5, 100), x + 100, x)[0] > 1 > abs(values_of(KID(5, 100), x, x)[0])
    sure = 100.0 * F.one_hot(torch.arange(4000) % 10, 10).float()
    assert values_of(InceptionScore(1), sure, sure)[0] == pytest.approx(10, rel=1e-6)
    assert values_of(InceptionScore(), *torch.zeros(2, 100, 10))[0] == pytest.approx(1, rel=1e-6)


def test_order_does_not_matter(features: list[Tensor]) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    a, b = features
    assert fid(a[order], b) == pytest.approx(fid(a, b), rel=1e-9)
    assert values_of(PrecisionRecall(), a[order], b) == pytest.approx(values_of(PrecisionRecall(), a, b), rel=1e-6)
    assert values_of(KID(1, N), a[order], b)[0] == pytest.approx(
        values_of(KID(1, N), a, b)[0], rel=1e-4
    )  # torch-fidelity's is float32


def test_failing_metrics_are_stated() -> None:
    rows = Items(features=torch.randn(40, 4), logits=torch.randn(40, 10))
    with pytest.warns(UserWarning, match="kid has no value"):
        found = measure({"fid": FID(), "kid": KID()}, rows, rows)
    values, missing = found.values, found.missing
    assert values["kid"] is None
    assert values["kid_std"] is None
    assert "kid.subset_size is 1000, there are 40" in missing["kid"]
    assert values["fid"] == pytest.approx(0, abs=1e-6)
    broken = Items(features=torch.full((40, 4), math.nan))
    with pytest.warns(UserWarning, match="not finite"):
        values = measure({"fid": FID()}, broken, rows).values
    assert values == {"fid": None}
    # The converted Inception has no logits: Inception Score is refused, not faked.
    found = measure({"inception_score": InceptionScore()}, Items(features=rows.features), rows)
    values, missing = found.values, found.missing
    assert values == {"inception_score": None, "inception_score_std": None}
    assert "no logits" in missing["inception_score"]


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """Distances float64 [N, M], directly."""
    return (a[:, None].double() - b[None].double()).square().sum(2).sqrt()


@pytest.mark.parametrize("block", [(1024, 8192), (7, 13), (1, 64), (200, 3)])
def test_nearest(block: tuple[int, int]) -> None:
    """Exactly the naive result, equal items included, whatever the blocks and however far the features are from 0."""
    generator = torch.Generator().manual_seed(0)
    items = 0.1 * torch.randn(150, 24, generator=generator) + 50
    items[7] = items[120] = items[3]
    queries = 0.1 * torch.randn(60, 24, generator=generator) + 50
    queries[5] = items[3]
    for k in (1, 4):
        for query, own in ((queries, None), (items, torch.arange(150))):
            expected = pairwise(query, items)
            if own is not None:
                expected[own, own] = math.inf
            values, order = expected.sort(dim=1, stable=True)
            distances, indices = nearest(query, items, k, own, block)
            assert torch.equal(indices, order[:, :k])
            assert torch.equal(distances, values[:, :k])
    assert nearest(queries, items, 3)[1][5].tolist() == [3, 7, 120]
    assert nearest(queries, items)[0][5] == 0
    with pytest.raises(ValueError, match="too few"):
        nearest(items, items, 150, own=torch.arange(150))


def test_density_coverage(features: list[Tensor]) -> None:
    """Naeem et al. 2020, as the definitions read."""
    generated, reference = features[0][:300], features[1][:200]
    for k in (1, 5):
        among = pairwise(reference, reference).fill_diagonal_(math.inf)
        radii = among.sort(dim=1).values[:, k - 1]
        inside = pairwise(reference, generated) < radii[:, None]
        expected = (inside.sum().item() / (k * 300), inside.any(1).double().mean().item())
        assert 0 < expected[1] < 1
        assert density_coverage(generated, reference, k) == pytest.approx(expected, rel=1e-12)
        assert density_coverage(generated, reference, k, block=(17, 41)) == density_coverage(generated, reference, k)
        assert density_coverage(reference, reference, k) == (1.0, 1.0)
    assert density_coverage(generated + 1000, reference) == (0.0, 0.0)


def test_density_coverage_expected() -> None:
    """Of equal distributions: E density = 1, E coverage = 1 - C(N-1, k) / C(N+M-1, k) (Naeem et al. 2020)."""
    n, m, k = 60, 90, 3
    generator = torch.Generator().manual_seed(1)
    draws = torch.tensor([
        density_coverage(torch.rand(m, 2, generator=generator), torch.rand(n, 2, generator=generator), k)
        for _ in range(400)
    ], dtype=torch.float64)  # fmt: skip
    error = draws.std(0) / 400**0.5
    expected = torch.tensor([1.0, 1 - math.comb(n - 1, k) / math.comb(n + m - 1, k)], dtype=torch.float64)
    assert ((draws.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.01).all()


def test_intra_fid() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 300, 4, generator=generator)
    labels, b_labels = torch.arange(300) % 3, torch.arange(300) // 100
    a[labels == 2] += 3
    parts = {c: fid(a[labels == c], b[b_labels == c]) for c in range(3)}
    first, second = Items(features=a, condition={"label": labels}), Items(features=b, condition={"label": b_labels})
    found = measure({"intra_fid": IntraFID()}, first, second)
    values, missing = found.values, found.missing
    assert values == {
        "intra_fid": pytest.approx(sum(parts.values()) / 3),
        "intra_fid_worst": parts[2],
        "intra_fid_worst_label": 2,
    }
    assert parts[2] > 30 > 3 > max(parts[0], parts[1])
    assert not missing
    for wrong in ((first, Items(features=b)), (Items(features=a), second)):
        found = measure({"intra_fid": IntraFID()}, *wrong)
        values, missing = found.values, found.missing
        assert values["intra_fid"] is None
        assert "label" in missing["intra_fid"]
    with pytest.warns(UserWarning, match="label 2: 0 generated and 100 real"):
        measure({"intra_fid": IntraFID()}, Items(features=a, condition={"label": labels % 2}), second)


def test_memorisation() -> None:
    """Copies, near copies and new items, planted."""
    generator = torch.Generator().manual_seed(3)
    reference = torch.randn(400, 32, generator=generator)
    new = torch.randn(200, 32, generator=generator)
    among = pairwise(reference, reference).fill_diagonal_(math.inf).min(1).values
    step = F.normalize(torch.randn(100, 32, generator=generator), dim=1)
    near = reference[:100] + 0.4 * among[:100, None] * step  # nearer than half of the own distance
    off = reference[100:200] + 0.55 * among[100:200, None] * step  # not so near, but nearer than that distance
    copies = reference[200:250]
    generated = torch.cat([copies, near, off, new]).float()
    assert memorisation(copies, reference).nearest_distance == 0
    assert memorisation(copies, reference).near_duplicates == 1
    assert memorisation(near.float(), reference).near_duplicates == 1
    found = memorisation(off.float(), reference)
    assert (found.near_duplicates, found.authenticity) == (0, 0)
    distances = pairwise(generated, reference)
    own = among[distances.argmin(1)]
    metric = {"nearest_neighbours": NearestNeighbours()}
    values = measure(metric, Items(features=generated), Items(features=reference)).values
    assert values == {
        "nearest_distance": pytest.approx(distances.min(1).values.quantile(0.5).item()),
        "authenticity": (distances.min(1).values > own).double().mean().item(),
        "near_duplicates": 150 / 450,
    }
    assert values["authenticity"] > 0.2  # the new ones
    assert memorisation(new, reference).authenticity > 0.5
    doubled = reference.clone()
    doubled[1] = doubled[0]
    assert memorisation(doubled[:1], doubled) == neighbours.Memorisation(0.0, 0.0, 1.0)


def test_closest_pairs() -> None:
    generator = torch.Generator().manual_seed(4)
    generated, reference = torch.randn(2, 50, 8, generator=generator)
    generated[[30, 10, 20]] = reference[[5, 6, 7]] + torch.tensor([0.0, 0.01, 0.02])[:, None]
    samples, items, distances = closest_pairs(generated, reference, 3)
    assert samples.tolist() == [30, 10, 20]
    assert items.tolist() == [5, 6, 7]
    assert distances.tolist() == pytest.approx([0, 0.01 * 8**0.5, 0.02 * 8**0.5], abs=1e-6)
    assert len(closest_pairs(generated, reference, 99)[0]) == 50
