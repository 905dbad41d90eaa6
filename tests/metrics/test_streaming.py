"""The streaming classes: equal to the functions, merging exactly, small state, any device."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import metrics

K, D = 5, 6


def predictions(n, seed=0, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, K, generator=generator, dtype=torch.float64)
    target = torch.where(
        torch.rand(n, generator=generator) < 0.6, logits.argmax(dim=1), torch.randint(0, K, (n,), generator=generator)
    )
    return logits.softmax(dim=1).to(device, dtype), target.to(device)


def cloud(n, seed=0, offset=0.0):
    """Features whose scatter is small beside their distance from the origin."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % K
    means = torch.randn(K, D, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    noise = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return offset + means[target] + 0.1 * noise, target


ECE = metrics.expected_calibration_error
PAIRS = {
    "accuracy": (metrics.Accuracy, metrics.accuracy),
    "brier": (metrics.BrierScore, metrics.brier_score),
    "nll": (metrics.NegativeLogLikelihood, metrics.negative_log_likelihood),
    "ece": (metrics.CalibrationError, ECE),
    "ece-norm-2": (lambda: metrics.CalibrationError(10, norm=2), lambda p, y: ECE(p, y, n_bins=10, norm=2)),
    "ece-debiased": (lambda: metrics.CalibrationError(debias=True), lambda p, y: ECE(p, y, debias=True)),
    "mce": (metrics.MaximumCalibrationError, metrics.maximum_calibration_error),
    "ace": (
        lambda: metrics.AverageCalibrationError(10),
        lambda p, y: metrics.average_calibration_error(p, y, n_bins=10),
    ),
    "top-label": (lambda: metrics.TopLabelCalibrationError(K), metrics.top_label_calibration_error),
    "classwise": (lambda: metrics.ClasswiseCalibrationError(K), metrics.classwise_calibration_error),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_give_the_functions_value(name, dtype):
    make, function = PAIRS[name]
    probs, target = predictions(1000, dtype=dtype)
    metric = make()
    for rows in torch.arange(1000).split(170):
        metric.update(probs[rows], target[rows])
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(function(probs, target), abs=1e-12)
    metric.reset()
    metric.update(probs[:50].numpy(), target[:50].numpy())
    assert float(metric.compute()) == pytest.approx(function(probs[:50], target[:50]), abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 60), cut=st.integers(1, 59), seed=st.integers(0, 1000))
def test_two_halves_merge_into_the_whole(name, n, cut, seed):
    make, function = PAIRS[name]
    cut = min(cut, n - 1)
    probs, target = predictions(n, seed)
    one, other = make(), make()
    one.update(probs[:cut], target[:cut])
    other.update(probs[cut:], target[cut:])
    before = float(other.compute())
    one.merge_state(other)
    assert float(one.compute()) == pytest.approx(function(probs, target), abs=1e-12)
    assert float(other.compute()) == before


@pytest.mark.parametrize("name", PAIRS)
def test_state_does_not_grow_and_survives_copies(name):
    make, _ = PAIRS[name]
    metric = make()
    sizes = []
    for seed in range(3):
        metric.update(*predictions(500, seed))
        sizes.append(sum(state.numel() for state in metric.metric_state.values()))
    assert sizes[0] == sizes[2] <= 3 * 15 * K
    value = float(metric.compute())
    assert float(copy.deepcopy(metric).compute()) == float(pickle.loads(pickle.dumps(metric)).compute()) == value


def test_a_value_after_a_merge_is_of_all(recwarn):
    probs, target = predictions(300)
    whole = metrics.CalibrationError()
    for end, rows in zip((100, 200, 300), torch.arange(300).split(100), strict=True):
        part = metrics.CalibrationError()
        part.update(probs[rows], target[rows])
        whole.merge_state(part if end < 300 else part.metric_state)
        assert float(whole.compute()) == pytest.approx(ECE(probs[:end], target[:end]), abs=1e-12)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (lambda: metrics.CalibrationError(10), lambda: metrics.CalibrationError(1), "n_bins 1 into one with n_bins 10"),
        (
            lambda: metrics.TopLabelCalibrationError(2, 15),
            lambda: metrics.TopLabelCalibrationError(3, 10),
            "num_classes 3 into one with num_classes 2",
        ),
        (
            metrics.CalibrationError,
            lambda: metrics.CalibrationError(strategy="quantile"),
            r"sums of shape \(3, 4096\) into sums of shape \(3, 15\)",
        ),
        (metrics.CalibrationError, lambda: {"sums": torch.zeros(3, 1)}, r"sums of shape \(3, 1\)"),
        (metrics.Accuracy, lambda: {"total": torch.tensor(1.0)}, "a state without samples: it has total"),
        (metrics.Accuracy, metrics.BrierScore, "Accuracy"),
        (lambda: metrics.NeuralCollapse(2, 3), lambda: metrics.NeuralCollapse(2, 4), r"moments of shape \(6, 5\)"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(one, other, message):
    metric = one()
    with pytest.raises(ValueError, match=message):
        metric.merge_state(other())
    assert not any(state.any() for state in metric.metric_state.values())


@pytest.mark.parametrize("name", PAIRS)
def test_forward_gives_the_batch_and_keeps_the_whole(name):
    make, function = PAIRS[name]
    probs, target = predictions(300)
    metric = make()
    metric(probs[:200], target[:200])
    assert float(metric(probs[200:], target[200:])) == pytest.approx(function(probs[200:], target[200:]), abs=1e-12)
    assert float(metric.compute()) == pytest.approx(function(probs, target), abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan(name):
    assert np.isnan(float(PAIRS[name][0]().compute()))


def test_nll_streams_logits():
    logits = torch.randn(100, K, generator=torch.Generator().manual_seed(0)) * 50
    target = torch.arange(100) % K
    metric = metrics.NegativeLogLikelihood(from_logits=True)
    metric.update(logits[:30], target[:30])
    metric.update(logits[30:], target[30:])
    expected = metrics.negative_log_likelihood(logits, target, from_logits=True)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)


def test_calibration_error_streams_confidences():
    probs, target = predictions(200)
    confidence, predicted = probs.max(dim=1)
    metric = metrics.CalibrationError()
    metric.update(confidence, predicted == target)
    assert float(metric.compute()) == pytest.approx(ECE(probs, target), abs=1e-12)


def test_reliability_streams():
    probs, target = predictions(500)
    metric = metrics.CalibrationError(10)
    for rows in torch.arange(500).split(120):
        metric.update(probs[rows], target[rows])
    confidence, predicted = probs.max(dim=1)
    expected = metrics.reliability_bins(confidence, predicted == target, n_bins=10)
    for name, value in vars(metric.reliability()).items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-12, err_msg=name)
    with pytest.raises(ValueError, match="reliability needs strategy 'uniform', but it is 'quantile'"):
        metrics.CalibrationError(strategy="quantile").reliability()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("n", [2, 100, 5000])
def test_smooth_error_streams_and_merges(n):
    probs, target = predictions(n, seed=n)
    one, other, whole = (metrics.SmoothCalibrationError() for _ in range(3))
    assert np.isnan(float(whole.compute()))
    one.update(probs[: n // 3 + 1], target[: n // 3 + 1])
    other.update(probs[n // 3 + 1 :].numpy(), target[n // 3 + 1 :].numpy())
    one.merge_state(other)
    whole.update(probs, target)
    assert float(one.compute()) == pytest.approx(float(whole.compute()), abs=1e-9)
    expected = metrics.smooth_calibration_error(probs, target)
    assert float(whole.compute()) == pytest.approx(expected, abs=2e-5)
    small = metrics.SmoothCalibrationError()
    small.update([0.3] * 1000, [0.3002] * 1000)  # below the grid's narrowest kernel, bounded by what there is
    assert float(small.compute()) == pytest.approx(2e-4, abs=1e-9)


def test_equal_mass_is_exact_where_no_fine_bin_holds_two():
    confidence = (torch.randperm(4096, generator=torch.Generator().manual_seed(0))[:1000] + 0.5) / 4096
    outcome = torch.rand(1000, generator=torch.Generator().manual_seed(1)) < 0.5
    metric = metrics.CalibrationError(strategy="quantile")
    for rows in torch.arange(1000).split(300):
        metric.update(confidence[rows], outcome[rows])
    assert float(metric.compute()) == pytest.approx(ECE(confidence, outcome, strategy="quantile"), abs=1e-12)


@pytest.mark.parametrize("n", [7, 20_000])
def test_equal_mass_is_close_where_fine_bins_are_shared(n):
    probs, target = predictions(n)
    metric = metrics.CalibrationError(strategy="quantile")
    metric.update(probs, target)
    # A bin moves by the samples of one fine bin at most: a few per thousand of its content.
    assert float(metric.compute()) == pytest.approx(ECE(probs, target, strategy="quantile"), abs=2e-3)


def test_equal_mass_of_equal_confidences_is_the_gap():
    metric = metrics.CalibrationError(strategy="quantile")
    metric.update(torch.full((90,), 0.8), torch.arange(90) % 2)
    assert float(metric.compute()) == pytest.approx(0.3, abs=1e-7)


# Neural collapse


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_collapse_streams_to_the_functions_values(offset):
    features, target = cloud(400, offset=offset)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    features, target = features[order], target[order]
    weight = torch.randn(K, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bias = torch.arange(float(K))
    one, other = metrics.NeuralCollapse(K, D), metrics.NeuralCollapse(K, D)
    for rows in torch.arange(250).split(3):  # batches that lack classes
        one.update(features[rows], target[rows])
    other.update(features[250:], target[250:])
    one.merge_state(other)
    report = one.report(weight, bias)
    expected = metrics.collapse_report(features, target, weight, bias)
    disagreement = metrics.NearestMeanDisagreement(one.means, weight, bias)
    for rows in torch.arange(400).split(90):
        disagreement.update(features[rows])
    assert report | {"nc4": float(disagreement.compute())} == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert 0 < expected["nc4"] < 1
    assert one.compute().items() <= report.items()


def test_raw_second_moments_would_not_do():
    # The same numbers far from the origin: Σ h² - n μ² would have no digit left, the centred sums keep theirs.
    near, target = cloud(400)
    metric = metrics.NeuralCollapse(K, D)
    far = near + 1e7
    for rows in torch.arange(400).split(37):
        metric.update(far[rows], target[rows])
    assert metric.compute()["nc1"] == pytest.approx(metrics.nc1(near, target), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 1000))
def test_any_partition_gives_the_same_moments(sizes, seed):
    features, target = cloud(sum(sizes) + 2 * K, seed)
    metric = metrics.NeuralCollapse(K, D)
    for rows in torch.arange(len(target)).split([2 * K, *sizes]):
        metric.update(features[rows], target[rows])
    assert metric.compute()["nc1"] == pytest.approx(metrics.nc1(features, target), rel=1e-9)


def test_collapse_forward_and_reset():
    features, target = cloud(100)
    metric = metrics.NeuralCollapse(K, D)
    assert metric(features[:50], target[:50])["nc1"] == pytest.approx(metrics.nc1(features[:50], target[:50]))
    metric(features[50:], target[50:])
    assert metric.compute()["nc1"] == pytest.approx(metrics.nc1(features, target), rel=1e-9)
    metric.reset()
    with pytest.raises(ValueError, match="class 0 has no samples"):
        _ = metric.means


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.CalibrationError(0), "n_bins must be a whole number of at least 1"),
        (lambda: metrics.CalibrationError(norm=3), "norm must be 1 or 2"),
        (lambda: metrics.CalibrationError(strategy="mass"), "strategy must be"),
        (lambda: metrics.ClasswiseCalibrationError(0), "num_classes must be a whole number of at least 1"),
        (lambda: metrics.ClasswiseCalibrationError(3).update(*predictions(5)), "probs must have 3 columns"),
        (lambda: metrics.NeuralCollapse(1, 3), "num_classes must be a whole number of at least 2"),
        (lambda: metrics.NeuralCollapse(2, 3.0), "dim must be a whole number of at least 1"),
        (lambda: metrics.NeuralCollapse(2, 3).update(torch.zeros(4, 2), torch.zeros(4).long()), r"shape \(N, 3\)"),
        (lambda: metrics.NeuralCollapse(2, D).update(*cloud(10)), r"target\[2\] is label 2"),
        (
            lambda: metrics.NearestMeanDisagreement(torch.zeros(2, 3), torch.zeros(3, 3)),
            r"weight must have shape \(2, 3\)",
        ),
        (
            lambda: metrics.NearestMeanDisagreement(torch.zeros(2, 3), torch.zeros(2, 3)).update(torch.zeros(4, 2)),
            r"features must have shape \(N, 3\)",
        ),
        (lambda: metrics.BrierScore().update([[0.5, 0.6]], [0]), r"probs\[0\] sums to 1.1"),
        (lambda: metrics.Accuracy().update([[0.5, 0.6]], [2]), r"target\[0\] is label 2"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_batch_leaves_the_state_alone():
    metric = metrics.CalibrationError()
    probs, target = predictions(50)
    metric.update(probs, target)
    before = float(metric.compute())
    with pytest.raises(ValueError):
        metric.update(2 * probs, target)
    assert float(metric.compute()) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
@pytest.mark.parametrize("name", PAIRS)
def test_cuda_batches(name, home):
    make, function = PAIRS[name]
    probs, target = predictions(1000)
    metric = make().to(home)
    metric.update(probs[:300].cuda(), target[:300].cuda())
    metric.update(probs[300:].cuda(), target[300:].cuda())
    assert float(metric.compute()) == pytest.approx(function(probs, target), abs=1e-10)
    assert function(probs.cuda(), target) == pytest.approx(function(probs, target), abs=1e-10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("home", "elsewhere"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_part_of_another_device_is_merged(home, elsewhere):
    probs, target = predictions(1000)
    whole, part = metrics.CalibrationError().to(home), metrics.CalibrationError().to(elsewhere)
    whole.update(probs[:300], target[:300])
    part.update(probs[300:], target[300:])
    whole.merge_state(part)
    assert whole.compute().device.type == home
    assert float(whole.compute()) == pytest.approx(ECE(probs, target), abs=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_cuda_collapse(home):
    features, target = cloud(400)
    weight = torch.eye(K, D, dtype=torch.float64)
    metric = metrics.NeuralCollapse(K, D).to(home)
    metric.update(features.cuda(), target.cuda())
    expected = metrics.collapse_report(features, target, weight)
    nc4 = metrics.NearestMeanDisagreement(metric.means, weight).to(home)
    nc4.update(features.cuda())
    assert metric.report(weight.cuda()) | {"nc4": float(nc4.compute())} == pytest.approx(expected, rel=1e-8, abs=1e-10)
