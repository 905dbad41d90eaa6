"""Temperature scaling: one number repairs the confidence of a network and leaves its decisions alone."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import check_logits, read_fields, read_number

_BOUND = 4.0  # on |log T|
_REASONS = {
    -_BOUND: "the logits separate the labels, or are tiny or constant",
    _BOUND: "the logits are huge, or no guide to the labels",
}


class TemperatureScaling(Calibrator):
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

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        self.temperature_ = _best_temperature(torch.from_numpy(z), torch.from_numpy(y))

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        return softmax(z / self.temperature_, axis=1)

    def predict(self, logits: Any) -> np.ndarray:
        """(N,) the label of the largest logit. Raises as `predict_proba`."""
        check_is_fitted(self)
        # Not of the largest probability: two logits that differ can have probabilities that round to the same.
        return self.classes_[check_logits(self, logits, reset=False).argmax(axis=1)]

    def _state(self) -> dict[str, Any]:
        return {"temperature": self.temperature_}

    def _set_state(self, state: Any, num_classes: int) -> None:
        state = read_fields("fitted", state, {"temperature"})
        self.temperature_ = read_number("fitted.temperature", state["temperature"], math.exp(-_BOUND), math.exp(_BOUND))


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
                stacklevel=4,
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
