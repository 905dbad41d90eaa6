"""What every loss does before and after its formula: check, then weigh and reduce."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks


def prepare(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    soft: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check the arguments; return logits in at least float32 and labels that are safe to gather with.

    Half precision is widened because exp and log lose too much in it; `reduce` narrows the result again.
    Ignored labels become 0 here; `reduce` drops their rows.
    """
    checks.reduction(reduction)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise ValueError(f"ignore_index must be an integer, but is {ignore_index!r}")
    checks.logits_and_target(logits, target, weight=weight, ignore_index=ignore_index, soft=soft)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if target.is_floating_point():
        return logits, target.to(logits.dtype)
    target = target.long()
    return logits, torch.where(target == ignore_index, 0, target)


def at_label(scores: Tensor, label: Tensor) -> Tensor:
    """The entry of each row at its label: `scores (N, C)`, `label (N,)` -> `(N,)`."""
    return scores.gather(1, label[:, None]).squeeze(1)


def reduce(
    loss: Tensor,
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    weighted: bool = False,
) -> Tensor:
    """torch's reductions of `loss (N,)`, in the dtype of `logits`: the caller's, not the widened one.

    none: w_y loss, and 0 where the label is ignored; sum: their sum; mean: their sum over the sum of the weights w_y of
    the labels that count. `weighted` says that the loss holds its weights already.
    """
    counts = torch.ones_like(loss)
    if not target.is_floating_point():
        target = target.long()
        kept = target != ignore_index
        counts = kept.to(loss.dtype)
        if weight is not None:
            counts = counts * weight.to(loss.dtype)[torch.where(kept, target, 0)]
        loss = torch.where(kept, loss if weighted else loss * counts, 0.0)
    if reduction == "mean":
        total = counts.sum()
        if checks.can_read(total) and total == 0:
            raise ValueError(
                f"nothing to average: every target is ignored (ignore_index {ignore_index}) or has weight 0"
            )
        loss = loss.sum() / total
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(logits.dtype)
