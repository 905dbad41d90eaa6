"""Mixup: convexity, the law of the weights, partners, reproducibility, bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from torch import Tensor

from lossbook.train import mixup


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shares(n: int, **arguments) -> Tensor:
    """(N, N): how much of example j is in mixture i."""
    eye = torch.eye(n, dtype=torch.float64)
    return mixup(eye, eye, generator=seeded(), **arguments)[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), points=st.integers(2, 5), alpha=st.floats(1e-3, 100), n=st.integers(1, 8))
def test_x_and_y_are_mixed_alike_with_weights_of_a_simplex(seed: int, points: int, alpha: float, n: int) -> None:
    eye = torch.eye(n, dtype=torch.float64)
    x, y = mixup(eye.view(n, 1, n), eye, alpha=alpha, points=points, generator=seeded(seed))
    assert torch.equal(x[:, 0], y)
    assert (y >= 0).all() and ((y > 0).sum(1) <= points).all()
    torch.testing.assert_close(y.sum(1), torch.ones(n, dtype=torch.float64))
    # Each example takes part as often as any other: once as itself and once in each permutation.
    assert ((y > 0).sum(0) <= points).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_two_points_are_beta(alpha: float) -> None:
    own = shares(1500, alpha=alpha).diagonal()
    own = own[own < 1]  # A partner may be oneself.
    assert kstest(own.numpy(), beta(alpha, alpha).cdf).pvalue > 1e-3
    assert kstest(own.numpy(), beta(alpha + 1, alpha).cdf).pvalue < 1e-6


def test_three_points_have_beta_margins() -> None:
    """A coordinate of the Dirichlet is Beta(alpha, 2 alpha)."""
    mixed = shares(1500, alpha=2.0, points=3)
    own = mixed.diagonal()[(mixed > 0).sum(1) == 3]
    assert kstest(own.numpy(), beta(2, 4).cdf).pvalue > 1e-3


def test_limits_of_alpha() -> None:
    single = shares(50, alpha=1e-3)
    assert (single.amax(1) > 1 - 1e-9).double().mean() > 0.9
    half = shares(50, alpha=1e6)
    assert ((half.diagonal() - 0.5).abs()[half.diagonal() < 1] < 0.01).all()


def test_shapes_dtypes_and_input_untouched() -> None:
    x, y = torch.rand(6, 2, 3, 3), F.one_hot(torch.arange(6) % 3, 3).double()
    kept = x.clone()
    mixed_x, mixed_y = mixup(x, y, generator=seeded())
    assert mixed_x.shape == x.shape and mixed_x.dtype == torch.float32
    assert mixed_y.shape == y.shape and mixed_y.dtype == torch.float64
    assert torch.equal(x, kept) and not torch.equal(mixed_x, x)


def test_the_generator_decides_and_moves_on() -> None:
    x, y = torch.rand(9, 2), torch.eye(9)
    generator = seeded(3)
    first, second = (mixup(x, y, generator=generator)[1] for _ in range(2))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(mixup(x, y, generator=seeded(3))[1], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, second)


GOOD = {"x": torch.rand(4, 2), "y": torch.eye(4), "generator": seeded()}


@pytest.mark.parametrize(
    ("error", "change", "sentence"),
    [
        (ValueError, {"x": torch.ones(4, 2).long()}, r"x must be floating point of shape \(N, ...\)"),
        (ValueError, {"x": torch.ones(0, 2), "y": torch.ones(0, 4)}, "x must be floating point of shape"),
        (ValueError, {"y": torch.arange(4)}, r"y must be floating point of shape \(4, K\), one-hot"),
        (ValueError, {"y": torch.eye(4)[:3]}, r"y must be floating point of shape \(4, K\)"),
        (ValueError, {"alpha": 0.0}, "alpha must lie in"),
        (ValueError, {"points": 1}, "points must be a whole number of at least 2"),
        (TypeError, {"generator": 0}, r"generator must be a torch\.Generator, but is int"),
        (TypeError, {"x": [[1.0]]}, r"x must be a torch\.Tensor, but is list"),
    ],
)
def test_bad_input(error: type[Exception], change: dict, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        mixup(**{**GOOD, **change})
