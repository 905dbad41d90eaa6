"""Where training ends when the features are free: minimisers of the unconstrained feature model, in closed form.

Features H (d, N), N = Σ_k n_k, are variables like the weights, with d and all widths at least K. The objective is a
data term plus Σ_j λ_j/2 |W_j|_F² + λ_H/2 |H|_F². At its minimum the features of a class coincide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from lossbook import checks
from lossbook.theory.etf import orthogonal_frame


@dataclass(frozen=True)
class CollapseSolution:
    """The minimum of the squared error, see `mse_minimizer`. Where every class has a direction of its own (no bias),
    a value a direction is one a class, in the order of the classes; with a bias directions are sorted, the last is 0.
    """

    x: np.ndarray  #: (K,) what fixes all else, for each direction; 0 where it has vanished
    layer_singular_values: np.ndarray  #: (M, K) of W_1, …, W_M, for each direction
    product_singular_values: np.ndarray  #: (K,) of W_M ⋯ W_1, for each direction
    mean_norms: np.ndarray  #: (K,) |μ_k| of each class
    own_logits: np.ndarray  #: (K,) the logit of the own class for each class, bias included
    loss: float  #: value of the whole objective


def mse_minimizer(
    counts: Sequence[int],
    *,
    weight_decay: float | Sequence[float],
    feature_decay: float,
    depth: int = 1,
    bias: bool = False,
) -> CollapseSolution:
    """The minimum of (1/2N) |W_M ⋯ W_1 H + b 1ᵀ - Y|_F² + Σ_j λ_j/2 |W_j|_F² + λ_H/2 |H|_F² with one-hot Y (K, N).

    **Without bias** each class has a direction of its own. With β = M N (N λ_H Π_j λ_j)^{1/M} and r_k = β/n_k, class k
    adds (1/2N) [n_k/(x^M + 1) + β x] to the loss, at the x_k ≥ 0 that minimises it: 0 if r_k ≥ t_M, where
    t_M = (M-1)^{(M-1)/M}/M (`collapse_threshold`), else the *largest* root of M x^{M-1}/(x^M + 1)² = r_k, for M = 1
    √(n_k/β) - 1. Then

        λ_j s_{j,k}² = x_k (N λ_H Π λ)^{1/M} in every layer,   ω_k = Π_j s_{j,k} = √(N λ_H x_k^M),
        |μ_k| = ω_k/(ω_k² + N λ_H),   own logit x_k^M/(x_k^M + 1), 0 for the other classes.

    The means are orthogonal, row k of the product is (ω_k² + N λ_H) μ_k, and a larger class has a longer row and, far
    from the threshold, a shorter mean. For M ≥ 2 x_k = 0 is a local minimum besides, for classes of any size: training
    can end there, with classes missing that are larger than the threshold.

    **With a bias**, which is not penalised, b = n/N and the rest solves the same problem for Y less its mean column.
    The n_k are replaced by the eigenvalues of diag(n) - n nᵀ/N, of which one is 0; its eigenvectors are the
    directions. Balanced classes: n with multiplicity K - 1, b = 1/K, the product and the means are simplex ETFs.

    Args:
        counts: K class sizes n_k ≥ 1, equal or not; with a bias K ≥ 2.
        weight_decay: λ_j > 0, one number for all layers or M numbers, λ_1 first.
        feature_decay: λ_H > 0; the penalty sums over samples.
        depth: M ≥ 1 linear layers, all at least K wide.
        bias: whether the last layer has one.

    Raises:
        ValueError: counts, depth or decays out of range.

    Source: Dang et al. 2023, Neural Collapse in Deep Linear Networks, for balanced classes and for bias-free unequal
    ones. The threshold (the authors' code takes the largest root even where 0 is lower) and unequal classes with a bias
    are derived here.
    """
    sizes, decays = _check_counts(counts, least=1 + bias), _check_decays(weight_decay, feature_decay, depth)
    n = sizes.sum()
    unit = (n * feature_decay * decays.prod()) ** (1 / depth)
    strength, basis, targets = _directions(sizes, bias)
    x = np.array([_largest_root(depth * n * unit / k, depth) if k > 0 else 0.0 for k in strength])
    omega = np.sqrt(n * feature_decay * x**depth)
    means = (omega / (omega**2 + n * feature_decay))[:, None] * (basis.T @ targets)
    logits = basis @ (omega[:, None] * means)
    return CollapseSolution(
        x=x,
        layer_singular_values=np.sqrt(x * unit / decays[:, None]),
        product_singular_values=omega,
        mean_norms=np.linalg.norm(means, axis=0),
        own_logits=np.diag(logits) + (sizes / n if bias else 0.0),
        loss=float((strength / (x**depth + 1) + depth * n * unit * x).sum() / (2 * n)),
    )


def mse_singular_values(
    counts: Sequence[int], *, depth: int = 1, weight_decay: float | Sequence[float], feature_decay: float
) -> np.ndarray:
    """Singular values (K,) of the first layer W_1 (the one next to H) at the minimum of the squared error without bias,
    in the order of the classes: `mse_minimizer(...).layer_singular_values[0]`. Arguments and errors as there.
    """
    solution = mse_minimizer(counts, weight_decay=weight_decay, feature_decay=feature_decay, depth=depth)
    return solution.layer_singular_values[0]


def collapse_threshold(
    num_samples: int, *, weight_decay: float | Sequence[float], feature_decay: float, depth: int = 1
) -> float:
    """The class size at and below which a class vanishes (minority collapse) at the minimum of the squared error
    without bias: w_k = μ_k = 0 if n_k is no larger than

        M N (N λ_H Π_j λ_j)^{1/M} / t_M,   t_M = (M-1)^{(M-1)/M}/M,

    for M = 1 N² λ_1 λ_H. At the threshold itself a second minimum with x_k = (M-1)^{1/M} has the same loss.

    Args:
        num_samples: N ≥ 1 of all classes together.
        weight_decay, feature_decay, depth: as `mse_minimizer`.

    Raises:
        ValueError: an argument out of range.
    """
    n = checks.whole("num_samples", num_samples, 1)
    decays = _check_decays(weight_decay, feature_decay, depth)
    return float(depth * n * (n * feature_decay * decays.prod()) ** (1 / depth) / _ratio_threshold(depth))


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
    _check_balanced(num_classes, per_class)
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


@dataclass(frozen=True)
class CERay:
    """The lowest point of the cross-entropy among simplex ETFs, see `ce_etf_ray`."""

    tau: float  #: the class-mean logits are τ (I - J/K)
    loss: float  #: value of the whole objective, in nats
    true_probability: float  #: softmax probability of the true class
    layer_singular_values: np.ndarray  #: (M, K) of W_1, …, W_M, the last one of each 0
    mean_singular_values: np.ndarray  #: (K,) of the matrix of class means, the last one 0


def ce_etf_ray(
    num_classes: int, per_class: int, *, weight_decay: float | Sequence[float], feature_decay: float, depth: int
) -> CERay:
    """The lowest point of the cross-entropy of M linear layers whose class-mean logits are τ (I - J/K), τ ≥ 0.

    With γ = (n λ_H Π_j λ_j)^{1/(M+1)} the objective is, at the cheapest factors,

        φ(τ) = log(1 + (K-1) e^{-τ}) + (K-1) (M+1)/2 γ τ^{2/(M+1)}.

    Its interior minimum, the larger root of τ^{(M-1)/(M+1)}/(e^τ + K - 1) = γ, is taken if it lies below φ(0) = log K,
    else τ = 0. In every layer λ_j s_j² = n λ_H m² = γ τ^{2/(M+1)}, with m the singular value of the class means.

    For M = 1 this is `ce_minimizer`, the global minimum. For M ≥ 2 it is a stationary point of the whole objective, but
    solutions of lower rank can lie below it.

    Args:
        num_classes: K ≥ 2.
        per_class: n ≥ 1 samples of each class.
        weight_decay, feature_decay, depth: as `mse_minimizer`.

    Raises:
        ValueError: an argument out of range.
    """
    _check_balanced(num_classes, per_class)
    decays = _check_decays(weight_decay, feature_decay, depth)
    wrong, power = num_classes - 1, 2 / (depth + 1)
    gamma = float(per_class * feature_decay * decays.prod()) ** (1 / (depth + 1))

    def phi(tau: float) -> float:
        return math.log1p(wrong * math.exp(-tau)) + wrong / power * gamma * tau**power

    tau = _ray_root(num_classes, gamma, depth)
    tau = tau if phi(tau) < math.log(num_classes) else 0.0
    shape = np.append(np.ones(wrong), 0.0)
    share = gamma * tau**power
    return CERay(
        tau=tau,
        loss=phi(tau) if tau else math.log(num_classes),
        true_probability=1 / (1 + wrong * math.exp(-tau)),
        layer_singular_values=np.sqrt(share / decays)[:, None] * shape,
        mean_singular_values=math.sqrt(share / (per_class * feature_decay)) * shape,
    )


def seli_grams(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the cross-entropy with one layer goes for any class sizes as the decays vanish: the Gram matrices of
    classifier and class means, (K, K) each and up to a factor.

    Simplex-encoded labels Ẑ = Y - (1/K) 1 1ᵀ (K, N) = V Λ Uᵀ; W Wᵀ ∝ V Λ Vᵀ and Hᵀ H ∝ U Λ Uᵀ. Features of a class
    coincide, so the second is given for the K class means. Balanced: both are simplex ETFs.

    Args:
        counts: K ≥ 2 class sizes n_k ≥ 1.

    Returns:
        (V Λ Vᵀ, the entries of U Λ Uᵀ for a sample of each class), with equal decays in a common scale.

    Raises:
        ValueError: counts out of range.

    Source: Thrampoulidis, Kini, Vakilian, Behnia 2022, Imbalance Trouble: Revisiting Neural-Collapse Geometry.
    """
    sizes = _check_counts(counts, least=2)
    root = np.sqrt(sizes)
    # Ẑ has the singular values of this K x K matrix; its right singular vectors are these spread over the samples.
    left, size, right = np.linalg.svd(root * (np.eye(len(sizes)) - 1 / len(sizes)))
    spread = right / root
    return (left * size) @ left.T, (spread.T * size) @ spread


class FreeParameters(NamedTuple):
    """The variables of the free-feature model, float64: see `construct_minimizer`."""

    weights: tuple[Tensor, ...]  #: W_1, …, W_M: (d, d) each but the last, (K, d)
    features: Tensor  #: (N, d) Hᵀ, a sample a row, classes one after the other
    bias: Tensor | None  #: (K,)


def construct_minimizer(
    counts: Sequence[int],
    dim: int,
    *,
    weight_decay: float | Sequence[float],
    feature_decay: float,
    depth: int = 1,
    bias: bool = False,
    loss: str = "mse",
    generator: torch.Generator | None = None,
) -> FreeParameters:
    """Weights and features that attain the minimum, one of many: any rotation between two layers gives another.

    W_j = Q_j diag(s_j) Q_{j-1}ᵀ with random orthonormal Q_j, where Q_M holds the directions in logit space.

    Args:
        counts: K class sizes; for the cross-entropy all equal.
        dim: d, the dimension of the features and of every hidden layer: at least K, or K - 1 with a bias and for the
            cross-entropy.
        weight_decay, feature_decay, depth: as `mse_minimizer`.
        bias: whether the last layer has one; it is 0 for the cross-entropy.
        loss: "mse" (`mse_minimizer`) or "ce" (`ce_minimizer`; for depth ≥ 2 `ce_etf_ray`, a stationary point).
        generator: source of the rotations; torch's global one if None.

    Raises:
        ValueError: an argument out of range, or classes of unequal size with the cross-entropy.
    """
    if loss not in ("mse", "ce"):
        raise ValueError(f"loss must be 'mse' or 'ce', but is {loss!r}")
    sizes = _check_counts(counts, least=1 + bias)
    classes, n = len(sizes), sizes.sum()
    decays = {"weight_decay": weight_decay, "feature_decay": feature_decay, "depth": depth}
    _, basis, targets = _directions(sizes, bias or loss == "ce")
    if loss == "mse":
        solution = mse_minimizer(counts, bias=bias, **decays)  # type: ignore[arg-type]
        s, omega = solution.layer_singular_values, solution.product_singular_values
        stretch = omega / (omega**2 + n * feature_decay)
        offset = sizes / n
    else:
        if (sizes != sizes[0]).any():
            raise ValueError(f"counts must be equal for the cross-entropy, but are {sizes.astype(int).tolist()}")
        ray = ce_etf_ray(classes, int(sizes[0]), **decays)  # type: ignore[arg-type]
        s, stretch = ray.layer_singular_values, ray.mean_singular_values
        offset = np.zeros(classes)
    rank = classes - 1 if bias or loss == "ce" else classes
    if checks.whole("dim", dim, 1) < rank:
        raise ValueError(f"dim must be at least {rank} for {classes} classes, but is {dim}")
    left, columns, values, means = (
        torch.as_tensor(array) for array in (basis[:, :rank], targets, s[:, :rank], stretch[:rank])
    )
    turns = [orthogonal_frame(torch.ones(rank), dim, generator=generator) for _ in range(depth)]  # (rank, d) each
    outs = [*(turn.T for turn in turns[1:]), left]
    weights = tuple((out * value) @ turn for out, value, turn in zip(outs, values, turns, strict=True))
    class_means = columns.T @ left * means @ turns[0]
    repeats = torch.as_tensor(sizes.astype(np.int64))
    return FreeParameters(
        weights, class_means.repeat_interleave(repeats, dim=0), torch.as_tensor(offset) if bias else None
    )


def _check_counts(counts: Sequence[int], least: int = 1) -> np.ndarray:
    sizes = np.asarray(counts, dtype=np.float64)
    if sizes.ndim != 1 or sizes.size == 0 or not (np.isfinite(sizes) & (sizes >= 1)).all():
        raise ValueError(f"counts must be class sizes of at least 1, but are {sizes.tolist()}")
    if len(sizes) < least:
        raise ValueError(f"counts must have {least} or more classes, but are {sizes.tolist()}")
    return sizes


def _check_decays(weight_decay: float | Sequence[float], feature_decay: float, depth: int) -> np.ndarray:
    """(M,) λ_j."""
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
    return decays


def _check_balanced(num_classes: int, per_class: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but is {num_classes}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, but is {per_class}")


def _directions(sizes: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared singular values (K,) of the label matrix, its left singular vectors (K, K), and its column of each class
    (K, K). Centred: of the labels less their mean; sorted, the last one is 0.
    """
    columns = np.eye(len(sizes))
    if not centred:
        return sizes, columns, columns
    share = sizes / sizes.sum()
    strength, basis = np.linalg.eigh(np.diag(sizes) - np.outer(sizes, share))
    strength[0] = 0.0
    return strength[::-1], basis[:, ::-1].copy(), columns - share[:, None]  # torch takes no negative strides


def _ratio_threshold(depth: int) -> float:
    """t_M, from which on x = 0 minimises 1/(x^M + 1) + r x."""
    return (depth - 1) ** ((depth - 1) / depth) / depth


def _ray_root(num_classes: int, gamma: float, depth: int) -> float:
    """The larger τ with τ^a/(e^τ + K - 1) = γ, a = (M-1)/(M+1); 0 if there is none."""
    a, wrong = (depth - 1) / (depth + 1), num_classes - 1
    # The left side rises to its only peak, where τ = a (1 + (K-1) e^{-τ}), and falls from there.
    peak = brentq(lambda t: t - a * (1 + wrong * math.exp(-t)), 0.0, a * num_classes) if a else 0.0

    def excess(tau: float) -> float:
        return (a * math.log(tau) if a else 0.0) - tau - math.log1p(wrong * math.exp(-tau)) - math.log(gamma)

    if excess(peak) <= 0:
        return 0.0
    high = 2 * peak + 1
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, peak, high, xtol=1e-14, rtol=1e-14))


def _largest_root(r: float, depth: int) -> float:
    """The x ≥ 0 that minimises 1/(x^M + 1) + r x."""
    if r >= _ratio_threshold(depth):
        return 0.0
    # From `low` on the left side falls, from its threshold value to 0; at `high` it is below r.
    low, high = (depth - 1) ** (1 / depth), (depth / r) ** (1 / (depth + 1))
    return float(
        brentq(lambda x: depth * x ** (depth - 1) / (x**depth + 1) ** 2 - r, low, high, xtol=1e-14, rtol=1e-14)
    )


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be above 0, but is {value}")
