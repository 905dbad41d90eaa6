"""Calibrators of one probability, applied to several classes.

**One versus rest** (`mode="one_vs_rest"`, and always for Platt and beta): with K = 2 the map is fitted to P_1, and P_0
is what is left. With K > 2 each class has a map of its own, fitted to P_k and 1[y = k]; the K results are divided by
their sum, and a row in which all are 0 becomes uniform. **Top label** (`mode="top_label"`): one map is fitted to the
confidence c = max_k P_k and to whether the prediction is right; 1 - c is then shared out among the other classes in the
proportions of P. Both may change the predicted class: scikit-learn's rule that `predict` is the largest probability
holds.

The logistic fits of Platt and beta maximise the mean log-likelihood less 1e-6/2 times the squared coefficients, which
are taken in units of 1/max |feature| where all features are below 1.

P is the softmax of the logits, and s_k = log P_k - log(1 - P_k) its log-odds; with two classes s_1 = z_1 - z_0.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax, logit, logsumexp, softmax

from lossbook import checks
from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import check_choice, read_fields, read_list, read_number, read_vector
from lossbook.calibrators._one_dimensional import (
    beta_features,
    bin_means,
    increasing_logistic,
    isotonic,
    logistic,
    uniform_edges,
)

MODES = ("one_vs_rest", "top_label")


class _Maps(Calibrator):
    """Fits and applies the maps of a column of log-odds each; a subclass knows one map."""

    mode = "one_vs_rest"
    maps_: list[Any]

    @abstractmethod
    def _fit_map(self, s: np.ndarray, hit: np.ndarray) -> Any:
        """The map fitted to log-odds s (N,) and outcomes hit (N,) of 0.0 and 1.0."""

    @abstractmethod
    def _apply_map(self, learned: Any, s: np.ndarray) -> np.ndarray:
        """(N,) probabilities."""

    @abstractmethod
    def _write_map(self, learned: Any) -> dict[str, Any]: ...

    @abstractmethod
    def _read_map(self, name: str, saved: object) -> Any: ...

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        s = _log_odds(z)
        if self.mode == "top_label":
            self.maps_ = [self._fit_map(s.max(axis=1), (z.argmax(axis=1) == y).astype(float))]
        else:
            columns = [1] if z.shape[1] == 2 else range(z.shape[1])
            self.maps_ = [self._fit_map(s[:, k], (y == k).astype(float)) for k in columns]

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        s = _log_odds(z)
        if self.mode == "top_label":
            return _spread(z, self._apply_map(self.maps_[0], s.max(axis=1)))
        if z.shape[1] == 2:
            p = self._apply_map(self.maps_[0], s[:, 1])
            return np.stack([1 - p, p], axis=1)
        p = np.stack([self._apply_map(learned, s[:, k]) for k, learned in enumerate(self.maps_)], axis=1)
        p[p.sum(axis=1) == 0] = 1
        return p / p.sum(axis=1, keepdims=True)

    def _state(self) -> dict[str, Any]:
        return {"maps": [self._write_map(learned) for learned in self.maps_]}

    def _set_state(self, state: Any, num_classes: int) -> None:
        count = 1 if self.mode == "top_label" or num_classes == 2 else num_classes
        maps = read_list("fitted.maps", read_fields("fitted", state, {"maps"})["maps"], count)
        self.maps_ = [self._read_map(f"fitted.maps[{i}]", saved) for i, saved in enumerate(maps)]


class PlattScaling(_Maps):
    """sigmoid(a s + c) of the log-odds s, per class: logistic regression on the score, with Platt's targets.

    The targets are (N₊ + 1)/(N₊ + 2) for the N₊ rows of the class and 1/(N₋ + 2) for the N₋ others, instead of 1 and 0.
    They keep a and c finite where the score separates the labels, and give a class without a row the constant
    1/(N + 2). A constant score gets a = 0. For several classes see this module's docstring.

    Attributes:
        maps_: the pairs (a, c), one for K = 2 and else K.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Platt 1999, Probabilistic outputs for support vector machines; Zadrozny and Elkan 2002 for several classes.
    """

    maps_: list[tuple[float, float]]

    def _fit_map(self, s: np.ndarray, hit: np.ndarray) -> tuple[float, float]:
        positives = hit.sum()
        negatives = len(hit) - positives
        target = np.where(hit == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
        (a,), c = logistic(s[:, None], target)
        return float(a), c

    def _apply_map(self, learned: tuple[float, float], s: np.ndarray) -> np.ndarray:
        a, c = learned
        return expit(a * s + c)

    def _write_map(self, learned: tuple[float, float]) -> dict[str, Any]:
        return dict(zip("ac", learned, strict=True))

    def _read_map(self, name: str, saved: object) -> tuple[float, float]:
        saved = read_fields(name, saved, {"a", "c"})
        return read_number(f"{name}.a", saved["a"]), read_number(f"{name}.c", saved["c"])


class BetaCalibration(_Maps):
    """sigmoid(a ln p - b ln(1-p) + c) with a, b ≥ 0, per class: what is right where p follows a beta law in each class.

    a = b = 1, c = 0 is the identity. p is clipped to [1e-12, 1 - 1e-12]. The fit is a logistic regression on
    (ln p, -ln(1-p)); where it makes a or b negative, the best fit with that one, or both, at 0 is taken, which is
    the maximum of the likelihood under a, b ≥ 0. The penalty of this module's docstring keeps them finite where p
    separates the labels. A class that no row has, or every row, gets the constant 1/(N + 2) or (N + 1)/(N + 2). For
    several classes see this module's docstring.

    Attributes:
        maps_: the triples (a, b, c), one for K = 2 and else K.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Kull, Silva Filho, Flach 2017, Beta calibration (AISTATS).
    """

    maps_: list[tuple[float, float, float]]

    def _fit_map(self, s: np.ndarray, hit: np.ndarray) -> tuple[float, float, float]:
        n = len(hit)
        if hit.min() == hit.max():
            return 0.0, 0.0, float(logit((hit.sum() + 1) / (n + 2)))
        (a, b), c = increasing_logistic(beta_features(s), hit)
        return float(a), float(b), c

    def _apply_map(self, learned: tuple[float, float, float], s: np.ndarray) -> np.ndarray:
        a, b, c = learned
        return expit(beta_features(s) @ np.array([a, b]) + c)

    def _write_map(self, learned: tuple[float, float, float]) -> dict[str, Any]:
        return dict(zip("abc", learned, strict=True))

    def _read_map(self, name: str, saved: object) -> tuple[float, float, float]:
        saved = read_fields(name, saved, {"a", "b", "c"})
        a, b = (read_number(f"{name}.{key}", saved[key], 0) for key in "ab")
        return a, b, read_number(f"{name}.c", saved["c"])


class IsotonicCalibration(_Maps):
    """The non-decreasing map of p that fits the labels best in squares, by scikit-learn's `IsotonicRegression`.

    Between its knots it is linear, beyond them constant. It needs no shape, but about a thousand rows. Its steps tie
    rows that p told apart, and at the ends it is often exactly 0 or 1: the log-loss on new data can then be infinite.
    A class without a row gets 0. For several classes see this module's docstring.

    Args:
        mode: "one_vs_rest" or "top_label".

    Attributes:
        maps_: pairs of arrays (x, y), the knots: one pair for K = 2 and for "top_label", and else K.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Zadrozny and Elkan 2002, Transforming classifier scores into accurate multiclass probability estimates.
    """

    maps_: list[tuple[np.ndarray, np.ndarray]]

    def __init__(self, mode: str = "one_vs_rest") -> None:
        self.mode = mode

    def _check_parameters(self) -> None:
        check_choice("mode", self.mode, MODES)

    def _fit_map(self, s: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = isotonic(expit(s), hit)
        return fitted.X_thresholds_, fitted.y_thresholds_

    def _apply_map(self, learned: tuple[np.ndarray, np.ndarray], s: np.ndarray) -> np.ndarray:
        return np.interp(expit(s), *learned)

    def _write_map(self, learned: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        return {"x": learned[0].tolist(), "y": learned[1].tolist()}

    def _read_map(self, name: str, saved: object) -> tuple[np.ndarray, np.ndarray]:
        saved = read_fields(name, saved, {"x", "y"})
        x = read_vector(f"{name}.x", saved["x"], None, 0, 1, ordered=True)
        return x, read_vector(f"{name}.y", saved["y"], len(x), 0, 1)


class HistogramBinning(_Maps):
    """The share of the class among the rows whose p falls into the same bin.

    Bins are (lo, hi], the first closed on the left. With "quantile" they hold equally many rows: their edges lie
    midway between neighbours of the sorted p, and equal p share a bin, so that where many are tied there are fewer
    bins. With "uniform" they have equal widths, and an empty one keeps its centre. A class without a row gets 0 in
    each bin that holds rows. For several classes see this module's docstring.

    Args:
        n_bins: ≥ 1.
        strategy: "quantile" or "uniform".
        mode: "one_vs_rest" or "top_label".

    Attributes:
        maps_: pairs of arrays (edges, values), the inner edges and one value more: one pair for K = 2 and for
            "top_label", and else K.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Zadrozny and Elkan 2001, Obtaining calibrated probability estimates from decision trees and naive Bayesian
    classifiers; Gupta and Ramdas 2022 (arXiv 2107.08353) for the top label.
    """

    maps_: list[tuple[np.ndarray, np.ndarray]]

    def __init__(self, n_bins: int = 15, strategy: str = "quantile", mode: str = "one_vs_rest") -> None:
        self.n_bins = n_bins
        self.strategy = strategy
        self.mode = mode

    def _check_parameters(self) -> None:
        checks.whole("n_bins", self.n_bins, 1)
        check_choice("strategy", self.strategy, ("quantile", "uniform"))
        check_choice("mode", self.mode, MODES)

    def _fit_map(self, s: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = expit(s)
        edges = uniform_edges(self.n_bins) if self.strategy == "uniform" else self._equal_mass(p)
        return edges, bin_means(edges, p, hit)

    def _equal_mass(self, p: np.ndarray) -> np.ndarray:
        ordered = np.sort(p)
        starts = np.cumsum([len(group) for group in np.array_split(ordered, min(self.n_bins, len(p)))])[:-1]
        edges = np.unique((ordered[starts - 1] + ordered[starts]) / 2)
        return edges[edges < ordered[-1]]  # an edge at the largest p would have nothing above it

    def _apply_map(self, learned: tuple[np.ndarray, np.ndarray], s: np.ndarray) -> np.ndarray:
        edges, values = learned
        return values[np.searchsorted(edges, expit(s))]

    def _write_map(self, learned: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        return {"edges": learned[0].tolist(), "values": learned[1].tolist()}

    def _read_map(self, name: str, saved: object) -> tuple[np.ndarray, np.ndarray]:
        saved = read_fields(name, saved, {"edges", "values"})
        values = read_vector(f"{name}.values", saved["values"], None, 0, 1)
        return read_vector(f"{name}.edges", saved["edges"], len(values) - 1, 0, 1, ordered=True), values


def _log_odds(z: np.ndarray) -> np.ndarray:
    """(N, K) log P - log(1 - P), exact also where P rounds to 1."""
    log_p = log_softmax(z, axis=1)
    top = log_p.argmax(axis=1)[:, None]
    # 1 - P loses its digits for the largest P of a row only: there it is summed from the others.
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_p))
    others = log_p.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    np.put_along_axis(log_rest, top, logsumexp(others, axis=1)[:, None], axis=1)
    return np.clip(log_p - log_rest, -1e300, 1e300)  # differences of the largest floats overflow


def _spread(z: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Probabilities with that confidence at the largest logit, and the rest in the proportions of the softmax."""
    top = z.argmax(axis=1)[:, None]
    others = z.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    p = softmax(others, axis=1) * (1 - confidence)[:, None]
    np.put_along_axis(p, top, confidence[:, None], axis=1)
    return p
