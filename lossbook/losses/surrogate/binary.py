"""Losses of two classes as functions of the margin: logistic, hinge and exponential.

One real score s a row; class 1 is predicted where s > 0. With the label t in {0, 1} the margin is z = (2t - 1) s:
positive where the prediction is right. `scores` are `(N,)` floating point, `target` `(N,)` of 0 and 1 in any real
dtype; anything else is a ValueError that names the argument. float16 and bfloat16 are computed in float32. `reduction`:
"none" gives `(N,)`, "mean" and "sum" a scalar, in the dtype of the scores.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lossbook import checks


def logistic(scores: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The logistic loss: binary cross-entropy on a score.

        loss = log(1 + exp(-z)),    z = (2t - 1) s

    In nats, range (0, inf), log 2 at z = 0. Slope in z: -1 / (1 + e^z), from -1 at a hopeless row to 0. It is the
    cross-entropy of two logits whose difference is s. Equal to `torch.nn.functional.binary_cross_entropy_with_logits`.

    Source: Bartlett, Jordan, McAuliffe 2006, Convexity, classification, and risk bounds, section 2, for all three.
    """
    z = margins(scores, target, reduction)
    return reduced(softplus(-z), scores, reduction)


def hinge(scores: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The hinge loss of the support vector machine.

        loss = max(0, 1 - z),    z = (2t - 1) s

    Range [0, inf), 1 at z = 0. Slope in z: -1 below z = 1 and 0 from there on. Equal to `sklearn.metrics.hinge_loss`.

    Source: as for `logistic`.
    """
    z = margins(scores, target, reduction)
    return reduced((1 - z).relu(), scores, reduction)


def exponential(scores: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The exponential loss of AdaBoost.

        loss = exp(-z),    z = (2t - 1) s

    Range (0, inf), 1 at z = 0. Slope in z: -exp(-z), without bound: at a row that is wrong by more than 88 the value is
    inf in float32. That is the loss, not a defect; nothing is clipped.

    Source: as for `logistic`.
    """
    z = margins(scores, target, reduction)
    return reduced(torch.exp(-z), scores, reduction)


def margins(scores: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Check the arguments of a loss of two classes; return z `(N,)` in at least float32."""
    checks.reduction(reduction)
    checks.scores_and_target(scores, target)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return (2 * target.to(scores.dtype) - 1) * scores


def reduced(loss: Tensor, scores: Tensor, reduction: str) -> Tensor:
    """Reduce `loss (N,)`, in the dtype of `scores`: the caller's, not the widened one."""
    if reduction == "mean":
        loss = loss.mean()
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(scores.dtype)
