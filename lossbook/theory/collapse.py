"""Where training ends when the features are free: minimisers of the unconstrained feature model, in closed form.

Features H (d, N), N = Σ_k n_k, are variables like the weights, with d and all widths at least K. The objective is a
data term plus Σ_j λ_j/2 |W_j|_F² + λ_H/2 |H|_F². At its minimum the features of a class coincide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq


def mse_singular_values(
    counts: Sequence[int], *, depth: int = 1, weight_decay: float | Sequence[float], feature_decay: float
) -> np.ndarray:
    """Singular values of the first layer W_1 (the one next to H) at the minimum of the squared error without bias.

    Data term (1/2N) |W_M ⋯ W_1 H - Y|_F² with one-hot Y (K, N). With b = M N (N λ_H Π_j λ_j)^{1/M} and r_k = b/n_k,
    class k adds (1/2N) [n_k/(x^M + 1) + b x] to the loss. Its minimiser x_k is 0 if r_k ≥ (M-1)^{(M-1)/M}/M: a class
    too small for the decay vanishes altogether (minority collapse; M = 1: n_k ≤ N² λ_1 λ_H). Else x_k is the largest
    root of M x^{M-1}/(x^M + 1)² = r_k, for M = 1 √(n_k/b) - 1. Then

        s_k = √( x_k (N λ_H/c)^{1/M} ),   c = λ_1^{M-1} / Π_{j≥2} λ_j,

    and the product W_M ⋯ W_1 has the singular values √c s_k^M.

    Args:
        counts: K class sizes n_k ≥ 1, equal or not.
        depth: M ≥ 1 linear layers.
        weight_decay: λ_j > 0, one number for all layers or M numbers, λ_1 first.
        feature_decay: λ_H > 0; the penalty sums over samples.

    Returns:
        (K,) s_k in the order of the classes.

    Raises:
        ValueError: counts, depth or decays out of range.

    Source: Dang et al. 2023, Neural Collapse in Deep Linear Networks; the threshold follows from the per-class loss.
    """
    sizes = np.asarray(counts, dtype=np.float64)
    if sizes.ndim != 1 or sizes.size == 0 or not (np.isfinite(sizes) & (sizes >= 1)).all():
        raise ValueError(f"counts must be class sizes of at least 1, but are {sizes.tolist()}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, but is {depth}")
    decays = np.asarray(weight_decay, dtype=np.float64)
    if decays.ndim == 0:
        decays = np.full(depth, decays)
    if decays.shape != (depth,):
        raise ValueError(f"weight_decay must be one number or {depth}, one a layer, but is {weight_decay}")
    for value in decays:
        _positive("weight_decay", float(value))
    _positive("feature_decay", feature_decay)
    n = sizes.sum()
    b = depth * n * (n * feature_decay * decays.prod()) ** (1 / depth)
    c = decays[0] ** (depth - 1) / decays[1:].prod()
    x = np.array([_largest_root(b / size, depth) for size in sizes])
    return np.sqrt(x * (n * feature_decay / c) ** (1 / depth))


@dataclass(frozen=True)
class CESolution:
    """The minimum of the cross-entropy, see `ce_minimizer`."""

    tau: float  #: the class-mean logits are τ (I - J/K)
    loss: float  #: value of the whole objective, in nats
    true_probability: float  #: softmax probability of the true class
    weight_singular_values: np.ndarray  #: (K,) of W, the last one 0
    mean_singular_values: np.ndarray  #: (K,) of the matrix of class means, the last one 0


def ce_minimizer(num_classes: int, per_class: int, *, weight_decay: float, feature_decay: float) -> CESolution:
    """The minimum of (1/N) Σ_i CE(W h_i, y_i) + λ_W/2 |W|_F² + λ_H/2 |H|_F² for balanced classes and one layer.

    With κ = √(n λ_W λ_H) the class-mean logits are τ (I - J/K), τ = log(1/κ - (K-1)), and the loss is
    log(1 + (K-1) e^{-τ}) + (K-1) κ τ. Every wrong class keeps the probability κ, the true one 1 - (K-1) κ: weight decay
    alone fixes the confidence. For κ ≥ 1/K everything is 0. Non-zero singular values: √(τ √(n λ_H/λ_W)) of W,
    √(τ √(λ_W/(n λ_H))) of the class means. An unpenalised bias changes nothing.

    Derivation: over all W, M with WM = Z, λ_W/2 |W|² + n λ_H/2 |M|² is at least √(n λ_W λ_H) times the nuclear norm
    of Z.

    Args:
        num_classes: K ≥ 2.
        per_class: n ≥ 1 samples of each class.
        weight_decay, feature_decay: λ_W, λ_H > 0; the feature penalty sums over samples.

    Raises:
        ValueError: an argument out of range.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but is {num_classes}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, but is {per_class}")
    _positive("weight_decay", weight_decay)
    _positive("feature_decay", feature_decay)
    wrong = num_classes - 1
    kappa = math.sqrt(per_class * weight_decay * feature_decay)
    tau = math.log(1 / kappa - wrong) if kappa * num_classes < 1 else 0.0
    ratio = math.sqrt(per_class * feature_decay / weight_decay)
    shape = np.append(np.ones(wrong), 0.0)
    return CESolution(
        tau=tau,
        loss=math.log1p(wrong * math.exp(-tau)) + wrong * kappa * tau,
        true_probability=1 / (1 + wrong * math.exp(-tau)),
        weight_singular_values=shape * math.sqrt(tau * ratio),
        mean_singular_values=shape * math.sqrt(tau / ratio),
    )


def _largest_root(r: float, depth: int) -> float:
    """The x ≥ 0 that minimises 1/(x^M + 1) + r x."""
    if r >= (depth - 1) ** ((depth - 1) / depth) / depth:
        return 0.0
    # From `low` on the left side falls, from its threshold value to 0; at `high` it is below r.
    low, high = (depth - 1) ** (1 / depth), (depth / r) ** (1 / (depth + 1))
    return float(
        brentq(lambda x: depth * x ** (depth - 1) / (x**depth + 1) ** 2 - r, low, high, xtol=1e-14, rtol=1e-14)
    )


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be above 0, but is {value}")
