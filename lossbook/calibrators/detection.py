"""Calibration of a detector's scores, class by class: a map g_k from score to what the score should have been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, Protocol, Self

import numpy as np
from scipy.special import expit, logit
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from lossbook import checks
from lossbook.calibrators._inputs import check_choice
from lossbook.metrics._inputs import as_labels, as_unit_interval

_TIE = 1e-6  # how much of the raw score is mixed in, so that equal calibrated scores keep the raw order


class DetectionCalibrator(BaseEstimator):
    """g_k(s) ≈ E[target | score s, class k], fitted to pairs of score and target on validation data.

    The target is u, the IoU of a true positive and 0 for a false positive, to make scores agree with localisation, or
    the flag t to make them agree with precision. Every map increases weakly and lies in [0, 1]:

    - "isotonic": the increasing function with the least squared error at the scores of the fit; linear between them,
      constant outside;
    - "linear": least squares a s + b with a ≥ 0, cut to [0, 1];
    - "platt": σ(a logit s + b) with a ≥ 0, which minimises the cross-entropy with the target;
    - "temperature": the same without b, a = 1/T.

    Classes that were not there to fit keep their scores.

    Args:
        kind: which map.
        per_class: a map for each class; one for all if False.

    Attributes:
        maps_: the fitted maps by class, or the only one under -1.

    Source: Kuzucu, Oksuz, Sadeghi, Dokania 2024, On Calibration of Object Detectors, and its code; isotonic and linear
    fits are scikit-learn's.
    """

    maps_: dict[int, _Map]

    def __init__(
        self, kind: Literal["isotonic", "linear", "platt", "temperature"] = "isotonic", *, per_class: bool = True
    ) -> None:
        self.kind = kind
        self.per_class = per_class

    def fit(self, scores: Any, labels: Any, target: Any) -> Self:
        """Fit the maps.

        Args:
            scores: (N,) in [0, 1], of the detections that the detector's operating threshold keeps.
            labels: (N,) classes, integers from 0.
            target: (N,) u or t, in [0, 1].

        Raises:
            ValueError: bad input, by name and row; no detections; an unknown kind.
        """
        fit = _choose(self.kind, {"isotonic": _isotonic, "linear": _linear, "platt": _platt, "temperature": _temper})
        score, label = _scores_and_labels(scores, labels)
        self.maps_ = _fit_maps(fit, score, label if self.per_class else np.full_like(label, -1), _target(target, score))
        return self

    def transform(self, scores: Any, labels: Any) -> np.ndarray:
        """(N,) float64 calibrated scores g_k(s).

        Args:
            scores, labels: as `fit`.

        Raises:
            ValueError: bad input, by name and row.
        """
        check_is_fitted(self)
        score, label = _scores_and_labels(scores, labels)
        return _apply(self.maps_, score, label if self.per_class else np.full_like(label, -1), unseen=score)


class PerClassScoreCalibrator(BaseEstimator):
    """g_k(s) ≈ P(true positive | score s, class k), which makes scores of different classes comparable.

    - "histogram": the share of true positives in each of `n_bins` equal bins of the score, (lo, hi] with the first
      closed on the left; a bin without detections gives its centre;
    - "isotonic": as for `DetectionCalibrator`;
    - "beta": σ(a ln s - b ln(1-s) + c) with a, b ≥ 0 (Kull et al. 2017), which minimises the cross-entropy.

    Classes that were not there to fit get the score 0: nothing speaks for them.

    A histogram or a step function gives equal scores to many detections, and an undefined order lowers AP. With
    `break_ties` the result is (1 - δ) g_k(s) + δ s, δ = 1e-6: the raw score decides between equal ones, and no score
    changes by more than δ.

    Args:
        kind: which map.
        n_bins: bins of the histogram.
        break_ties: keep the order of the raw scores where calibrated ones are equal.

    Attributes:
        maps_: the fitted maps by class.

    Source: Dave et al. 2021, Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details, and its code,
    which breaks ties by steps of at most 1e-16: too small to tell most float64 scores apart.
    """

    maps_: dict[int, _Map]

    def __init__(
        self,
        kind: Literal["histogram", "isotonic", "beta"] = "histogram",
        *,
        n_bins: int = 20,
        break_ties: bool = True,
    ) -> None:
        self.kind = kind
        self.n_bins = n_bins
        self.break_ties = break_ties

    def fit(self, scores: Any, labels: Any, is_true_positive: Any) -> Self:
        """Fit the maps.

        Args:
            scores: (N,) in [0, 1].
            labels: (N,) classes, integers from 0.
            is_true_positive: (N,) flags, or shares in [0, 1].

        Raises:
            ValueError: bad input, by name and row; no detections; an unknown kind; `n_bins` below 1.
        """
        n_bins = checks.whole("n_bins", self.n_bins, 1)
        fit = _choose(self.kind, {"histogram": _histogram(n_bins), "isotonic": _isotonic, "beta": _beta})
        score, label = _scores_and_labels(scores, labels)
        self.maps_ = _fit_maps(fit, score, label, _target(is_true_positive, score))
        return self

    def transform(self, scores: Any, labels: Any) -> np.ndarray:
        """(N,) float64 calibrated scores.

        Args:
            scores, labels: as `fit`.

        Raises:
            ValueError: bad input, by name and row.
        """
        check_is_fitted(self)
        score, label = _scores_and_labels(scores, labels)
        calibrated = _apply(self.maps_, score, label, unseen=np.zeros_like(score))
        return (1 - _TIE) * calibrated + _TIE * score if self.break_ties else calibrated


class _Map(Protocol):
    def predict(self, scores: np.ndarray, /) -> np.ndarray: ...


_Fit = Callable[[np.ndarray, np.ndarray], _Map]


@dataclass(frozen=True)
class _Bins:
    values: np.ndarray

    def predict(self, scores: np.ndarray) -> np.ndarray:
        return self.values[_bin_index(scores, len(self.values))]


@dataclass(frozen=True)
class _Line:
    slope: float
    intercept: float

    def predict(self, scores: np.ndarray) -> np.ndarray:
        return (self.slope * scores + self.intercept).clip(0, 1)


@dataclass(frozen=True)
class _Sigmoid:
    """σ(features · slopes + intercept)."""

    features: Callable[[np.ndarray], np.ndarray]
    slopes: np.ndarray
    intercept: float

    def predict(self, scores: np.ndarray) -> np.ndarray:
        return expit(self.features(scores) @ self.slopes + self.intercept)


def _isotonic(score: np.ndarray, target: np.ndarray) -> _Map:
    from sklearn.isotonic import IsotonicRegression

    # It averages the targets of equal scores, and weighs them by their number.
    return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(score, target)


def _linear(score: np.ndarray, target: np.ndarray) -> _Map:
    from sklearn.linear_model import LinearRegression

    line = LinearRegression(positive=True).fit(score[:, None], target)
    return _Line(float(line.coef_[0]), float(line.intercept_))


def _platt(score: np.ndarray, target: np.ndarray) -> _Map:
    return _logistic(_logit_feature, score, target, intercept=True)


def _temper(score: np.ndarray, target: np.ndarray) -> _Map:
    return _logistic(_logit_feature, score, target, intercept=False)


def _beta(score: np.ndarray, target: np.ndarray) -> _Map:
    return _logistic(_log_features, score, target, intercept=True)


def _histogram(n_bins: int) -> _Fit:
    def fit(score: np.ndarray, target: np.ndarray) -> _Map:
        index = _bin_index(score, n_bins)
        count = np.bincount(index, minlength=n_bins)
        total = np.bincount(index, weights=target, minlength=n_bins)
        return _Bins(np.divide(total, count, out=(np.arange(n_bins) + 0.5) / n_bins, where=count > 0))

    return fit


def _bin_index(score: np.ndarray, n_bins: int) -> np.ndarray:
    return np.searchsorted(np.arange(1, n_bins) / n_bins, score)


def _logit_feature(score: np.ndarray) -> np.ndarray:
    eps = np.finfo(np.float64).eps
    return logit(score.clip(eps, 1 - eps))[:, None]


def _log_features(score: np.ndarray) -> np.ndarray:
    score = score.clip(1e-12, 1 - 1e-12)
    return np.stack([np.log(score), -np.log1p(-score)], axis=1)


def _logistic(
    features: Callable[[np.ndarray], np.ndarray], score: np.ndarray, target: np.ndarray, *, intercept: bool
) -> _Map:
    """The cross-entropy's minimiser with slopes ≥ 0."""
    x = features(score)
    slopes = np.zeros(x.shape[1])
    if target.min() == target.max() and intercept:
        # Also where the target is 0 or 1 throughout, which no finite logit attains.
        return _Sigmoid(features, slopes, float(logit(target[0])))
    # The minimum with slopes ≥ 0 is the free one of some face: of the largest face whose free minimum is inside.
    for size in range(x.shape[1], 0, -1):
        inside = []
        for used in combinations(range(x.shape[1]), size):
            found, offset = _free_logistic(x[:, used], target, intercept)
            if (found >= 0).all():
                margin = x[:, used] @ found + offset
                inside.append((np.mean(np.logaddexp(0, margin) - target * margin), used, found, offset))
        if inside:
            _, used, slopes[list(used)], offset = min(inside, key=lambda face: face[0])
            return _Sigmoid(features, slopes, offset)
    return _Sigmoid(features, slopes, float(logit(target.mean())) if intercept else 0.0)


def _free_logistic(x: np.ndarray, target: np.ndarray, intercept: bool) -> tuple[np.ndarray, float]:
    from sklearn.linear_model import LogisticRegression

    # A target u is a positive of weight u and a negative of weight 1 - u.
    model = LogisticRegression(C=np.inf, solver="lbfgs", tol=1e-8, max_iter=1000, fit_intercept=intercept)
    y = np.repeat([1, 0], len(x))
    model.fit(np.concatenate((x, x)), y, sample_weight=np.concatenate((target, 1 - target)))
    return model.coef_[0], float(model.intercept_[0]) if intercept else 0.0


def _choose(kind: str, fits: dict[str, _Fit]) -> _Fit:
    check_choice("kind", kind, tuple(fits))
    return fits[kind]


def _fit_maps(fit: _Fit, score: np.ndarray, label: np.ndarray, target: np.ndarray) -> dict[int, _Map]:
    return {k: fit(score[rows], target[rows]) for k, rows in _by_class(label)}


def _apply(maps: dict[int, _Map], score: np.ndarray, label: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    calibrated = unseen.copy()
    for k, rows in _by_class(label):
        if k in maps:
            calibrated[rows] = maps[k].predict(score[rows])
    return calibrated


def _by_class(label: np.ndarray) -> list[tuple[int, np.ndarray]]:
    classes, start = np.unique(np.sort(label), return_index=True)
    return list(zip(classes.tolist(), np.split(np.argsort(label, kind="stable"), start[1:]), strict=True))


def _scores_and_labels(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    score: Tensor = as_unit_interval("scores", scores)
    label = as_labels("labels", labels, score, None, "scores")
    return score.double().cpu().numpy().clip(0, 1), label.cpu().numpy()


def _target(target: Any, score: np.ndarray) -> np.ndarray:
    like = as_unit_interval("scores", score)
    return as_unit_interval("target", target, like).double().cpu().numpy().clip(0, 1)
