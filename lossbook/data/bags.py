"""Responses that are known for bags of rows only: made from data, and released privately."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossbook import checks
from lossbook.data import _checks


def make_bags(y: Tensor, size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Put the rows into bags of `size` at random, and take the mean response of each.

    Where size does not divide N, the last bag holds the remainder.

    Args:
        y: `(N,)` real responses, or 0 and 1.
        size: k, rows a bag, from 1 to N.
        seed: of the assignment.

    Returns:
        bag_response `(m,)` float and bag_index `(N,)` int64 in [0, m), m = ceil(N / k); the rows stay in their order.

    Raises:
        ValueError: y is not a vector of finite real numbers, or size or seed is out of range.
    """
    y = _responses(y)
    k = checks.whole("size", size, 1, len(y))
    generator = torch.Generator().manual_seed(_checks.seed(seed))
    bag_index = (torch.randperm(len(y), generator=generator) // k).to(y.device)
    return _bag_means(y, bag_index), bag_index


def private_bag_means(y: Tensor, bag_index: Tensor, *, bound: float, epsilon: float, seed: int) -> Tensor:
    """Mean response of each bag with epsilon-label differential privacy: clip, average, add Laplace noise.

        yhat_a = mean_{i in a} clip(y_i, -B, B) + Laplace(scale 2B / (k_a epsilon))

    Two data sets that differ in the response of one row differ in one bag's mean, by at most 2B / k_a; which row is in
    which bag, and its features, are no secret. Every release from the same responses spends its own epsilon. The
    mechanism is exact for real numbers; floating point leaks a little, so this is for study, not for a release.

    Args:
        y: `(N,)` real responses.
        bag_index: `(N,)` integers; every bag from 0 to the largest has a row.
        bound: B > 0. It must not be read off the responses, or it is a release of its own.
        epsilon: > 0; inf adds no noise.
        seed: of the noise.

    Returns:
        `(m,)`, in the dtype of y (float32 for integers).

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or range.

    Source: the Laplace mechanism of Dwork, McSherry, Nissim, Smith 2006, on the mean of a bag, whose sensitivity is
    2 bound / k. Bags as a means of label privacy: Javanmard et al. 2024 (arXiv 2401.11081).
    """
    y = _responses(y)
    checks.parameter("bound", bound, 0, torch.finfo(y.dtype).max, open_low=True)
    checks.parameter("epsilon", epsilon, 0, open_low=True, infinite=True)
    if isinstance(bag_index, Tensor) and bag_index.numel():
        checks.bags(bag_index, len(y), int(bag_index.max()) + 1)
    else:
        checks.bags(bag_index, len(y), 0)
    means = _bag_means(y.clamp(-bound, bound), bag_index)
    if math.isinf(epsilon):
        return means
    uniform = torch.rand(len(means), generator=torch.Generator().manual_seed(_checks.seed(seed)), dtype=torch.float64)
    # The inverse of the distribution function, at u - 1/2 in (-1/2, 1/2).
    centred = uniform.clamp(min=2.0**-54) - 0.5
    laplace = -centred.sign() * torch.log1p(-2 * centred.abs())
    scale = 2 * bound / (torch.bincount(bag_index).double() * epsilon)
    return means + (scale * laplace.to(scale.device)).to(means.dtype)


def _responses(y: Tensor) -> Tensor:
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a torch.Tensor, but is {type(y).__name__}")
    if y.dim() != 1 or y.is_complex() or not len(y):
        raise ValueError(f"y must hold real numbers, shape (N,), not empty, but is {y.dtype} of shape {tuple(y.shape)}")
    y = y if y.is_floating_point() else y.float()
    checks.finite("y", y)
    return y


def _bag_means(y: Tensor, bag_index: Tensor) -> Tensor:
    zeros = torch.zeros(int(bag_index.max()) + 1, dtype=y.dtype, device=y.device)
    total = zeros.index_add(0, bag_index.long(), y)
    return total / torch.bincount(bag_index)
