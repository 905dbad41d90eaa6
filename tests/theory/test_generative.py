"""Naive Bayes with shared variances: scikit-learn's checks, peers, batches, the linear decision; sample_complexity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from lossbook.data import anisotropic_gaussians
from lossbook.theory import SharedVarianceGaussianNB, sample_complexity


@parametrize_with_checks([SharedVarianceGaussianNB()])
def test_scikit_learn(estimator, check):
    check(estimator)


def problem(n=60, d=4, k=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    return rng.normal(size=(n, d)) * np.arange(1, d + 1) + y[:, None], y


def test_the_formula_by_hand():
    x, y = np.array([[0.0], [2.0], [5.0], [9.0], [7.0], [7.0]]), np.array([0, 0, 1, 1, 1, 1])
    model = SharedVarianceGaussianNB(var_smoothing=1e-12).fit(x, y)
    # Class 0: mean 1, squared deviations 1 + 1; class 1: mean 7, squared deviations 4 + 4.
    np.testing.assert_allclose(model.theta_, [[1.0], [7.0]])
    np.testing.assert_allclose(model.var_, [10 / 6])
    expected = [
        math.log(1 / 3) + norm.logpdf(3, 1, math.sqrt(10 / 6)),
        math.log(2 / 3) + norm.logpdf(3, 7, math.sqrt(10 / 6)),
    ]
    np.testing.assert_allclose(model.predict_joint_log_proba([[3.0]])[0], expected, rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba([[3.0]]).sum(axis=1), 1.0)


def test_one_feature_is_linear_discriminant_analysis():
    """In one dimension there is no covariance to ignore."""
    x, y = problem(d=1)
    ours, peer = SharedVarianceGaussianNB().fit(x, y), LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(x), peer.predict_proba(x), atol=1e-6)


def test_means_and_frequencies_are_those_of_scikit_learn():
    x, y = problem()
    ours, peer = SharedVarianceGaussianNB().fit(x, y), GaussianNB(var_smoothing=0).fit(x, y)
    np.testing.assert_allclose(ours.theta_, peer.theta_)
    np.testing.assert_allclose(ours.class_prior_, peer.class_prior_)
    np.testing.assert_allclose(ours.var_, peer.class_prior_ @ peer.var_ + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 59), max_size=4))
def test_batches_add_up_to_one_fit(seed, cuts):
    x, y = problem(seed=seed)
    x += 1e4
    whole = SharedVarianceGaussianNB().fit(x, y)
    stream = SharedVarianceGaussianNB()
    for part in np.split(np.arange(60), sorted(set(cuts))):
        stream.partial_fit(x[part], y[part], classes=[0, 1, 2])
    for name in ("theta_", "class_prior_", "class_count_"):
        np.testing.assert_allclose(getattr(stream, name), getattr(whole, name), rtol=1e-12)
    np.testing.assert_allclose(stream.var_, whole.var_, rtol=1e-7)


def test_fit_forgets_and_partial_fit_does_not():
    x, y = problem()
    model = SharedVarianceGaussianNB().fit(x + 5, y)
    assert np.array_equal(model.fit(x, y).theta_, SharedVarianceGaussianNB().fit(x, y).theta_)
    assert model.partial_fit(x, y).class_count_.sum() == 120


def test_the_decision_is_linear():
    """Log-odds along a line are an affine function of the position; those of scikit-learn's GaussianNB are not."""
    x, y = problem()
    line = np.linspace(-10, 10, 7)[:, None] * np.ones(4)
    for model, bend in ((SharedVarianceGaussianNB(), False), (GaussianNB(), True)):
        joint = model.fit(x, y).predict_joint_log_proba(line)
        second = np.diff(joint[:, 0] - joint[:, 1], n=2)
        assert (np.abs(second) > 1e-3).all() == bend
        assert (np.abs(second) < 1e-8).all() != bend


def test_always_black_pixels_cancel_and_pixels_black_within_a_class_decide():
    x, y = problem(k=2)
    plain = SharedVarianceGaussianNB().fit(x, y)
    black = SharedVarianceGaussianNB().fit(np.c_[x, np.zeros(60)], y)
    far = 100 * x
    np.testing.assert_array_equal(black.predict(np.c_[far, np.ones(60)]), plain.predict(far))
    leak = SharedVarianceGaussianNB().fit(np.c_[x, 0.01 * y], y)
    np.testing.assert_array_equal(leak.predict(np.c_[x, 0.01 * (1 - y)]), 1 - y)


def test_approaches_the_bayes_error():
    split = anisotropic_gaussians(20_000, dim=2, num_classes=3)
    model = SharedVarianceGaussianNB().fit(split.x[:10_000], split.y[:10_000])
    x, y, posterior = (t[10_000:] for t in split)
    bayes = 1 - posterior.amax(dim=1).mean().item()
    assert 1 - model.score(x, y) == pytest.approx(bayes, abs=0.015)
    np.testing.assert_allclose(model.predict_proba(x), posterior, atol=0.05)


def test_labels_of_any_kind_and_tensors():
    x, y = problem()
    names = np.array(["ant", "bee", "cow"])
    model = SharedVarianceGaussianNB().fit(torch.tensor(x), names[y])
    assert np.array_equal(model.predict(torch.tensor(x)), names[SharedVarianceGaussianNB().fit(x, y).predict(x)])


def test_bad_input_is_refused_by_name():
    x, y = problem()
    with pytest.raises(ValueError, match="NaN"):
        SharedVarianceGaussianNB().fit(np.where(x > 2, np.nan, x), y)
    for value in (0, -1.0, math.nan, "small"):
        with pytest.raises(ValueError, match="var_smoothing must"):
            SharedVarianceGaussianNB(var_smoothing=value).fit(x, y)
    with pytest.raises(ValueError, match="Unknown label type"):
        SharedVarianceGaussianNB().fit(x, y + 0.5)
    with pytest.raises(NotFittedError):
        SharedVarianceGaussianNB().predict(x)
    model = SharedVarianceGaussianNB()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit(x, y)
    model.partial_fit(x[:2], [0, 1], classes=[0, 1, 2])
    with pytest.raises(ValueError, match="class .*2.* has no samples yet"):
        model.predict(x)
    with pytest.raises(ValueError, match=r"classes must stay \[0, 1, 2\]"):
        model.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(ValueError, match="y has label 7, but classes are"):
        model.partial_fit(x[:1], [7])
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(x[:, :2], y)


def test_sample_complexity():
    sizes = [10, 20, 40]
    assert sample_complexity([0.3, 0.109, 0.1], sizes, 0.1) == 20
    assert sample_complexity([[0.2, 0.1, 0.1], [0.2, 0.14, 0.1]], sizes, 0.1) == 40
    assert sample_complexity([[0.2, 0.1, 0.1], [0.2, 0.14, 0.1]], sizes, 0.1, tol=0.02) == 20
    assert sample_complexity([0.05, 0.1, 0.1], sizes, 0.1) == 10
    assert sample_complexity([0.5, 0.4, 0.3], sizes, 0.1) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1, 0.1], [1, 2, 3], 0.1), "errors must have a last dimension of 3"),
        (([0.1, 0.1], [2, 1], 0.1), "sizes must be a list of increasing numbers"),
        (([], [], 0.1), "sizes must"),
        (([0.1, 1.2], [1, 2], 0.1), r"errors must lie in \[0, 1\]"),
        (([0.1, math.nan], [1, 2], 0.1), "errors must lie"),
        (([0.1, 0.1], [1, 2], -0.1), "target must lie"),
        (([0.1, 0.1], [1, 2], 0.1, -0.1), "tol must lie"),
    ],
)
def test_sample_complexity_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_complexity(*arguments)


def test_a_refused_first_batch_leaves_nothing_behind():
    model = SharedVarianceGaussianNB()
    with pytest.raises(ValueError, match=r"y has label 2, but classes are \[0, 1\]"):
        model.partial_fit([[0.0], [1.0]], [0, 2], classes=[0, 1])
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        model.partial_fit([[0.0], [1.0]], [0, 1])
