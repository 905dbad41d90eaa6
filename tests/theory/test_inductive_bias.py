"""Inductive bias: tails against 40-digit sums and counts, the fit against known parameters, the Gaussian process."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, ncx2
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from lossbook.theory import inductive_bias as bias


def tail_by_series(x: float, df: float, nc: float) -> float:
    """-log P(X <= x) as a Poisson mixture of gamma tails, in 40 digits."""
    with mpmath.workdps(40):
        total, j = mpmath.mpf(0), 0
        while True:
            poisson = mpmath.exp(-mpmath.mpf(nc) / 2) * (mpmath.mpf(nc) / 2) ** j / mpmath.factorial(j)
            term = poisson * mpmath.gammainc(mpmath.mpf(df) / 2 + j, 0, mpmath.mpf(x) / 2, regularized=True)
            total += term
            j += 1
            if j > 5 and term < total * mpmath.mpf(10) ** -25:
                return float(-mpmath.log(total))


@pytest.mark.parametrize(
    ("x", "df", "nc"),
    [
        (5.0, 10.0, 3.0),
        (1.0, 40.0, 5.0),
        (1e-4, 0.3, 0.0),
        (0.024, 187.4, 46.9),  # 773 nats: scipy's cdf is 0
        (0.17, 303.5, 0.26),
        (0.046, 176.0, 227.0),
        (300.0, 2000.0, 10.0),
        (0.5, 400.0, 0.0),
        (1.0, 2.0, 2000.0),
    ],
)
def test_tail_is_the_series(x, df, nc):
    assert bias.from_ncx2(x, df, nc) == pytest.approx(tail_by_series(x, df, nc), rel=1e-9)


def test_scale_and_location_only_standardise():
    assert bias.from_ncx2(2.5, 10, 3, 2.0, 0.1) == pytest.approx(bias.from_ncx2(5.0, 10, 3), rel=1e-12)
    assert bias.from_ncx2(2.0, 10, 3, loc=2.0) == math.inf


@pytest.mark.parametrize(("df", "nc"), [(300.0, 5.0), (250.0, 200.0), (500.0, 0.0)])
def test_the_two_ways_to_the_tail_meet(df, nc):
    """Where scipy still answers, the sum in logarithms agrees with it: nothing jumps at 600 nats."""
    for x in np.geomspace(0.1 * df, 0.9 * df, 7):
        expected = ncx2.logcdf(x, df, nc) if nc else chi2.logcdf(x, df)
        assert bias._log_cdf_series(x, df, nc) == pytest.approx(expected, rel=1e-9)


@given(st.floats(0.2, 300), st.floats(0, 300), st.floats(1e-5, 2), st.floats(1.01, 3))
@settings(max_examples=60, deadline=None)
def test_a_smaller_error_needs_more(df, nc, share, factor):
    x = share * (df + nc)
    assert bias.from_ncx2(x, df, nc) >= bias.from_ncx2(factor * x, df, nc) >= 0


def test_sankaran_drops_the_logarithm_and_turns_above_the_mean():
    # In the far tail z²/2 lacks log|z| and more; above the mean it grows where the truth goes to 0.
    assert bias.sankaran(5.0, 10, 3) < 0.5 * bias.from_ncx2(5.0, 10, 3)
    assert bias.from_ncx2(40.0, 10, 3) < 0.01 < 1 < bias.sankaran(40.0, 10, 3)


@pytest.mark.parametrize(
    ("df", "nc", "scale"), [(10.0, 3.0, 0.1), (40.0, 5.0, 0.05), (2.0, 20.0, 1e-6), (3.0, 0.0, 50.0)]
)
def test_fit_finds_the_tail_that_sampling_can_check(df, nc, scale):
    rng = np.random.default_rng(5)
    draw = (lambda n: ncx2.rvs(df, nc, size=n, random_state=rng)) if nc else (lambda n: rng.chisquare(df, n))
    errors = scale * draw(4000)
    fitted = bias.fit_ncx2(errors)
    assert fitted[2] * (fitted[0] + fitted[1]) == pytest.approx(scale * (df + nc), rel=0.03)
    many = scale * draw(200_000)
    for share in (0.01, 0.1, 0.5):
        e = float(np.quantile(many, share))
        assert bias.from_errors(errors, e) == pytest.approx(-math.log(share), abs=0.25)
        assert bias.from_ncx2(e, df, nc, 0.0, scale) == pytest.approx(-math.log(share), abs=0.05)


def test_fit_recovers_well_separated_parameters_and_beats_the_truth_in_likelihood():
    errors = ncx2.rvs(2, 20, scale=0.5, size=20_000, random_state=np.random.default_rng(0))
    df, nc, scale = bias.fit_ncx2(errors)
    assert (df, nc, scale) == (pytest.approx(2, rel=0.3), pytest.approx(20, rel=0.1), pytest.approx(0.5, rel=0.1))
    fitted = ncx2.logpdf(errors, df, nc, scale=scale).sum()
    assert fitted >= ncx2.logpdf(errors, 2, 20, scale=0.5).sum() - 1e-3


def test_density_where_bessel_functions_underflow():
    x = np.array([1500.0, 2005.0, 2200.0])
    assert not np.isfinite(ncx2.logpdf(x, 2000, 5)).all(), "scipy has mended this: the density of scipy will do"
    step = 1e-2
    slope = (ncx2.cdf(x + step, 2000, 5) - ncx2.cdf(x - step, 2000, 5)) / (2 * step)
    np.testing.assert_allclose(bias._log_density(x, 2000.0, 5.0), np.log(slope), atol=1e-4)
    big = np.array([900.0, 1_000_000.0])
    np.testing.assert_allclose(bias._log_density(big, 3.0, 1e6)[1], ncx2.logpdf(big, 3, 1e6)[1], rtol=1e-9)


@pytest.mark.parametrize("df", [1, 3, 10, 40])
@pytest.mark.parametrize("nc", [0.0, 4.0])
@pytest.mark.parametrize("share", [0.003, 0.1, 0.6, 1.0, 1.4])
def test_saddlepoint_against_exact_tails(df, nc, share):
    offset = np.zeros(df)
    offset[0] = math.sqrt(nc)
    e = share * (df + nc)
    exact = bias.from_ncx2(e, df, nc)
    tolerance = 0.03 if df < 10 else 0.003
    assert bias.from_terms(0.01 * e, 0.1 * offset, 0.1 * np.ones(df)) == pytest.approx(exact, rel=tolerance)


def test_saddlepoint_against_counts_with_unequal_weights():
    offset, sd = np.array([0.5, 0.0, 0.2, 0.1]), np.array([1.0, 0.5, 0.1, 0.0])
    rng = np.random.default_rng(0)
    errors = ((offset + sd * rng.standard_normal((400_000, 4))) ** 2).sum(axis=1)
    for share in (0.001, 0.01, 0.2, 0.7):
        assert bias.from_terms(float(np.quantile(errors, share)), offset, sd) == pytest.approx(
            -math.log(share), rel=0.04
        )
    assert bias.from_terms(0.01, offset, sd) == math.inf, "the term without spread is at least 0.01"
    assert math.isfinite(bias.from_terms(0.0100001, offset, sd))


@pytest.fixture
def sphere():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x[:, 0] * x[:, 1]
    return x[:30], y[:30], x[30:], y[30:]


def test_process_is_that_of_scikit_learn(sphere):
    x, y, x_test, y_test = sphere
    peer = GaussianProcessRegressor(RBF(0.8), alpha=1e-3, optimizer=None).fit(x, y)
    mean, covariance = peer.predict(x_test, return_cov=True)
    offset, sd = bias.gp_error_terms(x, y, x_test, y_test, lengthscale=0.8, jitter=1e-3)
    assert (offset**2).sum() == pytest.approx(((mean - y_test) ** 2).mean(), rel=1e-6)
    np.testing.assert_allclose(np.sort(sd**2), np.sort(np.linalg.eigvalsh(covariance)) / 30, atol=1e-9)


def test_errors_have_the_moments_of_the_process(sphere):
    offset, sd = bias.gp_error_terms(*sphere)
    errors = bias.gp_hypothesis_errors(*sphere, samples=20_000, seed=1)
    spread = math.sqrt((2 * sd**4 + 4 * offset**2 * sd**2).sum())
    assert errors.mean() == pytest.approx((offset**2 + sd**2).sum(), abs=5 * spread / 20_000**0.5)
    assert errors.std() == pytest.approx(spread, rel=0.1)
    np.testing.assert_array_equal(errors[:5], bias.gp_hypothesis_errors(*sphere, samples=20_000, seed=1)[:5])


def test_outputs_are_averaged(sphere):
    x, y, x_test, y_test = sphere
    one = bias.gp_error_terms(x, y, x_test, y_test)
    two = bias.gp_error_terms(x, np.stack([y, y], axis=1), x_test, np.stack([y_test, y_test], axis=1))
    for single, double in zip(one, two, strict=True):
        assert (double**2).sum() == pytest.approx((single**2).sum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bias.from_ncx2(1.0, 0.0, 1.0), r"df must lie in \(0, inf\)"),
        (lambda: bias.from_ncx2(1.0, 1.0, -1.0), r"nc must lie in \[0, inf\)"),
        (lambda: bias.from_ncx2(1.0, 1.0, 1.0, scale=0.0), "scale must lie in"),
        (lambda: bias.from_ncx2(math.nan, 1.0, 1.0), "target_error and loc must be finite"),
        (lambda: bias.fit_ncx2([1.0, 2.0]), "errors must be at least 10, but are 2"),
        (lambda: bias.fit_ncx2([1.0] * 9 + [-2.0]), r"errors\[9\] is -2"),
        (lambda: bias.fit_ncx2([1.0] * 20), "errors are all equal"),
        (lambda: bias.from_terms(1.0, [1.0], [0.0]), "with an sd above 0"),
        (lambda: bias.from_terms(math.nan, [1.0], [1.0]), "target_error must be finite"),
        (lambda: bias.gp_error_terms([[0.0]], [0.0], [[0.0, 1.0]], [0.0]), "X_train has 1 columns, but X_test has 2"),
        (lambda: bias.gp_error_terms([[0.0]], [0.0, 1.0], [[0.0]], [0.0]), "y_train and y_test must have a row"),
        (lambda: bias.gp_error_terms([[math.nan]], [0.0], [[0.0]], [0.0]), "X_train must be a non-empty matrix"),
        (lambda: bias.gp_error_terms([[0.0]], [0.0], [[0.0]], [0.0], lengthscale=0.0), "lengthscale must lie in"),
        (
            lambda: bias.gp_hypothesis_errors([[0.0]], [0.0], [[0.0]], [0.0], samples=0),
            "samples must be a whole number of at least 1",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
