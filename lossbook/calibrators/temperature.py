"""Temperature scaling: one number repairs the confidence of a network and leaves its decisions alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from lossbook import metrics
from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import check_choice, check_logits, read_fields, read_number

_BOUND = 4.0  # on |log T|
OBJECTIVES = ("nll", "brier", "ece")
_REASONS = {
    -_BOUND: "the logits separate the labels, or are tiny or constant",
    _BOUND: "the logits are huge, or no guide to the labels",
}


class TemperatureScaling(Calibrator):
    """softmax(z/T), with T > 0 chosen to minimise a loss on held-out data, by default the negative log-likelihood.

    That is convex in β = 1/T, so there is one minimum. Fit finds it in float64 by L-BFGS with a strong Wolfe line
    search over β, within log T in [-4, 4]. There the labels' mean logit equals the expected one: Σ_i [z_{i,y_i} -
    Σ_k P_ik z_ik] = 0. Data that the logits separate perfectly has T → 0: the bound is taken, with a warning.
    Predicted classes are those of the logits, whatever T is.

    The Brier score and the ECE may have several minima. For them fit tries 81 values of log T in [-4, 4], and refines
    the best between its neighbours. The ECE jumps where a confidence crosses the edge of a bin, so that the T with the
    smallest is the luckiest as well as the best.

    Args:
        objective: "nll", "brier" (`lossbook.metrics.brier_score`), or "ece"
            (`lossbook.metrics.expected_calibration_error` with 15 bins).

    Attributes:
        temperature_: T.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks.
    """

    temperature_: float

    def __init__(self, objective: str = "nll") -> None:
        self.objective = objective

    def _check_parameters(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        if self.objective == "nll":
            self.temperature_ = _most_likely(torch.from_numpy(z), torch.from_numpy(y))
        else:
            measure = metrics.brier_score if self.objective == "brier" else metrics.expected_calibration_error
            self.temperature_ = _least(lambda temperature: measure(_scaled(z, temperature), y))

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        return _scaled(z, self.temperature_)

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


def _scaled(z: np.ndarray, temperature: float) -> np.ndarray:
    # The largest floats over a small T overflow, to the -inf whose softmax is 0.
    with np.errstate(over="ignore"):
        return softmax((z - z.max(axis=1, keepdims=True)) / temperature, axis=1)


def _least(loss: Callable[[float], float]) -> float:
    """The T in [e^-4, e^4] that a grid and a refinement between the neighbours of its best point find."""
    grid = np.linspace(-_BOUND, _BOUND, 81)
    best = int(np.argmin([loss(math.exp(u)) for u in grid]))
    if best in (0, len(grid) - 1):
        _warn_of_bound(grid[best])
        return math.exp(grid[best])
    refined = minimize_scalar(lambda u: loss(math.exp(u)), bounds=(grid[best - 1], grid[best + 1]), method="bounded")
    return min(math.exp(grid[best]), math.exp(refined.x), key=loss)


def _warn_of_bound(log_temperature: float) -> None:
    warnings.warn(
        "the loss has no minimum within the bounds on the temperature, which is set to "
        f"exp({log_temperature:g}): " + _REASONS[log_temperature],
        stacklevel=5,
    )


def _most_likely(z: Tensor, y: Tensor) -> float:
    """The minimiser of the negative log-likelihood over T in [e^-4, e^4]."""
    # Relative to the label's logit, so that the loss is log Σ_k exp(β (z_k - z_y)) and keeps its digits near 0.
    z = z - z.gather(1, y[:, None])

    def slope(beta: float | Tensor) -> Tensor:
        return (torch.softmax(beta * z, dim=1) * z).sum(dim=1).mean()

    # By convexity, the slope at an end tells whether the minimum lies beyond it.
    for log_temperature, sign in ((-_BOUND, 1), (_BOUND, -1)):
        if sign * slope(math.exp(-log_temperature)) <= 0:
            _warn_of_bound(log_temperature)
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
