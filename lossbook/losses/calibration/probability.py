"""Losses of each row's probabilities: scores that are proper, and cross-entropy made less sure of itself.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce


def brier(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Brier score of the softmax: squared distance to the one-hot label.

        loss = sum_k (p_k - 1[k = y])^2

    Range [0, 2]. A proper score: in expectation it is least at the true probabilities. Unlike log-loss it is bounded,
    and not convex in the logits. Gradient in f_j: 2 p_j ( g_j - sum_k p_k g_k ), g_k = p_k - 1[k = y].

    Source: Brier 1950, Monthly Weather Review 78, 1-3.
    """
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    p = f.softmax(dim=1)
    loss = p.square().sum(dim=1) - 2 * at_label(p, y) + 1
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def focal(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss: cross-entropy that stops caring about rows that are right already.

        loss = -(1 - p_y)^gamma log p_y

    gamma = 0 is cross-entropy. In nats, range [0, inf). The factor is part of the loss and carries gradient. Not a
    proper score for gamma > 0: where one class is more likely than not, its minimiser is less confident than the truth
    (Charoenphakdee et al. 2021, arXiv 2011.09172).

    Args:
        gamma: >= 0; 2 in the detection paper, 3 is usual for calibration.

    Source: Lin et al. 2017 (arXiv 1708.02002), equation 4; for calibration Mukhoti et al. 2020 (arXiv 2002.09437).
    """
    checks.parameter("gamma", gamma, 0)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    loss = _focal(f.log_softmax(dim=1), y, gamma)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def focal_adaptive(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float | Tensor = 3.0,
    gamma_hard: float | Tensor = 5.0,
    threshold: float | Tensor = 0.2,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss with a stronger focus on the rows that are far from right, FLSD-53 by default.

        loss = -(1 - p_y)^g log p_y,    g = gamma_hard where p_y < threshold, else gamma

    g is a constant of the row: the choice is detached, and the loss jumps where p_y crosses the threshold. With
    gamma_hard = gamma it is `focal`. Why: against log-loss, focal's gradient is larger for p_y below a point that
    depends on gamma, and smaller above; gamma = 5 moves that point to about 0.2. Range [0, inf).

    Args:
        gamma, gamma_hard: >= 0.
        threshold: in [0, 1].

    Source: Mukhoti et al. 2020 (arXiv 2002.09437), sample-dependent gamma.
    """
    checks.parameter("gamma", gamma, 0)
    checks.parameter("gamma_hard", gamma_hard, 0)
    checks.parameter("threshold", threshold, 0, 1)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    log_p = f.log_softmax(dim=1)
    hard = at_label(log_p, y).detach().exp() < threshold
    # Arithmetic, not where: of two numbers, where makes float32, in which 0.1 is not 0.1.
    loss = _focal(log_p, y, gamma + (gamma_hard - gamma) * hard.to(log_p.dtype))
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def confidence_penalty(
    logits: Tensor,
    target: Tensor,
    *,
    beta: float | Tensor = 0.1,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy, minus beta times the entropy of the prediction.

        loss = -log p_y - beta H(p),    H(p) = -sum_k p_k log p_k

    In nats; at least -beta log C, and it can be negative. Up to a constant, -H(p) is KL(p, uniform): label smoothing
    pays for the same distance in the other direction, KL(uniform, p). Gradient in f_j: p_j - 1[j = y] +
    beta p_j (log p_j + H(p)). Not proper for beta > 0: its minimiser is less confident than the truth.

    Args:
        beta: >= 0, in nats per nat.

    Source: Pereyra et al. 2017 (arXiv 1701.06548), where 0.1 is a usual beta.
    """
    checks.parameter("beta", beta, 0)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    log_p = f.log_softmax(dim=1)
    loss = beta * (log_p.exp() * log_p).sum(dim=1) - at_label(log_p, y)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _focal(log_p: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
    # log(1 - p_y) from the other classes: 1 - p_y itself rounds to 0 for a confident row, and 0^gamma has an infinite
    # slope there for gamma < 1. The filler stands for log 0 but stays finite, so that C = 1 gives 0 and not NaN.
    others = log_p.scatter(1, y[:, None], torch.finfo(log_p.dtype).min / 4)
    return -torch.exp(gamma * others.logsumexp(dim=1)) * at_label(log_p, y)
