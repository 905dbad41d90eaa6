"""Softmax of an affine map of the logits: per class, of all logits, or of the log-probabilities.

The negative log-likelihood is convex in the map. A term of 1e-6/2 times the squared distance to the identity is added,
so that there is one minimum in every case: where the labels are separated, where a class has no row, where there are
fewer rows than parameters, and although a softmax does not notice a constant added to its arguments. A class without a
row gets a probability near 0. Fit runs Newton's method with conjugate gradients in a trust region, in float64, until
the gradient is below 1e-8 of the logits' size; where it stays above 1e-6, fit warns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

from lossbook import checks
from lossbook.calibrators._base import Calibrator
from lossbook.calibrators._inputs import read_fields, read_matrix, read_vector

_RIDGE = 1e-6


class VectorScaling(Calibrator):
    """softmax(w ∘ z + b), w and b in R^K chosen to minimise the negative log-likelihood of held-out data.

    At the minimum, up to the term of 1e-6 that this module's docstring explains, mean P_k is the frequency of class k
    and Σ_i (P_ik - 1[y_i = k]) z_ik = 0 for each k. Predicted classes may change. Unlike temperature scaling it reads
    the level of the logits: z and z + 1 are different data.

    Attributes:
        weight_: (K,) w.
        bias_: (K,) b; sums to 0.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Guo, Pleiss, Sun, Weinberger 2017, On Calibration of Modern Neural Networks.
    """

    weight_: np.ndarray
    bias_: np.ndarray

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        k = z.shape[1]
        size = _size(z)
        z = z / size
        theta = _minimise(
            lambda t: z * t[:k] + t[k:],
            lambda g: np.concatenate([(g * z).sum(axis=0), g.sum(axis=0)]),
            y,
            np.concatenate([np.ones(k), np.zeros(k)]),
            np.zeros(2 * k),
            np.concatenate([np.full(k, 1 / size), np.ones(k)]),
        )
        self.weight_, self.bias_ = theta[:k], theta[k:]

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        return softmax(z * self.weight_ + self.bias_, axis=1)

    def _state(self) -> dict[str, Any]:
        return {"weight": self.weight_.tolist(), "bias": self.bias_.tolist()}

    def _set_state(self, state: Any, num_classes: int) -> None:
        state = read_fields("fitted", state, {"weight", "bias"})
        self.weight_ = read_vector("fitted.weight", state["weight"], num_classes)
        self.bias_ = read_vector("fitted.bias", state["bias"], num_classes)


class MatrixScaling(Calibrator):
    """softmax(W z + b) with W in R^{K×K}, and the off-diagonal and the intercept regularised (ODIR).

        mean_i [-log P_{i,y_i}]  +  odir / (K (K-1)) Σ_{j≠k} W_jk²  +  intercept / K Σ_k b_k²

    and the term of 1e-6 that this module's docstring explains. W has K² entries: with odir = intercept = 0 it overfits
    unless N is many times that. Predicted classes may change.

    Args:
        odir: λ ≥ 0 on the mean square of the off-diagonal entries.
        intercept: μ ≥ 0 on the mean square of b. The paper chooses both by cross-validation, which scikit-learn's
            `GridSearchCV(…, scoring="neg_log_loss")` does.

    Attributes:
        weight_: (K, K) W.
        bias_: (K,) b.
        classes_: (K,) the labels 0 … K-1.
        n_features_in_: K.

    Source: Kull et al. 2019, Beyond temperature scaling (arXiv 1910.12656), section 4 for ODIR; Guo et al. 2017.
    """

    weight_: np.ndarray
    bias_: np.ndarray

    def __init__(self, odir: float = 10.0, intercept: float = 1.0) -> None:
        self.odir = odir
        self.intercept = intercept

    def _check_parameters(self) -> None:
        checks.parameter("odir", self.odir, 0)
        checks.parameter("intercept", self.intercept, 0)

    def _features(self, z: np.ndarray) -> np.ndarray:
        return z

    def _fit(self, z: np.ndarray, y: np.ndarray) -> None:
        z = self._features(z)
        k = z.shape[1]
        size = _size(z)
        z = z / size
        # The factor 2 turns λ times a square into half of 2 λ times it.
        off_diagonal = 2 * self.odir / (k * (k - 1)) * (1 - np.eye(k))
        theta = _minimise(
            lambda t: z @ t[: k * k].reshape(k, k).T + t[k * k :],
            lambda g: np.concatenate([(g.T @ z).ravel(), g.sum(axis=0)]),
            y,
            np.concatenate([np.eye(k).ravel(), np.zeros(k)]),
            np.concatenate([off_diagonal.ravel(), np.full(k, 2 * self.intercept / k)]),
            np.concatenate([np.full(k * k, 1 / size), np.ones(k)]),
        )
        self.weight_, self.bias_ = theta[: k * k].reshape(k, k), theta[k * k :]

    def _probabilities(self, z: np.ndarray) -> np.ndarray:
        return softmax(self._features(z) @ self.weight_.T + self.bias_, axis=1)

    def _state(self) -> dict[str, Any]:
        return {"weight": self.weight_.tolist(), "bias": self.bias_.tolist()}

    def _set_state(self, state: Any, num_classes: int) -> None:
        state = read_fields("fitted", state, {"weight", "bias"})
        self.weight_ = read_matrix("fitted.weight", state["weight"], num_classes, num_classes)
        self.bias_ = read_vector("fitted.bias", state["bias"], num_classes)


class DirichletCalibration(MatrixScaling):
    """softmax(W log P + b) with P = softmax(z): the posterior where the P of each class follow a Dirichlet law.

    It is `MatrixScaling` on the log-probabilities, with the same objective, arguments and attributes. What logits z
    hold beyond P, their level, it cannot see.

    Source: Kull et al. 2019, Beyond temperature scaling (arXiv 1910.12656), the linear parametrisation.
    """

    def _features(self, z: np.ndarray) -> np.ndarray:
        # Differences of the largest floats overflow.
        return np.maximum(log_softmax(z, axis=1), -1e300)


def _size(x: np.ndarray) -> float:
    return max(float(np.abs(x).max()), 1e-3)  # below it, the ridge holds the map at the identity


def _minimise(
    forward: Callable[[np.ndarray], np.ndarray],
    adjoint: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    identity: np.ndarray,
    penalty: np.ndarray,
    unit: np.ndarray,
) -> np.ndarray:
    """The θ that minimises mean NLL of softmax(forward(θ / unit)) + Σ penalty θ²/2 + _RIDGE |θ - identity|²/2.

    forward is linear and gives (N, K) arguments; adjoint is its transpose. The solver works on t = θ / unit, so that
    logits of any size are the same problem to it.
    """
    n = len(y)
    rows = np.arange(n)
    curve = (penalty + _RIDGE) * unit**2
    pull = _RIDGE * identity * unit

    def loss(t: np.ndarray) -> tuple[float, np.ndarray]:
        u = forward(t)
        g = softmax(u, axis=1)
        g[rows, y] -= 1
        value = (logsumexp(u, axis=1) - u[rows, y]).mean() + (curve * t / 2 - pull) @ t
        return value, adjoint(g) / n + curve * t - pull

    at: tuple[np.ndarray, np.ndarray] | None = None  # the last t of the curvature and its probabilities

    def curvature(t: np.ndarray, step: np.ndarray) -> np.ndarray:
        nonlocal at
        if at is None or not np.array_equal(at[0], t):
            at = t.copy(), softmax(forward(t), axis=1)
        p, du = at[1], forward(step)
        return adjoint(p * (du - (p * du).sum(axis=1, keepdims=True))) / n + curve * step

    # The identity, but with arguments of at most 10: further out a softmax is flat.
    start = np.minimum(identity / unit, 10 * identity)
    result = minimize(
        loss,
        start,
        jac=True,
        hessp=curvature,
        method="trust-ncg",
        options={"gtol": 1e-8, "maxiter": 1000, "max_trust_radius": 1e6},
    )
    if not np.abs(result.jac).max() < 1e-6:
        warnings.warn(
            f"the fit has not converged: the largest entry of its gradient is {np.abs(result.jac).max():.1e}",
            stacklevel=4,
        )
    return result.x * unit
