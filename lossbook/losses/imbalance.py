"""Losses made from the metric itself, for data on which accuracy says little because one class is rare.

`logits` are `(N,)` floating point, one score a row with class 1 predicted where it is positive; `target` is `(N,)` of 0
and 1 in any real dtype. A network of two logits has the score f_1 - f_0. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lossbook import checks

METRICS = ("accuracy", "precision", "recall", "fbeta", "gmean", "balanced_accuracy", "matthews")
# What each metric divides by: without such rows in the batch it is 0 / 0.
_NEEDS_POSITIVES = ("recall", "gmean", "balanced_accuracy", "matthews")
_NEEDS_NEGATIVES = ("gmean", "balanced_accuracy", "matthews")


class SoftConfusion(NamedTuple):
    """The four counts of a batch, scalars that sum to N."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def soft_confusion(logits: Tensor, target: Tensor, *, scale: float | Tensor = 73.0) -> SoftConfusion:
    """The confusion matrix of a batch at threshold 1/2, with a steep sigmoid in place of the threshold.

        h = 1 / (1 + exp(-L (p - 1/2))),    p = sigmoid(z)
        TP = sum y h,    FP = sum (1 - y) h,    FN = sum y (1 - h),    TN = sum (1 - y)(1 - h)

    The larger L, the closer to the counts of p > 1/2; a row at p = 1/2 counts half. Gradient of h in z:
    L h (1 - h) p (1 - p), which is next to nothing unless p is near 1/2.

    Args:
        logits: z, `(N,)`.
        target: y, `(N,)` of 0 and 1.
        scale: L > 0.

    Returns:
        `SoftConfusion(tp, fp, fn, tn)`, in the dtype of the logits, at least float32.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Han, Moniz, Chawla 2024 (arXiv 2405.14745).
    """
    checks.scores_and_target(logits, target)
    checks.parameter("scale", scale, 0, open_low=True)
    z = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    y = target.to(z.dtype)
    a = scale * (z.sigmoid() - 0.5)
    # 1 - h as a sigmoid of its own: the small counts, which the metrics divide by, keep their digits.
    h, not_h = a.sigmoid(), (-a).sigmoid()
    return SoftConfusion((y * h).sum(), ((1 - y) * h).sum(), (y * not_h).sum(), ((1 - y) * not_h).sum())


def anyloss(
    logits: Tensor,
    target: Tensor,
    *,
    metric: str = "fbeta",
    beta: float | Tensor | None = 1.0,
    scale: float | Tensor = 73.0,
    eps: float = 1e-12,
) -> Tensor:
    """AnyLoss: one minus a metric of the confusion matrix, computed from the soft counts of `soft_confusion`.

        accuracy            (TP + TN) / N
        precision           TP / (TP + FP)
        recall              TP / (TP + FN)
        fbeta               (1 + b^2) TP / (b^2 (TP + FN) + TP + FP)
        gmean               sqrt(TPR TNR + eps),    TPR = TP / (TP + FN),    TNR = TN / (TN + FP)
        balanced_accuracy   (TPR + TNR) / 2
        matthews            (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN) + eps N^4)

    One value a batch: a metric of counts is no mean over rows, so there is no reduction and the value depends on the
    batch. Range [0, 1]; [0, 2] for Matthews' correlation. Not convex. Rows with p far from 1/2 get next to no gradient:
    begin with small logits.

    A batch without a positive leaves recall, and one of a single class leaves gmean, balanced_accuracy and matthews
    undefined. The loss is then 0 with zero gradients, and a warning says so; under `torch.func.vmap`, `torch.compile`
    and `checks.values(False)`, where no value may be read, without the warning. fbeta and precision without a positive
    are 0: the loss is 1, its gradient zero.

    Args:
        logits: `(N,)`.
        target: `(N,)` of 0 and 1.
        metric: one of the names above.
        beta: b > 0 of fbeta, above 1 for more weight on recall; the other metrics do not read it.
        scale: L > 0; the paper uses 73.
        eps: >= 0, keeps the slope of the square roots finite. A classifier that is constant gets Matthews' correlation
            0, as is the custom.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Han, Moniz, Chawla 2024 (arXiv 2405.14745); precision, recall and Matthews by the same recipe.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, but is {metric!r}")
    checks.parameter("eps", eps, 0)
    if metric == "fbeta":
        checks.parameter("beta", beta, 0, open_low=True)  # type: ignore[arg-type]
    counts = soft_confusion(logits, target, scale=scale)
    positives, negatives = target.to(counts.tp.dtype).sum(), (1 - target.to(counts.tp.dtype)).sum()
    defined = torch.ones_like(positives, dtype=torch.bool)
    if metric in _NEEDS_POSITIVES:
        defined = defined & (positives > 0)
    if metric in _NEEDS_NEGATIVES:
        defined = defined & (negatives > 0)
    if checks.can_read(defined) and not defined:
        missing = "negative" if positives > 0 else "positive"
        warnings.warn(f"{metric} is undefined in a batch without a {missing}: the loss is 0", stacklevel=2)
    loss = 1 - _metric(metric, counts, positives, negatives, beta, eps)
    return torch.where(defined, loss, 0.0).to(logits.dtype)


def _metric(
    metric: str, counts: SoftConfusion, positives: Tensor, negatives: Tensor, beta: float | Tensor | None, eps: float
) -> Tensor:
    tp, fp, fn, tn = counts
    n = positives + negatives
    if metric == "accuracy":
        return (tp + tn) / n
    if metric == "precision":
        return _ratio(tp, tp + fp)
    if metric == "fbeta":
        b2 = beta**2  # type: ignore[operator]
        return _ratio((1 + b2) * tp, b2 * positives + tp + fp)
    if metric == "matthews":
        predicted, rejected = (tp + fp) / n, (tn + fn) / n
        covariance = (tp / n) * (tn / n) - (fp / n) * (fn / n)
        return _ratio(covariance, torch.sqrt(predicted * rejected * (positives / n) * (negatives / n) + eps))
    tpr, tnr = _ratio(tp, positives), _ratio(tn, negatives)
    if metric == "recall":
        return tpr
    return (tpr + tnr) / 2 if metric == "balanced_accuracy" else torch.sqrt(tpr * tnr + eps)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0. The unused branch must stay finite, or its gradient is zero times infinity: NaN."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
