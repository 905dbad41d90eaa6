"""Platt, beta, isotonic, histogram: closed forms, stationarity, netcal and scikit-learn, several classes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from lossbook.calibrators import BetaCalibration, HistogramBinning, IsotonicCalibration, PlattScaling, from_dict
from lossbook.calibrators.one_vs_rest import _log_odds
from lossbook.metrics import expected_calibration_error


def binary(n=500, seed=0):
    """Scores of two classes, as logits (0, s), of which 0.5 s - 0.4 are the log-odds; labels."""
    rng = np.random.default_rng(seed)
    s = 2 * rng.normal(size=n)
    y = (rng.random(n) < expit(0.5 * s - 0.4)).astype(int)
    return s, np.stack([np.zeros(n), s], axis=1), y


def several(n=400, k=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    y = (softmax(logits / 2, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return logits, y


def netcal():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import netcal.binning
        import netcal.scaling
    return netcal


def saved(kind, maps, num_classes=2, **parameters):
    fitted = {"kind": kind, "num_classes": num_classes, "parameters": parameters, "fitted": {"maps": maps}}
    return from_dict(fitted)


def test_log_odds_keep_their_digits():
    logits = np.array([[0.0, 50.0], [0.0, -800.0], [3.0, 1.0]])
    np.testing.assert_allclose(_log_odds(logits)[:, 1], logits[:, 1] - logits[:, 0], rtol=1e-14)
    logits, _ = several()
    np.testing.assert_allclose(_log_odds(logits), logit(softmax(logits, axis=1)), rtol=1e-9)
    np.testing.assert_allclose(_log_odds(logits + 7), _log_odds(logits), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_platt_is_stationary_at_platts_targets(scale):
    s, logits, y = binary()
    scaler = PlattScaling().fit(scale * logits, y)
    positives, negatives = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    residual = scaler.predict_proba(scale * logits)[:, 1] - target
    x = scale * s
    size = np.abs(x).max()
    ((a, _),) = scaler.maps_
    assert abs(residual.mean()) < 1e-9
    ridge = 1e-6 * min(1, size) ** 2  # of the module's docstring
    assert (residual * x).mean() / size == pytest.approx(-ridge * a / size, abs=1e-9)


def test_platt_recovers_a_known_line():
    _, logits, y = binary(n=50_000)
    ((a, c),) = PlattScaling().fit(logits, y).maps_
    assert a == pytest.approx(0.5, abs=0.02) and c == pytest.approx(-0.4, abs=0.03)


def test_platt_is_scikit_learns_sigmoid():
    from sklearn.calibration import _sigmoid_calibration

    s, logits, y = binary()
    ((a, c),) = PlattScaling().fit(logits, y).maps_
    minus_a, minus_c = _sigmoid_calibration(s, y)
    np.testing.assert_allclose([a, c], [-minus_a, -minus_c], atol=1e-3)


def test_platt_of_a_class_without_a_row():
    logits, y = several()
    scaler = PlattScaling().fit(logits[:30], y[:30] % 3)
    a, c = scaler.maps_[3]
    assert a == pytest.approx(0, abs=1e-6) and expit(c) == pytest.approx(1 / 32)


def test_platt_of_a_constant_score():
    scaler = PlattScaling().fit(np.tile([1.0, 6.0], (10, 1)), [0] * 7 + [1] * 3)
    ((a, _),) = scaler.maps_
    assert a == pytest.approx(0, abs=1e-6)
    assert scaler.predict_proba([[1.0, 6.0]])[0, 1] == pytest.approx(0.7 * (1 / 9) + 0.3 * (4 / 5))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-27, 27), min_size=1, max_size=5))
def test_beta_of_ones_and_zero_is_the_identity(s):
    logits = np.stack([np.zeros(len(s)), s], axis=1)
    identity = saved("BetaCalibration", [{"a": 1.0, "b": 1.0, "c": 0.0}])
    np.testing.assert_allclose(identity.predict_proba(logits), softmax(logits, axis=1), rtol=1e-9, atol=1e-15)


def beta_objective(theta, s, y):
    a, b, c = theta
    margin = a * log_expit(s) - b * log_expit(-s) + c
    return -log_expit(np.where(y == 1, margin, -margin)).mean()


def reversed_below(seed=0):
    """Scores that are a guide where p is high, and mislead where it is low."""
    s, logits, _ = binary(seed=seed)
    y = (np.random.default_rng(seed + 1).random(len(s)) < expit(np.abs(s) - 1)).astype(int)
    return s, logits, y


def flip(seed=0):
    s, logits, y = binary(seed=seed)
    return s, logits, 1 - y


@pytest.mark.parametrize("make", [binary, reversed_below, flip])
@pytest.mark.parametrize("seed", [0, 1])
def test_beta_is_the_constrained_maximum_of_the_likelihood(make, seed):
    s, logits, y = make(seed=seed)
    ((a, b, c),) = BetaCalibration().fit(logits, y).maps_
    best = minimize(
        beta_objective,
        [1.0, 1.0, 0.0],
        args=(s, y),
        bounds=[(0, None), (0, None), (None, None)],
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    assert a >= 0 and b >= 0
    assert beta_objective((a, b, c), s, y) == pytest.approx(best.fun, abs=1e-6)
    np.testing.assert_allclose([a, b, c], best.x, atol=5e-3)
    assert (make is binary) == (a > 0 and b > 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_beta_is_netcals(seed):
    s, logits, y = binary(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = netcal().scaling.BetaCalibration().fit(expit(s), y)
        theirs = np.ravel(peer.transform(expit(s)))
    np.testing.assert_allclose(BetaCalibration().fit(logits, y).predict_proba(logits)[:, 1], theirs, atol=2e-3)


def test_beta_is_finite_on_separated_labels():
    logits = np.stack([np.zeros(6), [-3.0, -2, -1, 1, 2, 3]], axis=1)
    scaler = BetaCalibration().fit(logits, [0, 0, 0, 1, 1, 1])
    assert np.isfinite(scaler.maps_).all()
    assert (scaler.predict_proba(logits)[[0, -1], [0, 1]] > 0.999).all()


def test_beta_of_a_class_without_a_row_is_laplaces_rule():
    logits, y = several()
    a, b, c = BetaCalibration().fit(logits[:30], y[:30] % 3).maps_[3]
    assert (a, b) == (0, 0) and expit(c) == pytest.approx(1 / 32)


def test_isotonic_is_scikit_learns():
    s, logits, y = binary()
    peer = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(expit(s), y)
    fresh, fresh_logits, _ = binary(seed=1)
    probs = IsotonicCalibration().fit(logits, y).predict_proba(3 * fresh_logits)[:, 1]
    np.testing.assert_allclose(probs, peer.predict(expit(3 * fresh)), atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_isotonic_keeps_the_order_and_the_mean(seed):
    s, logits, y = binary(n=60, seed=seed)
    probs = IsotonicCalibration().fit(logits, y).predict_proba(logits)[:, 1]
    assert (np.diff(probs[np.argsort(s)]) >= 0).all()
    assert probs.mean() == pytest.approx(y.mean())


def test_histogram_is_netcals():
    s, logits, y = binary(n=600)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = netcal().binning.HistogramBinning(bins=8).fit(expit(s), y)
        theirs = np.ravel(peer.transform(expit(s)))
    ours = HistogramBinning(n_bins=8, strategy="uniform").fit(logits, y).predict_proba(logits)[:, 1]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_histogram_by_hand():
    p = np.array([0.1, 0.2, 0.4, 0.6, 0.7, 0.9])
    y = [0, 1, 0, 1, 1, 1]
    logits = np.stack([np.zeros(6), logit(p)], axis=1)
    ((edges, values),) = HistogramBinning(n_bins=3).fit(logits, y).maps_
    np.testing.assert_allclose(edges, [0.3, 0.65])
    np.testing.assert_allclose(values, [0.5, 0.5, 1.0])
    ((edges, values),) = HistogramBinning(n_bins=4, strategy="uniform").fit(logits[:3], y[:3]).maps_
    np.testing.assert_allclose(edges, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(values, [0.5, 0.0, 0.625, 0.875])  # the empty bins keep their centres


def test_histogram_of_ties():
    """Most of p is the same: it shares one bin, and no bin is empty."""
    s = np.array([-20.0] * 90 + [0.0] * 4 + [1.0, 2, 3, 4, 5, 6])
    y = np.array([0] * 88 + [1] * 2 + [0, 1] * 2 + [1] * 6)
    ((edges, values),) = HistogramBinning().fit(np.stack([0 * s, s], axis=1), y).maps_
    counts = np.bincount(np.searchsorted(edges, expit(s)), minlength=len(values))
    assert (counts > 0).all() and values[0] == pytest.approx(2 / 90)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n_bins=st.integers(1, 20))
def test_histogram_calibrates_its_own_rows(seed, n_bins):
    """The rows of a value have that share of the class."""
    _, logits, y = binary(n=80, seed=seed)
    probs = HistogramBinning(n_bins=n_bins).fit(logits, y).predict_proba(logits)[:, 1]
    for value in np.unique(probs):
        assert y[probs == value].mean() == pytest.approx(value)


@pytest.mark.parametrize("kind", [IsotonicCalibration, HistogramBinning])
def test_top_label_moves_the_confidence_alone(kind):
    logits, y = several(n=2000)
    scaler = kind(mode="top_label").fit(logits, y)
    before, after = softmax(logits, axis=1), scaler.predict_proba(logits)
    top = before.argmax(axis=1)
    rows = np.arange(len(y))
    confidence = after[rows, top]
    # On the rows of the fit the mean confidence of equal ones is the accuracy.
    correct = (top == y).astype(float)
    assert confidence.mean() == pytest.approx(correct.mean())
    if kind is HistogramBinning:
        assert len(np.unique(confidence)) <= 15
    others = np.ones_like(before, dtype=bool)
    others[rows, top] = False
    shares_before = before[others].reshape(len(y), -1) / (1 - before[rows, top])[:, None]
    left = (1 - confidence)[:, None]
    np.testing.assert_allclose(after[others].reshape(len(y), -1), shares_before * left, atol=1e-12)


def test_a_row_of_zeros_becomes_uniform():
    zero = {"edges": [], "values": [0.0]}
    scaler = saved("HistogramBinning", [zero] * 3, 3, n_bins=1, strategy="quantile", mode="one_vs_rest")
    np.testing.assert_allclose(scaler.predict_proba([[1.0, 2.0, 3.0]]), 1 / 3)


def test_several_classes_are_maps_of_each_against_the_rest():
    logits, y = several()
    p = softmax(logits, axis=1)
    columns = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit_transform(p[:, k], (y == k).astype(float))
        for k in range(4)
    ]
    expected = np.stack(columns, axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(IsotonicCalibration().fit(logits, y).predict_proba(logits), expected, atol=1e-9)


@pytest.mark.parametrize(
    "scaler", [PlattScaling(), BetaCalibration(), IsotonicCalibration(), HistogramBinning(mode="top_label")], ids=str
)
def test_calibration_error_of_new_data_falls(scaler):
    logits, y = several(n=4000)
    fresh, truth = several(n=4000, seed=1)
    before = expected_calibration_error(softmax(fresh, axis=1), truth)
    assert expected_calibration_error(scaler.fit(logits, y).predict_proba(fresh), truth) < 0.3 * before


def test_two_classes_are_treated_alike():
    """Renaming the classes of a binary problem renames the columns of the answer."""
    _, logits, y = binary()
    for scaler in (PlattScaling(), BetaCalibration(), IsotonicCalibration()):
        renamed = scaler.fit(logits[:, ::-1], 1 - y).predict_proba(logits[:, ::-1])[:, ::-1]
        np.testing.assert_allclose(scaler.fit(logits, y).predict_proba(logits), renamed, atol=1e-6)
