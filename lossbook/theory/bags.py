"""Linear regression from bags: the interpolating estimator and its exact risk."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lossbook import checks


class BagRisk(NamedTuple):
    """Squared bias and variance of an estimate; the risk E |theta_hat - theta|^2 is their sum."""

    squared_bias: Tensor
    variance: Tensor

    @property
    def total(self) -> Tensor:
        return self.squared_bias + self.variance


def bag_linear_estimator(X: Tensor, bag_response: Tensor, bag_index: Tensor, rho: float) -> Tensor:
    """The linear model that minimises `losses.regression.bag_loss` with the squared loss, in closed form.

        theta_hat = (B + rho W)^+ (1/m) Xbar^T ybar
        B = (1/m) Xbar^T Xbar,    W = (1/m) sum_a (1/k_a) sum_{i in a} (x_i - xbar_a)(x_i - xbar_a)^T

    xbar_a is the mean of bag a's rows, the a-th row of Xbar. So rho is the strength of a ridge penalty whose matrix is
    the scatter within the bags. ^+ is the pseudo-inverse: where B + rho W is singular, as with rho = 0 and m < d, the
    shortest minimiser is returned. There is no intercept.

    Args:
        X: `(N, d)`.
        bag_response: `(m,)` ybar.
        bag_index: `(N,)` integers in [0, m), the bag of each row; every bag has a row.
        rho: in [0, 1]: 0 the bag loss, 1 the instance loss.

    Returns:
        theta_hat `(d,)` float64.

    Raises:
        TypeError, ValueError: an argument is no tensor, or has the wrong shape, dtype or range.

    Source: Javanmard et al. 2024 (arXiv 2401.11081), the interpolating estimator; the form above by expansion.
    """
    checks.parameter("rho", rho, 0, 1)
    means, B, W = _scatter(X, bag_response, bag_index)
    return _inverse(B + rho * W) @ means.T @ bag_response.double() / len(means)


def bag_linear_risk(
    X: Tensor, bag_index: Tensor, rho: float, *, theta: Tensor, bag_variance: float | Tensor
) -> BagRisk:
    """The exact risk of `bag_linear_estimator` given X, where ybar = Xbar theta + independent noise of mean 0.

        E theta_hat - theta = ((B + rho W)^+ B - I) theta,    which is -rho (B + rho W)^{-1} W theta where that exists
        variance = trace( G Xbar^T diag(v) Xbar G^T ) / m^2,    G = (B + rho W)^+

    with B and W as in `bag_linear_estimator` and v_a the variance of bag a's response: sigma^2 / k_a for the mean of
    k_a responses with noise sigma, and 2 s_a^2 more where Laplace noise of scale s_a was added. The distribution of the
    noise plays no part.

    Args:
        X: `(N, d)`.
        bag_index: `(N,)` integers in [0, m), the bag of each row; every bag has a row.
        rho: in [0, 1].
        theta: `(d,)`, the truth.
        bag_variance: v, `(m,)` or a number for all bags, at least 0.

    Returns:
        The squared bias and the variance, each a 0-d float64 tensor, and their sum as `total`.

    Raises:
        TypeError, ValueError: an argument is no tensor, or has the wrong shape, dtype or range.

    Source: by hand, from the closed form of the estimator.
    """
    checks.parameter("rho", rho, 0, 1)
    _vector("theta", theta, X.shape[1] if isinstance(X, Tensor) and X.dim() == 2 else None)
    m = int(bag_index.max()) + 1 if isinstance(bag_index, Tensor) and bag_index.numel() else 0
    if not isinstance(bag_variance, Tensor):
        checks.parameter("bag_variance", bag_variance, 0)
        bag_variance = torch.full((m,), float(bag_variance))
    v = bag_variance
    means, B, W = _scatter(X, v, bag_index, name="bag_variance")
    if not bool((v >= 0).all()):
        raise ValueError(f"bag_variance must not be negative, but holds {v.min().item():g}")
    G = _inverse(B + rho * W)
    bias = G @ B @ theta.double() - theta.double()
    spread = (G @ means.T).square() @ v.double() / m**2
    return BagRisk(bias.square().sum(), spread.sum())


def _scatter(
    X: Tensor, per_bag: Tensor, bag_index: Tensor, *, name: str = "bag_response"
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments; return the bag means (m, d), B and W (d, d), float64."""
    if not isinstance(X, Tensor):
        raise TypeError(f"X must be a torch.Tensor, but is {type(X).__name__}")
    if X.dim() != 2 or not X.is_floating_point() or not X.numel():
        raise ValueError(f"X must be floating point of shape (N, d), but is {X.dtype} of shape {tuple(X.shape)}")
    checks.finite("X", X)
    _vector(name, per_bag, None)
    m = len(per_bag)
    checks.bags(bag_index, len(X), m)
    X, bag_index = X.double(), bag_index.long()
    size = torch.bincount(bag_index, minlength=m).double()
    means = X.new_zeros(m, X.shape[1]).index_add(0, bag_index, X) / size[:, None]
    within = (X - means[bag_index]) / size[bag_index].sqrt()[:, None]
    return means, means.T @ means / m, within.T @ within / m


def _vector(name: str, value: Tensor, length: int | None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    if value.dim() != 1 or not value.is_floating_point() or (length is not None and len(value) != length):
        raise ValueError(
            f"{name} must be floating point, one number a {'feature' if name == 'theta' else 'bag'}, but is "
            f"{value.dtype} of shape {tuple(value.shape)}"
        )
    checks.finite(name, value)


def _inverse(matrix: Tensor) -> Tensor:
    return torch.linalg.pinv(matrix, hermitian=True)
