"""Losses of points in the Poincaré ball: one class drawn together, and told from pseudo-negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.layers.hyperbolic import hyperbolic_logits, mobius_add, poincare_distance
from lossbook.losses.surrogate.family import cross_entropy


def pairwise_confusion(
    points: Tensor, *, c: float | Tensor = 0.1, distance: str = "poincare", reduction: str = "mean"
) -> Tensor:
    """Hyp-PC: the genuine points of a batch drawn together, the first half against the second.

        loss = (1/B) sum_{i <= B/2} d(x_i, x_{i + B/2}),    d(x, y) = (2/√c) artanh(√c |(-x) ⊕ y|)

    Of an odd batch the last point is left out. The sum has B/2 terms and is divided by B, the number of points in it.
    Range [0, inf), 0 where the points of each pair coincide.

    Args:
        points: `(B, d)` floating point in the ball, B >= 2, of the genuine class only.
        c: minus the curvature, > 0. May be a 0-d tensor.
        distance: "poincare", d above, without bound towards the edge; "atan", what the paper's code computes: atan in
            the place of artanh, at most π/(2√c) for any pair, and 1e-5 added to the denominator of ⊕.
        reduction: "none" gives the distances of the pairs `(B // 2,)`, "sum" their sum, "mean" the sum over B.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Narayan, Patel 2024 (arXiv 2404.14406).
    """
    checks.reduction(reduction)
    if distance not in ("poincare", "atan"):
        raise ValueError(f"distance must be 'poincare' or 'atan', but is {distance!r}")
    if not isinstance(points, Tensor):
        raise TypeError(f"points must be a torch.Tensor, but is {type(points).__name__}")
    if points.dim() != 2 or len(points) < 2:
        raise ValueError(f"points must have shape (B, d) with B >= 2, but have shape {tuple(points.shape)}")
    half = len(points) // 2
    left, right = points[:half], points[half : 2 * half]
    if distance == "poincare":
        rows = poincare_distance(left, right, c=c)
    else:
        gap = torch.linalg.vector_norm(mobius_add(-left, right, c=c, eps=1e-5), dim=1)
        rows = 2 / c**0.5 * (c**0.5 * gap).atan()
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / (2 * half)


def hyperbolic_cross_entropy(
    points: Tensor,
    normals: Tensor,
    offsets: Tensor,
    target: Tensor,
    *,
    c: float | Tensor = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Hyp-CE: the cross-entropy of `layers.hyperbolic.hyperbolic_logits`, in nats, range [0, inf).

    In Hyp-OC the genuine points have the label 0 and the pseudo-negatives of `train.GaussianPseudoNegatives` 1, and the
    loss is Hyp-CE + Hyp-PC (`pairwise_confusion` of the genuine points).

    Args:
        points: `(N, d)` floating point in the ball.
        normals, offsets: `(K, d)`, the classifier.
        target: `(N,)` integers in [0, K).
        c: minus the curvature, > 0.
        weight, ignore_index, reduction: as in `lossbook.losses.surrogate`.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Narayan, Patel 2024 (arXiv 2404.14406); the classifier: Ganea, Becigneul, Hofmann 2018.
    """
    logits = hyperbolic_logits(points, normals, offsets, c=c)
    return cross_entropy(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
