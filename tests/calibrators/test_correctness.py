"""Correctness-aware scaling: what it learns from transformed copies, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from lossbook import losses
from lossbook.calibrators import CorrectnessAwareScaling, TemperatureScaling, from_dict


def problem(seed=0, n=600, k=6):
    """Logits, labels and three copies. A hidden half of the rows is easy; the other's copies disagree with it.

    Confidence is the same in both halves, so that the copies alone tell them apart.
    """
    rng = np.random.default_rng(seed)
    guess = rng.integers(k, size=n)
    logits = 3 * np.eye(k)[guess] + 0.3 * rng.normal(size=(n, k))
    easy = rng.random(n) < 0.5
    y = np.where(easy | (rng.random(n) < 0.2), guess, rng.integers(k, size=n))
    copies = [
        np.where(easy[:, None], logits, 3 * np.eye(k)[rng.integers(k, size=n)]) + 0.3 * rng.normal(size=(n, k))
        for _ in range(3)
    ]
    return logits, y, copies


def auroc(probs, y):
    return roc_auc_score(probs.argmax(axis=1) == y, probs.max(axis=1))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("activation", ["softplus", "clamp"])
def test_copies_tell_right_from_wrong(seed, activation):
    logits, y, copies = problem(seed)
    fresh, truth, fresh_copies = problem(seed + 100)
    scaler = CorrectnessAwareScaling(steps=400, activation=activation, random_state=seed)
    probs = scaler.fit(logits, y, transformed=copies).predict_proba(fresh, transformed=fresh_copies)
    assert auroc(probs, truth) > 0.75
    assert auroc(TemperatureScaling().fit(logits, y).predict_proba(fresh), truth) < 0.6
    wrong = fresh.argmax(axis=1) != truth
    temperature = scaler.temperatures(fresh, transformed=fresh_copies)
    assert temperature[wrong].mean() > 1.3 * temperature[~wrong].mean()
    np.testing.assert_array_equal(probs.argmax(axis=1), fresh.argmax(axis=1))


@pytest.mark.parametrize("loss", ["ca", "ce", "mse"])
@pytest.mark.parametrize("balanced", [False, True])
def test_each_objective_falls(loss, balanced):
    logits, y, copies = problem()
    objectives = {
        "ca": lambda p: losses.correctness_aware(p, torch.from_numpy(y), balanced=balanced),
        "ce": lambda p: losses.cross_entropy(p, torch.from_numpy(y)),
        "mse": lambda p: losses.brier(p, torch.from_numpy(y)),
    }
    value = []
    for steps in (1, 50, 300):
        scaler = CorrectnessAwareScaling(steps=steps, loss=loss, balanced=balanced).fit(logits, y, transformed=copies)
        probs = scaler.predict_proba(logits, transformed=copies)
        value.append(objectives[loss](torch.from_numpy(np.log(probs))).item())
    assert value[0] > value[1] > value[2]


def test_starts_near_temperature_one():
    logits, y, _ = problem()
    for activation in ("softplus", "clamp"):
        scaler = CorrectnessAwareScaling(steps=1, lr=1e-9, activation=activation).fit(logits, y)
        temperature = scaler.temperatures(logits)
        assert temperature.min() > 0.3 and temperature.max() < 3


def test_the_temperature_is_the_formula():
    logits, y, copies = problem(n=50)
    scaler = CorrectnessAwareScaling(steps=5, top_k=2).fit(logits, y, transformed=copies)
    top = np.argsort(-logits, axis=1)[:, :2]
    phi = np.hstack([np.take_along_axis(softmax(copy, axis=1), top, axis=1) for copy in copies])
    hidden = np.maximum(phi @ scaler.hidden_weight_.T + scaler.hidden_bias_, 0)
    expected = 0.1 + np.log1p(np.exp(hidden @ scaler.output_weight_ + scaler.output_bias_))
    np.testing.assert_allclose(scaler.temperatures(logits, transformed=np.stack(copies)), expected, rtol=1e-12)
    probs = scaler.predict_proba(logits, transformed=copies)
    np.testing.assert_allclose(probs, softmax(logits / expected[:, None], axis=1), rtol=1e-9)


def test_clamped_temperatures_stay_in_their_range():
    logits, y, copies = problem()
    scaler = CorrectnessAwareScaling(lr=1.0, activation="clamp", balanced=False).fit(logits, y, transformed=copies)
    temperature = scaler.temperatures(logits, transformed=copies)
    assert temperature.min() >= 0.1 and temperature.max() <= 10


def test_the_seed_decides():
    logits, y, copies = problem(n=100)

    def weight(seed):
        return CorrectnessAwareScaling(steps=3, random_state=seed).fit(logits, y, transformed=copies).hidden_weight_

    np.testing.assert_array_equal(weight(0), weight(0))
    assert not np.allclose(weight(0), weight(1))


def test_saved_with_its_copies():
    logits, y, copies = problem(n=100)
    scaler = CorrectnessAwareScaling(steps=3).fit(logits, y, transformed=copies)
    again = from_dict(json.loads(json.dumps(scaler.to_dict())))
    np.testing.assert_array_equal(
        again.predict_proba(logits, transformed=copies), scaler.predict_proba(logits, transformed=copies)
    )
    assert again.n_copies_ == 3
    # The decisions need no copies; the probabilities do.
    np.testing.assert_array_equal(again.predict(logits), logits.argmax(axis=1))
    with pytest.raises(ValueError, match="transformed holds 1 copies, but the fit had 3"):
        again.predict_proba(logits)


def test_bad_copies_are_refused():
    logits, y, copies = problem(n=50)
    spoilt = copies[1].copy()
    spoilt[4, 2] = np.nan
    for wrong, message in [
        ([], "transformed holds no copy"),
        (
            [copies[0], copies[1][:-1]],
            r"transformed\[1\] must have the shape \(50, 6\) of the logits, but has \(49, 6\)",
        ),
        ([copies[0], spoilt], r"transformed\[1\]\[4, 2\] is nan, not a finite number"),
        (copies[0], r"transformed\[0\] must have the shape \(50, 6\) of the logits, but has \(6,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            CorrectnessAwareScaling().fit(logits, y, transformed=wrong)
