"""The weighted interval score in its other forms, coverage of known quantiles, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss

from lossbook.metrics import calibration, quantile_coverage, weighted_interval_score

LEVELS = [0.05, 0.25, 0.5, 0.75, 0.95]


def forecasts(seed=0, n=50, m=5):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(n, m)), 3 * rng.normal(size=n)


def interval_form(pred, y, levels):
    """Bracher et al. 2021, equations 1 and 3, interval by interval; the columns may cross."""
    m = len(levels)
    total = np.zeros(len(y))
    for k in range(m // 2):
        lower, upper, alpha = pred[:, k], pred[:, m - 1 - k], 2 * levels[k]
        score = (upper - lower) + 2 / alpha * (lower - y) * (y < lower) + 2 / alpha * (y - upper) * (y > upper)
        total += alpha / 2 * score
    if m % 2:
        total += np.abs(y - pred[:, m // 2]) / 2
    return (total / (m / 2)).mean()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.lists(st.floats(0.01, 0.49), min_size=1, max_size=5), odd=st.booleans())
def test_it_is_the_sum_of_interval_scores(seed, levels, odd):
    half = sorted(levels)
    levels = half + [0.5] * odd + [1 - tau for tau in reversed(half)]
    pred, y = forecasts(seed, m=len(levels))
    assert weighted_interval_score(pred, y, quantiles=levels) == pytest.approx(interval_form(pred, y, levels))


def test_it_is_twice_the_mean_pinball_loss_of_scikit_learn():
    pred, y = forecasts()
    peer = 2 * np.mean([mean_pinball_loss(y, pred[:, k], alpha=tau) for k, tau in enumerate(LEVELS)])
    assert weighted_interval_score(pred, y, quantiles=LEVELS) == pytest.approx(peer, rel=1e-12)
    single = weighted_interval_score(torch.tensor(pred, dtype=torch.float32), list(y), quantiles=torch.tensor(LEVELS))
    assert single == pytest.approx(peer, rel=1e-5)
    assert calibration.weighted_interval_score is weighted_interval_score


def test_with_many_levels_it_is_the_crps():
    """The CRPS of N(0, 1) at y is y (2 Φ(y) - 1) + 2 φ(y) - 1/√π (Gneiting and Raftery 2007)."""
    levels = (np.arange(2000) + 0.5) / 2000
    y = np.array([-1.3, 0.0, 0.4, 2.5])
    pred = np.tile(norm.ppf(levels), (4, 1))
    crps = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / np.sqrt(np.pi)
    assert weighted_interval_score(pred, y, quantiles=levels) == pytest.approx(crps.mean(), rel=1e-3)


def test_the_true_quantiles_score_best():
    y = np.random.default_rng(0).normal(size=20_000)
    truth = norm.ppf(LEVELS)
    score = {
        name: weighted_interval_score(np.tile(q, (len(y), 1)), y, quantiles=LEVELS)
        for name, q in {"true": truth, "wide": 1.3 * truth, "narrow": 0.7 * truth, "shifted": truth + 0.2}.items()
    }
    assert all(score["true"] < value for name, value in score.items() if name != "true")


def test_coverage_of_the_true_quantiles_is_their_level():
    rng = np.random.default_rng(1)
    scale = np.exp(rng.normal(size=40_000))
    y = scale * rng.normal(size=40_000)
    found = quantile_coverage(scale[:, None] * norm.ppf(LEVELS), y)
    assert found.shape == (5,) and found.dtype == np.float64
    np.testing.assert_allclose(found, LEVELS, atol=4 * np.sqrt(0.25 / 40_000))


def test_coverage_by_hand():
    pred = torch.tensor([[0.0, 1.0], [0.0, float("inf")], [-float("inf"), 2.0], [3.0, 3.0]])
    assert quantile_coverage(pred, [0, 5, 2, 4]).tolist() == [0.25, 0.75]


def test_many_rows_agree_with_few():
    """More than one chunk of memory."""
    pred, y = forecasts(n=300_000)
    parts = [weighted_interval_score(pred[i::3], y[i::3], quantiles=LEVELS) for i in range(3)]
    assert weighted_interval_score(pred, y, quantiles=LEVELS) == pytest.approx(np.mean(parts), rel=1e-12)


@pytest.mark.parametrize("metric", [lambda p, y: weighted_interval_score(p, y, quantiles=LEVELS), quantile_coverage])
@pytest.mark.parametrize(
    ("pred", "target", "sentence"),
    [
        (np.zeros(5), np.zeros(5), r"pred must have shape \(N, m\), but has shape \(5,\)"),
        (np.zeros((0, 5)), np.zeros(0), "pred is empty"),
        (np.zeros((3, 5), dtype=int), np.zeros(3), "pred must be floating point"),
        (np.zeros((3, 5)), np.zeros(4), r"target must have shape \(3,\).* has shape \(4,\)"),
        (np.zeros((3, 5)), np.array([0, np.nan, 0]), r"target\[1\] is nan"),
        (np.full((3, 5), np.nan), np.zeros(3), r"pred\[0, 0\] is .*(nan|NaN)"),
    ],
)
def test_bad_input_is_refused_by_name(metric, pred, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        metric(pred, target)


@pytest.mark.parametrize(
    ("quantiles", "sentence"),
    [(LEVELS[:4], "quantiles must hold a level for each of the 5 columns"), ([0, *LEVELS[1:]], r"quantiles\[0\] is 0")],
)
def test_bad_levels_are_refused_by_name(quantiles, sentence):
    with pytest.raises(ValueError, match=sentence):
        weighted_interval_score(np.zeros((3, 5)), np.zeros(3), quantiles=quantiles)
