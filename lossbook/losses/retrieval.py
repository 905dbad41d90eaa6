"""Losses of a ranking: every positive against every negative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import logsigmoid

from lossbook import checks
from lossbook.losses._pair_sums import softplus_sums
from lossbook.losses.contrastive import square

# Up to here the pairs are written out, which torch differentiates any number of times, maps and compiles.
_FEW_PAIRS = 2**18


def mann_whitney(
    pos_scores: Tensor, neg_scores: Tensor, *, temperature: float | Tensor = 1.0, reduction: str = "mean"
) -> Tensor:
    """The Mann-Whitney loss: the logistic loss of every positive against every negative.

        loss = 1 / (P N) sum_ij softplus(-(s+_i - s-_j) / T),    softplus(t) = log(1 + e^t)

    In nats, range (0, inf), log 2 where all scores are equal. As 1[t <= 0] <= softplus(-t / T) / log 2, one minus the
    area under the ROC curve (ties count half) is at most loss / log 2, at any T.

    Up to 2^18 pairs are written out. More are summed without that, in O((P + N) log(P + N)) time and O(P + N) memory,
    to the rounding of a float64, in which this path computes; it gives first derivatives only.

    Args:
        pos_scores: s+, `(P,)` floating point.
        neg_scores: s-, `(N,)`, same dtype and device.
        temperature: T > 0. May be a 0-d tensor, and learned.
        reduction: "mean" over the pairs, or "sum".

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Sheikholeslami et al. 2025 (arXiv 2510.00137); the logistic loss of score differences is RankNet's (Burges
    et al. 2005).
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum' over the pairs, but is {reduction!r}")
    _scores("pos_scores", pos_scores)
    _scores("neg_scores", neg_scores)
    if (neg_scores.dtype, neg_scores.device) != (pos_scores.dtype, pos_scores.device):
        raise ValueError(
            f"neg_scores must be like pos_scores, {pos_scores.dtype} on {pos_scores.device}, "
            f"but are {neg_scores.dtype} on {neg_scores.device}"
        )
    checks.parameter("temperature", temperature, 0, open_low=True)
    dtype = pos_scores.dtype
    if dtype in (torch.float16, torch.bfloat16):
        pos_scores, neg_scores = pos_scores.float(), neg_scores.float()
    pairs = len(pos_scores) * len(neg_scores)
    if pairs <= _FEW_PAIRS:
        # softplus itself drops the exponential beyond 20.
        total = -logsigmoid((pos_scores[:, None] - neg_scores[None, :]) / temperature).sum()
    else:
        at = torch.as_tensor(temperature, dtype=torch.float64, device=pos_scores.device)
        total = _SoftplusOfPairs.apply(pos_scores.double(), neg_scores.double(), at)[0]
    return (total / pairs if reduction == "mean" else total).to(dtype)


def mann_whitney_in_batch(
    sim: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    extra_neg: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The Mann-Whitney loss of a batch of pairs: positives S_ii, negatives S_jk with j != k, of all queries.

        loss = 1 / (B (B^2 - B)) sum_i sum_{j != k} softplus(-(S_ii - S_jk) / T)

    The similarities are those of `lossbook.losses.info_nce`, each positive meets B times as many negatives. They belong
    to other queries, too, so that the scores of different queries must share a scale: what one threshold for all
    queries needs. See `mann_whitney` for range, bound and cost.

    Args:
        sim: S, `(B, B)` floating point with B >= 2, or B = 1 with `extra_neg`; the matching pairs on the diagonal.
        temperature: T > 0; cosine similarities need one around 0.05. May be a 0-d tensor, and learned.
        extra_neg: similarities of further negatives (hard ones, say), of any shape, same dtype and device.
        reduction: "mean" over the pairs, or "sum".

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Sheikholeslami et al. 2025 (arXiv 2510.00137), figure 2.
    """
    square("sim", sim)
    b = len(sim)
    # All but the last entry, in rows of B + 1: each row begins with an entry of the diagonal.
    negatives = sim.flatten()[:-1].view(b - 1, b + 1)[:, 1:].flatten() if b > 1 else sim.new_empty(0)
    if extra_neg is not None:
        if not isinstance(extra_neg, Tensor):
            raise TypeError(f"extra_neg must be a torch.Tensor, but is {type(extra_neg).__name__}")
        if (extra_neg.dtype, extra_neg.device) != (sim.dtype, sim.device):
            raise ValueError(
                f"extra_neg must be {sim.dtype} on {sim.device}, but is {extra_neg.dtype} on {extra_neg.device}"
            )
        checks.finite("extra_neg", extra_neg)
        negatives = torch.cat((negatives, extra_neg.flatten()))
    if len(negatives) == 0:
        raise ValueError("there are no negatives: sim has one row, and extra_neg is empty")
    return mann_whitney(sim.diagonal(), negatives, temperature=temperature, reduction=reduction)


class _SoftplusOfPairs(Function):
    """sum_ij softplus((b_j - a_i) / T) and, computed along with it, its slopes in a, b and T."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total, pull_a, pull_b = softplus_sums(a, b, float(temperature.detach()))
        # The sum depends on differences over T only: T d/dT = -(a d/da + b d/db), wherever on the line 0 is put.
        middle = (a.mean() + b.mean()) / 2
        slope = (pull_a @ (a - middle) - pull_b @ (b - middle)) / temperature**2
        return total, -pull_a / temperature, pull_b / temperature, slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        inputs, slopes = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        return tuple(gradient * _FirstOnly.apply(slope, *inputs) for slope in slopes)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        rows = [
            [x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)]
            for i in range(info.batch_size)
        ]
        outputs = zip(*(_SoftplusOfPairs.apply(*row) for row in rows), strict=True)
        return tuple(torch.stack(column) for column in outputs), (0, 0, 0, 0)


class _FirstOnly(Function):
    """The slope as it is, and a sentence for who wants its derivative, which otherwise would be 0 without a word."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, *inputs: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise NotImplementedError(f"mann_whitney of more than {_FEW_PAIRS:,} pairs has first derivatives only")


def _scores(name: str, scores: Tensor) -> None:
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(scores).__name__}")
    if scores.dim() != 1 or scores.numel() == 0:
        raise ValueError(f"{name} must have shape (N,) with N >= 1, but have shape {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"{name} must be floating point, but have dtype {scores.dtype}")
    checks.finite(name, scores)
