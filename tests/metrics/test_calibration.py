"""Calibration errors: closed forms, peers, properties, known posteriors, bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import brier_score_loss, log_loss

from lossbook import checks, metrics
from lossbook.calibrators import TemperatureScaling
from lossbook.metrics import _inputs

ECE = metrics.expected_calibration_error


def predictions(n=400, k=5, seed=0, dtype=np.float64):
    """Probabilities without ties, and labels that follow a sharper distribution: miscalibrated, but not absurdly."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, k))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sharp = probs**1.7 / (probs**1.7).sum(axis=1, keepdims=True)
    return probs.astype(dtype), sample(sharp, rng)


def sample(posterior, rng):
    return (posterior.cumsum(axis=1) > rng.random((len(posterior), 1))).argmax(axis=1)


def mixture(n, seed, k=5, dim=10, separation=2.0):
    """Labels drawn from a known posterior (N, K), that of a Gaussian mixture."""
    from lossbook.theory import gaussian_mixture_posterior

    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, dim))
    means *= separation / np.linalg.norm(means, axis=1, keepdims=True)
    y = rng.integers(0, k, n)
    return gaussian_mixture_posterior(means[y] + rng.normal(size=(n, dim)), means).numpy(), y


def gaps_by_loop(confidence, correct, n_bins):
    """(count, accuracy, mean confidence) of the non-empty bins (lo, hi], one sample at a time."""
    bins = [[] for _ in range(n_bins)]
    for c, a in zip(confidence, correct, strict=True):
        b = next(i for i in range(n_bins) if c <= (i + 1) / n_bins)
        bins[b].append((c, a))
    return [(len(b), np.mean([a for _, a in b]), np.mean([c for c, _ in b])) for b in bins if b]


# Closed forms


def test_ece_by_hand():
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]], dtype=torch.float64)
    target = torch.tensor([0, 1, 1, 0])
    # Bins of width 1/2, all four in (0.5, 1]: accuracy 2/4, mean confidence 0.7375.
    assert ECE(probs, target, n_bins=2) == pytest.approx(0.2375, abs=1e-15)
    # Tenths: (0.5, 0.6] {0.55: wrong}, (0.6, 0.7] {0.7: right}, (0.7, 0.8] {0.8: wrong}, (0.8, 0.9] {0.9: right}.
    assert ECE(probs, target, n_bins=10) == pytest.approx((0.55 + 0.3 + 0.8 + 0.1) / 4, abs=1e-15)
    squares = (0.55**2 + 0.3**2 + 0.8**2 + 0.1**2) / 4
    assert ECE(probs, target, n_bins=10, norm=2) == pytest.approx(squares**0.5, abs=1e-15)
    assert metrics.maximum_calibration_error(probs, target, n_bins=10) == pytest.approx(0.8, abs=1e-15)
    # Two groups of two: {0.55 wrong, 0.7 right}, {0.8 wrong, 0.9 right}.
    assert ECE(probs, target, n_bins=2, strategy="quantile") == pytest.approx((0.125 + 0.35) / 2, abs=1e-15)


@pytest.mark.parametrize("n_bins", [1, 7, 15])
def test_bin_measures_agree_with_a_loop(n_bins):
    probs, target = predictions()
    rows = gaps_by_loop(probs.max(axis=1), probs.argmax(axis=1) == target, n_bins)
    n = len(target)
    assert ECE(probs, target, n_bins=n_bins) == pytest.approx(sum(m * abs(a - c) for m, a, c in rows) / n, abs=1e-12)
    debiased = sum(m * ((a - c) ** 2 - a * (1 - a) / (m - 1)) for m, a, c in rows if m > 1) / n
    squared = metrics.squared_calibration_error(probs, target, n_bins=n_bins, debias=True)
    assert squared == pytest.approx(debiased, abs=1e-12)
    assert ECE(probs, target, n_bins=n_bins, norm=2, debias=True) == pytest.approx(max(debiased, 0) ** 0.5, abs=1e-9)
    expected = np.mean([abs(a - c) for _, a, c in rows])
    assert metrics.average_calibration_error(probs, target, n_bins=n_bins) == pytest.approx(expected, abs=1e-12)


def test_classwise_and_top_label_agree_with_a_loop():
    probs, target = predictions(n=300, k=4)
    n, k = probs.shape
    per_class = [gaps_by_loop(probs[:, j], target == j, 15) for j in range(k)]
    expected = sum(m * abs(a - c) for rows in per_class for m, a, c in rows) / (n * k)
    assert metrics.classwise_calibration_error(probs, target) == pytest.approx(expected, abs=1e-12)
    predicted, confidence = probs.argmax(axis=1), probs.max(axis=1)
    groups = [predicted == j for j in range(k)]
    top = sum(m * abs(a - c) for g in groups for m, a, c in gaps_by_loop(confidence[g], target[g] == predicted[g], 15))
    assert metrics.top_label_calibration_error(probs, target) == pytest.approx(top / n, abs=1e-12)


def test_equal_mass_classwise_and_adaptive_agree_with_array_split():
    probs, target = predictions(n=203, k=3)
    gaps, weighted = [], 0.0
    for j in range(3):
        order = np.argsort(probs[:, j], kind="stable")
        for group in np.array_split(order, 10):
            gaps.append(abs((target[group] == j).mean() - probs[group, j].mean()))
            weighted += len(group) * gaps[-1] / 203
    adaptive = metrics.average_calibration_error(probs, target, n_bins=10, weighting="adaptive")
    assert adaptive == pytest.approx(np.mean(gaps), abs=1e-12)
    quantile = metrics.classwise_calibration_error(probs, target, n_bins=10, strategy="quantile")
    assert quantile == pytest.approx(weighted / 3, abs=1e-12)


@pytest.mark.parametrize("width", [0.01, 0.4, 5.0])
def test_mmce_is_the_double_sum(width):
    probs, target = predictions(n=150)
    c, a = probs.max(axis=1), probs.argmax(axis=1) == target
    kernel = np.exp(-np.abs(c[:, None] - c) / width)
    expected = (a - c) @ kernel @ (a - c) / len(c) ** 2
    assert metrics.mmce(probs, target, width=width, squared=True) == pytest.approx(expected, rel=1e-10)
    assert metrics.mmce(probs, target, width=width) == pytest.approx(expected**0.5, rel=1e-10)


def test_norm_1_debias_is_the_mean_over_resampled_accuracies():
    probs, target = predictions(n=300)
    bins = metrics.reliability_bins(probs.max(axis=1), probs.argmax(axis=1) == target)
    held = bins.count > 0
    count, accuracy, confidence = bins.count[held], bins.accuracy[held], bins.mean_confidence[held]
    noise = np.random.default_rng(0).normal(size=(200_000, held.sum())) * np.sqrt(accuracy * (1 - accuracy) / count)
    resampled = (np.abs(accuracy + noise - confidence) * count).sum(axis=1).mean() / 300
    plain = ECE(probs, target)
    assert ECE(probs, target, debias=True) == pytest.approx(2 * plain - resampled, abs=2e-4)


def test_extreme_confidence_keeps_everyone():
    # Zero belongs to the first bin, one to the last; torchmetrics once lost the zeros.
    bins = metrics.reliability_bins([0.0, 0.2, 0.4, 1.0], [0, 1, 0, 1], n_bins=5)
    assert bins.count.tolist() == [2, 1, 0, 0, 1]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_an_edge_belongs_to_the_bin_below_in_every_dtype(dtype):
    edges = (np.arange(1, 11) / 10).astype(dtype)
    assert metrics.reliability_bins(edges, np.ones(10), n_bins=10).count.tolist() == [1] * 10


def test_wilson_band_is_scipys():
    rng = np.random.default_rng(0)
    confidence = rng.random(200)
    bins = metrics.reliability_bins(confidence, rng.random(200) < confidence, n_bins=8)
    for n, accuracy, lower, upper in zip(bins.count, bins.accuracy, bins.lower, bins.upper, strict=True):
        interval = binomtest(round(n * accuracy), int(n)).proportion_ci(0.95, method="wilson")
        assert (lower, upper) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_quantile_bins_hold_equal_counts_between_their_edges():
    confidence = np.random.default_rng(0).random(103)
    bins = metrics.reliability_bins(confidence, confidence > 0.5, n_bins=10, strategy="quantile")
    assert bins.count.tolist() == [11] * 3 + [10] * 7
    assert np.histogram(confidence, bins.edges)[0].tolist() == bins.count.tolist()


def test_more_quantile_bins_than_samples_leave_empty_bins():
    bins = metrics.reliability_bins([0.2, 0.9], [0, 1], n_bins=4, strategy="quantile")
    assert bins.count.tolist() == [1, 1, 0, 0]
    assert np.isnan(bins.accuracy[2:]).all() and np.isnan(bins.lower[2:]).all()
    assert bins.edges.tolist() == pytest.approx([0, 0.55, 1, 1, 1])


def test_range_moves_the_bins():
    bins = metrics.reliability_bins([0.5, 0.74, 0.76, 1.0], [1, 0, 1, 1], n_bins=2, range=(0.5, 1))
    assert bins.edges.tolist() == [0.5, 0.75, 1.0]
    assert bins.count.tolist() == [2, 2]


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_consistency_band_covers_a_calibrated_model_and_not_an_overconfident_one(strategy):
    rng = np.random.default_rng(1)
    confidence = rng.random(5000)
    band = metrics.consistency_band(confidence, strategy=strategy, seed=0)

    def share_inside(outcome):
        accuracy = metrics.reliability_bins(confidence, outcome, strategy=strategy).accuracy
        return ((accuracy >= band.lower) & (accuracy <= band.upper)).mean()

    calibrated = [share_inside(rng.random(5000) < confidence) for _ in range(20)]
    assert np.mean(calibrated) == pytest.approx(0.95, abs=0.04)
    # The bins about 1/2 are right even so.
    assert share_inside(rng.random(5000) < 0.5 + 0.5 * (confidence - 0.5)) < 0.5


def test_consistency_band_is_binomial():
    band = metrics.consistency_band(np.full(100, 0.3), n_bins=4, n_resamples=4000)
    assert np.isnan(band.lower[[0, 2, 3]]).all()
    assert (band.lower[1], band.upper[1]) == pytest.approx((0.21, 0.39), abs=0.011)


# Known posterior


def test_bias_of_ece_is_the_predicted_one_and_debiasing_removes_most_of_it():
    ece, debiased, predicted = [], [], []
    for seed in range(30):
        posterior, _ = mixture(1000, seed)
        y = sample(posterior, np.random.default_rng(1000 + seed))
        ece.append(ECE(posterior, y))
        debiased.append(ECE(posterior, y, debias=True))
        bins = metrics.reliability_bins(posterior.max(axis=1), posterior.argmax(axis=1) == y)
        n, a = bins.count[bins.count > 0], bins.accuracy[bins.count > 0]
        predicted.append((n * np.sqrt(2 * a * (1 - a) / (np.pi * n))).sum() / 1000)
    assert np.mean(ece) == pytest.approx(np.mean(predicted), rel=0.15)
    assert 0.02 < np.mean(ece) < 0.045
    assert np.mean(debiased) < 0.75 * np.mean(ece)


def test_debiased_squared_error_of_a_calibrated_model_is_centred_on_zero():
    values = []
    for seed in range(100):
        posterior, _ = mixture(500, seed)
        y = sample(posterior, np.random.default_rng(seed + 500))
        values.append(metrics.squared_calibration_error(posterior, y, debias=True))
    assert 0.3 < np.mean(np.array(values) < 0) < 0.75
    assert abs(np.mean(values)) < 4 * np.std(values) / 10


def test_true_ece_of_the_posterior_is_zero_and_of_a_known_distortion_is_known():
    posterior, y = mixture(3000, seed=0)
    assert metrics.true_top_label_ece(posterior, posterior) == pytest.approx(0, abs=1e-12)
    # Mixing with the uniform distribution takes confidence away at a known rate, and never changes the prediction.
    flat = 0.8 * posterior + 0.2 / 5
    expected = 0.2 * (posterior.max(axis=1) - 0.2).mean()
    assert metrics.true_top_label_ece(flat, posterior) == pytest.approx(expected, abs=1e-9)
    assert metrics.true_top_label_ece(flat, posterior, strategy="quantile") == pytest.approx(expected, abs=1e-9)
    assert ECE(flat, y) == pytest.approx(expected, abs=0.03)


def test_posterior_mse_is_what_the_brier_score_could_save():
    posterior, _ = mixture(3000, seed=2)
    flat = 0.5 * posterior + 0.5 / 5
    assert metrics.posterior_mse(flat, posterior) == pytest.approx(((flat - posterior) ** 2).sum(axis=1).mean())
    assert metrics.posterior_mse(posterior, posterior) == 0
    assert metrics.posterior_mse([[1.0, 0.0]], [[0.0, 1.0]]) == 2
    irreducible = (1 - (posterior**2).sum(axis=1)).mean()
    scores = [metrics.brier_score(flat, sample(posterior, np.random.default_rng(seed))) for seed in range(40)]
    expected = metrics.posterior_mse(flat, posterior) + irreducible
    assert np.mean(scores) == pytest.approx(expected, abs=4 * np.std(scores) / 40**0.5)


def test_constant_prediction_is_calibrated_and_far_from_the_posterior():
    posterior, _ = mixture(3000, seed=1)
    priors = np.repeat(posterior.mean(axis=0, keepdims=True), 3000, axis=0)
    assert metrics.true_top_label_ece(priors, posterior) < 1e-12
    assert metrics.posterior_kl(priors, posterior) > 0.5
    assert metrics.posterior_kl(posterior, posterior) == pytest.approx(0, abs=1e-12)
    assert metrics.posterior_kl([[1.0, 0.0]], [[0.5, 0.5]]) == float("inf")
    assert metrics.posterior_kl([[0.5, 0.5]], [[1.0, 0.0]]) == pytest.approx(np.log(2), abs=1e-15)


# Calibration and refinement


def test_recalibration_takes_away_what_a_temperature_added():
    posterior, _ = mixture(4000, seed=3)
    y = sample(posterior, np.random.default_rng(3))
    sharp = posterior**2 / (posterior**2).sum(axis=1, keepdims=True)
    calibrator = TemperatureScaling()
    parts = metrics.calibration_refinement(sharp, y, calibrator)
    assert sum(parts) == pytest.approx(metrics.negative_log_likelihood(sharp, y), abs=1e-12)
    # Another temperature: other calibration, the same refinement, which is close to the posterior's own loss.
    plain = metrics.calibration_refinement(posterior, y, calibrator)
    # (up to the cut at 1e-12, below which a few of the sharp ones lie)
    assert parts.refinement == pytest.approx(plain.refinement, abs=1e-6)
    assert parts.refinement == pytest.approx(metrics.negative_log_likelihood(posterior, y), abs=1e-3)
    assert parts.calibration > 0.02 > 0.002 > plain.calibration >= 0
    assert not hasattr(calibrator, "temperature_")


def test_refinement_survives_a_probability_of_zero():
    parts = metrics.calibration_refinement([[1.0, 0.0], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1], TemperatureScaling())
    assert np.isfinite(parts).all()
    with pytest.raises(ValueError, match=r"probs\[0\] sums to 1.4"):
        metrics.calibration_refinement([[0.7, 0.7]], [0], TemperatureScaling())


# The grid


def test_grid_holds_the_functions_values():
    probs, target = predictions(n=300, k=3)
    grid = metrics.measure_grid(probs, target, n_bins=(5, 12))
    expected = {
        "accuracy": metrics.accuracy(probs, target),
        "nll": metrics.negative_log_likelihood(probs, target),
        "brier": metrics.brier_score(probs, target),
        "ks": metrics.ks_calibration_error(probs, target),
        "mmce": metrics.mmce(probs, target),
        "kde": metrics.kde_calibration_error(probs, target),
        "smooth_ece": metrics.smooth_calibration_error(probs, target),
    }
    for b in (5, 12):
        mass = {"n_bins": b, "strategy": "quantile"}
        expected[f"ece_{b}"] = ECE(probs, target, n_bins=b)
        expected[f"ece_equal_mass_{b}"] = ECE(probs, target, **mass)
        expected[f"mce_{b}"] = metrics.maximum_calibration_error(probs, target, n_bins=b)
        expected[f"classwise_ece_{b}"] = metrics.classwise_calibration_error(probs, target, n_bins=b)
        expected[f"classwise_ece_equal_mass_{b}"] = metrics.classwise_calibration_error(probs, target, **mass)
    assert grid == pytest.approx(expected, abs=1e-12)
    assert len(metrics.measure_grid(probs, target)) == 7 + 9 * 5
    assert len(metrics.measure_grid(torch.from_numpy(probs), target, n_bins=range(0))) == 7


# Peers


def test_agrees_with_torchmetrics_and_netcal():
    from netcal.metrics import ACE as NetcalACE
    from netcal.metrics import ECE as NetcalECE
    from netcal.metrics import MCE as NetcalMCE
    from torchmetrics.functional.classification import multiclass_calibration_error

    probs, target = predictions(n=2000)
    tensors = torch.from_numpy(probs), torch.from_numpy(target)
    for norm, name in ((1, "l1"), (2, "l2")):
        peer = multiclass_calibration_error(*tensors, num_classes=5, n_bins=15, norm=name)
        assert ECE(probs, target, norm=norm) == pytest.approx(float(peer), abs=1e-6)  # it sums in float32
    peer = multiclass_calibration_error(*tensors, num_classes=5, n_bins=15, norm="max")
    assert metrics.maximum_calibration_error(probs, target) == pytest.approx(float(peer), abs=1e-6)
    assert ECE(probs, target) == pytest.approx(NetcalECE(15).measure(probs, target), abs=1e-9)
    assert metrics.maximum_calibration_error(probs, target) == pytest.approx(
        NetcalMCE(15).measure(probs, target), abs=1e-9
    )
    assert metrics.average_calibration_error(probs, target) == pytest.approx(
        NetcalACE(15).measure(probs, target), abs=1e-9
    )


def test_brier_and_log_loss_agree_with_sklearn():
    probs, target = predictions()
    sklearn_brier = brier_score_loss(target, probs, labels=range(5), scale_by_half=False)
    assert metrics.brier_score(probs, target) == pytest.approx(sklearn_brier, abs=1e-12)
    assert metrics.negative_log_likelihood(probs, target) == pytest.approx(log_loss(target, probs), abs=1e-12)
    event, p = (target == 0).astype(int), probs[:, 0]
    assert metrics.brier_score(p, event) == pytest.approx(brier_score_loss(event, p), abs=1e-12)
    assert metrics.negative_log_likelihood(p, event) == pytest.approx(log_loss(event, p), abs=1e-12)
    two = np.stack((1 - p, p), axis=1)
    assert metrics.brier_score(two, event) == pytest.approx(2 * metrics.brier_score(p, event), abs=1e-12)


def test_nll_of_logits_is_torchs_and_stays_finite():
    logits = torch.randn(300, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.arange(300) % 6
    expected = float(torch.nn.functional.cross_entropy(logits, target))
    assert metrics.negative_log_likelihood(logits, target, from_logits=True) == pytest.approx(expected, abs=1e-12)
    probs = logits.softmax(dim=1)
    assert metrics.negative_log_likelihood(probs, target) == pytest.approx(expected, abs=1e-12)
    huge = torch.tensor([[1e4, 0.0]])
    assert metrics.negative_log_likelihood(huge, [1], from_logits=True) == 1e4
    assert metrics.negative_log_likelihood([[1.0, 0.0]], [1]) == float("inf")
    assert metrics.negative_log_likelihood([1.0, 0.0], [1, 0]) == 0


# Properties

cases = st.tuples(st.integers(1, 80), st.integers(2, 6), st.integers(0, 2**32 - 1), st.booleans())


def random_case(case):
    """Predictions from uniform to one-hot; rounded ones have ties, also at the edges of bins."""
    n, k, seed, rounded = case
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * 10 ** rng.uniform(-2, 2)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    if rounded:
        tenths = np.floor(probs * 10)
        tenths[:, 0] += 10 - tenths.sum(axis=1)
        probs = tenths / 10
    return probs, rng.integers(0, k, n)


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 20), st.integers(2, 4))
def test_range_nesting_and_order(case, n_bins, factor):
    probs, target = random_case(case)
    plain, finer = ECE(probs, target, n_bins=n_bins), ECE(probs, target, n_bins=n_bins * factor)
    assert 0 <= plain <= 1
    assert plain <= finer + 1e-12  # splitting a bin cannot lower the sum of absolute gaps
    assert plain <= ECE(probs, target, n_bins=n_bins, norm=2) + 1e-12  # Jensen
    assert plain <= metrics.maximum_calibration_error(probs, target, n_bins=n_bins) + 1e-12
    assert plain <= metrics.top_label_calibration_error(probs, target, n_bins=n_bins) + 1e-12
    assert abs(np.mean(probs.max(axis=1) - (probs.argmax(axis=1) == target))) <= plain + 1e-12
    assert 0 <= ECE(probs, target, n_bins=n_bins, strategy="quantile") <= 1
    assert ECE(probs, target, n_bins=n_bins, debias=True) <= plain + 1e-12
    assert 0 <= metrics.classwise_calibration_error(probs, target, n_bins=n_bins) <= 2 / probs.shape[1] + 1e-12
    assert 0 <= metrics.brier_score(probs, target) <= 2 + 1e-12


@settings(max_examples=40, deadline=None)
@given(cases)
def test_the_order_of_samples_does_not_matter(case):
    probs, target = random_case(case)
    order = np.random.default_rng(case[2]).permutation(len(target))
    for measure in (
        ECE,
        metrics.maximum_calibration_error,
        metrics.average_calibration_error,
        metrics.classwise_calibration_error,
        metrics.top_label_calibration_error,
        metrics.mmce,
        metrics.brier_score,
    ):
        # abs: MMCE takes the root of a sum that may be rounding only.
        assert measure(probs[order], target[order]) == pytest.approx(measure(probs, target), abs=1e-7)


def test_one_sample_works_everywhere():
    probs, target = [[0.7, 0.3]], [0]
    assert ECE(probs, target) == ECE(probs, target, strategy="quantile") == pytest.approx(0.3)
    assert metrics.mmce(probs, target) == pytest.approx(0.3)
    assert metrics.average_calibration_error(probs, target, weighting="adaptive") == pytest.approx(0.3)
    assert metrics.squared_calibration_error(probs, target, debias=True) == 0


# Inputs


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_chunks_do_not_show(monkeypatch, strategy):
    probs, target = predictions(n=501, k=4)
    bad = probs.copy()
    bad[437] *= 1.5
    measures = (
        lambda p: ECE(p, target, strategy=strategy),
        lambda p: metrics.classwise_calibration_error(p, target, strategy=strategy),
        lambda p: metrics.top_label_calibration_error(p, target),
        lambda p: metrics.negative_log_likelihood(p, target),
        lambda p: metrics.true_top_label_ece(p, probs, strategy=strategy),
        lambda p: metrics.posterior_kl(p, probs),
    )
    whole = [measure(probs) for measure in measures]
    monkeypatch.setattr(_inputs, "_CPU_CHUNK", 40)
    assert [measure(probs) for measure in measures] == pytest.approx(whole, abs=1e-12)
    for measure in measures:
        with pytest.raises(ValueError, match=r"probs\[437"):
            measure(bad)


def test_kinds_of_input_give_the_same_number():
    probs, target = predictions(dtype=np.float32)
    expected = ECE(probs, target)
    readonly = probs.copy()
    readonly.flags.writeable = False
    for same in (
        torch.from_numpy(probs).requires_grad_(),
        readonly,
        probs.astype(">f4"),
        probs.astype(np.longdouble),
        np.asfortranarray(probs),
        probs[:, ::-1][:, ::-1],
        probs.tolist(),
    ):
        assert ECE(same, target) == pytest.approx(expected, abs=1e-7)
    assert ECE(probs[::-1], target[::-1]) == pytest.approx(expected, abs=1e-12)
    assert ECE(probs, torch.from_numpy(target).to(torch.int16)) == expected
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == target
    assert ECE(confidence, correct) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_need_not_sum_more_closely_than_they_can(dtype):
    probs, target = predictions()
    half = torch.from_numpy(probs).to(dtype)
    assert ECE(half, target) == pytest.approx(ECE(probs, target), abs=0.02)


NAN = float("nan")


@pytest.mark.parametrize(
    ("probs", "target", "message"),
    [
        ([[0.5, 0.5], [0.5, NAN]], [0, 1], r"probs\[1, 1\] is nan, outside \[0, 1\]"),
        ([[0.5, 0.5], [1.2, -0.2]], [0, 1], r"probs\[1, 0\] is 1.2, outside \[0, 1\]"),
        ([[0.5, 0.5], [0.6, 0.5]], [0, 1], r"probs\[1\] sums to 1.1, not 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0, 2], r"target\[1\] is label 2, but probs has 2 classes"),
        ([[0.5, 0.5], [0.5, 0.5]], [0], r"target must have shape \(2,\)"),
        ([[0.5, 0.5], [0.5, 0.5]], [0.0, 1.0], "target must hold integer labels"),
        ([[0, 1]], [1], "probs must be floating point"),
        (np.zeros((0, 2)), [], "probs is empty"),
        (np.zeros((2, 2, 2)), [0, 1], r"probs must have shape \(N, K\) or \(N,\)"),
        ([0.5, 1.5], [0, 1], r"probs\[1\] is 1.5, outside \[0, 1\]"),
        ([0.5, 0.5], [0, 3], r"target\[1\] is 3, outside \[0, 1\]"),
        ([0.5, 0.5], [0, 1, 1], "target has 3 entries, but there are 2 predictions"),
    ],
)
@pytest.mark.parametrize(
    "measure",
    [
        ECE,
        metrics.brier_score,
        metrics.mmce,
        metrics.ks_calibration_error,
        metrics.kde_calibration_error,
        metrics.smooth_calibration_error,
    ],
)
def test_bad_input_is_refused_by_name(measure, probs, target, message):
    with pytest.raises(ValueError, match=message):
        measure(probs, target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y: ECE(p, y, n_bins=0), "n_bins must be a whole number of at least 1, but is 0"),
        (lambda p, y: ECE(p, y, n_bins=2.5), "n_bins must be a whole number of at least 1, but is 2.5"),
        (lambda p, y: ECE(p, y, norm=3), "norm must be 1 or 2, but is 3"),
        (lambda p, y: ECE(p, y, strategy="mass"), "strategy must be 'uniform' or 'quantile', but is 'mass'"),
        (lambda p, y: metrics.average_calibration_error(p, y, weighting="n"), "weighting must be 'bins' or 'adaptive'"),
        (lambda p, y: metrics.maximum_calibration_error(p, y, min_count=99), "no bin holds min_count = 99 samples"),
        (lambda p, y: metrics.mmce(p, y, width=0), r"width must lie in \[0.01, inf\), but is 0"),
        (lambda p, y: metrics.classwise_calibration_error(p[:, 0], y), r"probs must have shape \(N, K\)"),
        (
            lambda p, y: metrics.measure_grid(p, y, n_bins=[5, 0]),
            "n_bins must be a whole number of at least 1, but is 0",
        ),
        (lambda p, y: metrics.measure_grid(p[:, 0], y), r"probs must have shape \(N, K\)"),
        (lambda p, y: metrics.posterior_mse(p, p[:5]), "posterior must have the shape of probs"),
        (lambda p, y: metrics.posterior_kl(p, p[:, :1]), "posterior must have the shape of probs"),
        (lambda p, y: metrics.posterior_kl(p, p * 2), r"posterior\[1, 1\] is 1.05"),
        (
            lambda p, y: metrics.reliability_bins([0.2], [1], range=(0.5, 1)),
            r"confidence\[0\] is 0.2, outside \[0.5, 1\]",
        ),
        (lambda p, y: metrics.reliability_bins([0.2], [1], range=(1, 0)), "range must be an interval"),
        (lambda p, y: metrics.reliability_bins([0.2], [NAN]), r"correct\[0\] is nan"),
        (lambda p, y: metrics.consistency_band([0.2], n_resamples=1), "n_resamples must be at least 2"),
        (lambda p, y: metrics.negative_log_likelihood(p * NAN, y, from_logits=True), r"logits\[0, 0\] is nan"),
    ],
)
def test_bad_options_are_refused_by_name(call, message):
    probs, target = predictions(n=10)
    with pytest.raises(ValueError, match=message):
        call(probs, target)


def test_value_checks_can_be_switched_off():
    with checks.values(False):
        assert ECE([[0.6, 0.6]], [0]) == pytest.approx(0.4)


def test_functions_do_not_import_torchmetrics():
    code = (
        "import sys; from lossbook import metrics; metrics.expected_calibration_error([[0.5, 0.5]], [0]);"
        "metrics.nc2_equinorm([[1.0, 0.0], [0.0, 1.0]]); assert 'torchmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
