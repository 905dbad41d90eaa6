"""How many directions a representation uses: effective ranks of a feature matrix, without labels.

A function takes features Z (N, d) as a tensor or array, not centred, and returns a Python float computed in float64
from the singular values σ of Z. All are free of scale and rotation, and at most min(N, d). Compare only features of the
same N and d. The functions ending in `_of` take the singular values themselves, such as those that
`lossbook.metrics.collapse.singular_values_of` gets from streamed moments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics._inputs import as_matrix, finite_chunks


def rankme(features: Any, *, eps: float = 1e-7) -> float:
    """RankMe: exp(-Σ_k p_k log p_k) with p_k = σ_k/|σ|_1 + ε, the exponential of the entropy of the spectrum.

    About 1 for rank one, min(N, d) for singular values that are all equal; r equal ones and zeros otherwise give r.
    (p sums to a little more than 1; ε moves the value by a relative min(N, d) ε log(1/ε) or so.) High rank is necessary
    for features to be useful, not sufficient: noise has full rank. The paper computes it from N = 25,600 samples.

    Args:
        features: (N, d), N several times d for a stable value.
        eps: ε > 0.

    Raises:
        ValueError: wrong shape or dtype, a NaN or infinity, all zeros, or eps out of range.

    Source: Garrido, Balestriero, Najman, LeCun 2023 (arXiv 2210.02885).
    """
    return rankme_of(_singular_values(features), eps=eps)


def participation_ratio(features: Any) -> float:
    """(Σ_k σ_k²)²/Σ_k σ_k⁴, in [1, min(N, d)]: the number of equal directions that would share the energy as evenly.

    Raises:
        ValueError: as `rankme`.
    """
    return participation_ratio_of(_singular_values(features))


def stable_rank(features: Any) -> float:
    """|Z|_F²/σ_1², in [1, min(N, d)]: the energy in units of the strongest direction.

    Raises:
        ValueError: as `rankme`.
    """
    return stable_rank_of(_singular_values(features))


def rankme_of(singular_values: Tensor, *, eps: float = 1e-7) -> float:
    """`rankme` of singular values (m,), not all 0."""
    checks.parameter("eps", eps, 0, open_low=True)
    p = singular_values / singular_values.sum() + eps
    return float((-p * p.log()).sum().exp())


def participation_ratio_of(singular_values: Tensor) -> float:
    """`participation_ratio` of singular values (m,), not all 0."""
    energy = (singular_values / singular_values.max()).square()
    return float(energy.sum().square() / energy.square().sum())


def stable_rank_of(singular_values: Tensor) -> float:
    """`stable_rank` of singular values (m,), not all 0."""
    return float((singular_values / singular_values.max()).square().sum())


def _singular_values(features: Any) -> Tensor:
    features = as_matrix("features", features, "(N, d)")
    for _ in finite_chunks("features", features):
        pass
    if not features.any():
        raise ValueError("features are all zero: they have no direction")
    # Scaled first, so that no square overflows or vanishes.
    z = features.to(torch.float64)
    return torch.linalg.svdvals(z / z.abs().max())
