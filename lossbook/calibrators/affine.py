"""Softmax of an affine map of the logits: per class, of all logits, or of the log-probabilities.

The negative log-likelihood is convex in the map. A term of 1e-6/2 times the squared distance to the identity is added,
so that there is one minimum in every case: where the labels are separated, where a class has no row, where there are
fewer rows than parameters, and although a softmax does not notice a constant added to its arguments. A class without a
row gets a probability near 0. Fit runs Newton's method with conjugate gradients in a trust region, in float64, until
the gradient in units of the logits' size is shorter than 1e-8, for a matrix in whitened logits than 3e-7. There the
objective is within about 1e-12 of its minimum. Where an entry of the gradient stays above 1e-5, fit warns. A matrix
of 100 classes and 5,000 rows takes some seconds, and without penalty a minute.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import cholesky, solve_triangular
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
        theta = _minimise(
            lambda theta: z * theta[:, 0] + theta[:, 1],
            lambda g: np.stack([(g * z).sum(axis=0), g.sum(axis=0)], axis=1),
            y,
            np.eye(2)[np.zeros(z.shape[1], dtype=int)],
            np.zeros((z.shape[1], 2)),
            np.diag([1 / _size(z), 1.0]),
            tolerance=1e-8,
        )
        self.weight_, self.bias_ = theta.T.copy()

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
        x = np.concatenate([z, np.ones((len(z), 1))], axis=1)
        # The factor 2 turns λ times a square into half of 2 λ times it.
        off_diagonal = 2 * self.odir / (k * (k - 1)) * (1 - np.eye(k))
        penalty = np.concatenate([off_diagonal, np.full((k, 1), 2 * self.intercept / k)], axis=1)
        theta = _minimise(
            lambda theta: x @ theta.T,
            lambda g: g.T @ x,
            y,
            np.eye(k, k + 1),
            penalty,
            _whitening(x),
            tolerance=3e-7,
        )
        self.weight_, self.bias_ = theta[:, :k].copy(), theta[:, k].copy()

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


def _minimise(
    forward: Callable[[np.ndarray], np.ndarray],
    adjoint: Callable[[np.ndarray], np.ndarray],
    y: np.ndarray,
    identity: np.ndarray,
    penalty: np.ndarray,
    basis: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """The Θ (K, d) that minimises mean NLL of softmax(forward(Θ)) + Σ penalty Θ²/2 + _RIDGE |Θ - identity|²/2.

    forward is linear and gives (N, K) arguments; adjoint is its transpose. The solver works on t = Θ basis⁻¹.
    """
    n, (k, d) = len(y), identity.shape
    rows = np.arange(n)
    curve, pull = penalty + _RIDGE, _RIDGE * identity

    def loss(t: np.ndarray) -> tuple[float, np.ndarray]:
        theta = t.reshape(k, d) @ basis
        u = forward(theta)
        value = (logsumexp(u, axis=1) - u[rows, y]).mean() + ((curve * theta / 2 - pull) * theta).sum()
        g = softmax(u, axis=1)
        g[rows, y] -= 1
        return value, ((adjoint(g) / n + curve * theta - pull) @ basis.T).ravel()

    at: tuple[np.ndarray, np.ndarray] | None = None  # the last t of the curvature and its probabilities

    def curvature(t: np.ndarray, step: np.ndarray) -> np.ndarray:
        nonlocal at
        if at is None or not np.array_equal(at[0], t):
            at = t.copy(), softmax(forward(t.reshape(k, d) @ basis), axis=1)
        p, move = at[1], step.reshape(k, d) @ basis
        du = forward(move)
        return ((adjoint(p * (du - (p * du).sum(axis=1, keepdims=True))) / n + curve * move) @ basis.T).ravel()

    # The identity, but with arguments of at most 10: further out a softmax is flat.
    start = min(1, 10 / float(np.abs(forward(identity)).max() or 1)) * identity
    result = minimize(
        loss,
        solve_triangular(basis, start.T, trans="T", lower=True).T.ravel(),
        jac=True,
        hessp=curvature,
        method="trust-ncg",
        options={"gtol": tolerance, "maxiter": 1000, "max_trust_radius": 1e6},
    )
    if not np.abs(result.jac).max() < 1e-5:
        warnings.warn(
            f"the fit has not converged: the largest entry of its gradient is {np.abs(result.jac).max():.1e}",
            stacklevel=4,
        )
    return result.x.reshape(k, d) @ basis


def _size(x: np.ndarray) -> float:
    return max(float(np.abs(x).max()), 1e-3)  # below it, the ridge holds the map at the identity


def _whitening(features: np.ndarray) -> np.ndarray:
    """(d, d) lower triangular B with B F'F B' / N = I, nearly.

    In t = Θ B⁻¹ the curvature is about the same in all directions, and logits of any size are the same problem.
    """
    size = np.array([_size(column) for column in features.T])
    scaled = features / size
    # 1e-8 where columns depend on each other, as log-probabilities nearly do.
    moment = scaled.T @ scaled / len(scaled) + 1e-8 * np.eye(len(size))
    return solve_triangular(cholesky(moment, lower=True), np.diag(1 / size), lower=True)
