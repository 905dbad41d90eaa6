"""Calibrators of detections: the known posterior, scikit-learn, scipy and netcal, ranking, bad input."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.base import clone
from sklearn.isotonic import IsotonicRegression

from lossbook import metrics
from lossbook.calibrators import DetectionCalibrator, PerClassScoreCalibrator
from lossbook.data import toy_detections

DETECTION = ("isotonic", "linear", "platt", "temperature")
SCORE = ("histogram", "isotonic", "beta")
EVERY = [DetectionCalibrator(kind) for kind in DETECTION] + [PerClassScoreCalibrator(kind) for kind in SCORE]
NAMES = [f"{type(c).__name__}-{c.kind}" for c in EVERY]


def matched(d, threshold=0.0):
    return metrics.match_detections(*d[:4], *d[5:8], iou_threshold=threshold)


@pytest.fixture(scope="module")
def problem():
    """Scores, labels, u and t of three classes with biases that differ."""
    d = toy_detections(800, 3, seed=2)
    matches = matched(d)
    return d.scores.numpy(), d.labels.numpy(), matches.iou, matches.is_true_positive


@pytest.mark.parametrize("calibrator", EVERY, ids=NAMES)
def test_increases_stays_in_range_and_does_not_depend_on_the_order(calibrator, problem):
    scores, labels, u, _ = problem
    grid = np.linspace(0, 1, 501)
    shuffled = np.random.default_rng(0).permutation(len(scores))
    calibrator, other = clone(calibrator).fit(scores, labels, u), clone(calibrator)
    other.fit(scores[shuffled], labels[shuffled], u[shuffled])
    for k in range(3):
        map_ = calibrator.transform(grid, np.full(501, k))
        assert map_.min() >= 0 and map_.max() <= 1
        assert calibrator.kind == "histogram" or (np.diff(map_) >= -1e-12).all()
        np.testing.assert_allclose(other.transform(grid, np.full(501, k)), map_, atol=1e-6)


@pytest.mark.parametrize("calibrator", EVERY, ids=NAMES)
def test_classes_are_calibrated_apart(calibrator, problem):
    """The calibrator of all classes is, for each class, the one that saw this class only."""
    scores, labels, u, _ = problem
    together = clone(calibrator).fit(scores, labels, u).transform(scores, labels)
    for k in range(3):
        rows = labels == k
        alone = clone(calibrator).fit(scores[rows], labels[rows] * 0, u[rows])
        np.testing.assert_allclose(alone.transform(scores[rows], labels[rows] * 0), together[rows], atol=1e-12)


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_known_calibration_is_recovered(kind):
    """s = σ(a logit q + b_k): Platt scaling of the logit is the truth, slope 1/a and intercept -b_k/a."""
    d = toy_detections(4000, 2, seed=3)
    calibrated = DetectionCalibrator(kind).fit(d.scores, d.labels, matched(d).iou).transform(d.scores, d.labels)
    assert np.abs(calibrated - d.quality.numpy()).mean() < (0.005 if kind == "platt" else 0.012)
    if kind == "platt":
        maps = DetectionCalibrator("platt").fit(d.scores, d.labels, matched(d).iou).maps_
        for k in range(2):
            assert maps[k].slopes[0] == pytest.approx(1 / 2.5, rel=0.03)
            assert maps[k].intercept == pytest.approx(-float(d.bias[k]) / 2.5, abs=0.05)


@pytest.mark.parametrize("kind", DETECTION)
def test_repairs_on_other_images(kind):
    d = toy_detections(1000, 3, bias_spread=1.5, seed=5)
    fit, judge = d.split(500)
    flags, u = matched(judge)[:2]
    before = metrics.localization_ece(judge.scores, judge.labels, flags, u)
    calibrator = DetectionCalibrator(kind).fit(fit.scores, fit.labels, matched(fit).iou)
    after = metrics.localization_ece(calibrator.transform(judge.scores, judge.labels), judge.labels, flags, u)
    # A temperature has no shift to undo the biases with, and a line cannot bend.
    assert after < (before if kind in ("temperature", "linear") else 0.4 * before)


def test_one_map_for_all_cannot_repair_biases_that_differ():
    d = toy_detections(1000, 3, bias_spread=1.5, seed=5)
    flags, u = matched(d)[:2]
    errors = [
        metrics.localization_ece(
            DetectionCalibrator(per_class=per_class).fit(d.scores, d.labels, u).transform(d.scores, d.labels),
            d.labels,
            flags,
            u,
        )
        for per_class in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


# Peers


def cross_entropy(z, u):
    return np.mean(np.logaddexp(0, z) - u * z)


@pytest.mark.parametrize("kind", ["platt", "temperature", "beta"])
def test_logistic_fits_minimise_the_cross_entropy(kind, problem):
    scores, _, u, _ = problem
    if kind == "beta":
        features = np.stack([np.log(scores), -np.log1p(-scores)], axis=1)
        calibrator = PerClassScoreCalibrator("beta", break_ties=False)
    else:
        features, calibrator = logit(scores)[:, None], DetectionCalibrator(kind)
    if kind != "temperature":
        features = np.concatenate([features, np.ones((len(scores), 1))], axis=1)
    best = minimize(lambda w: cross_entropy(features @ w, u), np.ones(features.shape[1]), tol=1e-12)
    zero = np.zeros(len(scores), dtype=int)
    calibrated = calibrator.fit(scores, zero, u).transform(scores, zero)
    np.testing.assert_allclose(calibrated, expit(features @ best.x), atol=2e-4)
    assert cross_entropy(logit(calibrated), u) <= best.fun + 1e-10


def test_beta_with_a_slope_at_zero_is_the_constrained_minimum():
    """Scores that fall with the truth near 0 and rise near 1: the free fit has a negative slope."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.01, 0.99, 400)
    target = expit(-0.8 * np.log(scores) - 1.5 * np.log1p(-scores) - 2)
    features = np.stack([np.log(scores), -np.log1p(-scores), np.ones(400)], axis=1)
    free = minimize(lambda w: cross_entropy(features @ w, target), np.ones(3), tol=1e-12)
    assert free.x[:2].min() == pytest.approx(-0.8, abs=1e-3)
    best = minimize(
        lambda w: cross_entropy(features @ w, target),
        np.ones(3),
        bounds=[(0, None), (0, None), (None, None)],
        tol=1e-12,
    )
    (map_,) = PerClassScoreCalibrator("beta").fit(scores, np.zeros(400, int), target).maps_.values()
    np.testing.assert_allclose(map_.slopes, best.x[:2], atol=1e-3)
    assert map_.slopes.min() == 0


def test_isotonic_weighs_equal_scores():
    scores = np.array([0.2, 0.2, 0.2, 0.6, 0.6, 0.4])
    target = np.array([0.0, 0.3, 0.9, 0.1, 0.5, 0.8])
    found = DetectionCalibrator().fit(scores, np.zeros(6, int), target).transform([0.2, 0.4, 0.6], [0, 0, 0])
    # Means 0.4, 0.8, 0.3 with weights 3, 1, 2: the last two violate the order and are pooled.
    np.testing.assert_allclose(found, [0.4, 1.4 / 3, 1.4 / 3])
    peer = IsotonicRegression(out_of_bounds="clip").fit([0.2, 0.4, 0.6], [0.4, 0.8, 0.3], sample_weight=[3, 1, 2])
    np.testing.assert_allclose(found, peer.predict([0.2, 0.4, 0.6]))


def test_line_by_hand():
    line = DetectionCalibrator("linear").fit([0.2, 0.4, 0.6], [0, 0, 0], [0.1, 0.2, 0.3])
    np.testing.assert_allclose(line.transform([0.0, 0.5, 1.0], [0, 0, 0]), [0, 0.25, 0.5], atol=1e-12)
    falling = DetectionCalibrator("linear").fit([0.2, 0.4, 0.6], [0, 0, 0], [0.9, 0.5, 0.1])
    np.testing.assert_allclose(falling.transform([0.0, 1.0], [0, 0]), [0.5, 0.5])
    steep = DetectionCalibrator("linear").fit([0.4, 0.6], [0, 0], [0.0, 1.0])
    np.testing.assert_allclose(steep.transform([0.1, 0.5, 0.9], [0, 0, 0]), [0, 0.5, 1], atol=1e-12)


def test_histogram_is_netcals(problem):
    from netcal.binning import HistogramBinning

    scores, labels, _, hit = problem
    grid = np.linspace(0.001, 0.999, 777)
    calibrator = PerClassScoreCalibrator(break_ties=False).fit(scores, labels, hit)
    for k in range(3):
        rows = labels == k
        peer = HistogramBinning(20, detection=True).fit(scores[rows, None], hit[rows].astype(float))
        found = calibrator.transform(grid, np.full(777, k))
        np.testing.assert_allclose(found, peer.transform(grid[:, None]).reshape(-1), atol=1e-12)


def test_histogram_by_hand():
    scores, hit = [0.0, 0.1, 0.25, 0.26, 0.9], [0, 1, 1, 0, 1]
    calibrator = PerClassScoreCalibrator(n_bins=4, break_ties=False).fit(scores, [0] * 5, hit)
    found = calibrator.transform([0.0, 0.25, 0.3, 0.5, 0.6, 1.0], [0] * 6)
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, 0, 0, 0.625, 1])


# Corner cases


@pytest.mark.parametrize("kind", ["platt", "temperature", "beta"])
@pytest.mark.parametrize(
    ("scores", "target"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]),  # separable
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]),  # the wrong way round
        ([0.5], [0.3]),
        ([0.2, 0.3], [0, 0]),
        ([0.2, 0.3], [1, 1]),
        ([0.0, 1.0, 1.0], [0, 1, 0]),  # infinite logits
    ],
)
def test_logistic_fits_survive(kind, scores, target):
    calibrator = PerClassScoreCalibrator(kind) if kind == "beta" else DetectionCalibrator(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrator.fit(scores, np.zeros(len(scores), int), np.array(target, dtype=float))
        found = calibrator.transform(np.linspace(0, 1, 11), np.zeros(11, int))
    assert np.isfinite(found).all() and (np.diff(found) >= 0).all()
    if kind == "platt":
        fitted = calibrator.transform(scores, np.zeros(len(scores), int))
        assert fitted.mean() == pytest.approx(np.mean(target), abs=1e-4)


def test_classes_that_were_not_there():
    for calibrator in (DetectionCalibrator(), DetectionCalibrator("platt")):
        fitted = calibrator.fit([0.2, 0.8], [0, 0], [0.1, 0.2])
        assert fitted.transform([0.3, 0.8], [5, 0]).tolist() == pytest.approx([0.3, 0.2], abs=1e-5)
    scores = PerClassScoreCalibrator(break_ties=False).fit([0.2, 0.8], [0, 0], [0, 1])
    assert scores.transform([0.9, 0.8], [1, 0]).tolist() == [0, 1]
    # A class without a true positive sinks to the bottom too.
    assert PerClassScoreCalibrator("isotonic").fit([0.9, 0.5], [0, 0], [0, 0]).transform([0.9], [0])[0] < 2e-6
    everybody = DetectionCalibrator(per_class=False).fit([0.2, 0.8], [0, 1], [0.1, 0.2])
    assert everybody.transform([0.8, 0.8], [0, 7]).tolist() == [0.2, 0.2]


def test_broken_ties_keep_ap_fixed():
    d = toy_detections(600, 8, zipf=1.0, seed=6)
    fit, judge = d.split(300)
    hit = matched(judge, 0.5).is_true_positive
    raw = metrics.ap_fixed(judge.scores, judge.labels, hit, judge.n_gt)
    aps = {}
    for kind in ("isotonic", "histogram"):
        for break_ties in (True, False):
            calibrator = PerClassScoreCalibrator(kind, n_bins=4, break_ties=break_ties)
            calibrator.fit(fit.scores, fit.labels, matched(fit, 0.5).is_true_positive)
            calibrated = calibrator.transform(judge.scores, judge.labels)
            aps[kind, break_ties] = metrics.ap_fixed(calibrated, judge.labels, hit, judge.n_gt)
    assert aps["isotonic", True] == pytest.approx(raw, abs=1e-12)
    assert aps["histogram", True] == pytest.approx(raw, abs=0.01)
    assert aps["histogram", False] < raw - 0.05


@pytest.mark.parametrize("calibrator", EVERY, ids=NAMES)
def test_tensors_pickle_and_clone(calibrator, problem):
    scores, labels, u, hit = problem
    fitted = clone(calibrator).fit(scores, labels, u)
    expected = fitted.transform(scores, labels)
    assert expected.dtype == np.float64 and expected.shape == scores.shape
    tensors = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(labels), torch.from_numpy(u)
    np.testing.assert_array_equal(clone(calibrator).fit(*tensors).transform(*tensors[:2]), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(scores, labels), expected)
    flags = clone(calibrator).fit(scores, labels, hit).transform(scores, labels)
    np.testing.assert_array_equal(
        clone(calibrator).fit(scores, labels, hit.astype(float)).transform(scores, labels), flags
    )
    assert not hasattr(clone(fitted), "maps_")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DetectionCalibrator("spline").fit([0.5], [0], [0.5]),
            "kind must be 'isotonic' or .*, but is 'spline'",
        ),
        (lambda: PerClassScoreCalibrator("platt").fit([0.5], [0], [1]), "kind must be 'histogram' or"),
        (lambda: PerClassScoreCalibrator(n_bins=0).fit([0.5], [0], [1]), "n_bins must be a whole number of at least 1"),
        (lambda: DetectionCalibrator().fit([0.5, 1.5], [0, 0], [0, 0]), r"scores\[1\] is 1.5, outside \[0, 1\]"),
        (lambda: DetectionCalibrator().fit([float("nan")], [0], [0]), r"scores\[0\] is nan"),
        (lambda: DetectionCalibrator().fit([0.5], [0], [1.5]), r"target\[0\] is 1.5, outside \[0, 1\]"),
        (lambda: DetectionCalibrator().fit([0.5], [0], [0, 1]), "target has 2 entries, but there are 1 predictions"),
        (lambda: DetectionCalibrator().fit([0.5], [-1], [0]), r"labels\[0\] is label -1, but labels start at 0"),
        (lambda: DetectionCalibrator().fit([0.5], [0.0], [0]), "labels must hold integer labels"),
        (lambda: DetectionCalibrator().fit([], [], []), "scores is empty"),
        (lambda: DetectionCalibrator().transform([0.5], [0]), "not fitted yet"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
