"""Risk and coverage: by hand, all orders of ties, the best order, bad input."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.metrics import aurc, calibration, eaurc, risk_coverage


def plain_aurc(correct):
    """Of outcomes that are sorted, most confident first."""
    return np.mean(np.cumsum(1 - np.asarray(correct)) / np.arange(1, len(correct) + 1))


def test_curve_by_hand():
    coverage, risk = risk_coverage([0.6, 0.9, 0.7, 0.8], [True, True, False, False])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 1 / 2], abs=1e-15)
    assert aurc([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 0]) == pytest.approx((1 / 2 + 2 / 3 + 1 / 2) / 4, abs=1e-15)
    # The best order has both errors last: 1/3 and 2/4.
    assert eaurc([0.6, 0.9, 0.7, 0.8], [1, 1, 0, 0]) == pytest.approx((1 / 2 + 2 / 3 - 1 / 3) / 4, abs=1e-15)
    assert calibration.aurc is aurc and calibration.eaurc is eaurc and calibration.risk_coverage is risk_coverage


@pytest.mark.parametrize("scores", [[3, 2, 2, 2, 1], [1, 1, 1, 1, 1], [5, 5, 4, 4, 4]])
def test_ties_count_as_the_mean_over_their_orders(scores):
    correct = [0, 1, 1, 0, 1]
    orders = [p for p in permutations(range(5)) if [scores[i] for i in p] == sorted(scores, reverse=True)]
    expected = np.mean([plain_aurc([correct[i] for i in p]) for p in orders])
    assert aurc(scores, correct) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_excess_is_zero_for_the_best_order_only(n, seed, rounded):
    rng = np.random.default_rng(seed)
    scores, correct = rng.normal(size=n), rng.integers(0, 2, n)
    if rounded:
        scores = np.round(scores)
    errors = int((1 - correct).sum())
    optimum = sum(m / (n - errors + m) for m in range(1, errors + 1)) / n
    assert eaurc(scores, correct) == pytest.approx(aurc(scores, correct) - optimum, abs=1e-12)
    assert eaurc(scores + 100 * correct, correct) == pytest.approx(0, abs=1e-12)
    mixed_up = 0 < errors < n and scores[correct == 0].max() >= scores[correct == 1].min()
    assert (eaurc(scores, correct) > 1e-9) == mixed_up
    # Only the order counts, and only the errors.
    assert aurc(np.exp(scores), correct == 1) == pytest.approx(aurc(scores, correct), abs=1e-12)
    order = rng.permutation(n)
    assert aurc(scores[order], correct[order]) == pytest.approx(aurc(scores, correct), abs=1e-12)
    assert risk_coverage(scores, correct).risk[-1] == pytest.approx(errors / n, abs=1e-12)


def test_random_confidence_has_the_error_rate_everywhere_and_the_optimum_its_limit():
    rng = np.random.default_rng(0)
    correct = rng.random(100_000) < 0.7
    assert aurc(rng.random(100_000), correct) == pytest.approx(0.3, abs=0.01)
    rate = 1 - correct.mean()
    assert aurc(correct.astype(float) + rng.random(100_000), correct) == pytest.approx(
        rate + (1 - rate) * np.log(1 - rate), abs=1e-4
    )


def test_kinds_of_input_give_the_same_number():
    scores, correct = torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([True, True, False, False])
    expected = aurc(scores, correct)
    assert aurc(scores.numpy(), correct.tolist()) == aurc(scores.half(), correct.float()) == expected
    assert aurc([1], [1]) == 0 and aurc([1], [0]) == 1 and eaurc([1], [0]) == 0


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([[0.5]], [1], r"confidence must have shape \(N,\) with N of at least 1, but has shape \(1, 1\)"),
        ([], [], r"confidence must have shape \(N,\) with N of at least 1, but has shape \(0,\)"),
        ([0.5, float("nan")], [1, 0], r"confidence\[1\] is nan"),
        ([0.5, 0.6], [1], "correct has 1 entries, but there are 2 predictions"),
        ([0.5, 0.6], [1, 2], r"correct\[1\] is 2, outside \[0, 1\]"),
    ],
)
def test_bad_input_is_refused_by_name(confidence, correct, message):
    for measure in (risk_coverage, aurc, eaurc):
        with pytest.raises(ValueError, match=message):
            measure(confidence, correct)
