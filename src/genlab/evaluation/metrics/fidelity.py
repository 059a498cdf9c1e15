"""Distribution metrics from gathered features, computed by torch-fidelity's own functions where it has them.

"generated" is what is judged, "real" the reference. Rows are in the order of the seeds: KID's subsets and the splits of
Inception Score go by row number.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from genlab.evaluation.metrics.base import Metric, NotApplicable
from genlab.evaluation.neighbours import density_coverage, memorisation

RNG_SEED = 2020  # torch-fidelity's default, for KID's subsets and the permutation of Inception Score
PAIR_BLOCK = 10_000  # rows of a block of pairwise distances, as in Kynkaanniemi et al. 2019


def fid(generated: Tensor, real: Tensor) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, eq. 6), moments in float64.

    Args:
        generated: features [N, D], N at least 2.
        real: features [M, D], M at least 2.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    _checked(generated, real)
    if min(len(generated), len(real)) < 2:
        raise ValueError(f"a covariance needs 2 samples, there are {len(generated)} generated and {len(real)} real")
    moments = [fid_features_to_statistics(x.double()) for x in (generated, real)]
    return fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]


def label_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of items whose likeliest class is the label that was asked for. logits [N, K], labels int64 [N]."""
    return (logits.argmax(1) == labels.to(logits.device)).double().mean().item()


def confident(logits: Tensor, threshold: float = 0.9) -> float:
    """Share of items whose likeliest class has a probability above `threshold`. logits [N, K]."""
    return (logits.double().softmax(1).amax(1) > threshold).double().mean().item()


def _checked(generated: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    assert generated.ndim == real.ndim == 2, "features are [N, D]"
    assert generated.shape[1] == real.shape[1], f"features of {generated.shape[1]} and {real.shape[1]} dimensions"
    if not (torch.isfinite(generated).all() and torch.isfinite(real).all()):
        raise ValueError("features are not finite")
    return generated, real


# ---- the metrics of a protocol


class FeatureMetric(Metric):
    """Of features of generated and real images."""

    modality = "image"
    needs = frozenset({"features", "reference"})

    def features(self) -> tuple[Tensor, Tensor]:
        """Generated [N, D], real [M, D].

        Raises:
            ValueError: they are not finite.
        """
        return _checked(self.judged.features, self.reference.features)


class FID(FeatureMetric):
    """See fid."""

    key, outputs = "fid", ("fid",)

    def compute(self) -> float:
        return fid(*self.features())

    def notes(self, n: int, dimensions: int | None) -> list[str]:
        """That it is biased, where a covariance is singular."""
        few = f"{n} samples for {dimensions} dimensions: a covariance is singular, FID is biased upwards"
        return [few] if dimensions is not None and n <= dimensions else []


class KID(FeatureMetric):
    """Squared MMD, kernel (x.y / D + 1)^3, unbiased (Binkowski et al. 2018): mean and deviation over subsets.

    Args:
        subsets: random subsets over which it is averaged.
        subset_size: items of each.
    """

    key, outputs = "kid", ("kid", "kid_std")

    def __init__(self, subsets: Annotated[int, "ge 1"] = 100, subset_size: Annotated[int, "ge 2"] = 1000) -> None:
        super().__init__()
        self.keep(subsets=subsets, subset_size=subset_size)

    def compute(self) -> tuple[float, float]:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        generated, real = self.features()
        self.at_least("subset_size", self.subset_size, generated=generated, real=real)
        result = kid_features_to_metric(
            generated, real, kid_subsets=self.subsets, kid_subset_size=self.subset_size, rng_seed=RNG_SEED,
            verbose=False,
        )  # fmt: skip
        return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]


class PrecisionRecall(FeatureMetric):
    """Share of generated items inside the real manifold, and the reverse (Kynkaanniemi et al. 2019, eq. 2).

    Args:
        neighbours: k of the manifold's radius.
    """

    key, outputs = "precision_recall", ("precision", "recall")

    def __init__(self, neighbours: Annotated[int, "ge 1"] = 3) -> None:
        super().__init__()
        self.keep(neighbours=neighbours)

    def compute(self) -> tuple[float, float]:
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        generated, real = self.features()
        self.at_least("neighbours", self.neighbours + 1, generated=generated, real=real)
        large = max(len(generated), len(real)) > PAIR_BLOCK  # same blocks, same numbers, less memory
        result = prc_features_to_metric(
            generated, real, prc_neighborhood=self.neighbours, prc_batch_size=PAIR_BLOCK, save_cpu_ram=large,
            verbose=False,
        )  # fmt: skip
        return result[KEY_METRIC_PRECISION], result[KEY_METRIC_RECALL]


class DensityCoverage(FeatureMetric):
    """See neighbours.density_coverage.

    Args:
        neighbours: k of the radius around each real image.
    """

    key, outputs = "density_coverage", ("density", "coverage")

    def __init__(self, neighbours: Annotated[int, "ge 1"] = 5) -> None:
        super().__init__()
        self.keep(neighbours=neighbours)

    def compute(self) -> tuple[float, float]:
        generated, real = self.features()
        self.at_least("neighbours", self.neighbours + 1, real=real)
        return density_coverage(generated, real, self.neighbours)


class IntraFID(FeatureMetric):
    """FID within each class (Miyato and Koyama 2018, arXiv 1802.05637): the mean over labels, the worst, its label.

    Both sides have the same set of labels, each at least twice.
    """

    key, outputs = "intra_fid", ("intra_fid", "intra_fid_worst", "intra_fid_worst_label")

    def compute(self) -> tuple[float, float, float]:
        (generated, real), labels, real_labels = self.features(), self.judged.labels, self.reference.labels
        for side, which in ((labels, "samples were not made for a label"), (real_labels, "real items have no labels")):
            if side is None:
                raise NotApplicable(f"the {which}")
        values = {}
        for label in torch.cat([labels, real_labels]).unique().tolist():
            a, b = generated[labels == label], real[real_labels == label]
            if min(len(a), len(b)) < 2:
                raise ValueError(f"label {label}: {len(a)} generated and {len(b)} real samples, FID needs 2 of both")
            values[label] = fid(a, b)
        worst = max(values, key=lambda label: values[label])
        return float(np.mean(list(values.values()))), values[worst], float(worst)


class NearestNeighbours(FeatureMetric):
    """See neighbours.Memorisation; with a picture of the closest pairs."""

    key, closest_pairs = "nearest_neighbours", True
    outputs: tuple[str, ...] = ("nearest_distance", "authenticity", "near_duplicates")

    def compute(self) -> tuple[float, ...]:
        return astuple(memorisation(*self.features()))


class LogitMetric(Metric):
    """Of the extractor's logits of generated images alone."""

    modality = "image"
    needs = frozenset({"features"})
    split_in_name = False

    def logits(self) -> Tensor:
        """[N, K].

        Raises:
            NotApplicable: the extractor has none.
            ValueError: they are not finite.
        """
        if self.judged.logits is None:
            raise NotApplicable("these weights of the extractor have no logits")
        if not torch.isfinite(self.judged.logits).all():
            raise ValueError("logits are not finite")
        return self.judged.logits

    def label_logits(self) -> Tensor:
        """The same, where the classes are the labels of the data."""
        if not self.judged.labelled:
            raise NotApplicable("the extractor's classes are not the labels of this data set")
        return self.logits()


class InceptionScore(LogitMetric):
    """exp E KL(p(y|x) || p(y)) (Salimans et al. 2016): mean and deviation over parts of a fixed permutation.

    Args:
        splits: parts over which it is averaged.
    """

    key, outputs = "inception_score", ("inception_score", "inception_score_std")

    def __init__(self, splits: Annotated[int, "ge 1"] = 10) -> None:
        super().__init__()
        self.keep(splits=splits)

    def compute(self) -> tuple[float, float]:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

        logits = self.logits()
        self.at_least("splits", self.splits, generated=logits)
        result = isc_features_to_metric(logits, splits=self.splits, shuffle=True, rng_seed=RNG_SEED)
        return result[KEY_METRIC_ISC_MEAN], result[KEY_METRIC_ISC_STD]


class LabelAccuracy(LogitMetric):
    """See label_accuracy."""

    key, outputs = "label_accuracy", ("label_accuracy",)

    def compute(self) -> float:
        if self.judged.labels is None:
            raise NotApplicable("the samples were not made for a label")
        return label_accuracy(self.label_logits(), self.judged.labels)


class Confidence(LogitMetric):
    """See confident, of a probability above 0.9."""

    key, outputs = "confident_09", ("confident_09",)

    def compute(self) -> float:
        return confident(self.label_logits())
