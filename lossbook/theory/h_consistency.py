"""H-consistency of the comp-sum losses: what a regret in the surrogate says about the regret in decisions.

Notation: class probabilities pi(x), comp-sum loss of parameter tau (`lossbook.losses.comp_sum`), conditional risk
sum_k pi_k loss_k of a score vector at one x, risk R_tau(h) its mean over x, R*_tau(H) the least risk in the hypothesis
set H. C*_H(x) is the least conditional risk that H reaches at x alone. Then for every h of a symmetric and complete H
(at each single x, H reaches every score vector)

    R_01(h) - R*_01(H) + M_01(H)  <=  gamma( R_tau(h) - R*_tau(H) + M_tau(H) ),    gamma = the inverse of transform,

with the minimizability gap M(H) = R*(H) - mean C*_H(x). All functions compute in float64, but for
`conditional_risk`, which keeps the dtype of the logits.

Source: Mao, Mohri, Zhong 2023 (arXiv 2304.07288), theorem on H-consistency bounds of comp-sum losses.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses.surrogate import comp_sum


def transform(b: float | Tensor, tau: float, num_classes: int) -> Tensor:
    """The least surrogate regret that a regret b in the zero-one loss can come with, at one x.

        m = (2 - tau) log( ((1+b)^{1/(2-tau)} + (1-b)^{1/(2-tau)}) / 2 )
        T(b) = (e^m - 1) / ((tau - 1) n^{tau-1}),    n = 2 for tau < 1, n = C for 1 < tau < 2
        T(b) = ((1+b) log(1+b) + (1-b) log(1-b)) / 2  at tau = 1,    b / ((tau - 1) C^{tau-1})  for tau >= 2

    Convex and increasing, T(0) = 0; T(b) = 1 - sqrt(1 - b^2) at tau = 0. For tau <= 1 the number of classes plays no
    part. Tight for C = 2 and tau <= 2, a lower bound otherwise.

    Args:
        b: any shape, in [0, 1]: max_k pi_k - pi_{argmax f}.
        tau: >= 0.
        num_classes: C >= 2.

    Returns:
        float64, the shape of b.

    Raises:
        ValueError: an argument is out of range.
    """
    _knob(tau, num_classes)
    b = _numbers("b", b)
    if bool(((b < 0) | (b > 1)).any()):
        raise ValueError(f"b must lie in [0, 1], but spans [{b.min():g}, {b.max():g}]")
    if tau >= 2:
        return b / ((tau - 1) * num_classes ** (tau - 1))
    if tau == 1:
        return (torch.special.xlog1py(1 + b, b) + torch.special.xlog1py(1 - b, -b)) / 2
    s = 1 / (2 - tau)
    if s > 2:  # logarithms, because the powers overflow next to tau = 2
        m = (torch.logaddexp(s * torch.log1p(b), s * torch.log1p(-b)) - math.log(2)) / s
    else:  # what the mean of the powers exceeds 1 by, because 1 swallows it next to tau = 1
        up = (1 + b) * torch.expm1((tau - 1) * s * torch.log1p(b))
        down = (1 - b) * torch.expm1((tau - 1) * s * torch.log1p(-b))
        m = torch.log1p((up + torch.where(b == 1, 0.0, down)) / 2) / s
    n = 2 if tau < 1 else num_classes
    return torch.expm1(m) / ((tau - 1) * n ** (tau - 1))


def gamma(t: float | Tensor, tau: float, num_classes: int) -> Tensor:
    """The largest zero-one regret that a surrogate regret t allows: the inverse of `transform`, 1 above T(1).

    At most sqrt(2^tau (2 - tau) t) for tau < 1, sqrt(2 C^{tau-1} t) for 1 <= tau < 2; (tau - 1) C^{tau-1} t for
    tau >= 2. By bisection, to about 1e-9 for gamma > 1e-3 (below, where `transform` rounds, to about 1e-6).

    Args:
        t: any shape, >= 0: surrogate regret, gap included.
        tau: >= 0.
        num_classes: C >= 2.

    Returns:
        float64 in [0, 1], the shape of t.

    Raises:
        ValueError: an argument is out of range.
    """
    _knob(tau, num_classes)
    t = _numbers("t", t)
    if bool((t < 0).any()):
        raise ValueError(f"t must not be negative, but has {t.min():g}")
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(50):
        middle = (low + high) / 2
        above = transform(middle, tau, num_classes) > t
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    # Near 0, transform rounds to 0 for a whole range of b.
    return torch.where(t >= transform(1.0, tau, num_classes), 1.0, torch.where(t == 0, 0.0, high))


def conditional_risk(logits: Tensor, pi: Tensor, tau: float) -> Tensor:
    """The expected comp-sum loss at each x: sum_k pi_k loss_k(logits), differentiable in the logits.

    Args:
        logits: `(N, C)` scores.
        pi: `(N, C)` class probabilities, rows that sum to one.
        tau: >= 0.

    Returns:
        `(N,)`.

    Raises:
        ValueError: shapes differ, pi is no probability, tau is negative.
    """
    pi = _probabilities(pi)
    n, c = pi.shape
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, but is {type(logits).__name__}")
    if logits.shape != pi.shape:
        raise ValueError(f"logits must have the shape of pi, {(n, c)}, but have {tuple(logits.shape)}")
    every_label = torch.arange(c, device=logits.device).repeat(n)
    loss = comp_sum(logits.repeat_interleave(c, dim=0), every_label, tau=tau, reduction="none")
    return (pi.to(loss) * loss.view(n, c)).sum(dim=1)


def best_conditional_risk(pi: Tensor, tau: float) -> Tensor:
    """The least conditional risk over all score vectors, C*(pi).

        ((sum_k pi_k^{1/(2-tau)})^{2-tau} - 1) / (1 - tau)    for tau < 2,    the entropy of pi at tau = 1
        (1 - max_k pi_k) / (tau - 1)                          for tau >= 2

    For tau < 2 it is reached at softmax probabilities proportional to pi_k^{1/(2-tau)}.

    Args:
        pi: `(N, C)` class probabilities, rows that sum to one.
        tau: >= 0.

    Returns:
        `(N,)` float64.

    Raises:
        ValueError: pi is no probability, tau is negative.
    """
    checks.parameter("tau", tau, 0)
    pi = _probabilities(pi)
    if tau >= 2:
        return (1 - pi.amax(dim=1)) / (tau - 1)
    if abs(tau - 1) < 1e-6:
        return torch.special.entr(pi).sum(dim=1)
    s = 1 / (2 - tau)
    return -torch.expm1(torch.logsumexp(s * pi.log(), dim=1) / s) / (tau - 1)


def minimizability_gap(risks: Tensor, weight: Tensor | None = None, *, best: Tensor | None = None) -> float:
    """M(H) = min_h mean_x risk(h, x) - mean_x min_h risk(h, x): the price of one hypothesis for all x.

    Not negative, and 0 where one hypothesis is best at every x.

    Args:
        risks: `(H, X)` conditional risk of each hypothesis at each x, under any loss.
        weight: `(X,)` probabilities of the x; default: all alike.
        best: `(X,)` least conditional risk at each x, where the rows of risks do not hold all of H; default: the least
            of each column. `best_conditional_risk` for a complete H.

    Raises:
        ValueError: shapes that do not fit, weights that do not sum to one.
    """
    risks = _numbers("risks", risks)
    if risks.dim() != 2 or risks.numel() == 0:
        raise ValueError(f"risks must have shape (H, X), but has shape {tuple(risks.shape)}")
    x = risks.shape[1]
    at_each = risks.amin(dim=0) if best is None else _numbers("best", best)
    weight = torch.full((x,), 1 / x).to(risks) if weight is None else _numbers("weight", weight)
    for name, value in (("best", at_each), ("weight", weight)):
        if value.shape != (x,):
            raise ValueError(f"{name} must have shape ({x},) to go with risks, but has shape {tuple(value.shape)}")
    if bool((weight < 0).any()) or abs(float(weight.sum()) - 1) > 1e-4:
        raise ValueError(f"weight must be probabilities, but sums to {weight.sum():g}, least {weight.min():g}")
    return float((risks @ weight).min() - at_each @ weight)


def _knob(tau: float, num_classes: int) -> None:
    checks.parameter("tau", tau, 0)
    checks.whole("num_classes", num_classes, 2)


def _numbers(name: str, value: float | Tensor) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64)
    checks.finite(name, tensor)
    return tensor


def _probabilities(pi: Tensor) -> Tensor:
    pi = _numbers("pi", pi)
    if pi.dim() != 2 or pi.numel() == 0:
        raise ValueError(f"pi must have shape (N, C), but has shape {tuple(pi.shape)}")
    off = (pi < 0).any(dim=1) | ((pi.sum(dim=1) - 1).abs() > 1e-4)
    if bool(off.any()):
        row = int(off.nonzero()[0, 0])
        raise ValueError(f"pi[{row}] is not a probability vector: {pi[row].tolist()}")
    return pi
