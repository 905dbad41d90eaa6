"""Ordering quantiles: scikit-learn's projection, the theorem, gradients, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.isotonic import isotonic_regression

from lossbook.losses import crossing_penalty, pinball
from lossbook.theory import isotonic_sort

METHODS = ["sort", "isotonic"]
NUMBERS = st.floats(-100, 100)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda m: arrays(np.float64, (3, m), elements=NUMBERS)))
def test_isotonic_is_scikit_learns_projection(g):
    want = np.stack([isotonic_regression(row) for row in g])
    np.testing.assert_allclose(isotonic_sort(g, method="isotonic").numpy(), want, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=100, deadline=None)
@given(
    g=st.integers(1, 9).flatmap(lambda m: arrays(np.float64, (4, m), elements=NUMBERS)),
    y=arrays(np.float64, 4, elements=NUMBERS),
    seed=st.integers(0, 10_000),
)
def test_order_never_worsens_the_pinball_loss_of_a_row(method, g, y, seed):
    levels = np.sort(np.random.default_rng(seed).uniform(0.001, 0.999, size=g.shape[1]))
    g, y = torch.from_numpy(g), torch.from_numpy(y)
    before = pinball(g, y, quantiles=levels, reduction="none").sum(dim=1)
    after = pinball(isotonic_sort(g, method=method), y, quantiles=levels, reduction="none").sum(dim=1)
    assert (after <= before + 1e-9).all()


def test_crossing_rows_do_get_better_and_a_single_level_may_get_worse():
    g, y, levels = torch.tensor([[3.0, 1.0]]), torch.tensor([2.9]), [0.4, 0.6]
    before = pinball(g, y, quantiles=levels, reduction="none")
    after = pinball(isotonic_sort(g), y, quantiles=levels, reduction="none")
    assert after.sum() < before.sum() and after[0, 0] > before[0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_in_order_and_rows_in_order_stay(method, generator):
    g = torch.randn(500, 20, generator=generator)
    ordered = isotonic_sort(g, method=method)
    assert crossing_penalty(ordered) == 0 and ordered.dtype == torch.float32
    torch.testing.assert_close(isotonic_sort(ordered, method=method), ordered)
    # Sorting keeps a row's numbers, the projection its sum; a common shift passes through both.
    torch.testing.assert_close(ordered.sum(dim=1), g.sum(dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close(isotonic_sort(g + 3, method=method), ordered + 3)


def test_a_reversed_row_by_hand():
    assert isotonic_sort([[3.0, 2.0, 1.0]]).tolist() == [[1, 2, 3]]
    assert isotonic_sort([[3.0, 2.0, 1.0]], method="isotonic").tolist() == [[2, 2, 2]]
    assert isotonic_sort([[0.0, 4.0, 2.0, 9.0]], method="isotonic").tolist() == [[0, 3, 3, 9]]


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method, generator):
    g = torch.randn(4, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: isotonic_sort(v, method=method), g)


@pytest.mark.parametrize(
    ("pred", "method", "sentence"),
    [
        (torch.zeros(3), "sort", r"pred must be floating point of shape \(N, m\)"),
        (torch.zeros(0, 3), "sort", "pred must be .* not empty"),
        (torch.zeros(2, 3, dtype=torch.int64), "sort", "pred must be floating point"),
        (torch.tensor([[0.0, float("nan")]]), "isotonic", r"pred\[0, 1\] is nan"),
        (torch.zeros(2, 3), "pava", "method must be 'sort' or 'isotonic', but is 'pava'"),
    ],
)
def test_bad_input_is_refused_by_name(pred, method, sentence):
    with pytest.raises(ValueError, match=sentence):
        isotonic_sort(pred, method=method)
