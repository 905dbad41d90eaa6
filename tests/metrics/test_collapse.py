"""Neural collapse: exact geometry, invariances, definitions by hand, bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import metrics
from lossbook.metrics import _inputs
from lossbook.theory import orthogonal_frame, simplex_etf

K, D, N = 4, 6, 200


@pytest.fixture
def cloud(generator):
    """(features, target, weight, bias): unbalanced classes about means far from the origin."""
    target = torch.cat((torch.arange(K), torch.randint(0, K, (N - K,), generator=generator) ** 2 // (K - 1)))
    means = 3 + 2 * torch.randn(K, D, generator=generator, dtype=torch.float64)
    features = means[target] + torch.randn(N, D, generator=generator, dtype=torch.float64)
    weight = torch.randn(K, D, generator=generator, dtype=torch.float64)
    return features, target, weight, torch.randn(K, generator=generator, dtype=torch.float64)


def by_hand(features, target):
    """Class means, their centred version, and both covariance matrices, as defined."""
    h, y = features.numpy(), target.numpy()
    means = np.stack([h[y == k].mean(axis=0) for k in range(K)])
    residual = h - means[y]
    centred = means - h.mean(axis=0)
    return means, centred, residual.T @ residual / len(h), centred.T @ centred / K


def test_exact_collapse_is_zero_everywhere(generator):
    frame = simplex_etf(K, D, generator=generator)
    target = torch.arange(N) % K
    shift = torch.randn(D, generator=generator, dtype=torch.float64)
    # The classifier's bias takes back what the shift of the features adds.
    report = metrics.collapse_report(5 * frame[target] + shift, target, 0.3 * frame, -0.3 * frame @ shift)
    assert set(report) >= {"nc1", "nc1_ratio", "nc2_etf_means", "nc2_etf_weight", "nc3_etf", "nc4", "nc_bias"}
    assert report == pytest.approx(dict.fromkeys(report, 0.0), abs=1e-7)


def test_orthogonal_collapse_is_zero_for_the_orthogonal_measures(generator):
    frame = orthogonal_frame(torch.ones(K), D, generator=generator)
    target = torch.arange(N) % K
    assert metrics.nc2_orthogonal(7 * frame) == pytest.approx(0, abs=1e-12)
    assert metrics.nc3_orthogonal(2 * frame[target], target, 0.3 * frame) == pytest.approx(0, abs=1e-12)
    # Gram matrices I/√K and (I - J/K)/√(K-1) differ by an angle: |A - B|² = 2 - 2 √((K-1)/K).
    assert metrics.nc2_etf(frame) == pytest.approx((2 - 2 * ((K - 1) / K) ** 0.5) ** 0.5, abs=1e-12)
    assert metrics.nc2_max_angle(frame) == pytest.approx(1 / (K - 1), abs=1e-12)
    # Centred, orthogonal means of one length are a simplex ETF.
    assert metrics.nc3_etf(2 * frame[target], target, frame - frame.mean(dim=0)) == pytest.approx(0, abs=1e-12)


def test_definitions(cloud):
    features, target, weight, bias = cloud
    means, centred, within, between = by_hand(features, target)
    w, b, h = weight.numpy(), bias.numpy(), features.numpy()
    np.testing.assert_allclose(metrics.class_means(features, target).numpy(), means, rtol=1e-13)
    assert metrics.nc1(features, target) == pytest.approx(
        np.trace(within @ np.linalg.pinv(between, 1e-6)) / K, rel=1e-10
    )
    assert metrics.nc1_ratio(features, target) == pytest.approx(np.trace(within) / np.trace(between), rel=1e-12)
    share = np.bincount(target) / N
    weighted = (centred * share[:, None]).T @ centred
    pinv = np.linalg.pinv(weighted, 1e-6)
    assert metrics.nc1(features, target, weighted=True) == pytest.approx(np.trace(within @ pinv) / K, rel=1e-10)
    total = np.cov(h.T, bias=True)
    np.testing.assert_allclose(within + weighted, total, atol=1e-12)  # what `by_hand` must obey itself
    difference = np.linalg.norm(w / np.linalg.norm(w) - centred / np.linalg.norm(centred))
    assert metrics.nc3_self_duality(features, target, weight) == pytest.approx(difference**2, rel=1e-12)
    assert metrics.nc3_self_duality(features, target, weight, squared=False) == pytest.approx(difference, rel=1e-12)
    nearest = np.linalg.norm(h[:, None] - means, axis=2).argmin(axis=1)
    decided = (h @ w.T + b).argmax(axis=1)
    assert 0.1 < (nearest != decided).mean() < 1
    assert metrics.nc4(features, target, weight, bias) == pytest.approx((nearest != decided).mean(), abs=1e-12)
    assert metrics.nc_bias(features, target, weight, bias) == pytest.approx(np.linalg.norm(w @ h.mean(axis=0) + b))
    cosines = np.corrcoef(np.hstack((w, -w)))[~np.eye(K, dtype=bool)]  # (w, -w) has mean 0: correlation is cosine
    assert metrics.nc2_equiangle(weight) == pytest.approx(cosines.std(), rel=1e-10)
    assert metrics.nc2_max_angle(weight) == pytest.approx(np.abs(cosines + 1 / (K - 1)).mean(), rel=1e-10)
    lengths = np.linalg.norm(w, axis=1)
    assert metrics.nc2_equinorm(weight) == pytest.approx(lengths.std() / lengths.mean(), rel=1e-12)


def test_rotation_and_scale_do_not_matter(cloud, generator):
    features, target, weight, _ = cloud
    rotation = orthogonal_frame(torch.ones(D), D, generator=generator)
    plain = metrics.collapse_report(features, target, weight)
    turned = metrics.collapse_report(features @ rotation.T, target, weight @ rotation.T)
    scaled = metrics.collapse_report(1e-3 * features, target, 50 * weight)
    assert turned == pytest.approx(plain, rel=1e-9)
    del scaled["nc_bias"], plain["nc_bias"]  # a length, not a ratio
    assert scaled == pytest.approx(plain, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_rotation_scale_order_and_copies_do_not_matter(k, d, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat((torch.arange(k), torch.arange(k), torch.randint(k, (5,), generator=generator)))
    features = torch.randn(len(target), d, generator=generator, dtype=torch.float64)
    weight, bias = torch.randn(k, d, generator=generator, dtype=torch.float64), torch.arange(float(k)).double()
    plain = metrics.collapse_report(features, target, weight, bias)
    rotation = scale * orthogonal_frame(torch.ones(d), d, generator=generator)
    rows = torch.randperm(len(target), generator=generator).repeat(2)
    names = torch.randperm(k, generator=generator)  # class j becomes class names[j]
    back = names.argsort()
    other = metrics.collapse_report(
        (features @ rotation.T)[rows], names[target][rows], (weight @ rotation.T / scale**2)[back], bias[back]
    )
    assert other == pytest.approx(plain, rel=1e-5, abs=1e-7)


def test_frame_of_given_lengths(generator):
    lengths = torch.tensor([3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    frame = orthogonal_frame(lengths, D, generator=generator)
    assert metrics.nc2_frame(7 * frame, lengths**2) == pytest.approx(0, abs=1e-12)
    assert metrics.nc2_frame(frame, 5 * lengths**2) == pytest.approx(0, abs=1e-12)
    vectors = torch.randn(K, D, generator=generator, dtype=torch.float64)
    assert metrics.nc2_frame(vectors, [1.0] * K) == pytest.approx(metrics.nc2_orthogonal(vectors), rel=1e-12)
    gram, goal = (vectors @ vectors.T).numpy(), np.diag([9.0, 1.0, 0.0, 4.0])
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - goal / np.linalg.norm(goal))
    assert metrics.nc2_frame(vectors, lengths**2) == pytest.approx(expected, rel=1e-12)
    for wrong in ([1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [0.0] * K, [1.0, float("inf"), 1.0, 1.0]):
        with pytest.raises(ValueError, match="lengths_squared must"):
            metrics.nc2_frame(vectors, wrong)


def test_nc1_falls_with_the_square_of_the_scatter(cloud):
    features, target, _, _ = cloud
    means = metrics.class_means(features, target)[target]
    plain = metrics.nc1(features, target)
    for scale in (0.1, 1e-4):
        assert metrics.nc1(means + scale * (features - means), target) == pytest.approx(scale**2 * plain, rel=1e-6)


def test_chunks_arrays_and_float32_do_not_show(cloud, monkeypatch):
    features, target, weight, bias = cloud
    whole = metrics.collapse_report(features, target, weight, bias)
    single = metrics.collapse_report(features.float(), target.int(), weight, bias)
    assert single == pytest.approx(whole, rel=1e-5)
    monkeypatch.setattr(_inputs, "_CPU_CHUNK", 7 * D)
    arrays = (x.numpy() for x in (features, target, weight, bias))
    assert metrics.collapse_report(*arrays) == pytest.approx(whole, rel=1e-10)


def test_a_missing_class_is_named_or_dropped(cloud):
    features, target, weight, bias = cloud
    keep = target != 2
    h, y = features[keep], target[keep]
    with pytest.raises(ValueError, match="class 2 has no samples"):
        metrics.collapse_report(h, y, weight, bias)
    with pytest.raises(ValueError, match="class 4 has no samples"):
        metrics.nc1(features, target, num_classes=5)
    dropped = metrics.collapse_report(h, y, weight, bias, missing="drop")
    relabelled = torch.where(y == 3, 2, y)
    assert dropped == metrics.collapse_report(h, relabelled, weight[[0, 1, 3]], bias[[0, 1, 3]])
    assert len(metrics.class_means(h, y, missing="drop")) == 3


def test_undefined_measures_are_nan_with_a_warning(generator):
    h = torch.randn(5, D, generator=generator, dtype=torch.float64)
    features, target = torch.cat((h, h)), torch.arange(10) // 5
    with pytest.warns(UserWarning, match="all class means coincide"):
        assert np.isnan(metrics.nc1(features, target))
    with pytest.warns(UserWarning, match="all class means coincide"):
        assert np.isnan(metrics.nc1_ratio(features, target))
    with pytest.warns(UserWarning, match="length zero"):
        assert np.isnan(metrics.nc2_equiangle([[0.0, 0.0], [1.0, 0.0]]))
    with pytest.warns(UserWarning, match="length zero"):
        assert np.isnan(metrics.nc2_equinorm(np.zeros((2, 2))))
    with pytest.warns(UserWarning, match="Gram matrix is zero"):
        assert np.isnan(metrics.nc2_etf(np.zeros((2, 2))))
    with pytest.warns(UserWarning, match="are zero"):
        assert np.isnan(metrics.nc3_self_duality(h, torch.tensor([0, 1, 1, 0, 1]), np.zeros((2, D))))


def test_a_sample_a_class_has_no_scatter(generator):
    features = torch.randn(K, D, generator=generator)
    with pytest.warns(UserWarning, match="every class has a single sample"):
        assert metrics.nc1(features, torch.arange(K)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.nc1(torch.cat((features, features + 1)), torch.arange(2 * K) % K)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(N)}, r"features must have shape \(N, d\)"),
        ({"features": torch.zeros(N, D, dtype=torch.long)}, "features must be floating point"),
        ({"features": torch.full((N, D), float("inf"))}, r"features\[0, 0\] is inf, not a finite number"),
        ({"target": torch.full((N,), K)}, r"target\[0\] is label 4, but features has 4 classes"),
        ({"target": torch.full((N,), -1)}, r"target\[0\] is label -1"),
        ({"target": torch.zeros(N - 1, dtype=torch.long)}, r"target must have shape \(200,\)"),
        ({"weight": torch.zeros(K, D + 1)}, r"weight must have shape \(K, 6\)"),
        ({"weight": torch.full((K, D), float("nan"))}, r"weight\[0, 0\] is nan"),
        ({"bias": torch.zeros(K + 1)}, r"bias must have shape \(4,\)"),
        ({"bias": torch.full((K,), float("nan"))}, "bias must be finite"),
        ({"missing": "ignore"}, "missing must be 'error' or 'drop', but is 'ignore'"),
    ],
)
def test_bad_input_is_refused_by_name(cloud, change, message):
    arguments = dict(zip(("features", "target", "weight", "bias"), cloud, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        metrics.collapse_report(**arguments)


def test_one_class_and_one_vector_are_refused():
    with pytest.raises(ValueError, match="target has samples of 1 class"):
        metrics.nc1(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match="vectors must have at least two rows"):
        metrics.nc2_etf(torch.randn(1, 3))
