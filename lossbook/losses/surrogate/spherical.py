"""The spherical family: losses that read the outputs only through the label's, their sum, and their sum of squares.

Such a loss does not need the C outputs one by one. `lossbook.layers.FactoredOutput` keeps the two sums up to date, so
that a training step costs the same for a thousand classes and for a million. Every loss therefore has two forms:

    z_loss(logits, target)                     all outputs are there: the common contract of the losses
    z_loss_from_stats(o_y, q, s, num_classes)  only the statistics are: o_y (N,) the label's output,
                                               q (N,) = sum_k o_k^2, s (N,) = sum_k o_k

The second form takes `reduction` as the first does, and refuses statistics that are not three floating-point vectors of
one length. The arguments that all losses share are described in `lossbook.losses.surrogate`; the outputs o are its f.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce


def z_loss(
    logits: Tensor,
    target: Tensor,
    *,
    a: float | Tensor = 1.0,
    b: float | Tensor = 0.0,
    eps: float = 1e-12,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The Z-loss: a softplus hinge on the label's z-score.

        z_k = (o_k - mu) / (sigma + eps),    mu, sigma: mean and population standard deviation of the row's C outputs
        loss = softplus(a (b - z_y)) / a

    The same for o and for c o + t with c > 0 (up to eps). As z_y <= sqrt(C - 1), reached where only the label's output
    differs from the rest, the loss stays above softplus(a (b - sqrt(C - 1))) / a > 0. Gradient in o_k:
    -sigmoid(a (b - z_y)) (1[k = y] - 1/C - z_y z_k / C) / sigma, which sums to zero and is orthogonal to o. A row of
    equal outputs has no z-scores: they count as 0 there, with gradient 0.

    Args:
        logits: `(N, C)` with C >= 3: of two outputs the z-scores are always -1 and 1.
        a: > 0, how sharp the hinge is.
        b: any real number, where it sits.
        eps: >= 0.

    Source: de Brebisson, Vincent 2016 (arXiv 1604.08859); eps as in the authors' code.
    """
    _check_hinge(a, b, eps)
    o, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    _check_enough_classes(o.shape[1])
    # The variance of the centred outputs: q / C - mu^2 would lose all its digits where |mu| is far above sigma.
    mu = o.mean(dim=1)
    variance = (o - mu[:, None]).square().mean(dim=1)
    loss = _hinge_on_z(at_label(o, y), mu, variance, a, b, eps)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def z_loss_from_stats(
    o_y: Tensor,
    q: Tensor,
    s: Tensor,
    num_classes: int,
    *,
    a: float | Tensor = 1.0,
    b: float | Tensor = 0.0,
    eps: float = 1e-12,
    reduction: str = "mean",
) -> Tensor:
    """`z_loss` from the statistics: mu = s / C and sigma^2 = q / C - mu^2, at least 0.

    The difference loses digits where |mu| is far above sigma; the float64 statistics of `FactoredOutput` can afford it.
    """
    _check_hinge(a, b, eps)
    _check_stats(o_y, q, s, num_classes, reduction)
    _check_enough_classes(num_classes)
    mu = s / num_classes
    variance = (q / num_classes - mu.square()).clamp(min=0)
    return _reduce_rows(_hinge_on_z(o_y, mu, variance, a, b, eps), reduction)


def _hinge_on_z(o_y: Tensor, mu: Tensor, variance: Tensor, a: float | Tensor, b: float | Tensor, eps: float) -> Tensor:
    spread = variance > 0
    # The root has no gradient at 0, and zero times infinity is NaN: a row of equal outputs never reaches it.
    sigma = torch.where(spread, variance, 1.0).sqrt()
    z_y = torch.where(spread, (o_y - mu) / (sigma + eps), 0.0)
    # -logsigmoid(-x) is softplus(x), without the point from which torch's softplus is rounded to a line.
    return -F.logsigmoid(a * (z_y - b)) / a


def spherical_mse(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Squared error between the outputs and the one-hot label.

        loss = sum_k (o_k - 1[k = y])^2 = q - 2 o_y + 1

    At least 0. Gradient in o_k: 2 (o_k - 1[k = y]).

    Source: Vincent, de Brebisson, Bouthillier 2015 (arXiv 1412.7091), the first loss of the spherical family.
    """
    o, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    minus_one = torch.full_like(y, -1, dtype=o.dtype)
    loss = o.scatter_add(1, y[:, None], minus_one[:, None]).square().sum(dim=1)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def spherical_mse_from_stats(o_y: Tensor, q: Tensor, s: Tensor, num_classes: int, *, reduction: str = "mean") -> Tensor:
    """`spherical_mse` from the statistics: q - 2 o_y + 1. The sum s plays no part."""
    _check_stats(o_y, q, s, num_classes, reduction)
    return _reduce_rows(q - 2 * o_y + 1, reduction)


def log_taylor_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the Taylor softmax, which has 1 + o + o^2 / 2 in place of exp(o).

        loss = -log[(1 + o_y + o_y^2 / 2) / sum_k (1 + o_k + o_k^2 / 2)],    the sum being C + s + q / 2

    Range (0, inf). Each term is at least 1/2, so the probabilities are positive without any eps. Not the same for o and
    o + t, and lowest in o_k at o_k = -1: an output below that adds probability again. Gradient in o_k:
    (1 + o_k) [1 / sum_j (1 + o_j + o_j^2 / 2) - 1[k = y] / (1 + o_y + o_y^2 / 2)].

    Source: de Brebisson, Vincent 2016 (arXiv 1511.05042).
    """
    o, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    # 1 + o + o^2/2 = (1 + (1 + o)^2) / 2, where nothing cancels.
    terms = 1 + (1 + o).square()
    loss = terms.sum(dim=1).log() - at_label(terms, y).log()
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def log_taylor_softmax_from_stats(
    o_y: Tensor, q: Tensor, s: Tensor, num_classes: int, *, reduction: str = "mean"
) -> Tensor:
    """`log_taylor_softmax` from the statistics: the denominator is C + s + q / 2."""
    _check_stats(o_y, q, s, num_classes, reduction)
    return _reduce_rows((2 * num_classes + 2 * s + q).log() - (1 + (1 + o_y).square()).log(), reduction)


def log_spherical_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    eps: float | Tensor = 0.01,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the spherical softmax, which has o^2 + eps in place of exp(o).

        loss = -log[(o_y^2 + eps) / sum_k (o_k^2 + eps)],    the sum being q + C eps

    Range (0, inf). Blind to the sign of the outputs. Gradient in o_k:
    2 o_k [1 / (q + C eps) - 1[k = y] / (o_y^2 + eps)].

    Args:
        eps: > 0; keeps the likelihood of an output of 0 from vanishing, and has to be tuned.

    Source: Vincent, de Brebisson, Bouthillier 2015 (arXiv 1412.7091); de Brebisson, Vincent 2016 (arXiv 1511.05042).
    """
    checks.parameter("eps", eps, 0, open_low=True)
    o, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    terms = o.square() + eps
    loss = terms.sum(dim=1).log() - at_label(terms, y).log()
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def log_spherical_softmax_from_stats(
    o_y: Tensor, q: Tensor, s: Tensor, num_classes: int, *, eps: float | Tensor = 0.01, reduction: str = "mean"
) -> Tensor:
    """`log_spherical_softmax` from the statistics: q + C eps in the denominator. The sum s plays no part."""
    checks.parameter("eps", eps, 0, open_low=True)
    _check_stats(o_y, q, s, num_classes, reduction)
    return _reduce_rows((q + num_classes * eps).log() - (o_y.square() + eps).log(), reduction)


def _check_hinge(a: float | Tensor, b: float | Tensor, eps: float) -> None:
    checks.parameter("a", a, 0, open_low=True)
    checks.parameter("b", b, float("-inf"))
    checks.parameter("eps", eps, 0)


def _check_enough_classes(num_classes: int) -> None:
    if num_classes < 3:
        raise ValueError(f"the Z-loss needs at least 3 classes, but there are {num_classes}: z-scores of two are -1, 1")


def _check_stats(o_y: Tensor, q: Tensor, s: Tensor, num_classes: int, reduction: str) -> None:
    checks.reduction(reduction)
    checks.whole("num_classes", num_classes, 1)
    for name, tensor in (("o_y", o_y), ("q", q), ("s", s)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
        if tensor.dim() != 1 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape (N,), but is {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
        if len(tensor) != len(o_y) or len(tensor) == 0:
            raise ValueError(
                f"o_y, q and s must have one entry for each of N >= 1 rows, but have {len(o_y)}, {len(q)} and {len(s)}"
            )
        checks.finite(name, tensor)


def _reduce_rows(loss: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
