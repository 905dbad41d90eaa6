"""Conformal calibration of prediction intervals: one shift gives them the coverage they promise."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from lossbook import checks
from lossbook.calibrators._inputs import to_numpy


class ConformalQuantile(BaseEstimator):
    """Intervals [l(x), u(x)] widened, or narrowed, by one number: [l(x) - Q, u(x) + Q].

        E_i = max( l(x_i) - y_i, y_i - u(x_i) )    for held-out rows i = 1..n
        Q = the k-th smallest E_i,    k = ceil((n + 1)(1 - α))

    The guarantee is exact and needs no assumption about l, u or the noise: if the n held-out rows and a new one are
    exchangeable, the new outcome lies in its interval with probability at least k/(n + 1) ≥ 1 - α, and with exactly
    k/(n + 1) ≤ 1 - α + 1/(n + 1) if no two E are equal. It is a statement about the average over held-out sets: of one
    set, the share of new outcomes covered is Beta(k, n + 1 - k) distributed. Nor does it hold at each x.

    With k > n, that is n < 1/α - 1, Q is infinite. Q is negative where the intervals were too wide; a narrow one may
    then end before it starts, which is an interval that holds nothing.

    Args:
        alpha: α in (0, 1), the share of outcomes that may lie outside.

    Attributes:
        correction_: Q, in the unit of y.
        coverage_: k/(n + 1), or 1 where Q is infinite.

    Source: Romano, Patterson, Candès 2019, Conformalized Quantile Regression (arXiv 1905.03222), theorem 1.
    """

    correction_: float
    coverage_: float

    def __init__(self, alpha: float = 0.1) -> None:
        self.alpha = alpha

    def fit(self, intervals: Any, y: Any) -> ConformalQuantile:
        """Choose Q.

        Args:
            intervals: (n, 2) array or tensor, the lower and upper end predicted for each row. Neither the rows nor
                their outcomes may have been used to fit the predictor.
            y: (n,) outcomes.

        Raises:
            ValueError: α outside (0, 1), wrong shape, no rows, NaN or infinity.
        """
        alpha = self._alpha()
        ends = _intervals(intervals)
        outcome = _numbers("y", y)
        if outcome.shape != (len(ends),):
            raise ValueError(f"y must have shape ({len(ends)},), an outcome a row, but has shape {outcome.shape}")
        _finite("y", outcome)
        n = len(ends)
        # (n + 1)(1 - α) is rounded: what is whole up to that is meant to be whole.
        k = max(1, math.ceil((n + 1) * (1 - alpha) - 1e-9))
        if k > n:
            warnings.warn(
                f"{n} rows cannot bound the error at alpha {alpha:g}: the intervals are infinite. It takes "
                f"{math.ceil(1 / alpha - 1 - 1e-9)} rows",
                stacklevel=2,
            )
            self.correction_, self.coverage_ = math.inf, 1.0
            return self
        scores = np.maximum(ends[:, 0] - outcome, outcome - ends[:, 1])
        self.correction_, self.coverage_ = float(np.partition(scores, k - 1)[k - 1]), k / (n + 1)
        return self

    def predict(self, intervals: Any) -> np.ndarray:
        """(N, 2) float64 intervals [l - Q, u + Q], rounded outward by a few units in the last place.

        Raises:
            ValueError: wrong shape, no rows, NaN or infinity.
        """
        check_is_fitted(self)
        ends, outward = _intervals(intervals), np.array([-1.0, 1.0])
        if math.isinf(self.correction_):
            return np.broadcast_to(self.correction_ * outward, ends.shape).copy()
        # u + (y - u) may round to less than y, and a row whose score equals Q would be missed.
        slack = 4 * np.spacing(np.maximum(np.abs(ends), abs(self.correction_)))
        return ends + outward * (self.correction_ + slack)

    def _alpha(self) -> float:
        alpha = self.alpha
        checks.parameter("alpha", alpha, 0, 1, open_low=True)
        if alpha >= 1:
            raise ValueError(f"alpha must lie strictly between 0 and 1, but is {alpha:g}")
        return float(alpha)


def _numbers(name: str, values: Any) -> np.ndarray:
    array = np.asarray(to_numpy(values))
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, but has dtype {array.dtype}")
    return array.astype(np.float64)


def _intervals(values: Any) -> np.ndarray:
    ends = _numbers("intervals", values)
    if ends.ndim != 2 or ends.shape[1] != 2 or not len(ends):
        raise ValueError(f"intervals must have shape (n, 2), lower and upper ends, not empty, but have {ends.shape}")
    _finite("intervals", ends)
    return ends


def _finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}[{', '.join(map(str, index))}] is {array[index]}, not a finite number")
