"""Temperature scaling: the optimum by other means, known temperatures, other objectives, bad input."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import clone

from lossbook.calibrators import TemperatureScaling
from lossbook.metrics import brier_score, expected_calibration_error


def problem(seed=0, n=300, k=5, scale=3.0):
    """Logits that are `scale` times those of the distribution that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    y = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return scale * logits, y


def nll(logits, y, temperature):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(y)), y].mean()


@pytest.mark.parametrize("scale", [0.05, 0.5, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("k", [2, 10])
def test_optimum_is_stationary_and_brents(scale, k):
    logits, y = problem(n=200, k=k, scale=scale)
    # An overconfident start: a line search over log T could be caught in the plateau of high temperatures.
    logits = logits + 1000.0
    temperature = TemperatureScaling().fit(logits, y).temperature_
    brent = minimize_scalar(
        lambda u: nll(logits, y, math.exp(u)), bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}
    )
    assert math.log(temperature) == pytest.approx(brent.x, abs=1e-5)
    probs = softmax(logits / temperature, axis=1)
    gap = logits[np.arange(len(y)), y] - (probs * logits).sum(axis=1)
    assert abs(gap.mean()) < 1e-9 * np.abs(logits).max()


@pytest.mark.parametrize("objective", ["brier", "ece"])
def test_other_objectives_are_least(objective):
    """Against a brute grid, ten times as fine as that of the fit."""
    logits, y = problem(n=4000)
    measure = brier_score if objective == "brier" else expected_calibration_error

    def value(temperature):
        return measure(softmax(logits / temperature, axis=1), y)

    temperature = TemperatureScaling(objective).fit(logits, y).temperature_
    best = min(value(t) for t in np.exp(np.linspace(-4, 4, 801)))
    assert value(temperature) <= best + (1e-7 if objective == "brier" else 2e-3)  # between grid points the ECE jumps
    assert temperature == pytest.approx(3.0, rel=0.1)


def test_brier_is_stationary_and_nll_is_another_optimum():
    logits, y = problem(n=500)
    temperature = TemperatureScaling("brier").fit(logits, y).temperature_
    around = [brier_score(softmax(logits / (temperature * f), axis=1), y) for f in (0.99, 1, 1.01)]
    assert min(around) == around[1]
    likely = TemperatureScaling().fit(logits, y).temperature_
    assert nll(logits, y, likely) < nll(logits, y, temperature)
    assert brier_score(softmax(logits / likely, axis=1), y) > around[1]


def test_fits_where_gradients_are_off():
    expected = TemperatureScaling().fit(*problem()).temperature_
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert TemperatureScaling().fit(*problem()).temperature_ == expected


def test_known_temperature_is_recovered():
    logits, y = problem(n=50_000, scale=2.5)
    assert TemperatureScaling().fit(logits, y).temperature_ == pytest.approx(2.5, rel=0.02)


def test_calibrates_and_decides_as_before():
    logits, y = problem(n=4000)
    fresh, truth = problem(seed=1, n=4000)
    scaler = TemperatureScaling().fit(logits, y)
    probs = scaler.predict_proba(fresh)
    assert expected_calibration_error(probs, truth) < 0.3 * expected_calibration_error(softmax(fresh, axis=1), truth)
    np.testing.assert_array_equal(scaler.predict(fresh), fresh.argmax(axis=1))
    np.testing.assert_array_equal(probs.argmax(axis=1), fresh.argmax(axis=1))
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-12)
    assert scaler.score(fresh, truth) == (fresh.argmax(axis=1) == truth).mean()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_in_arrays_out(dtype):
    logits, y = problem()
    tensor = torch.from_numpy(logits).to(dtype).requires_grad_()
    scaler = TemperatureScaling().fit(tensor, torch.from_numpy(y))
    assert scaler.temperature_ == TemperatureScaling().fit(tensor.detach().double().numpy(), y).temperature_
    probs = scaler.predict_proba(tensor)
    assert isinstance(probs, np.ndarray) and probs.dtype == np.float64
    assert isinstance(scaler.predict(tensor), np.ndarray)


def test_pickle_clone_and_attributes():
    logits, y = problem()
    scaler = TemperatureScaling().fit(logits, y)
    again = pickle.loads(pickle.dumps(scaler))
    np.testing.assert_array_equal(again.predict_proba(logits), scaler.predict_proba(logits))
    assert scaler.classes_.tolist() == [0, 1, 2, 3, 4] and scaler.n_features_in_ == 5
    assert not hasattr(clone(scaler), "temperature_") and scaler.get_params() == {"objective": "nll"}


@pytest.mark.parametrize(
    ("logits", "bound"),
    [
        (5 * np.eye(3), -4),  # separated
        (1e6 * np.eye(3), -4),  # separated, and the loss 0 at every temperature
        (np.zeros((3, 3)), -4),  # every temperature is as good
        (-5 * np.eye(3), 4),  # always wrong
    ],
)
@pytest.mark.parametrize("objective", ["nll", "brier"])
def test_no_optimum_takes_the_bound_and_warns(objective, logits, bound):
    with pytest.warns(UserWarning, match=rf"set to exp\({bound}\)"):
        scaler = TemperatureScaling(objective).fit(logits, [0, 1, 2])
    assert scaler.temperature_ == pytest.approx(math.exp(bound))
    assert np.isfinite(scaler.predict_proba(logits)).all()


def test_an_ordinary_fit_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TemperatureScaling().fit(*problem())


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        ([[0.0, 1.0], [NAN, 0.0]], [0, 1], r"logits\[1, 0\] is NaN"),
        ([[0.0, 1.0], [INF, 0.0]], [0, 1], r"logits\[1, 0\] is inf"),
        ([[0.0, 1.0], [1.0, 0.0]], [1, 1], "y holds one class only, label 1"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 2], r"y\[1\] is label 2, but logits have 2 classes"),
        ([[0.0, 1.0], [1.0, 0.0]], [-1, 1], r"y\[0\] is label -1"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 1, 1], "y has 3 labels, but logits have 2 rows"),
        ([[0.0, 1.0], [1.0, 0.0]], [0.5, 1.0], "Unknown label type"),
        ([[0.0, 1.0], [1.0, 0.0]], ["a", "b"], "y must hold integer labels"),
        ([[0.0, 1.0], [1.0, 0.0]], None, "the target y is None"),
        ([0.0, 1.0], [0, 1], "Expected 2D array"),
        ([[0.0], [1.0]], [0, 1], "minimum of 2 is required"),
        (np.zeros((0, 2)), [], "minimum of 1 is required"),
    ],
)
def test_bad_fit_is_refused(logits, y, message):
    with pytest.raises(ValueError, match=message):
        TemperatureScaling().fit(logits, y)


def test_bad_predict_is_refused():
    scaler = TemperatureScaling()
    with pytest.raises(ValueError, match="not fitted yet"):
        scaler.predict_proba(np.zeros((2, 5)))
    scaler.fit(*problem())
    with pytest.raises(ValueError, match="X has 4 features, but TemperatureScaling is expecting 5"):
        scaler.predict_proba(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"logits\[0, 0\] is NaN"):
        scaler.predict(np.full((2, 5), NAN))
