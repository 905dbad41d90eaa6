"""Temperature scaling: one number repairs the confidence of a network and leaves its decisions alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

_BOUND = 4.0  # on |log T|
_REASONS = {
    -_BOUND: "the logits separate the labels, or are tiny or constant",
    _BOUND: "the logits are huge, or no guide to the labels",
}


class TemperatureScaling(ClassifierMixin, BaseEstimator):
    """softmax(z/T), with T > 0 chosen to minimise the negative log-likelihood of held-out data.

    The objective is convex in β = 1/T, so there is one minimum. Fit finds it in float64 by L-BFGS with a strong
    Wolfe line search over β, within log T in [-4, 4]. There the labels' mean logit equals the expected one: Σ_i
    [z_{i,y_i} - Σ_k P_ik z_ik] = 0. Data that the logits separate perfectly has T → 0: the bound is taken, with a
    warning. Predicted classes are those of the logits, whatever T is.

    Attributes:
        temperature_: T.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks.
    """

    temperature_: float
    classes_: np.ndarray

    def fit(self, logits: Any, y: Any) -> TemperatureScaling:
        """Choose the temperature.

        Args:
            logits: (N, K) array or tensor of finite numbers, K ≥ 2. Use data that the network was not trained on.
            y: (N,) integer labels in [0, K), of at least two classes.

        Raises:
            ValueError: wrong shape, NaN or infinity, a label out of range, a single class.
        """
        z = self._logits(logits, reset=True)
        labels = _labels(y, *z.shape)
        self.classes_ = np.arange(z.shape[1])
        self.temperature_ = _best_temperature(torch.from_numpy(z), torch.from_numpy(labels))
        return self

    def predict_proba(self, logits: Any) -> np.ndarray:
        """(N, K) float64 probabilities softmax(z/T).

        Raises:
            ValueError: wrong shape, another number of columns than fitted, NaN or infinity.
        """
        check_is_fitted(self)
        return softmax(self._logits(logits, reset=False) / self.temperature_, axis=1)

    def predict(self, logits: Any) -> np.ndarray:
        """(N,) the label of the largest logit. Raises as `predict_proba`."""
        check_is_fitted(self)
        return self.classes_[self._logits(logits, reset=False).argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # It takes the decisions of the logits; on features that are no logits it classifies poorly.
        tags.classifier_tags.poor_score = True
        return tags

    def _logits(self, logits: Any, *, reset: bool) -> np.ndarray:
        z = validate_data(
            self,
            _numpy(logits),
            reset=reset,
            dtype=np.float64,
            order="C",
            ensure_all_finite=False,
            ensure_min_features=2 if reset else 1,
        )
        if not np.isfinite(z).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(z))[0])
            value = "NaN" if np.isnan(z[row, column]) else z[row, column]
            raise ValueError(f"logits[{row}, {column}] is {value}, not a finite number")
        return z


def _numpy(values: Any) -> Any:
    # NumPy has no bfloat16; float64 is what fit and predict compute in anyway.
    return values.detach().cpu().to(torch.float64).numpy() if isinstance(values, Tensor) else values


def _labels(y: Any, n: int, num_classes: int) -> np.ndarray:
    """int64 labels (n,), checked; whole numbers of any numeric type are labels."""
    if y is None:
        raise ValueError("fit requires y to be passed, but the target y is None")
    labels = column_or_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else y, warn=True)
    check_classification_targets(labels)
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"y must hold integer labels, but has dtype {labels.dtype}")
    if len(labels) != n:
        raise ValueError(f"y has {len(labels)} labels, but logits have {n} rows")
    bad = (labels < 0) | (labels >= num_classes)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"y[{row}] is label {labels[row]}, but logits have {num_classes} classes")
    labels = labels.astype(np.int64)
    if (labels == labels[0]).all():
        raise ValueError(f"y holds one class only, label {labels[0]}: a temperature needs at least two classes")
    return labels


def _best_temperature(z: Tensor, y: Tensor) -> float:
    """The minimiser over T in [e^-4, e^4]."""
    # Relative to the label's logit, so that the loss is log Σ_k exp(β (z_k - z_y)) and keeps its digits near 0.
    z = z - z.gather(1, y[:, None])

    def slope(beta: float | Tensor) -> Tensor:
        return (torch.softmax(beta * z, dim=1) * z).sum(dim=1).mean()

    # By convexity, the slope at an end tells whether the minimum lies beyond it.
    for log_temperature, sign in ((-_BOUND, 1), (_BOUND, -1)):
        if sign * slope(math.exp(-log_temperature)) <= 0:
            warnings.warn(
                "the likelihood has no maximum within the bounds on the temperature, which is set to "
                f"exp({log_temperature:g}): " + _REASONS[log_temperature],
                stacklevel=3,
            )
            return math.exp(log_temperature)
    beta = torch.ones((), dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        [beta], max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        # The slope is known, and needs no autograd: fit works under `torch.no_grad` too.
        beta.grad = slope(beta)
        return torch.logsumexp(beta * z, dim=1).mean()

    optimizer.step(closure)
    return 1 / float(beta)
