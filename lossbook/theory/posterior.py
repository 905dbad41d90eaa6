"""Class probabilities that are known exactly, and the error that no classifier can avoid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook import checks


def gaussian_mixture_posterior(x: Any, means: Any, *, priors: Any = None, variance: float = 1.0) -> Tensor:
    """p(y = k | x) for x ~ N(μ_y, σ² I): softmax_k(log π_k - |x - μ_k|²/(2σ²)).

    Args:
        x: (N, d) points.
        means: (K, d) class means μ_k.
        priors: (K,) class probabilities π_k that sum to one; equal if None. A class of prior 0 has posterior 0.
        variance: σ², above 0.

    Returns:
        (N, K) float64 probabilities.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, priors that are no probabilities, variance not above 0.
    """
    points, centres = (torch.as_tensor(v, dtype=torch.float64) for v in (x, means))
    for name, value in (("x", points), ("means", centres)):
        if value.dim() != 2:
            raise ValueError(f"{name} must have two dimensions, but has shape {tuple(value.shape)}")
        checks.finite(name, value)
    if points.shape[1] != centres.shape[1]:
        raise ValueError(f"x has {points.shape[1]} columns, but means has {centres.shape[1]}")
    checks.parameter("variance", variance, 0.0, open_low=True)
    log_prior = _priors(priors, centres).log()
    # |x|² is the same for every class and drops out. Coordinates about the middle of the means keep the rest small.
    middle = centres.mean(dim=0)
    points, centres = points - middle, centres - middle
    return torch.softmax(log_prior + (points @ centres.T - centres.square().sum(dim=1) / 2) / variance, dim=1)


def bayes_error(posterior: Any) -> float:
    """The error of the best classifier: (1/N) Σ_i (1 - max_k π_ik), in [0, 1 - 1/K].

    Args:
        posterior: (N, K) true class probabilities.

    Raises:
        ValueError: not a non-empty matrix, entries outside [0, 1], rows that do not sum to one within 1e-4.
    """
    pi = torch.as_tensor(posterior, dtype=torch.float64)
    if pi.dim() != 2 or pi.numel() == 0:
        raise ValueError(f"posterior must have shape (N, K), but has shape {tuple(pi.shape)}")
    bad = ~(((pi.sum(dim=1) - 1).abs() <= 1e-4) & ((pi >= 0) & (pi <= 1)).all(dim=1))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"posterior[{row}] is not a probability vector: {pi[row].tolist()}")
    return float((1 - pi.amax(dim=1)).mean())


def _priors(priors: Any, means: Tensor) -> Tensor:
    num_classes = len(means)
    if priors is None:
        return means.new_full((num_classes,), 1 / num_classes)
    pi = torch.as_tensor(priors, dtype=torch.float64, device=means.device)
    if pi.shape != (num_classes,):
        raise ValueError(f"priors must have shape ({num_classes},), one a class, but have shape {tuple(pi.shape)}")
    if not bool((pi >= 0).all()) or abs(float(pi.sum()) - 1) > 1e-6:
        raise ValueError(f"priors must be probabilities that sum to one, but are {pi.tolist()}")
    return pi
