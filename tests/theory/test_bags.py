"""The interpolating estimator and its risk: minimiser of the loss, peers, Monte Carlo, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.data import make_bags
from lossbook.losses.regression import bag_loss
from lossbook.theory import bag_linear_estimator, bag_linear_risk


def problem(n: int = 60, d: int = 6, size: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X, theta, noiseless bag responses, bags (the last one smaller where size does not divide n)."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, dtype=torch.float64, generator=generator)
    theta = torch.randn(d, dtype=torch.float64, generator=generator)
    response, index = make_bags(X @ theta, size, seed=seed)
    return X, theta, response, index


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 7), rho=st.floats(0, 1))
def test_it_minimises_the_bag_loss(seed: int, size: int, rho: float) -> None:
    X, _, response, index = problem(size=size, seed=seed)
    response = response + torch.randn(len(response), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theta = bag_linear_estimator(X, response, index, rho).requires_grad_()
    (gradient,) = torch.autograd.grad(bag_loss(X @ theta, response, index, rho=rho), theta)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_bags_of_one_row_are_least_squares(rho: float) -> None:
    X, _, _, _ = problem()
    y, index = torch.randn(60, dtype=torch.float64), torch.randperm(60)
    want = np.linalg.lstsq(X.numpy(), y[index].numpy(), rcond=None)[0]
    np.testing.assert_allclose(bag_linear_estimator(X, y, index, rho).numpy(), want)


def test_ends() -> None:
    """rho = 1 is least squares of the repeated responses; rho = 0 recovers theta without noise, rho > 0 does not."""
    X, theta, response, index = problem()
    want = np.linalg.lstsq(X.numpy(), response[index].numpy(), rcond=None)[0]
    np.testing.assert_allclose(bag_linear_estimator(X, response, index, 1.0).numpy(), want)
    torch.testing.assert_close(bag_linear_estimator(X, response, index, 0.0), theta)
    assert bag_linear_estimator(X, response, index, 1.0).norm() < 0.7 * theta.norm()


def test_fewer_bags_than_features_gives_the_shortest_minimiser() -> None:
    X, _, response, index = problem(n=20, d=12)
    got = bag_linear_estimator(X, response, index, 0.0)
    means = torch.stack([X[index == a].mean(0) for a in range(5)])
    want = np.linalg.lstsq(means.numpy(), response.numpy(), rcond=None)[0]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(58, 6), (20, 12)])
@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_risk_against_monte_carlo(n: int, d: int, rho: float) -> None:
    """Bias and variance of 4,000 estimates; unequal noise, unequal bags, and fewer bags than features."""
    X, theta, response, index = problem(n, d)
    generator = torch.Generator().manual_seed(7)
    v = 0.1 + torch.rand(len(response), dtype=torch.float64, generator=generator)
    noise = v.sqrt() * torch.randn(4000, len(response), dtype=torch.float64, generator=generator)
    # The estimator is linear in the responses: its columns are the estimates of unit responses.
    unit = torch.eye(len(response), dtype=torch.float64)
    matrix = torch.stack([bag_linear_estimator(X, e, index, rho) for e in unit], dim=1)
    estimates = (response + noise) @ matrix.T
    torch.testing.assert_close(estimates[0], bag_linear_estimator(X, response + noise[0], index, rho))
    risk = bag_linear_risk(X, index, rho, theta=theta, bag_variance=v)
    losses = (estimates - theta).square().sum(dim=1)
    assert abs(losses.mean() - risk.total) < 4 * losses.std() / 4000**0.5
    assert estimates.var(dim=0).sum().item() == pytest.approx(risk.variance.item(), rel=0.1)
    squared_bias = (matrix @ response - theta).square().sum()
    torch.testing.assert_close(risk.squared_bias, squared_bias)


def test_risk_is_unbiased_at_zero_and_moves_the_right_way() -> None:
    X, theta, _, index = problem()
    risks = [bag_linear_risk(X, index, rho, theta=theta, bag_variance=0.5) for rho in np.linspace(0, 1, 21)]
    bias, variance = (torch.stack(list(part)) for part in zip(*risks, strict=True))
    assert bias[0] < 1e-20 and (bias.diff() > 0).all() and (variance.diff() < 0).all()
    twice = bag_linear_risk(X, index, 0.3, theta=2 * theta, bag_variance=torch.full((15,), 1.0))
    once = bag_linear_risk(X, index, 0.3, theta=theta, bag_variance=0.5)
    torch.testing.assert_close(twice.squared_bias, 4 * once.squared_bias)
    torch.testing.assert_close(twice.variance, 2 * once.variance)
    torch.testing.assert_close(twice.total, twice.squared_bias + twice.variance)


def test_least_squares_variance() -> None:
    """Bags of one row: sigma^2 trace((X^T X)^-1), the textbook's."""
    X, theta, _, _ = problem()
    risk = bag_linear_risk(X, torch.arange(60), 0.4, theta=theta, bag_variance=0.25)
    torch.testing.assert_close(risk.variance, 0.25 * torch.linalg.inv(X.T @ X).trace())


GOOD = {"X": torch.randn(4, 2), "bag_response": torch.zeros(2), "bag_index": torch.tensor([0, 1, 1, 0]), "rho": 0.5}
RISK = {"X": GOOD["X"], "bag_index": GOOD["bag_index"], "rho": 0.5, "theta": torch.ones(2), "bag_variance": 1.0}


@pytest.mark.parametrize(
    ("function", "change", "sentence"),
    [
        (bag_linear_estimator, {"X": torch.zeros(4)}, r"X must be floating point of shape \(N, d\)"),
        (bag_linear_estimator, {"X": torch.zeros(4, 2, dtype=torch.int64)}, "X must be floating point"),
        (bag_linear_estimator, {"X": torch.full((4, 2), float("nan"))}, r"X\[0, 0\] is nan"),
        (bag_linear_estimator, {"bag_response": torch.zeros(3)}, "bag 2 has no row"),
        (bag_linear_estimator, {"bag_response": torch.zeros(2, 1)}, "bag_response must be floating point, one number"),
        (bag_linear_estimator, {"bag_index": torch.tensor([0, 1, 2, 0])}, "bag_index has bag 2"),
        (bag_linear_estimator, {"rho": -0.1}, "rho must lie in"),
        (bag_linear_risk, {"theta": torch.ones(3)}, "theta must be floating point, one number a feature"),
        (bag_linear_risk, {"bag_variance": -1.0}, r"bag_variance must lie in \[0, inf\), but is -1"),
        (bag_linear_risk, {"bag_variance": torch.tensor([1.0, -1.0])}, "bag_variance must not be negative, but holds"),
        (bag_linear_risk, {"bag_variance": [1.0, 1.0]}, "bag_variance must be a number"),
        (bag_linear_risk, {"bag_variance": torch.ones(3)}, "bag 2 has no row"),
        (bag_linear_risk, {"bag_variance": float("nan")}, "bag_variance must lie in"),
        (bag_linear_risk, {"rho": 2.0}, "rho must lie in"),
    ],
)
def test_bad_input_is_refused_by_name(function, change: dict, sentence: str) -> None:
    good = GOOD if function is bag_linear_estimator else RISK
    with pytest.raises(ValueError, match=sentence):
        function(**{**good, **change})


def test_not_a_tensor_is_refused() -> None:
    for function, good, names in (
        (bag_linear_estimator, GOOD, ("X", "bag_response", "bag_index")),
        (bag_linear_risk, RISK, ("X", "bag_index", "theta")),
    ):
        for name in names:
            with pytest.raises(TypeError, match=rf"{name} must be a torch\.Tensor, but is list"):
                function(**{**good, name: [0.0]})
