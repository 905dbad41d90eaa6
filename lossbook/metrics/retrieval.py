"""How well scores separate what matches from what does not."""

from __future__ import annotations

from typing import Any

import torch

from lossbook import checks
from lossbook.metrics._inputs import as_tensor


def pooled_auc(scores: Any, labels: Any) -> float:
    """The area under the ROC curve of all scores in one pool: P(s+ > s-) + P(s+ = s-) / 2.

    The chance that a random positive is above a random negative, whichever query either belongs to. For a similarity
    matrix (B, B) with the matching pairs on the diagonal the labels are `torch.eye(B)`. Exact, in O(N log N).

    Args:
        scores: any shape, any real dtype; only their order counts, so that infinite ones are welcome.
        labels: the same shape, 0 and 1 or bool.

    Returns:
        A number in [0, 1]: 1/2 for scores that know nothing.

    Raises:
        ValueError: shapes differ, a score is NaN, a label is neither 0 nor 1, or one of the classes is missing.
    """
    s, y = as_tensor("scores", scores), as_tensor("labels", labels)
    if y.shape != s.shape:
        raise ValueError(f"labels must have the shape of scores, {tuple(s.shape)}, but have {tuple(y.shape)}")
    s, y = s.flatten(), y.flatten().to(s.device)
    if s.dtype in (torch.float16, torch.bfloat16, torch.bool):
        s = s.float()
    if checks.can_read(s) and s.is_floating_point() and (bad := torch.isnan(s)).any():
        raise ValueError(f"scores must not hold NaN, but entry {int(bad.nonzero()[0, 0])} of the flattened scores is")
    if checks.can_read(y) and (bad := (y != 0) & (y != 1)).any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"labels must hold 0 and 1, but entry {row} of the flattened labels is {y[row].item():g}")
    # Sorted, both: the binary searches of neighbours then touch the same memory.
    positive, negative = s[y == 1].sort().values, s[y == 0].sort().values
    if len(positive) == 0 or len(negative) == 0:
        raise ValueError(f"labels hold {len(positive)} ones and {len(negative)} zeros, but the AUC needs both")
    below = torch.searchsorted(negative, positive).sum()
    not_above = torch.searchsorted(negative, positive, right=True).sum()
    return int(below + not_above) / (2 * len(positive) * len(negative))
