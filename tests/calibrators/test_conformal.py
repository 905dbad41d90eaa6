"""Conformal intervals: the guarantee by exhausting the exchange of rows, its distribution, edges, bad input."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from lossbook.calibrators import ConformalQuantile


def rows(seed, n, *, ties=False):
    """Intervals of all kinds (too wide, too narrow, crossing) and outcomes that have nothing to do with them.

    With ties the rows are drawn from four different ones, of very different size.
    """
    rng = np.random.default_rng(seed)
    intervals, y = 2 * rng.normal(size=(n, 2)), rng.standard_t(2, size=n)
    if ties:
        drawn, size = rng.integers(min(4, n), size=n), 10.0 ** rng.integers(-6, 7, size=(n, 1))
        return (size * intervals)[drawn], y[drawn]
    return intervals, y


def covered(intervals, y):
    return (intervals[:, 0] <= y) & (y <= intervals[:, 1])


def leave_one_out(alpha, intervals, y):
    """How many of the n + 1 rows are covered when each in turn is the new one."""
    hits = 0
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        model = ConformalQuantile(alpha).fit(intervals[others], y[others])
        hits += int(covered(model.predict(intervals[~others]), y[~others])[0])
    return hits


# Levels on a grid and not: (n + 1)(1 - alpha) is whole for many of the first.
ALPHAS = st.one_of(st.integers(1, 99).map(lambda k: k / 100), st.floats(0.01, 0.99))


@pytest.mark.filterwarnings("ignore:.*the intervals are infinite")
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), alpha=ALPHAS, ties=st.booleans())
def test_the_guarantee_is_exact(seed, n, alpha, ties):
    """Exchangeable rows are any n + 1 rows in random order: the new one is each of them equally often."""
    intervals, y = rows(seed, n + 1, ties=ties)
    share = leave_one_out(alpha, intervals, y) / (n + 1)
    promised = ConformalQuantile(alpha).fit(intervals[1:], y[1:]).coverage_
    assert share >= promised - 1e-12 >= 1 - alpha - 1e-9
    if not ties:
        assert abs(share - promised) < 1e-12
        assert promised < 1 - alpha + 1 / (n + 1) + 1e-9


@pytest.mark.filterwarnings("ignore:.*the intervals are infinite")
@pytest.mark.parametrize("n", [4, 9, 19, 49, 99])
def test_whole_ranks_are_not_lost_to_rounding(n):
    """For alpha = j/(n + 1) the rank is n + 1 - j exactly, whatever 1 - alpha is in binary."""
    intervals, y = rows(n, n)
    scores = np.sort(np.maximum(intervals[:, 0] - y, y - intervals[:, 1]))
    for j in range(1, n + 1):
        model = ConformalQuantile(j / (n + 1)).fit(intervals, y)
        assert model.correction_ == scores[n - j]
        assert model.coverage_ == pytest.approx(1 - j / (n + 1))


def test_coverage_of_one_held_out_set_is_beta_distributed():
    """400 held-out sets of 39 rows, y uniform and intervals [1/4, 3/4]: the share covered is the resulting length."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        y = rng.random(39)
        (lower, upper), *_ = ConformalQuantile(0.2).fit(np.tile([0.25, 0.75], (39, 1)), y).predict([[0.25, 0.75]])
        shares.append(min(upper, 1) - max(lower, 0))
    assert kstest(shares, beta(32, 8).cdf).pvalue > 0.01
    assert np.mean(shares) == pytest.approx(32 / 40, abs=4 * beta(32, 8).std() / 20)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_wrong_intervals_become_right_ones(scale):
    """Heteroscedastic noise and intervals off by a factor: narrower or wider, the coverage is the one asked for."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=12_000)
    spread = 0.2 + np.abs(x)
    y = np.sin(3 * x) + spread * rng.normal(size=len(x))
    intervals = np.sin(3 * x)[:, None] + scale * 1.2816 * spread[:, None] * np.array([-1.0, 1.0])
    model = ConformalQuantile(0.2).fit(intervals[:4000], y[:4000])
    share = covered(model.predict(intervals[4000:]), y[4000:]).mean()
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 8000 + 0.16 / 4000))
    assert np.sign(model.correction_) == np.sign(1 - scale) or scale == 1.0


def test_a_constant_outcome_is_covered_although_arithmetic_rounds():
    """u + (y - u) is not y in floating point: every one of these rows would be missed by an ulp, or none."""
    rng = np.random.default_rng(2)
    for y, upper in 10.0 ** rng.uniform(-8, 8, size=(300, 2)):
        intervals, outcome = np.tile([upper - 1, upper], (20, 1)), np.full(20, y)
        found = ConformalQuantile(0.1).fit(intervals, outcome).predict(intervals)
        assert covered(found, outcome).all()
        lower, upper = found[0]
        assert min(abs(y - lower), abs(y - upper)) <= 1e-14 * max(abs(intervals).max(), y)


def test_alpha_next_to_one_takes_the_smallest_score():
    intervals, y = rows(0, 20)
    model = ConformalQuantile(1 - 1e-13).fit(intervals, y)
    assert model.correction_ == np.maximum(intervals[:, 0] - y, y - intervals[:, 1]).min()
    assert model.coverage_ == pytest.approx(1 / 21)


def test_too_few_rows_give_infinite_intervals_and_a_warning():
    intervals, y = rows(0, 8)
    with pytest.warns(UserWarning, match="8 rows cannot bound the error at alpha 0.1: .* It takes 9 rows"):
        model = ConformalQuantile(0.1).fit(intervals, y)
    assert model.correction_ == math.inf and model.coverage_ == 1
    assert covered(model.predict(intervals), y).all() and np.isinf(model.predict(intervals)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(ConformalQuantile(0.1).fit(*rows(0, 9)).correction_)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_in_arrays_out(dtype):
    intervals, y = (torch.from_numpy(part).to(dtype).requires_grad_() for part in rows(0, 30))
    model = ConformalQuantile().fit(intervals, y)
    again = ConformalQuantile().fit(intervals.detach().double().numpy(), y.detach().double().numpy())
    assert model.correction_ == again.correction_
    assert isinstance(model.predict(intervals), np.ndarray) and model.predict(intervals).dtype == np.float64


def test_pickle_clone_and_parameters():
    model = ConformalQuantile(alpha=0.3).fit(*rows(0, 30))
    assert pickle.loads(pickle.dumps(model)).correction_ == model.correction_
    assert not hasattr(clone(model), "correction_") and clone(model).alpha == 0.3
    assert (
        model.set_params(alpha=0.5).fit(*rows(0, 30)).correction_
        < clone(model).set_params(alpha=0.1).fit(*rows(0, 30)).correction_
    )
    with pytest.raises(NotFittedError):
        clone(model).predict([[0.0, 1.0]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alpha": 0.0}, r"alpha must lie in \(0, 1\], but is 0"),
        ({"alpha": 1.0}, "alpha must lie strictly between 0 and 1, but is 1"),
        ({"alpha": math.nan}, "alpha must lie"),
        ({"intervals": np.zeros((3, 3))}, r"intervals must have shape \(n, 2\).* have \(3, 3\)"),
        ({"intervals": np.zeros((0, 2)), "y": []}, "intervals must have shape .* not empty"),
        ({"intervals": [[0, 1], [0, np.inf], [0, 1]]}, r"intervals\[1, 1\] is inf, not a finite number"),
        ({"intervals": [["a", "b"]]}, "intervals must hold numbers"),
        ({"y": [0.0, 1.0]}, r"y must have shape \(3,\), an outcome a row, but has shape \(2,\)"),
        ({"y": [0.0, np.nan, 1.0]}, r"y\[1\] is nan, not a finite number"),
    ],
)
def test_bad_input_is_refused_by_name(change, sentence):
    arguments = {"alpha": 0.5, "intervals": np.zeros((3, 2)), "y": np.zeros(3)} | change
    with pytest.raises(ValueError, match=sentence):
        ConformalQuantile(arguments["alpha"]).fit(arguments["intervals"], arguments["y"])
