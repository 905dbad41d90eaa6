"""Effective ranks: exact spectra, invariances, peers, streamed moments, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import metrics
from lossbook.metrics import collapse, representation
from lossbook.theory import orthogonal_frame, simplex_etf

MEASURES = [metrics.rankme, metrics.participation_ratio, metrics.stable_rank]


def with_spectrum(singular_values, rows, dim, seed=0):
    """(rows, dim) with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    s, m = torch.as_tensor(singular_values, dtype=torch.float64), len(singular_values)
    left = orthogonal_frame(torch.ones(m), rows, generator=generator)
    return (left.T * s) @ orthogonal_frame(torch.ones(m), dim, generator=generator)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("rows", "dim"), [(30, 8), (8, 30), (8, 8)])
def test_equal_directions_are_counted(measure, rows, dim):
    for rank in (1, 3, 8):
        assert measure(with_spectrum([2.5] * rank, rows, dim)) == pytest.approx(rank, rel=2e-5)


def test_formulas_by_hand():
    s = np.array([4.0, 2.0, 1.0, 0.5])
    z = with_spectrum(s, 20, 4)
    p = s / s.sum() + 1e-7
    assert metrics.rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    p = s / s.sum() + 1e-3
    assert metrics.rankme(z, eps=1e-3) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert metrics.participation_ratio(z) == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-12)
    assert metrics.stable_rank(z) == pytest.approx((s**2).sum() / 16, rel=1e-12)


def test_rankme_is_the_entropy_of_the_spectrum_not_of_the_covariance(generator):
    from scipy.stats import entropy

    z = torch.randn(200, 12, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 12)
    s = torch.linalg.svdvals(z).numpy()
    assert metrics.rankme(z) == pytest.approx(np.exp(entropy(s)), rel=1e-4)
    assert np.exp(entropy(s**2)) < 0.8 * metrics.rankme(z)


def test_collapsed_features_have_rank_k_minus_1(generator):
    frame = simplex_etf(5, 16, generator=generator)
    assert metrics.rankme(frame.repeat(20, 1)) == pytest.approx(4, rel=1e-4)
    # Features are not centred: a common mean as long as the others makes it K equal directions.
    mean = torch.linalg.svd(frame).Vh[-1] / 2  # orthogonal to the frame, whose singular values are √(K/(K-1))
    assert metrics.rankme(frame.repeat(20, 1) + mean) == pytest.approx(5, rel=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(1e-150, 1e150), st.integers(0, 10**6))
def test_scale_rotation_and_order_do_not_matter(rows, dim, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    turned = scale * z[torch.randperm(rows, generator=generator)] @ orthogonal_frame(torch.ones(dim), dim)
    for measure in MEASURES:
        value = measure(z)
        assert measure(turned) == pytest.approx(value, rel=1e-7)
        assert 1 - 1e-6 <= value <= min(rows, dim) * (1 + 1e-4)
    assert metrics.stable_rank(z) <= metrics.participation_ratio(z) * (1 + 1e-9)


@pytest.mark.parametrize("collapsed", [False, True])
def test_streamed_moments_give_the_same(collapsed, generator):
    target = torch.arange(300) % 3
    z = 2 + torch.randn(3, 10, generator=generator, dtype=torch.float64)[target]
    if not collapsed:
        z = z + 0.1 * torch.randn(300, 10, generator=generator, dtype=torch.float64)
    one, other = metrics.NeuralCollapse(3, 10), metrics.NeuralCollapse(3, 10)
    for i, rows in enumerate(torch.arange(300).split(70)):
        (one, other)[i % 2].update(z[rows], target[rows])
    one.merge_state(other)
    s = one.singular_values
    torch.testing.assert_close(s, torch.linalg.svdvals(z), rtol=1e-9, atol=1e-6)
    assert representation.rankme_of(s) == pytest.approx(metrics.rankme(z), rel=1e-5)
    assert representation.participation_ratio_of(s) == pytest.approx(metrics.participation_ratio(z), rel=1e-9)
    assert representation.stable_rank_of(s) == pytest.approx(metrics.stable_rank(z), rel=1e-9)


def test_fewer_samples_than_dimensions_have_as_many_singular_values(generator):
    z = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    s = collapse.singular_values_of(collapse.moments_of(z, torch.tensor([0, 1, 0, 1]), 2))
    torch.testing.assert_close(s, torch.linalg.svdvals(z))


def test_arrays_and_float32(generator):
    z = torch.randn(50, 6, generator=generator)
    for measure in MEASURES:
        assert measure(z.numpy()) == measure(z) == pytest.approx(measure(z.double()), rel=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3, 2), "features are all zero"),
        (torch.zeros(3), r"features must have shape \(N, d\)"),
        (torch.zeros(3, 2, dtype=torch.long), "features must be floating point"),
        (torch.zeros(0, 2), "features is empty"),
        (torch.tensor([[1.0, float("nan")]]), r"features\[0, 1\] is nan"),
    ],
)
def test_bad_input_is_refused_by_name(measure, features, message):
    with pytest.raises(ValueError, match=message):
        measure(features)


def test_eps_is_positive():
    with pytest.raises(ValueError, match=r"eps must lie in \(0, inf\), but is 0"):
        metrics.rankme(torch.eye(3), eps=0)
