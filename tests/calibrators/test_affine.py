"""Vector, matrix and Dirichlet scaling: stationarity, known maps, peers, what the penalties do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from lossbook.calibrators import DirichletCalibration, MatrixScaling, TemperatureScaling, VectorScaling


def sample(probs, seed=0):
    draws = np.random.default_rng(seed).random((len(probs), 1))
    return (probs.cumsum(axis=1) > draws).argmax(axis=1)


def problem(n=400, k=4, seed=0):
    """Logits whose classes have temperatures and offsets of their own."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    return logits, sample(softmax(logits * np.linspace(0.3, 1.2, k) + np.linspace(-1, 1, k), axis=1), seed + 1)


def one_hot(y, k):
    return np.eye(k)[y]


def nll(probs, y):
    return -np.log(probs[np.arange(len(y)), y]).mean()


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_vector_scaling_is_stationary(scale):
    logits, y = problem()
    logits = scale * logits
    scaler = VectorScaling().fit(logits, y)
    residual = scaler.predict_proba(logits) - one_hot(y, 4)
    ridge = 1e-6
    np.testing.assert_allclose(residual.mean(axis=0), -ridge * scaler.bias_, atol=1e-7 * (1 + scale))
    slope = (residual * logits).mean(axis=0)
    np.testing.assert_allclose(slope, -ridge * (scaler.weight_ - 1), atol=1e-7 * (1 + scale))
    assert abs(scaler.bias_.sum()) < 1e-6


@pytest.mark.parametrize("kind", [MatrixScaling, DirichletCalibration])
@pytest.mark.parametrize(("odir", "intercept"), [(0.0, 0.0), (0.5, 2.0), (10.0, 1.0)])
def test_matrix_scaling_is_stationary(kind, odir, intercept):
    logits, y = problem()
    scaler = kind(odir=odir, intercept=intercept).fit(logits, y)
    x = logits if kind is MatrixScaling else log_softmax(logits, axis=1)
    residual = scaler.predict_proba(logits) - one_hot(y, 4)
    penalty = 2 * odir / 12 * (scaler.weight_ - np.diag(np.diag(scaler.weight_)))
    gradient = residual.T @ x / len(y) + penalty + 1e-6 * (scaler.weight_ - np.eye(4))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    np.testing.assert_allclose(residual.mean(axis=0) + (2 * intercept / 4 + 1e-6) * scaler.bias_, 0, atol=1e-6)


def test_known_maps_are_recovered():
    logits, _ = problem(n=60_000)
    w, b = np.array([0.5, 1.0, 1.5, 0.8]), np.array([0.6, -0.2, -0.1, -0.3])
    scaler = VectorScaling().fit(logits, sample(softmax(logits * w + b, axis=1)))
    np.testing.assert_allclose(scaler.weight_, w, atol=0.05)
    np.testing.assert_allclose(scaler.bias_, b, atol=0.05)

    # A matrix is known up to a row that all its rows share.
    w = np.eye(4) + 0.3 * np.random.default_rng(1).normal(size=(4, 4))
    scaler = MatrixScaling(odir=0, intercept=0).fit(logits, sample(softmax(logits @ w.T + b, axis=1)))
    np.testing.assert_allclose(scaler.weight_ - scaler.weight_.mean(axis=0), w - w.mean(axis=0), atol=0.06)


def test_matrix_without_penalty_is_scikit_learns_multinomial_regression():
    logits, y = problem()
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=5000).fit(logits, y)
    ours = MatrixScaling(odir=0, intercept=0).fit(logits, y)
    np.testing.assert_allclose(ours.predict_proba(logits), peer.predict_proba(logits), atol=1e-4)


def test_vector_is_the_minimum_that_another_solver_finds():
    logits, y = problem(n=100, k=3)

    def objective(theta):
        u = logits * theta[:3] + theta[3:]
        return -log_softmax(u, axis=1)[np.arange(len(y)), y].mean()

    best = minimize(objective, np.array([1.0, 1, 1, 0, 0, 0]), method="BFGS", options={"gtol": 1e-8})
    scaler = VectorScaling().fit(logits, y)
    assert nll(scaler.predict_proba(logits), y) == pytest.approx(best.fun, abs=1e-6)


def test_on_its_own_data_more_freedom_fits_better():
    logits, y = problem()
    temperature = nll(TemperatureScaling().fit(logits, y).predict_proba(logits), y)
    vector = nll(VectorScaling().fit(logits, y).predict_proba(logits), y)
    matrix = nll(MatrixScaling(odir=0, intercept=0).fit(logits, y).predict_proba(logits), y)
    assert temperature > vector + 1e-3 > matrix + 1e-3


def test_a_matrix_overfits_few_rows_and_odir_holds_it():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(3200, 10))
    y = sample(softmax(logits, axis=1))
    fresh, truth = logits[200:], y[200:]
    free, held = (
        nll(MatrixScaling(odir=odir, intercept=odir).fit(logits[:200], y[:200]).predict_proba(fresh), truth)
        for odir in (0, 100)
    )
    assert free > 1.3 * nll(softmax(fresh, axis=1), truth)
    assert held < 1.05 * nll(softmax(fresh, axis=1), truth)


def test_infinite_odir_leaves_the_diagonal():
    logits, y = problem()
    scaler = MatrixScaling(odir=1e9, intercept=0).fit(logits, y)
    np.testing.assert_allclose(np.diag(scaler.weight_), VectorScaling().fit(logits, y).weight_, atol=1e-3)
    off = scaler.weight_ - np.diag(np.diag(scaler.weight_))
    assert np.abs(off).max() < 1e-6


def test_dirichlet_sees_probabilities_only():
    logits, y = problem()
    shifted = logits + np.random.default_rng(0).normal(size=(len(y), 1))
    dirichlet = DirichletCalibration().fit(logits, y)
    np.testing.assert_allclose(dirichlet.predict_proba(shifted), dirichlet.predict_proba(logits), atol=1e-12)
    matrix = MatrixScaling().fit(log_softmax(logits, axis=1), y)
    np.testing.assert_array_equal(dirichlet.weight_, matrix.weight_)
    assert np.abs(VectorScaling().fit(logits, y).predict_proba(shifted) - softmax(logits, axis=1)).max() > 0.01


@pytest.mark.parametrize("scaler", [VectorScaling(), MatrixScaling(odir=0, intercept=0)], ids=str)
def test_a_class_without_a_row_gets_next_to_nothing(scaler):
    logits, _ = problem()
    y = sample(softmax(logits[:, :3], axis=1))
    assert scaler.fit(logits, y).predict_proba(logits)[:, 3].mean() < 1e-3


@pytest.mark.parametrize("scale", [0.5, 1e4, 1e8])
@pytest.mark.parametrize("kind", [VectorScaling, MatrixScaling])
def test_the_size_of_the_logits_does_not_hinder_the_fit(kind, scale):
    logits, y = problem()
    free = {} if kind is VectorScaling else {"odir": 0, "intercept": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probs = kind(**free).fit(scale * logits, y).predict_proba(scale * logits)
    # The ridge acts on the weights, which are as much smaller or larger.
    np.testing.assert_allclose(probs, kind(**free).fit(logits, y).predict_proba(logits), atol=1e-3)
