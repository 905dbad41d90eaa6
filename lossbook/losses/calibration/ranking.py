"""Losses that ask for an order of confidences: a mixture of two images deserves less than an image.

Mixtures have logits z~ of inputs l x_i + (1 - l) x_j and targets y~ = l e_{y_i} + (1 - l) e_{y_j}; `train.mixup` makes
them. Logits `(B, K)`, labels `(B,)` in [0, K), natural logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from lossbook import checks
from lossbook.losses import _arguments
from lossbook.metrics._inputs import as_tensor, as_unit_interval


def rankmixup_mrl(
    logits: Tensor,
    mixup_logits: Tensor,
    target: Tensor,
    mixup_target: Tensor,
    *,
    margin: float | Tensor = 2.0,
    weight: float | Tensor = 0.1,
    space: str = "logit",
    mask: str = "pair",
    reduction: str = "mean",
) -> Tensor:
    """RankMixup with the mixup-based ranking loss: the image beats its mixture by a margin.

        loss_i = -log softmax(z_i)_{y_i} + weight m_i relu( max_k z~_ik - max_k z_ik + margin )

    m_i = 0 where y~_i is one-hot, because both images have one label, else 1. The gradient flows through both sets of
    logits. Mixed labels are not learned; they only say which rows count. Range [0, inf).

    Args:
        logits, target: of the images, `(B, K)` and integer `(B,)`.
        mixup_logits: `(B, K)`; row i is a mixture of image i with another one.
        mixup_target: `(B, K)`, y~, probabilities.
        margin: >= 0, in units of the logits, or of probability. The authors take 2 on CIFAR, 1 on Tiny-ImageNet.
        weight: >= 0.
        space: "logit", or "probability", which compares max softmax.
        mask: "pair" as above; "code" as the released code computes it, mean(m) for every m_i. The two agree where no
            pair shares its label.
        reduction: "none", "mean" or "sum" over the B rows, those with m_i = 0 included.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Noh, Park, Lee, Ham 2023 (arXiv 2308.11990), MRL.
    """
    checks.parameter("margin", margin, 0)
    checks.parameter("weight", weight, 0)
    for name, value, names in (("space", space, ("logit", "probability")), ("mask", mask, ("pair", "code"))):
        if value not in names:
            raise ValueError(f"{name} must be {names[0]!r} or {names[1]!r}, but is {value!r}")
    f, mixed = _checked(logits, mixup_logits, target, mixup_target, 1, reduction)
    loss = cross_entropy(f, target.long(), reduction="none")
    if space == "probability":
        f, mixed = f.softmax(dim=1), mixed.softmax(dim=1)
    # Labels mixed with themselves, l e_y + (1 - l) e_y, sum to 1 only up to rounding.
    two_labels = (mixup_target.amax(dim=1) < 1 - 1e-6).to(f.dtype)
    if mask == "code":
        two_labels = two_labels.mean()
    loss = loss + weight * two_labels * relu(mixed.amax(dim=1) - f.amax(dim=1) + margin)
    return _arguments.reduced(loss, reduction).to(logits.dtype)


def rankmixup_mndcg(
    logits: Tensor,
    mixup_logits: Tensor,
    target: Tensor,
    mixup_target: Tensor,
    *,
    lam: Sequence[float] | Tensor,
    weight: float | Tensor = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """RankMixup with M-NDCG: the confidences of an image and its J mixtures fall as their evenness grows.

        r = (1, max_k y~_k of each mixture, descending),    u = (max_k softmax(z)_k, max_k softmax(z~)_k in that order)
        DCG = sum_{j=1}^{J+1} u_j / log2(j + 1),    IDCG = sum_j r_j / log2(j + 1)
        loss_i = -log softmax(z_i)_{y_i} + weight (1 - min(DCG / IDCG, IDCG / DCG))

    The second term is 0 exactly where DCG = IDCG, and below 1. Its gradient flows through all confidences.

    Args:
        logits, target: of the images, `(B, K)` and integer `(B,)`.
        mixup_logits: `(J B, K)`, mixture after mixture: row j B + i is mixture j of image i.
        mixup_target: `(J B, K)`, y~ in the same order, probabilities; they, not lam, give the order.
        lam: `(J,)`, the shares l of the mixtures, in [0, 1]; says how many there are.
        weight: >= 0.
        reduction: "none", "mean" or "sum" over the B rows.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Noh, Park, Lee, Ham 2023 (arXiv 2308.11990), M-NDCG.
    """
    checks.parameter("weight", weight, 0)
    count = len(as_unit_interval("lam", torch.as_tensor(lam, dtype=torch.float64)))
    f, mixed = _checked(logits, mixup_logits, target, mixup_target, count, reduction)
    loss = cross_entropy(f, target.long(), reduction="none")
    relevance, order = mixup_target.to(f.dtype).amax(dim=1).view(count, -1).sort(dim=0, descending=True, stable=True)
    confidence = mixed.softmax(dim=1).amax(dim=1).view(count, -1).gather(0, order)
    discount = torch.log2(torch.arange(count + 1, device=f.device, dtype=f.dtype) + 2)
    dcg = f.softmax(dim=1).amax(dim=1) + (confidence / discount[1:, None]).sum(dim=0)
    idcg = 1 + (relevance / discount[1:, None]).sum(dim=0)
    loss = loss + weight * (1 - torch.minimum(dcg / idcg, idcg / dcg))
    return _arguments.reduced(loss, reduction).to(logits.dtype)


def rank_violation_rate(conf: Any, mix_conf: Any, lam: Any) -> float:
    """Share of the pairs whose confidences are not in the order that their mixing asks for.

    An image has strength 1, a mixture max(l, 1 - l). Each pair of different strengths, within the image and its J
    mixtures, is a violation where the stronger is not strictly the more confident one. With J = 1 these are the pairs
    of an image and its mixture.

    Args:
        conf: `(B,)` confidences of the images, in [0, 1].
        mix_conf: `(B,)`, or `(J, B)` for several mixtures of each, in [0, 1].
        lam: the shares l in [0, 1]: a number, `(J,)`, or `(J, B)`. Give 1 where both images have one label.

    Returns:
        The share, in [0, 1]; NaN where there is no such pair.

    Raises:
        ValueError: an argument is refused, by name.

    Source: the orders of Noh, Park, Lee, Ham 2023 (arXiv 2308.11990).
    """
    raw = as_unit_interval("conf", conf)
    mixed = as_tensor("mix_conf", mix_conf)
    if mixed.dim() not in (1, 2) or mixed.shape[-1] != len(raw) or mixed.numel() == 0:
        raise ValueError(
            f"mix_conf must have shape ({len(raw)},) or (J, {len(raw)}), to go with conf, "
            f"but has shape {tuple(mixed.shape)}"
        )
    as_unit_interval("mix_conf", mixed.flatten())
    mixed = mixed.reshape(-1, len(raw)).to(raw.device)
    share = as_tensor("lam", lam).to(mixed.device, torch.float64)
    if share.dim() == 0:
        share = share.expand(len(mixed))
    if share.shape not in (mixed.shape[:1], mixed.shape):
        raise ValueError(
            f"lam must be a number or have shape {tuple(mixed.shape[:1])} or {tuple(mixed.shape)}, "
            f"but has shape {tuple(share.shape)}"
        )
    as_unit_interval("lam", share.flatten())
    strength = torch.maximum(share, 1 - share).view(len(mixed), -1).expand(mixed.shape)
    strength = torch.cat((torch.ones_like(strength[:1]), strength))
    confidence = torch.cat((raw[None].double(), mixed.double()))
    pairs = violations = 0
    for stronger, more in zip(strength, confidence, strict=True):
        # A hair's breadth apart, l and 1 - l, is the same strength.
        asked = stronger - strength > 1e-9
        pairs += int(asked.sum())
        violations += int((asked & (confidence >= more)).sum())
    return violations / pairs if pairs else float("nan")


def _checked(
    logits: Tensor, mixup_logits: Tensor, target: Tensor, mixup_target: Tensor, count: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """The two sets of logits, in one dtype of at least float32."""
    checks.reduction(reduction)
    checks.logits_and_target(logits, target)
    shape = (count * len(logits), logits.shape[1])
    mixed = _arguments.logits("mixup_logits", mixup_logits, shape)
    _arguments.probabilities("mixup_target", mixup_target, shape)
    f = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return f, mixed.to(f.dtype)
