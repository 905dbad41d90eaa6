"""The parts of the Brier score: the identity, a loop, closed forms, known truth, streaming."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

from lossbook import metrics
from lossbook.metrics import brier_decomposition, calibration


def total(terms):
    reliability, resolution, uncertainty, variance, covariance = terms
    return reliability - resolution + uncertainty + variance - covariance


def sample(n, seed, power=1.0):
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return p, (rng.random(n) < p**power).astype(int)


def test_terms_agree_with_a_loop():
    p, y = sample(400, seed=0, power=2)
    bins = [[] for _ in range(7)]
    for c, a in zip(p, y, strict=True):
        bins[next(b for b in range(7) if c <= (b + 1) / 7)].append((c, a))
    reliability = resolution = variance = covariance = 0.0
    for rows in (np.array(b) for b in bins if b):
        c, a = rows.T
        reliability += len(a) * (c.mean() - a.mean()) ** 2 / 400
        resolution += len(a) * (a.mean() - y.mean()) ** 2 / 400
        variance += ((c - c.mean()) ** 2).sum() / 400
        covariance += 2 * ((c - c.mean()) * (a - a.mean())).sum() / 400
    expected = (reliability, resolution, y.mean() * (1 - y.mean()), variance, covariance)
    assert brier_decomposition(p, y, n_bins=7) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1, 5]), st.booleans())
def test_five_terms_are_the_score(n, n_bins, seed, power, soft):
    rng = np.random.default_rng(seed)
    p = rng.random(n) ** power
    y = rng.random(n) if soft else rng.integers(0, 2, n)
    terms = brier_decomposition(p, y, n_bins=n_bins)
    assert total(terms) == pytest.approx(metrics.brier_score(p, y), abs=1e-12)
    assert min(terms.reliability, terms.resolution, terms.within_bin_variance) >= 0
    assert terms.resolution <= terms.uncertainty + 1e-12
    if not soft:
        assert total(terms) == pytest.approx(brier_score_loss(y, p, pos_label=1), abs=1e-12)


def test_the_identity_holds_for_many_samples():
    p, y = sample(300_000, seed=1)
    assert total(brier_decomposition(p, y)) == pytest.approx(metrics.brier_score(p, y), abs=1e-12)


def test_three_terms_are_enough_where_a_bin_holds_one_value():
    p, y = sample(500, seed=2)
    terms = brier_decomposition(np.round(p, 1), y, n_bins=10)
    # 0 and 0.1 share the first bin, so leave the zeros out.
    keep = np.round(p, 1) > 0
    terms = brier_decomposition(np.round(p, 1)[keep], y[keep], n_bins=10)
    assert terms.within_bin_variance == pytest.approx(0, abs=1e-12)
    assert terms.within_bin_covariance == pytest.approx(0, abs=1e-12)


def test_known_truth():
    # c uniform, frequency c²: E(c - c²)² = 1/30, Var(c²) = 4/45, frequency 1/3.
    terms = brier_decomposition(*sample(200_000, seed=3, power=2), n_bins=100)
    assert terms.reliability == pytest.approx(1 / 30, abs=0.002)
    assert terms.resolution == pytest.approx(4 / 45, abs=0.003)
    assert terms.uncertainty == pytest.approx(2 / 9, abs=0.003)
    assert brier_decomposition([0.3] * 10, [1, 1, 1] + [0] * 7)[:2] == pytest.approx((0, 0), abs=1e-12)
    assert calibration.brier_decomposition is brier_decomposition


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 59), st.integers(0, 1000))
def test_two_halves_merge_into_the_whole(n, cut, seed):
    cut = min(cut, n - 1)
    p, y = sample(n, seed)
    one, other = metrics.BrierDecomposition(10), metrics.BrierDecomposition(10)
    one.update(p[:cut], y[:cut])
    other.update(torch.from_numpy(p[cut:]), torch.from_numpy(y[cut:]))
    one.merge_state(other)
    merged = {name: float(value) for name, value in one.compute().items()}
    assert merged == pytest.approx(brier_decomposition(p, y, n_bins=10)._asdict(), abs=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_streaming_state_is_constant_and_nothing_seen_is_nan():
    metric = metrics.BrierDecomposition()
    assert all(np.isnan(float(value)) for value in metric.compute().values())
    for seed in range(3):
        batch = metric(*sample(500, seed))
        assert float(batch["reliability"]) == pytest.approx(brier_decomposition(*sample(500, seed)).reliability)
    assert metric.sums.shape == (6, 15)
    assert float(metric.sums[0].sum()) == 1500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brier_decomposition([0.5, 1.5], [0, 1]), r"confidence\[1\] is 1.5, outside \[0, 1\]"),
        (lambda: brier_decomposition([0.5, 0.5], [0, 3]), r"correct\[1\] is 3, outside \[0, 1\]"),
        (lambda: brier_decomposition([[0.5, 0.5]], [0]), r"confidence must have shape \(N,\)"),
        (lambda: brier_decomposition([], []), "confidence must be|confidence is empty"),
        (lambda: brier_decomposition([0.5], [1], n_bins=0), "n_bins must be a whole number of at least 1, but is 0"),
        (lambda: metrics.BrierDecomposition(0), "n_bins must be a whole number of at least 1, but is 0"),
        (lambda: metrics.BrierDecomposition().update([0.5], [1, 0]), "correct has 2 entries"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
