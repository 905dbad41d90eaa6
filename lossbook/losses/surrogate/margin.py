"""Losses of a margin: zero, or nearly, once the label leads by enough.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce


def crammer_singer(
    logits: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The multiclass hinge of Crammer and Singer: only the strongest rival counts, and only inside the margin.

        loss = max_k ( f_k - f_y + margin 1[k != y] ) = max(0, margin + max_{k != y} f_k - f_y)

    Range [0, inf), in units of the logits. Piecewise linear: the gradient is +1 at the strongest rival and -1 at the
    label, shared evenly where rivals tie, zero once the label leads by the margin.

    Args:
        margin: >= 0.

    Source: Crammer, Singer 2001, Journal of Machine Learning Research 2, 265-292, equation 3.
    """
    checks.parameter("margin", margin, 0)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    rival = torch.ones_like(f).scatter(1, y[:, None], 0.0)
    loss = (f - at_label(f, y)[:, None] + margin * rival).amax(dim=1)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
