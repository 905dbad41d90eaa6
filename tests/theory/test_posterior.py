"""Posterior of a Gaussian mixture: Bayes' rule by scipy, closed forms, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from lossbook.theory import bayes_error, gaussian_mixture_posterior


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
def test_is_bayes_rule(variance):
    rng = np.random.default_rng(0)
    x, means, priors = rng.normal(size=(50, 3)), rng.normal(size=(4, 3)), np.array([0.1, 0.2, 0.3, 0.4])
    joint = np.stack([p * multivariate_normal(m, variance).pdf(x) for p, m in zip(priors, means, strict=True)], axis=1)
    expected = joint / joint.sum(axis=1, keepdims=True)
    posterior = gaussian_mixture_posterior(x, means, priors=priors, variance=variance)
    np.testing.assert_allclose(posterior.numpy(), expected, atol=1e-12)
    shifted = gaussian_mixture_posterior(x + 1e6, means + 1e6, priors=priors, variance=variance)
    np.testing.assert_allclose(shifted.numpy(), expected, atol=1e-8)


def test_two_classes_are_logistic():
    x = torch.linspace(-3, 3, 7)[:, None]
    posterior = gaussian_mixture_posterior(x, [[-1.0], [1.0]])
    torch.testing.assert_close(posterior[:, 1], torch.sigmoid(2 * x[:, 0].double()))


def test_a_class_of_prior_zero_never_happens():
    posterior = gaussian_mixture_posterior([[0.0], [100.0]], [[0.0], [100.0], [50.0]], priors=[0.5, 0.0, 0.5])
    assert posterior[:, 1].tolist() == [0, 0]
    torch.testing.assert_close(posterior.sum(dim=1), torch.ones(2).double())


def test_bayes_error_of_two_gaussians():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200_000)
    x = rng.normal(size=200_000) + np.where(y == 1, 1.0, -1.0)
    posterior = gaussian_mixture_posterior(x[:, None], [[-1.0], [1.0]])
    # Five standard errors of a mean of 200,000 numbers in [0, 1/2].
    assert bayes_error(posterior) == pytest.approx(norm.cdf(-1), abs=5 * 0.25 / 200_000**0.5)
    assert bayes_error(np.full((3, 4), 0.25)) == 0.75


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_mixture_posterior([0.0], [[0.0]]), "x must have two dimensions"),
        (lambda: gaussian_mixture_posterior([[0.0]], [[0.0, 1.0]]), "x has 1 columns, but means has 2"),
        (lambda: gaussian_mixture_posterior([[float("nan")]], [[0.0]]), r"x must be finite, but x\[0, 0\] is nan"),
        (lambda: gaussian_mixture_posterior([[0.0]], [[0.0], [1.0]], variance=0), r"variance must lie in \(0, inf\)"),
        (lambda: gaussian_mixture_posterior([[0.0]], [[0.0], [1.0]], priors=[1.0]), r"priors must have shape \(2,\)"),
        (
            lambda: gaussian_mixture_posterior([[0.0]], [[0.0], [1.0]], priors=[0.7, 0.7]),
            "priors must be probabilities",
        ),
        (lambda: bayes_error([0.5]), r"posterior must have shape \(N, K\)"),
        (lambda: bayes_error([[0.5, 0.5], [0.9, 0.2]]), r"posterior\[1\] is not a probability vector"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
