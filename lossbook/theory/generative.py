"""Naive Bayes whose classes share their variances, and how many samples a classifier needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from lossbook import checks


class SharedVarianceGaussianNB(ClassifierMixin, BaseEstimator):
    """Gaussian naive Bayes with one variance per feature, shared by the classes: a linear classifier in closed form.

    log p(x, k) = log π_k - ½ Σ_j [(x_j - μ_kj)² / s_j + log 2π s_j], with the class frequencies π_k, the class means
    μ_k and s_j = Σ_k π_k var_kj + var_smoothing, where var_kj is the mean squared deviation from μ_kj within class k.
    The terms in x_j² are the same for every class, so the decision is linear in x.
    scikit-learn's GaussianNB has variances per class instead, and is quadratic.

    A feature that never varies within a class has s_j = var_smoothing. If its class means differ, it outweighs all
    others. If they agree, as for a pixel that is always black, it cancels.

    Args:
        var_smoothing: what is added to every variance, in the square of x's units; above 0.

    Attributes:
        classes_: (K,) sorted labels.
        class_count_: (K,) samples seen of each class.
        class_prior_: (K,) π.
        theta_: (K, d) μ.
        var_: (d,) s.
        n_features_in_: d.

    Source: Zheng, Wu, Bao, Cao, Li, Zhu 2023, Revisiting Discriminative vs. Generative Classifiers, and its code.
    """

    classes_: np.ndarray
    class_count_: np.ndarray
    class_prior_: np.ndarray
    theta_: np.ndarray
    var_: np.ndarray

    def __init__(self, *, var_smoothing: float = 1e-9) -> None:
        self.var_smoothing = var_smoothing

    def fit(self, X: Any, y: Any) -> SharedVarianceGaussianNB:
        """Estimate π, μ and s from X (N, d) and labels y (N,); the classes are the labels that y holds.

        Raises:
            ValueError: wrong shapes, NaN or infinity, y that is no classification target, var_smoothing not above 0.
        """
        X, y = self._checked(X, y, reset=True)
        self._start(np.unique(y))
        return self._update(X, y)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SharedVarianceGaussianNB:
        """Add a batch; the result is that of one `fit` on everything seen so far.

        With counts n, n', means m, m' and sums of squared deviations D, D' of a class before and in the batch:
        m ← (n m + n' m')/(n + n'),  D ← D + D' + n n'/(n + n') (m - m')². A batch may lack classes; a class that no
        batch has held yet is refused when predicting.

        Args:
            X, y: as for `fit`.
            classes: all labels that will ever come; needed in the first call, and the same or None later.

        Raises:
            ValueError: as `fit`; classes missing in the first call or changed later; a label outside classes.
        """
        first = not hasattr(self, "theta_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        X, y = self._checked(X, y, reset=first)
        known = np.unique(classes) if first else self.classes_
        if not first and classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(f"classes must stay {known.tolist()}, but are {np.unique(classes).tolist()}")
        if unknown := sorted(set(y.tolist()) - set(known.tolist())):
            raise ValueError(f"y has label {unknown[0]!r}, but classes are {known.tolist()}")
        if first:
            self._start(known)
        return self._update(X, y)

    def predict_joint_log_proba(self, X: Any) -> np.ndarray:
        """log p(x, k), (N, K).

        Raises:
            NotFittedError: before `fit`.
            ValueError: another number of columns than fitted, NaN or infinity, a class without samples.
        """
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        if not self.class_count_.all():
            missing = self.classes_[self.class_count_ == 0].tolist()[0]
            raise ValueError(f"class {missing!r} has no samples yet")
        distances = np.stack([(X - mean) ** 2 @ (1 / self.var_) for mean in self.theta_], axis=1)
        return np.log(self.class_prior_) - 0.5 * (distances + np.log(2 * math.pi * self.var_).sum())

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """log p(k | x), (N, K). Raises as `predict_joint_log_proba`."""
        joint = self.predict_joint_log_proba(X)
        return joint - logsumexp(joint, axis=1, keepdims=True)

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(k | x), (N, K). Raises as `predict_joint_log_proba`."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, (N,). Raises as `predict_joint_log_proba`."""
        best = self.predict_joint_log_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        checks.parameter("var_smoothing", self.var_smoothing, 0.0, open_low=True)
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float64)
        check_classification_targets(y)
        return X, y

    def _start(self, classes: np.ndarray) -> None:
        self.classes_ = classes
        self.class_count_ = np.zeros(len(classes))
        self.theta_ = np.zeros((len(classes), self.n_features_in_))
        self._deviations = np.zeros(self.n_features_in_)  # Σ_k D_k: all that the shared variance needs

    def _update(self, X: np.ndarray, y: np.ndarray) -> SharedVarianceGaussianNB:
        for k, label in enumerate(self.classes_):
            batch = X[y == label]
            if len(batch) == 0:
                continue
            before, new, mean = self.class_count_[k], len(batch), batch.mean(axis=0)
            shift = mean - self.theta_[k]
            self._deviations += ((batch - mean) ** 2).sum(axis=0) + before * new / (before + new) * shift**2
            self.theta_[k] += new / (before + new) * shift
            self.class_count_[k] += new
        total = self.class_count_.sum()
        self.class_prior_ = self.class_count_ / total
        self.var_ = self._deviations / total + self.var_smoothing
        return self


def sample_complexity(errors: Any, sizes: Sequence[int], target: float, tol: float = 0.01) -> float:
    """m*: the smallest training-set size whose mean error is at most target + tol; infinity if none is.

    Args:
        errors: (M,) errors in [0, 1] at the sizes, or (R, M) of R repeats, which are averaged.
        sizes: M increasing sizes.
        target: the error that is approached, such as the Bayes error, in [0, 1].
        tol: how near is near enough, at least 0.

    Raises:
        ValueError: shapes that do not fit, sizes that do not increase, a number out of its range.

    Source: Zheng et al. 2023, the stopping rule of the simulation.
    """
    values, grid = np.asarray(errors, dtype=float), np.asarray(sizes)
    if grid.ndim != 1 or len(grid) == 0 or not (np.diff(grid) > 0).all():
        raise ValueError(f"sizes must be a list of increasing numbers, but is {sizes!r}")
    if values.ndim not in (1, 2) or values.size == 0 or values.shape[-1] != len(grid):
        raise ValueError(f"errors must have a last dimension of {len(grid)} sizes, but has shape {values.shape}")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("errors must lie in [0, 1]")
    checks.parameter("target", target, 0.0, 1.0)
    checks.parameter("tol", tol, 0.0)
    reached = np.atleast_2d(values).mean(axis=0) <= target + tol
    return float(grid[reached.argmax()]) if reached.any() else math.inf
