"""Cross-entropy and its family: one knob from the sum-exponential loss to the mean absolute error.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float | Tensor = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy (log-loss) with label smoothing.

        loss = -sum_k t_k log p_k,    t = (1 - eps) onehot(y) + eps / C

    In nats, at least the entropy of t. Gradient in f_k: p_k - t_k. Class weights enter as in torch: term k carries
    weight[k], and `mean` divides by the sum of weight[y] (by N for probability targets).

    Args:
        logits: `(N, C)`.
        target: `(N,)` labels, or `(N, C)` probabilities, each row summing to one.
        label_smoothing: eps in [0, 1].

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7, for label smoothing. Equal to
    `torch.nn.functional.cross_entropy`, with eps allowed to be a tensor and the labels checked.
    """
    checks.parameter("label_smoothing", label_smoothing, 0, 1)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction, soft=True)
    eps, num_classes = label_smoothing, f.shape[1]
    log_p = f.log_softmax(dim=1)
    if weight is not None:
        log_p = log_p * weight.to(log_p.dtype)
    log_p_y = (y * log_p).sum(dim=1) if y.is_floating_point() else at_label(log_p, y)
    if not isinstance(eps, Tensor) and eps == 0:
        loss = -log_p_y
    else:
        loss = -(1 - eps) * log_p_y - eps / num_classes * log_p.sum(dim=1)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction, weighted=True)


def comp_sum(
    logits: Tensor,
    target: Tensor,
    *,
    tau: float | Tensor = 1.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The comp-sum family: one knob from the sum-exponential loss over log-loss to the mean absolute error.

        u = sum_{k != y} exp(f_k - f_y) = 1 / p_y - 1
        loss = ((1 + u)^{1 - tau} - 1) / (1 - tau) = (1 - p_y^{tau - 1}) / (tau - 1),    log(1 + u) at tau = 1

    tau = 0: 1/p_y - 1 (sum-exponential); tau = 1: cross-entropy; 1 < tau < 2: generalised cross-entropy with
    q = tau - 1; tau = 2: 1 - p_y, half the mean absolute error. Range [0, inf) for tau <= 1 and [0, 1/(tau - 1)] above.
    Gradient in f_k: p_y^{tau - 1} (p_k - 1[k = y]): tau > 1 turns down the rows that the model finds implausible.
    Convex in the logits for tau in [0, 1] only.

    For tau < 1 the loss grows like exp((1 - tau) * margin): at a label that trails by more than about 88 / (1 - tau)
    nats it is inf in float32, and its gradient NaN. That is the loss, not a defect; nothing is clipped.

    Args:
        tau: >= 0.

    Source: Mao, Mohri, Zhong 2023 (arXiv 2304.07288).
    """
    checks.parameter("tau", tau, 0)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    loss = _one_minus_power(at_label(f.log_softmax(dim=1), y), tau - 1)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def smooth_adversarial_comp_sum(
    logits: Tensor,
    logits_adv: Tensor,
    target: Tensor,
    *,
    tau: float | Tensor = 1.0,
    rho: float | Tensor = 1.0,
    nu: float | Tensor = 0.3,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Smooth adversarial comp-sum: the comp-sum loss at x, plus how far the score differences move nearby.

        D_k = f_y - f_k  at x,    D'_k at x'  (k != y)
        loss = Phi_tau( sum_{k != y} exp(-D_k / rho) ) + nu * |D' - D|_2,    Phi_tau(u) as in `comp_sum`

    where x' is the point of the ball around x that moves D farthest, as `lossbook.attacks.max_score_shift` looks for
    it; x' is a constant, and the gradient flows through both sets of logits. Range [0, inf).

    With the exact supremum and nu >= sqrt(C - 1) / rho the loss is at least sup_{x'} Phi_tau(sum_k phi(D_k(x') / rho)),
    phi(t) = min(max(0, 1 - t), 1), and so loss / Phi_tau(1) at least the adversarial zero-one loss. In practice nu is
    tuned, and smaller.

    Args:
        logits: `(N, C)` at x.
        logits_adv: `(N, C)` at x', same dtype.
        tau: >= 0.
        rho: > 0, the margin that is asked for, in units of the logits.
        nu: >= 0.

    Source: Mao, Mohri, Zhong 2023 (arXiv 2304.07288), smooth adversarial comp-sum losses.
    """
    checks.parameter("tau", tau, 0)
    checks.parameter("rho", rho, 0, open_low=True)
    checks.parameter("nu", nu, 0)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    if not isinstance(logits_adv, Tensor):
        raise TypeError(f"logits_adv must be a torch.Tensor, but is {type(logits_adv).__name__}")
    if logits_adv.shape != logits.shape or logits_adv.dtype != logits.dtype:
        raise ValueError(
            f"logits_adv must be like logits, {tuple(logits.shape)} {logits.dtype}, "
            f"but are {tuple(logits_adv.shape)} {logits_adv.dtype}"
        )
    checks.finite("logits_adv", logits_adv)
    moved = logits_adv.to(f.dtype) - f
    # The term of k = y is 0. torch's norm has gradient 0 where nothing moved.
    shift = torch.linalg.vector_norm(at_label(moved, y)[:, None] - moved, dim=1)
    loss = _one_minus_power(at_label((f / rho).log_softmax(dim=1), y), tau - 1) + nu * shift
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def generalized_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    q: float | Tensor = 0.7,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Generalised cross-entropy: between cross-entropy (q -> 0) and half the mean absolute error (q = 1).

        loss = (1 - p_y^q) / q

    Range [0, 1/q]. The member tau = 1 + q of `comp_sum`. Gradient in f_k: p_y^q (p_k - 1[k = y]).

    Args:
        q: in (0, 1]; the paper uses 0.7.

    Source: Zhang, Sabuncu 2018 (arXiv 1805.07836), equation 6.
    """
    checks.parameter("q", q, 0, 1, open_low=True)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    loss = _one_minus_power(at_label(f.log_softmax(dim=1), y), q)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _one_minus_power(log_p: Tensor, a: float | Tensor) -> Tensor:
    """(1 - p^a) / a, and its limit -log p at a = 0. expm1 keeps the digits that 1 - p^a loses near it."""
    if not isinstance(a, Tensor):
        return -log_p if abs(a) < 1e-6 else -torch.expm1(a * log_p) / a
    near = a.abs() < 1e-6
    # The unused branch must stay finite too: its gradient is multiplied by zero, and zero times NaN is NaN.
    safe = torch.where(near, 1.0, a)
    return torch.where(near, -log_p, -torch.expm1(torch.where(near, 0.0, safe * log_p)) / safe)


def mae(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Mean absolute error between the probabilities and the one-hot label.

        loss = sum_k |p_k - 1[k = y]| = 2 (1 - p_y)

    Range [0, 2]. Symmetric: the loss summed over all labels is the constant 2 (C - 1), which is why uniform label noise
    leaves its minimiser alone. Gradient in f_k: 2 p_y (p_k - 1[k = y]), tiny wherever the label looks implausible.

    Source: Ghosh, Kumar, Sastry 2017 (arXiv 1712.09482), section 3.
    """
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    loss = -2 * torch.expm1(at_label(f.log_softmax(dim=1), y))
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
