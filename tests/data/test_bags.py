"""Bags and their private release: who is in which bag, how noisy a release is, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.data import make_bags, private_bag_means


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 10_000), data=st.data())
def test_bags_are_means_of_disjoint_random_rows(n: int, seed: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, n))
    y = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    response, index = make_bags(y, size, seed=seed)
    assert len(response) == math.ceil(n / size)
    counts = torch.bincount(index, minlength=len(response))
    assert (counts[:-1] == size).all() and 1 <= counts[-1] <= size
    for a, mean in enumerate(response):
        torch.testing.assert_close(mean, y[index == a].mean())


def test_seed_decides_the_bags() -> None:
    y = torch.arange(100)
    first, second, other = (make_bags(y, 5, seed=s)[1] for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not torch.equal(first, torch.arange(100) // 5), "neighbours are not bagged together"
    assert make_bags(y, 5, seed=0)[0].dtype == torch.float32


def test_without_noise_a_release_is_the_clipped_mean() -> None:
    y = torch.tensor([5.0, 1.0, -9.0, 0.5])
    index = torch.tensor([1, 0, 0, 1])
    released = private_bag_means(y, index, bound=2.0, epsilon=math.inf, seed=0)
    torch.testing.assert_close(released, torch.tensor([(1 - 2) / 2, (2 + 0.5) / 2]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_bags_of_any_integer_dtype(dtype: torch.dtype) -> None:
    y, index = torch.tensor([5.0, 1.0, -9.0, 0.5]), torch.tensor([1, 0, 0, 1])
    one, two = (private_bag_means(y, i, bound=2.0, epsilon=1.0, seed=0) for i in (index, index.to(dtype)))
    assert torch.equal(one, two)


def test_noise_is_laplace_of_the_stated_scale() -> None:
    """20,000 bags of 2 and as many of 4, against scipy's distribution."""
    from scipy import stats

    index = torch.cat([torch.arange(20_000).repeat(2), 20_000 + torch.arange(20_000).repeat(4)])
    y = torch.zeros(len(index), dtype=torch.float64)
    noise = private_bag_means(y, index, bound=1.5, epsilon=0.5, seed=3).numpy()
    for part, size in ((noise[:20_000], 2), (noise[20_000:], 4)):
        test = stats.kstest(part, stats.laplace(scale=2 * 1.5 / (size * 0.5)).cdf)
        assert test.pvalue > 1e-3
    again = private_bag_means(y, index, bound=1.5, epsilon=0.5, seed=3).numpy()
    np.testing.assert_array_equal(noise, again)
    assert (noise != private_bag_means(y, index, bound=1.5, epsilon=0.5, seed=4).numpy()).all()


def test_the_privacy_ratio() -> None:
    """Of two worst neighbours, no outcome is more than e^epsilon times as likely (up to sampling)."""
    epsilon, n = 1.0, 100_000
    index = torch.arange(n).repeat(2)
    one, other = (
        private_bag_means(torch.cat([torch.full((n,), v), torch.ones(n)]), index, bound=1.0, epsilon=epsilon, seed=s)
        for v, s in ((1.0, 0), (-1.0, 1))
    )
    for threshold in (-1.0, 0.0, 0.5, 1.0):
        ratio = float((one > threshold).double().mean() / (other > threshold).double().mean())
        assert 1 <= ratio <= math.exp(epsilon) * 1.05
    assert float((one > 1).double().mean() / (other > 1).double().mean()) > 0.9 * math.exp(epsilon), "and it is reached"


Y, INDEX = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make_bags(Y, 4, seed=0), "size must be a whole number of at least 1 and at most 3, but is 4"),
        (lambda: make_bags(Y, 0, seed=0), "size must be a whole number"),
        (lambda: make_bags(Y, 2, seed=-1), "seed must be"),
        (lambda: make_bags(Y[:, None], 2, seed=0), r"y must hold real numbers, shape \(N,\)"),
        (lambda: make_bags(Y[:0], 1, seed=0), "y must hold real numbers"),
        (lambda: make_bags(torch.tensor([1.0, float("nan")]), 1, seed=0), r"y\[1\] is nan"),
        (lambda: private_bag_means(Y, INDEX, bound=0.0, epsilon=1.0, seed=0), "bound must lie in"),
        (lambda: private_bag_means(Y, INDEX, bound=math.inf, epsilon=1.0, seed=0), "bound must lie in"),
        (lambda: private_bag_means(Y, INDEX, bound=1.0, epsilon=0.0, seed=0), "epsilon must lie in"),
        (lambda: private_bag_means(Y, INDEX, bound=1.0, epsilon=1.0, seed=-1), "seed must be"),
        (lambda: private_bag_means(Y, INDEX + 1, bound=1.0, epsilon=1.0, seed=0), "bag 0 has no row in bag_index"),
        (lambda: private_bag_means(Y, INDEX[:2], bound=1.0, epsilon=1.0, seed=0), "bag_index must hold one integer"),
        (lambda: private_bag_means(Y, INDEX[:0], bound=1.0, epsilon=1.0, seed=0), "bag_index must hold one integer"),
    ],
)
def test_bad_input_is_refused_by_name(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_not_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor, but is list"):
        make_bags([1.0], 1, seed=0)
    with pytest.raises(TypeError, match=r"bag_index must be a torch\.Tensor, but is list"):
        private_bag_means(Y, [0, 1, 1], bound=1.0, epsilon=1.0, seed=0)
