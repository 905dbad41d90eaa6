"""Calibration errors without bins: direct sums, closed forms, the authors' numbers, known truth, properties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from lossbook.metrics import calibration, kde_calibration_error, ks_calibration_error, smooth_calibration_error

MEASURES = [kde_calibration_error, ks_calibration_error, smooth_calibration_error]


def sample(n, seed, power=2.0):
    """Confidences and outcomes whose frequency is another power of them."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (rng.random(n) < confidence**power).astype(float)


def kernel(t, c, sigma):
    """(T, N) the reflected Gaussian, image by image."""
    t = t[:, None]
    return sum(norm.pdf(t - c + 2 * m, scale=sigma) + norm.pdf(t + c + 2 * m, scale=sigma) for m in range(-3, 4))


def direct_smooth(c, a, sigma, points=4001):
    t = np.linspace(0, 1, points)
    return np.trapezoid(np.abs(kernel(t, c, sigma) @ (a - c)) / len(c), t)


def test_calibration_is_where_they_are_found_too():
    assert calibration.smooth_calibration_error is smooth_calibration_error
    assert calibration.kde_calibration_error is kde_calibration_error
    assert calibration.ks_calibration_error is ks_calibration_error


# Smooth calibration error


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_smooth_error_at_a_bandwidth_is_the_integral(sigma):
    c, a = sample(80, seed=0)
    c[:4] = [0, 1, 0.5, 0.5]
    value = smooth_calibration_error(c, a, bandwidth=sigma)
    # Two parts: the promised 1.5e-5, and what the trapezoids of the other side lose at the zeros.
    assert value == pytest.approx(direct_smooth(c, a, sigma), abs=3e-5)


def test_smooth_error_is_the_fixed_point():
    rng = np.random.default_rng(1)
    c = rng.random(100)
    a = (rng.random(100) < 1 - c).astype(float)  # backwards: a wide kernel
    value = smooth_calibration_error(c, a)
    assert value > 0.2
    assert direct_smooth(c, a, value) == pytest.approx(value, abs=3e-5)


def test_smooth_error_has_the_numbers_of_its_authors():
    # relplot 1.0.3 (apple/ml-calibration) on the first two data sets of this generator. It cuts the kernel off, adds
    # 1e-4 to the density, and stops the bisection at 1/1024, at the wide end.
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 1, 800)
    first_outcome = rng.binomial(1, first)
    second = rng.uniform(0, 1, 800)
    second_outcome = rng.binomial(1, second)
    second = 0.25 + 0.5 * second
    for c, a, fixed, at in (
        (first, first_outcome, 0.02612115, {0.01: 0.05416484, 0.05: 0.01585489, 0.1: 0.01146735}),
        (second, second_outcome, 0.11023219, {0.01: 0.14559260, 0.05: 0.13179336, 0.1: 0.11484961}),
    ):
        for sigma, value in at.items():
            assert smooth_calibration_error(c, a, bandwidth=sigma) == pytest.approx(value, abs=1e-4)
        assert smooth_calibration_error(c, a) == pytest.approx(fixed, abs=1e-3)


def test_smooth_error_of_a_constant_is_its_gap():
    # One confidence, one gap: the kernel has mass one wherever it sits, at the ends too.
    for c in (0.0, 0.3, 1.0):
        assert smooth_calibration_error(np.full(10, c), np.arange(10) < 6) == pytest.approx(abs(0.6 - c), abs=1e-5)
    assert smooth_calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0, abs=1e-12)
    assert smooth_calibration_error([1.0, 0.0], [1, 0]) == 0


@pytest.mark.parametrize("gap", [1e-2, 1e-3])
def test_smooth_error_resolves_small_errors(gap):
    # Two groups with opposite gaps, far apart beside the bandwidth: they do not cancel.
    c = np.repeat([0.3, 0.7], 2)
    a = c + np.repeat([gap, -gap], 2)
    assert smooth_calibration_error(c, a) == pytest.approx(gap, rel=2e-3)
    # And 1e-3 apart, they do for a kernel wider than that.
    near = np.repeat([0.3, 0.301], 2)
    assert smooth_calibration_error(near, near + np.repeat([0.1, -0.1], 2)) < 0.02


def test_smooth_error_is_continuous_and_the_binned_one_is_not():
    # Half of the samples a hair below an edge of the bins, or a hair above.
    below, above = (np.repeat([0.5 - 1e-9 * s, 0.5 + 1e-9], 50) for s in (1, -1))
    a = np.repeat([0.0, 1.0], 50)
    binned = [calibration.expected_calibration_error(c, a, n_bins=2) for c in (below, above)]
    smooth = [smooth_calibration_error(c, a) for c in (below, above)]
    assert abs(binned[0] - binned[1]) > 0.4
    assert abs(smooth[0] - smooth[1]) < 2e-4


@pytest.mark.parametrize(("n", "expected"), [(500, 0.05), (50_000, 0.012)])
def test_smooth_error_of_a_calibrated_model_vanishes_with_its_size(n, expected):
    c, a = sample(n, seed=2, power=1.0)
    assert smooth_calibration_error(c, a) < expected
    # A model with errors keeps them: ∫ |c² - c| dc = 1/6, and smoothing takes little of it away.
    assert smooth_calibration_error(*sample(n, seed=2)) == pytest.approx(1 / 6, abs=0.03)


# Kernel density


@pytest.mark.parametrize("norm_", [1, 2])
def test_kde_error_is_the_direct_sum(norm_):
    c, a = sample(80, seed=3)
    h = 1.06 * c.std() * 80**-0.2
    t = np.linspace(0, 1, 4001)
    weights = kernel(t, c, h)
    density, accuracy = weights.mean(axis=1), weights @ a / weights.sum(axis=1)
    expected = np.trapezoid(np.abs(accuracy - t) ** norm_ * density, t) ** (1 / norm_)
    assert kde_calibration_error(c, a, norm=norm_) == pytest.approx(expected, abs=3e-5)
    assert kde_calibration_error(c, a, norm=norm_, bandwidth=h) == pytest.approx(expected, abs=3e-5)


def test_kde_error_approaches_the_true_one():
    c, a = sample(50_000, seed=4)
    assert kde_calibration_error(c, a) == pytest.approx(1 / 6, abs=0.01)  # ∫ (c - c²) dc
    assert kde_calibration_error(c, a, norm=2) == pytest.approx((1 / 30) ** 0.5, abs=0.01)  # ∫ (c - c²)² dc
    assert kde_calibration_error(*sample(50_000, seed=4, power=1)) < 0.01


def test_kde_error_of_a_constant_is_its_gap():
    for c, norm_ in ((0.0, 1), (0.3, 2), (1.0, 2)):
        value = kde_calibration_error(np.full(10, c), np.arange(10) < 6, norm=norm_)
        assert value == pytest.approx(abs(0.6 - c), abs=2e-4)


def test_kde_grid_may_be_finer_and_changes_nothing():
    c, a = sample(200, seed=5)
    assert kde_calibration_error(c, a, n_grid=2**16) == pytest.approx(kde_calibration_error(c, a), abs=3e-5)


# Kolmogorov-Smirnov


def test_ks_is_the_largest_gap_of_the_cumulative_sums():
    c, a = sample(300, seed=6)
    order = np.argsort(c)
    # Without ties as in public code, which sums in the order of the confidences.
    expected = np.abs(np.cumsum(c[order]) / 300 - np.cumsum(a[order]) / 300).max()
    assert ks_calibration_error(c, a) == pytest.approx(expected, abs=1e-12)
    ties = np.round(c, 1)
    expected = max(abs((ties - a)[ties <= t].sum()) / 300 for t in ties)
    assert ks_calibration_error(ties, a) == pytest.approx(expected, abs=1e-12)


def test_ks_by_hand():
    assert ks_calibration_error([0.2, 0.6, 0.9], [1, 0, 1]) == pytest.approx(0.8 / 3, abs=1e-15)
    # In the order of the samples it would be 0.25 after the first of the equal ones.
    assert ks_calibration_error([0.5, 0.5], [1, 0]) == 0


# All

cases = st.tuples(st.integers(5, 60), st.integers(0, 2**32 - 1), st.booleans())


def random_case(case):
    n, seed, rounded = case
    rng = np.random.default_rng(seed)
    confidence = rng.random(n) ** rng.choice([0.3, 1, 5])
    return np.round(confidence, 1) if rounded else confidence, rng.integers(0, 2, n).astype(float)


@settings(max_examples=20, deadline=None)
@given(cases)
def test_bounds_and_symmetry(case):
    c, a = random_case(case)
    bias, total = abs(np.mean(a - c)), np.mean(np.abs(a - c))
    for measure in MEASURES:
        assert 0 <= measure(c, a) <= 1
        order = np.random.default_rng(case[1]).permutation(len(c))
        assert measure(c[order], a[order]) == pytest.approx(measure(c, a), abs=1e-10)
    assert bias - 1e-9 <= smooth_calibration_error(c, a) <= total + 1e-9
    assert bias - 1e-12 <= ks_calibration_error(c, a) <= total + 1e-12
    # The kernel moves a sample by at most h √(2/π) on average, and r(t) - t with it.
    assert kde_calibration_error(c, a, bandwidth=0.05) <= total + 0.05
    # The event and its opposite are one event.
    for measure in (kde_calibration_error, smooth_calibration_error):
        assert measure(1 - c, 1 - a) == pytest.approx(measure(c, a), abs=1e-4)
    assert kde_calibration_error(c, a) <= kde_calibration_error(c, a, norm=2) + 1e-4


@settings(max_examples=15, deadline=None)
@given(cases)
def test_a_wider_kernel_never_shows_more(case):
    c, a = random_case(case)
    values = [smooth_calibration_error(c, a, bandwidth=sigma) for sigma in (0.01, 0.03, 0.1, 0.3, 1.0)]
    assert all(wide <= narrow + 2e-5 for narrow, wide in pairwise(values))


@pytest.mark.parametrize("measure", MEASURES)
def test_the_top_label_of_rows_counts(measure):
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    probs, target = logits.softmax(dim=1), torch.arange(200) % 4
    confidence, predicted = probs.max(dim=1)
    assert measure(probs, target) == pytest.approx(measure(confidence.double(), predicted == target), abs=1e-9)
    assert measure(probs.numpy(), target.numpy()) == measure(probs, target)


@pytest.mark.parametrize("measure", MEASURES)
def test_one_sample_and_large_samples(measure):
    assert measure([0.7], [1]) == pytest.approx(0.3, abs=1e-4)
    c, a = sample(300_000, seed=7)
    assert 0.1 < measure(c, a) < 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c, a: smooth_calibration_error(c, a, bandwidth=0),
            r"bandwidth must lie in \[0.00012207, inf\), but is 0",
        ),
        (
            lambda c, a: kde_calibration_error(c, a, bandwidth=-1),
            r"bandwidth must lie in \[0.00012207, inf\), but is -1",
        ),
        (lambda c, a: kde_calibration_error(c, a, norm=3), "norm must be 1 or 2, but is 3"),
        (lambda c, a: kde_calibration_error(c, a, n_grid=0), "n_grid must be a whole number of at least 1"),
        (lambda c, a: ks_calibration_error(c, a * 2), r"target\[1\] is 2.0, outside \[0, 1\]"),
        (lambda c, a: smooth_calibration_error(c * float("nan"), a), r"probs\[0\] is nan, outside \[0, 1\]"),
        (lambda c, a: kde_calibration_error(c[:0], a[:0]), "probs is empty"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.array([0.2, 0.8]), np.array([0.0, 1.0]))
