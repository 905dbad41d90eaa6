"""The area under the ROC curve: by hand, the peer, ties, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lossbook.metrics import pooled_auc


def test_by_hand():
    assert pooled_auc([3.0, 1.0, 2.0, 1.0], [1, 1, 0, 0]) == (1 + 1 + 0 + 0.5) / 4
    assert pooled_auc(torch.tensor([[2.0, 0.0], [1.0, 0.5]]), torch.eye(2)) == 0.75
    assert pooled_auc([1.0, 1.0], [True, False]) == 0.5


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_agrees_with_sklearn_ties_included(rows):
    scores, labels = np.array([r[0] for r in rows], dtype=float), np.array([r[1] for r in rows])
    if labels.all() or not labels.any():
        return
    assert pooled_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_any_dtype_and_any_size(generator, dtype):
    scores = (3 * torch.randn(20_000, generator=generator)).to(dtype)
    labels = torch.rand(20_000, generator=generator) < 0.1
    expected = roc_auc_score(labels.numpy(), scores.double().numpy())
    assert pooled_auc(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_only_the_order_counts():
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    assert pooled_auc(scores, labels) == pooled_auc(np.exp(10 * np.array(scores)), labels) == 0.75
    assert pooled_auc([-np.inf, 0.0, 0.0, np.inf], labels) == 0.875


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "labels hold 2 ones and 0 zeros, but the AUC needs both"),
        ([1.0, 2.0], [0, 0], "labels hold 0 ones and 2 zeros"),
        ([], [], "the AUC needs both"),
        ([1.0, float("nan")], [0, 1], "scores must not hold NaN, but entry 1"),
        ([1.0, 2.0], [0, 2], "labels must hold 0 and 1, but entry 1 of the flattened labels is 2"),
        ([1.0, 2.0], [0, 1, 1], r"labels must have the shape of scores, \(2,\), but have \(3,\)"),
        (np.array(["a", "b"]), [0, 1], "scores must hold numbers"),
    ],
)
def test_bad_input_is_refused_by_name(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        pooled_auc(scores, labels)
