"""How often the largest score is the right one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics._inputs import as_labels, as_matrix, row_chunks, top_label


def accuracy(scores: Any, target: Any) -> float:
    """The fraction of rows whose largest score is at the label: (1/N) Σ_i 1[argmax_k s_ik = y_i].

    Args:
        scores: (N, K) logits or probabilities; of equal largest scores the first counts.
        target: (N,) integer labels in [0, K).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: wrong shape or dtype, no rows, NaN, a label out of range.
    """
    scores = as_matrix("scores", scores)
    target = as_labels("target", target, scores, scores.shape[1], "scores")
    return float(correct_count(scores, target)) / len(scores)


def correct_count(scores: Tensor, target: Tensor) -> Tensor:
    """How many rows are right, as a 0-d int64 tensor; the largest entry of each row must not be NaN."""
    total = torch.zeros((), dtype=torch.int64, device=scores.device)
    for rows, chunk in row_chunks(scores):
        best, predicted = top_label(chunk)
        # The largest entry of a row is NaN as soon as one entry is.
        if checks.can_read(best) and (bad := torch.isnan(best)).any():
            raise ValueError(f"scores[{rows.start + int(bad.nonzero()[0, 0])}] holds NaN")
        total += (predicted == target[rows]).sum()
    return total
