"""Accuracy: hand counts, the peer, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from lossbook import metrics


def test_counts_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    assert metrics.accuracy(scores, torch.tensor([0, 1, 1, 0])) == 0.75  # the tie of the last row goes to class 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_sklearn_in_every_dtype(generator, dtype):
    logits = torch.randn(500, 7, generator=generator).to(dtype)
    target = torch.randint(0, 7, (500,), generator=generator)
    expected = accuracy_score(target.numpy(), logits.float().numpy().argmax(axis=1))
    assert metrics.accuracy(logits, target) == pytest.approx(expected, abs=1e-15)


def test_takes_arrays_lists_and_every_integer():
    scores = np.eye(3)[[0, 1, 2, 0]]
    target = np.array([0, 1, 2, 1], dtype=np.uint8)
    assert metrics.accuracy(scores, target) == metrics.accuracy(scores.tolist(), target.tolist()) == 0.75


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), r"target\[2\] is label 2, but scores has 2 classes"),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), r"target\[1\] is label -1"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), r"target must have shape \(3,\)"),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 1.0]), "target must hold integer labels"),
        (torch.zeros(3), torch.tensor([0, 1, 1]), r"scores must have shape \(N, K\), but has shape \(3,\)"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), "scores is empty"),
        (torch.zeros(3, 2, dtype=torch.long), torch.tensor([0, 1, 1]), "scores must be floating point"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]), r"scores\[1\] holds NaN"),
        (np.array([["a", "b"]]), [0], "scores must hold numbers"),
    ],
)
def test_bad_input_is_refused_by_name(scores, target, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(scores, target)
