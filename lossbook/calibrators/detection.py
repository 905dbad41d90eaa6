"""Calibration of a detector's scores, class by class: a map g_k from score to what the score should have been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from scipy.special import expit, logit
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from lossbook import checks
from lossbook.calibrators._inputs import check_choice
from lossbook.calibrators._one_dimensional import (
    beta_features,
    bin_means,
    increasing_logistic,
    isotonic,
    uniform_edges,
)
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

    The last two minimise the mean cross-entropy + 1e-6 a²/2, which keeps a finite where the score separates the
    targets. Classes that were not there to fit keep their scores.

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
        temperature = _sigmoid(_log_odds, intercept=False)
        fits = {"isotonic": isotonic, "linear": _linear, "platt": _sigmoid(_log_odds), "temperature": temperature}
        fit = _choose(self.kind, fits)
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
    - "beta": σ(a ln s - b ln(1-s) + c) with a, b ≥ 0 (Kull et al. 2017), which minimises the mean cross-entropy
      + 1e-6 (a² + b²)/2.

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
        fit = _choose(self.kind, {"histogram": _histogram(n_bins), "isotonic": isotonic, "beta": _sigmoid(_beta_of)})
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
    edges: np.ndarray
    values: np.ndarray

    def predict(self, scores: np.ndarray) -> np.ndarray:
        return self.values[np.searchsorted(self.edges, scores)]


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


def _linear(score: np.ndarray, target: np.ndarray) -> _Map:
    from sklearn.linear_model import LinearRegression

    line = LinearRegression(positive=True).fit(score[:, None], target)
    return _Line(float(line.coef_[0]), float(line.intercept_))


def _sigmoid(features: Callable[[np.ndarray], np.ndarray], *, intercept: bool = True) -> _Fit:
    def fit(score: np.ndarray, target: np.ndarray) -> _Map:
        return _Sigmoid(features, *increasing_logistic(features(score), target, intercept=intercept))

    return fit


def _histogram(n_bins: int) -> _Fit:
    edges = uniform_edges(n_bins)
    return lambda score, target: _Bins(edges, bin_means(edges, score, target))


def _log_odds(score: np.ndarray) -> np.ndarray:
    eps = np.finfo(np.float64).eps
    return logit(score.clip(eps, 1 - eps))[:, None]


def _beta_of(score: np.ndarray) -> np.ndarray:
    return beta_features(logit(score))


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
