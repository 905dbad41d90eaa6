"""How many steps a perceptron needs at most."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from lossbook import checks


class PerceptronBound(NamedTuple):
    """radius R, margin μ, and steps = R²/μ², infinite where μ = 0."""

    radius: float
    margin: float
    steps: float


def perceptron_bound(Z: Tensor) -> PerceptronBound:
    """Novikoff's bound R²/μ² on the steps of a perceptron, and the two lengths in it.

        R = max_i |z_i|,    μ = max_{|u| = 1} min_i u·z_i

    It holds for every method whose step adds an average of rows that are on the wrong side: for the perceptron, and for
    `lossbook.train.logistic_gd(..., normalize=True)` as γ → ∞. `batch_perceptron` shortens such a step to the share of
    wrong rows, which is at least 1/n: at most n R²/μ² steps. The first step from 0, on the boundary of every row,
    counts as one.

    μ = 1/|x| for the shortest x with Z x >= 1 (the hard-margin support vector machine without bias), which is a
    non-negative least squares problem, solved to rounding. Where there is none, μ = 0 and the bound is infinite.

    Args:
        Z: (n, d) samples times their labels of +-1.

    Raises:
        ValueError, TypeError: Z is no such tensor, or not finite.

    Source: Novikoff 1962; for the margin, Lawson, Hanson 1974, Solving Least Squares Problems, section 23.4.
    """
    from scipy.optimize import nnls

    if not isinstance(Z, Tensor):
        raise TypeError(f"Z must be a torch.Tensor, but is {type(Z).__name__}")
    if Z.dim() != 2 or 0 in Z.shape or not Z.is_floating_point():
        raise ValueError(f"Z must be floating point of shape (n, d), but is {Z.dtype} of shape {tuple(Z.shape)}")
    checks.finite("Z", Z)
    rows = Z.detach().double().cpu().numpy()
    radius = float(np.linalg.norm(rows, axis=1).max())
    if radius == 0:
        return PerceptronBound(0.0, 0.0, math.inf)
    # In units of R, so that rounding is judged on one scale.
    system = np.vstack([rows.T / radius, np.ones(len(rows))])
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    multipliers, _ = nnls(system, goal)
    residual = goal - system @ multipliers
    # residual = (-x, 1) t with t = 1 / (1 + |x|²), so μ²/R² = t / (1 - t); zero where the rows surround the origin.
    t = float(residual[-1])
    if t < 1e-12:
        return PerceptronBound(radius, 0.0, math.inf)
    ratio = t / (1 - t)
    return PerceptronBound(radius, radius * math.sqrt(ratio), 1 / ratio)
