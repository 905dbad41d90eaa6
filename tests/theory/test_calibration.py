"""The risk that temperature leaves on overlapping classes: by enumeration and by search over temperatures."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax

from lossbook.theory import overlap_temperature_risk


def population(q, k):
    """Every kind of sample: its weight, the logits of the interpolator, the true posterior."""
    logits = np.zeros((2, k))
    logits[:, 0] = 1.0
    truth = np.zeros((2, k))
    truth[0, 0] = 1.0
    truth[1, :2] = 0.5
    return np.array([1 - q, q]), logits, truth


def risk_at(log_temperature, q, k):
    weight, logits, truth = population(q, k)
    log_p = log_softmax(logits / math.exp(log_temperature), axis=1)
    return float(weight @ (rel_entr(truth, 1) - truth * log_p).sum(axis=1))


@settings(max_examples=40, deadline=None)
@given(q=st.floats(0.001, 0.999), k=st.integers(2, 200))
def test_it_is_the_best_of_all_temperatures(q, k):
    found = overlap_temperature_risk(q, k)
    best = minimize_scalar(risk_at, bounds=(-5, 12), method="bounded", args=(q, k), options={"xatol": 1e-9})
    assert found.risk == pytest.approx(best.fun, abs=1e-7)
    weight, logits, truth = population(q, k)
    probs = softmax(logits / math.exp(best.x), axis=1)
    assert found.confidence == pytest.approx(probs[0, 0], abs=1e-3)
    # Calibrated: as often right as it is sure.
    assert found.confidence == pytest.approx(weight @ truth[:, 0])
    assert -1e-12 <= found.risk <= math.log(k) - q * math.log(2) + 1e-12


def test_ends():
    assert overlap_temperature_risk(0.0, 10) == (1.0, 0.0)
    assert overlap_temperature_risk(1.0, 2) == (0.5, 0.0)
    assert overlap_temperature_risk(1.0, 10).risk == pytest.approx(math.log(9) / 2)


def test_it_grows_with_the_overlap_and_like_log_k():
    risks = [overlap_temperature_risk(q, 10).risk for q in np.linspace(0, 1, 21)]
    assert all(a < b for a, b in pairwise(risks))
    small, large = (overlap_temperature_risk(0.4, k).risk for k in (10**3 + 1, 10**6 + 1))
    assert large - small == pytest.approx(0.2 * math.log(10**3))


@pytest.mark.parametrize(
    ("q", "k", "sentence"),
    [
        (-0.1, 5, r"q must lie in \[0, 1\], but is -0.1"),
        (1.1, 5, "q must lie in"),
        (math.nan, 5, "q must lie in"),
        (0.5, 1, "num_classes must be a whole number of at least 2, but is 1"),
        (0.5, 2.5, "num_classes must be a whole number"),
    ],
)
def test_bad_input_is_refused_by_name(q, k, sentence):
    with pytest.raises(ValueError, match=sentence):
        overlap_temperature_risk(q, k)
