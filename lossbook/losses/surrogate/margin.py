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


def l2_svm(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The squared hinge of one-vs-rest support vector machines: every score is asked for its own margin.

        loss = sum_k max(0, 1 - t_k f_k)²,    t_y = 1 and t_k = -1 for k != y

    Range [0, inf). Gradient in f_k: -2 t_k max(0, 1 - t_k f_k): zero once f_y >= 1 and every other f_k <= -1, and
    linear, without bound, on the wrong side. It reads the level of the logits, not only their differences: adding a
    number to all of them changes it. Predict by the largest score. Equal, for C = 2 and f = (-s, s), to twice the
    squared hinge of s.

    Source: Tang 2013 (arXiv 1306.0239), section 2.2; used with `reduction="sum"` by Agarap 2017 (arXiv 1709.03082).
    """
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    t = torch.full_like(f, -1.0).scatter(1, y[:, None], 1.0)
    loss = (1 - t * f).relu().square().sum(dim=1)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def svm_objective(weight: Tensor, logits: Tensor, target: Tensor, *, c: float | Tensor = 0.5) -> Tensor:
    """What a network with a linear support vector machine as its last layer minimises.

        objective = |W|_F² / 2 + c * sum_i loss_i,    loss_i = `l2_svm` of row i

    A scalar in [0, inf). The sum runs over the batch, so a larger batch counts for more against the weights. The bias
    of the layer is not penalised.

    Args:
        weight: W `(C, D)`, the weight of the last layer.
        logits: `(N, C)`, its output.
        target: `(N,)` labels.
        c: >= 0; the paper uses 0.5.

    Source: Agarap 2017 (arXiv 1709.03082), and its code, models/gru_svm/gru_svm.py.
    """
    checks.parameter("c", c, 0)
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, but is {type(weight).__name__}")
    data_term = l2_svm(logits, target, reduction="sum")
    if weight.dim() != 2 or len(weight) != logits.shape[1] or not weight.is_floating_point():
        raise ValueError(
            f"weight must be floating point with one row for each of the {logits.shape[1]} logits, "
            f"but is {weight.dtype} of shape {tuple(weight.shape)}"
        )
    checks.finite("weight", weight)
    return weight.square().sum() / 2 + c * data_term
