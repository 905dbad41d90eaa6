"""Maps from one score to one probability, fitted to targets in [0, 1]: what both score and class calibrators draw."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_expit, logit

if TYPE_CHECKING:
    from sklearn.isotonic import IsotonicRegression

RIDGE = 1e-6
_LARGEST = float(logit(1 - 1e-12))  # of |s|, so that p stays in [1e-12, 1 - 1e-12]


def beta_features(s: np.ndarray) -> np.ndarray:
    """(N, 2) ln p and -ln(1 - p) of p = σ(s), clipped to [1e-12, 1 - 1e-12]."""
    s = np.clip(s, -_LARGEST, _LARGEST)
    return np.stack([log_expit(s), -log_expit(-s)], axis=1)


def logistic(x: np.ndarray, target: np.ndarray, *, intercept: bool = True) -> tuple[np.ndarray, float]:
    """Coefficients and intercept of σ(x·w + c), by mean cross-entropy with the targets + RIDGE |w|²/2.

    The coefficients are in units of 1/max |x| where all features are below 1. With an intercept, the targets may not
    all be 0, nor all 1.
    """
    from sklearn.linear_model import LogisticRegression

    # A target t is a row of each label with the weights t and 1 - t. The solver gets features of size 1. So does the
    # ridge where they are smaller, lest it should matter there.
    scale = max(float(np.abs(x).max()), 1e-12)
    penalty = RIDGE * len(x) / min(max(scale, 1), 1e6) ** 2
    weight = np.concatenate([target, 1 - target])
    fitted = LogisticRegression(
        C=1 / penalty, solver="newton-cholesky", tol=1e-10, max_iter=1000, fit_intercept=intercept
    )
    fitted.fit(np.concatenate([x, x]) / scale, np.repeat([1, 0], len(x)), weight)
    return fitted.coef_[0] / scale, float(fitted.intercept_[0]) if intercept else 0.0


def increasing_logistic(x: np.ndarray, target: np.ndarray, *, intercept: bool = True) -> tuple[np.ndarray, float]:
    """As `logistic`, under w ≥ 0; c is infinite where all targets are 0 or all are 1."""
    w = np.zeros(x.shape[1])
    if target.min() == target.max() and intercept:
        return w, float(logit(target[0]))
    # The minimum under w ≥ 0 is the free one of some face: of the largest face whose free minimum is inside.
    for size in range(x.shape[1], 0, -1):
        inside = []
        for used in combinations(range(x.shape[1]), size):
            found, c = logistic(x[:, used], target, intercept=intercept)
            if (found >= 0).all():
                margin = x[:, used] @ found + c
                value = np.mean(np.logaddexp(0, margin) - target * margin) + RIDGE / 2 * found @ found
                inside.append((float(value), used, found, c))
        if inside:
            _, used, found, c = min(inside, key=lambda face: face[0])
            w[list(used)] = found
            return w, c
    return w, float(logit(target.mean())) if intercept else 0.0


def isotonic(p: np.ndarray, target: np.ndarray) -> IsotonicRegression:
    """The non-decreasing map with the least squared error, linear between its knots and constant beyond them."""
    from sklearn.isotonic import IsotonicRegression

    # It averages the targets of equal scores, and weighs them by their number.
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, target)


def uniform_edges(n_bins: int) -> np.ndarray:
    """The inner edges of bins of equal width on [0, 1]."""
    return np.arange(1, n_bins) / n_bins


def bin_means(edges: np.ndarray, p: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(len(edges) + 1,) the mean target in each bin (lo, hi] between inner edges; an empty one gets its centre."""
    index = np.searchsorted(edges, p)
    count = np.bincount(index, minlength=len(edges) + 1)
    total = np.bincount(index, weights=target, minlength=len(edges) + 1)
    bounds = np.concatenate([[0], edges, [1]])
    return np.where(count > 0, total / np.maximum(count, 1), (bounds[:-1] + bounds[1:]) / 2)
