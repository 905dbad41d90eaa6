"""Cross-entropy of a linear layer's logits, for so many classes that the logits must not be written out.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from lossbook import checks
from lossbook.losses import _blocks
from lossbook.losses._arguments import widened
from lossbook.losses._contract import reduce


@_blocks.without_autocast
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    label_smoothing: float | Tensor = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the logits `f = x Wᵀ + b`, with value and gradient but never all logits in memory.

        loss_i = log sum_k exp(f_ik) - (1 - eps) f_iy - eps/C sum_k f_ik

    The same numbers as `cross_entropy(x @ W.T + b, target)`. The first two terms are summed over tiles of 1,024 rows by
    1,024 classes, which are computed a second time for the gradient: four products of N x d x C numbers instead of
    three, and beside the gradient itself a few tiles in memory instead of N x C logits. The last needs no logits, but
    x_i · mean_k W_k, whose gradient takes as much memory as W. Above 2^20 logits there are first derivatives only.

    Args:
        input: `(N, d)` floating point x.
        linear_weight: `(C, d)`, W, as in `torch.nn.Linear`.
        target: `(N,)` labels in [0, C).
        linear_bias: `(C,)`, b.
        label_smoothing: eps in [0, 1].

    Returns:
        `(N,)` or a scalar in the dtype of `input`. Half precision is computed in float32.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: the idea to keep only a tile of the logits is that of Cut Cross-Entropy (Wijmans and others 2024, arXiv
    2411.09009); names and reductions are those of `torch.nn.functional.linear_cross_entropy`.
    """
    checks.reduction(reduction)
    checks.parameter("label_smoothing", label_smoothing, 0, 1)
    _check("input", input, "(N, d)", 2)
    _check("linear_weight", linear_weight, "(C, d)", 2)
    num_classes, width = linear_weight.shape
    if input.shape[1] != width:
        raise ValueError(f"input has {input.shape[1]} features a row, but linear_weight has {width}")
    if linear_bias is not None:
        _check("linear_bias", linear_bias, "(C,)", 1)
        if len(linear_bias) != num_classes:
            raise ValueError(f"linear_bias has {len(linear_bias)} entries, but linear_weight has {num_classes} rows")
    if weight is not None:
        checks.class_weight(weight, num_classes)
    label = checks.labels("target", target, len(input), num_classes, ignore_index)
    y = torch.where(label == ignore_index, 0, label)

    x, w = widened(input), widened(linear_weight)
    b = None if linear_bias is None else linear_bias.to(w.dtype)
    counts = x.new_ones(1).expand(num_classes) if weight is None else weight.to(x.dtype)
    plain, log_z = _plain_and_log_z(x, w, b, y)
    loss = counts[y] * plain
    if isinstance(label_smoothing, Tensor) or label_smoothing > 0:
        weighted_sum = x @ (counts @ w) if b is None else x @ (counts @ w) + counts @ b
        uniform = counts.mean() * log_z - weighted_sum / num_classes
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return reduce(loss, input, label, weight=weight, ignore_index=ignore_index, reduction=reduction, weighted=True)


def _plain_and_log_z(x: Tensor, w: Tensor, b: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor]:
    """log sum_k exp(f_ik) - f_iy, and the first of these alone, of f = x wᵀ + b; both (N,)."""
    if len(x) * len(w) <= _blocks.WRITTEN_OUT:
        plain = functional.cross_entropy(functional.linear(x, w, b), y, reduction="none")
        return plain, plain + _at_label(x, w, b, y)
    log_z, at_label = _Head.apply(x, w, b, y)
    return log_z - at_label, log_z


def _at_label(x: Tensor, w: Tensor, b: Tensor | None, y: Tensor) -> Tensor:
    products = (x * w[y]).sum(dim=1)
    return products if b is None else products + b[y]


class _Head(Function):
    """Both in tiles, so that one gradient of w holds the slopes of both."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor | None, y: Tensor) -> tuple[Tensor, Tensor]:
        log_z = x.new_full((len(x),), -torch.inf)
        for i, j, logits in _blocks.tiles(x, w):
            if b is not None:
                logits.add_(b[j])
            log_z[i] = torch.logaddexp(log_z[i], logits.logsumexp(1))
        return log_z, _at_label(x, w, b, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, pull_log_z: Tensor, pull_at_label: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db = _HeadSlope.apply(*ctx.saved_tensors, pull_log_z, pull_at_label)
        return dx, dw, None if ctx.saved_tensors[2] is None else db, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _blocks.one_by_one(_Head, info, in_dims, inputs)


class _HeadSlope(_blocks.FirstOnly):
    """The gradient of `_Head`: of each logit its softmax times one pull, and at the label the other pull."""

    @staticmethod
    def forward(
        x: Tensor, w: Tensor, b: Tensor | None, y: Tensor, log_z: Tensor, pull_log_z: Tensor, pull_at_label: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, dw, db = torch.zeros_like(x), torch.zeros_like(w), w.new_zeros(len(w))
        for i, j, logits in _blocks.tiles(x, w):
            if b is not None:
                logits.add_(b[j])
            slope = logits.sub_(log_z[i, None]).exp_().mul_(pull_log_z[i, None])
            # No index of the rows with a label in the tile: on a GPU its length would be waited for.
            column = y[i] - j.start
            inside = (column >= 0) & (column < slope.shape[1])
            column = column.clamp(0, slope.shape[1] - 1)
            slope.scatter_add_(1, column[:, None], torch.where(inside, pull_at_label[i], 0)[:, None])
            dx[i].addmm_(slope, w[j])
            dw[j].addmm_(slope.mT, x[i])
            if b is not None:
                db[j] += slope.sum(dim=0)
        return dx, dw, db

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> Any:
        return _blocks.one_by_one(_HeadSlope, info, in_dims, inputs)


def _check(name: str, value: Tensor, shape: str, dims: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    if value.dim() != dims or not value.is_floating_point() or value.numel() == 0:
        raise ValueError(
            f"{name} must be floating point of shape {shape}, but is {value.dtype} of shape {tuple(value.shape)}"
        )
    checks.finite(name, value)
