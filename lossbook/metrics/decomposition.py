"""The Brier score of an event in parts: what calibration costs, what resolution saves, what bins hide."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lossbook.metrics import _bins
from lossbook.metrics._inputs import as_unit_interval, row_chunks


class BrierTerms(NamedTuple):
    """Brier score = reliability - resolution + uncertainty + within_bin_variance - within_bin_covariance."""

    reliability: float  #: Σ_b (n_b/N) (conf_b - acc_b)², the calibration loss; 0 is best
    resolution: float  #: Σ_b (n_b/N) (acc_b - ā)², what telling the samples apart saves
    uncertainty: float  #: ā (1 - ā), the score of the best constant
    within_bin_variance: float  #: (1/N) Σ_i (c_i - conf_b)²
    within_bin_covariance: float  #: (2/N) Σ_i (c_i - conf_b) (a_i - acc_b)


def brier_decomposition(confidence: Any, correct: Any, *, n_bins: int = 15) -> BrierTerms:
    """The five terms of (1/N) Σ_i (c_i - a_i)², over bins of equal width.

    The first three alone (Murphy 1973) add up to the score only where all confidences of a bin are equal; the two
    within-bin terms make it exact for every binning.

    Args:
        confidence: (N,) probabilities of an event, in [0, 1].
        correct: (N,) whether it happened: booleans, or numbers in [0, 1]. For numbers between, uncertainty is the
            variance of a, which for 0 and 1 is ā (1 - ā).
        n_bins: number of bins B.

    Raises:
        ValueError: bad input, by name and row.

    Source: Murphy 1973; Stephenson, Coelho, Jolliffe 2008, Two Extra Components in the Brier Score Decomposition.
    """
    _bins.check_bins(n_bins)
    terms = brier_terms(brier_sums(*events(confidence, correct), n_bins))
    return BrierTerms(*(float(term) for term in terms))


# What the function above and `streaming.BrierDecomposition` have in common.


def events(confidence: Any, correct: Any) -> tuple[Tensor, Tensor]:
    confidence = as_unit_interval("confidence", confidence)
    return confidence, as_unit_interval("correct", correct, like=confidence)


def brier_sums(confidence: Tensor, outcome: Tensor, n_bins: int) -> Tensor:
    """(6, B) sums in each bin of 1, c, a, c², a², c a."""
    sums = torch.zeros(6, n_bins, dtype=torch.float64, device=confidence.device)
    for rows, c in row_chunks(confidence):
        index = _bins.uniform_index(c, n_bins)
        c, a = c.to(torch.float64), outcome[rows].to(torch.float64)
        sums.index_add_(1, index, torch.stack((torch.ones_like(c), c, a, c.square(), a.square(), c * a)))
    return sums


def brier_terms(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The terms of `BrierTerms` as 0-d tensors."""
    sums = sums[:, sums[0] > 0]
    count, total = sums[0], sums[0].sum()
    confidence, accuracy = sums[1] / count, sums[2] / count
    mean = sums[2].sum() / total
    variance = sums[3] - count * confidence.square()
    covariance = sums[5] - count * confidence * accuracy
    return (
        (count * (confidence - accuracy).square()).sum() / total,
        (count * (accuracy - mean).square()).sum() / total,
        sums[4].sum() / total - mean.square(),
        variance.sum().clamp_min(0) / total,
        2 * covariance.sum() / total,
    )
