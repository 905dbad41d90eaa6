"""Label-distributionally robust losses: an adversary weighs the classes, and a temperature says what that costs it.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce

NORMALIZE = (None, "l1", "softplus_mean", "softplus_l1")


def ldr_kl(
    logits: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor = 0.1,
    lam: float | Tensor = 1.0,
    normalize: str | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """LDR-KL: the worst case over class weights p, which pay lam KL(p, uniform) to the learner.

        d_k  = g_k - g_y + margin 1[k != y]
        loss = max_p sum_k p_k d_k - lam sum_k p_k log(C p_k) = lam log( (1/C) sum_k exp(d_k / lam) )

    The maximum is at p = softmax(d / lam). Between mean_k d_k (lam -> inf) and max_k d_k (lam -> 0), so it can be
    negative; at least -lam log C. Gradient in g_k: p_k - 1[k = y]. margin = 0, lam = 1: cross-entropy minus log C;
    margin = 0, any lam: cross-entropy of g / lam, times lam, minus lam log C; margin = 1, lam -> 0: the hinge of
    Crammer and Singer.

    Args:
        margin: >= 0, in units of g.
        lam: > 0, in units of g.
        normalize: g from the logits f; the gradient flows through it. None: g = f. "l1": f / mean_k |f_k|.
            "softplus_mean": s / mean_k s_k with s = softplus(f); "softplus_l1" is another name of it, as s > 0. A row
            of zeros stays as it is. Normalised, no margin |g_k - g_y| exceeds C, and the loss is bounded.

    Source: Zhu, Ying, Yang 2023 (arXiv 2112.14869), LDR-KL; normalize as in the authors' code.
    """
    checks.parameter("margin", margin, 0)
    checks.parameter("lam", lam, 0, open_low=True)
    _known(normalize)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    d = _violations(_normalized(f, normalize), y, margin)
    loss = lam * _log_mean_exp(d / lam)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def aldr_kl(
    logits: Tensor,
    target: Tensor,
    lam_prev: Tensor | None = None,
    *,
    margin: float | Tensor = 0.1,
    lam0: float | Tensor = 1.0,
    alpha: float | Tensor = 2.0,
    normalize: str | None = "l1",
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lam: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """ALDR-KL: LDR-KL in which every row chooses its own temperature, and pays for leaving lam0.

        loss = max_lam  lam log( (1/C) sum_k exp(d_k / lam) ) - alpha log C / (2 lam0) (lam - lam0)^2

    with d and g as in `ldr_kl`. The derivative in lam vanishes where lam = lam0 (1 - KL(p, uniform) / (alpha log C)),
    p = softmax(d / lam). The authors take one step of that equation, without the margin:

        p   = softmax(g / lam_prev),  then (p + 1e-5) / sum
        lam = lam0 (1 - sum_k p_k log(C p_k) / (alpha log C))      in (lam0 (1 - 1/alpha), lam0]

    and use this lam at once. A row whose largest logit stands out gets a small lam. lam is detached: the gradient in
    g_k is that of `ldr_kl` at lam. The right-hand side grows with lam_prev, so steps repeated from lam0 descend to the
    largest solution.

    Args:
        lam_prev: `(N,)` > 0, each row's temperature so far; None: lam0 for all.
        margin: >= 0.
        lam0: > 0, the temperature of a row of equal logits.
        alpha: > 1, how much leaving lam0 costs.
        normalize: as in `ldr_kl`.
        return_lam: also return lam.

    Returns:
        The loss, or with return_lam the loss and lam `(N,)`, in at least float32.

    Source: Zhu, Ying, Yang 2023 (arXiv 2112.14869), ALDR-KL; parametrisation, step and 1e-5 as in the authors' code.
    """
    checks.parameter("margin", margin, 0)
    checks.parameter("lam0", lam0, 0, open_low=True)
    checks.parameter("alpha", alpha, 1, open_low=True)
    _known(normalize)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    if lam_prev is not None:
        _check_lam_prev(lam_prev, f)
    g = _normalized(f, normalize)
    cost = alpha * math.log(g.shape[1])
    previous = lam0 if lam_prev is None else lam_prev.detach().to(g.dtype)[:, None]
    p = (g.detach() / previous).softmax(dim=1).add_(1e-5)
    relative = p.mul_(1 / p.mean(dim=1, keepdim=True))  # C p
    kl = relative.log().mul_(relative).mean(dim=1)
    # Of one class there is nothing to choose: kl and cost are 0.
    lam = lam0 * (1 - (kl / cost if g.shape[1] > 1 else kl))
    loss = lam * _log_mean_exp(_violations(g, y, margin) * (1 / lam)[:, None]) - cost / (2 * lam0) * (lam - lam0) ** 2
    loss = reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    return (loss, lam) if return_lam else loss


def _known(normalize: object) -> None:
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, but is {normalize!r}")


def _check_lam_prev(lam_prev: Tensor, logits: Tensor) -> None:
    if not isinstance(lam_prev, Tensor):
        raise TypeError(f"lam_prev must be a torch.Tensor, but is {type(lam_prev).__name__}")
    if lam_prev.shape != logits.shape[:1] or not lam_prev.is_floating_point():
        raise ValueError(
            f"lam_prev must be floating point of shape ({len(logits)},), one number a row, but is {lam_prev.dtype} of "
            f"shape {tuple(lam_prev.shape)}"
        )
    checks.finite("lam_prev", lam_prev)
    if checks.can_read(lam_prev) and not bool((lam_prev > 0).all()):
        raise ValueError(f"lam_prev must be positive, but holds {lam_prev.min().item():g}")


def _normalized(f: Tensor, normalize: str | None) -> Tensor:
    if normalize is None:
        return f
    g = f if normalize == "l1" else softplus(f)
    scale = (g.abs() if normalize == "l1" else g).mean(dim=1, keepdim=True)
    return g * (1 / torch.where(scale > 1e-12, scale, 1.0))


def _violations(g: Tensor, y: Tensor, margin: float | Tensor) -> Tensor:
    """d `(N, C)`: by how much each class breaks the margin; 0 at the label."""
    return (g - (at_label(g, y) - margin)[:, None]).scatter(1, y[:, None], 0.0)


def _log_mean_exp(x: Tensor) -> Tensor:
    """log mean_k exp(x_k); overwrites x."""
    # Not logsumexp minus log C: where lam is large x is small, and that difference is all rounding.
    top = x.detach().amax(dim=1, keepdim=True)
    return top.squeeze(1) + x.sub_(top).expm1_().mean(dim=1).log1p()


class ALDRLoss(nn.Module):
    """`aldr_kl` that remembers each training row's temperature in the buffer `lam` `(num_samples,)`.

    In training mode a call with `index` starts from lam[index] and stores what it ends with. Without `index`, or in
    evaluation mode, it starts from lam0 and stores nothing. `train.fit` and `train.sweep` hand it the index.

    Args:
        num_samples: rows of the training split, at least 1.
        margin, lam0, alpha, normalize: as in `aldr_kl`.

    Shapes: logits (N, C), target (N,), index (N,) integers in [0, num_samples) -> scalar, the mean.

    Source: Zhu, Ying, Yang 2023 (arXiv 2112.14869), and the authors' code.
    """

    lam: Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        margin: float = 0.1,
        lam0: float = 1.0,
        alpha: float = 2.0,
        normalize: str | None = "l1",
    ) -> None:
        super().__init__()
        num_samples = checks.whole("num_samples", num_samples, 1)
        checks.parameter("margin", margin, 0)
        checks.parameter("lam0", lam0, 0, open_low=True)
        checks.parameter("alpha", alpha, 1, open_low=True)
        _known(normalize)
        self.margin, self.lam0, self.alpha, self.normalize = margin, lam0, alpha, normalize
        self.register_buffer("lam", torch.full((num_samples,), float(lam0)))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        if not self.training:
            index = None
        if index is not None:
            self._check_index(index, logits)
            index = index.long()
        loss, lam = aldr_kl(
            logits,
            target,
            None if index is None else self.lam[index],
            margin=self.margin,
            lam0=self.lam0,
            alpha=self.alpha,
            normalize=self.normalize,
            return_lam=True,
        )
        if index is not None:
            self.lam[index] = lam.to(self.lam.dtype)
        return loss

    def _check_index(self, index: Tensor, logits: Tensor) -> None:
        n = len(self.lam)
        if not isinstance(index, Tensor):
            raise TypeError(f"index must be a torch.Tensor, but is {type(index).__name__}")
        if index.shape != logits.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"index must hold one integer for each of the {len(logits)} logits, but is {index.dtype} of shape "
                f"{tuple(index.shape)}"
            )
        if checks.can_read(index) and len(index) and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"index must lie in [0, {n}), num_samples, but holds {int(index.min())} to {int(index.max())}"
            )

    def extra_repr(self) -> str:
        return (
            f"num_samples={len(self.lam)}, margin={self.margin}, lam0={self.lam0}, alpha={self.alpha}, "
            f"normalize={self.normalize!r}"
        )
