"""A loss that asks of a confidence what calibration asks: to be high where the prediction is right, low where not.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import prepare, reduce


def correctness_aware(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    balanced: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Squared distance of the confidence to the correctness of the prediction.

        loss = (c - a)^2,    c = max_k softmax(z / T)_k,    a = 1[argmax_k z_k = y]

    Range [0, 1]. a is a constant: it carries no gradient. Gradient in c: 2 (c - a), which lowers every wrong row's
    confidence and raises every right one's; cross-entropy may raise both. In expectation it is least at the
    probability of being right. Of equal logits the first counts as the prediction.

    Args:
        temperature: T > 0, a number or `(N,)`, one for each row.
        balanced: weigh right rows by 1 - r and wrong rows by r, with r the share of right rows that count, and scale
            the weights to mean 1; where r is 0 or 1 all weigh 1. A constant confidence is then best at 1/2, so that
            balance trades calibration for separation. `weight` comes on top.

    Source: Liu, Wang, Zou, Zou, Zheng 2024 (arXiv 2404.13016).
    """
    _check_temperature(temperature, logits)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    right = (f.argmax(dim=1) == y).to(f.dtype)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(f.dtype)
        temperature = temperature[:, None] if temperature.dim() == 1 else temperature
    # The largest softmax from the differences to the largest logit: finite for any T > 0, and 1 at most.
    confidence = 1 / torch.exp((f - f.amax(dim=1, keepdim=True)) / temperature).sum(dim=1)
    loss = (confidence - right).square()
    if balanced:
        kept = (target.long() != ignore_index).to(f.dtype)
        share = (right * kept).sum() / kept.sum()
        w = torch.where(right == 1, 1 - share, share)
        mean = (w * kept).sum() / kept.sum()
        loss = loss * torch.where(mean > 0, w / mean, 1.0)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _check_temperature(temperature: float | Tensor, logits: Tensor) -> None:
    if not isinstance(temperature, Tensor) or temperature.dim() == 0:
        checks.parameter("temperature", temperature, 0, open_low=True)
        return
    if isinstance(logits, Tensor) and temperature.shape != logits.shape[:1]:
        raise ValueError(
            f"temperature must be a number or a 0-d tensor, or have shape ({len(logits)},), but has shape "
            f"{tuple(temperature.shape)}"
        )
    checks.finite("temperature", temperature)
    if checks.can_read(temperature) and (temperature <= 0).any():
        row = int((temperature <= 0).nonzero()[0, 0])
        raise ValueError(f"temperature must be positive, but temperature[{row}] is {temperature[row].item():g}")
