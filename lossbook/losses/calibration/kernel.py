"""Cross-entropy with the kernel calibration error of the batch.

The arguments that all losses share are described in `lossbook.losses.surrogate`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label, prepare, reduce


def mmce_penalty(
    logits: Tensor,
    target: Tensor,
    *,
    beta: float | Tensor = 1.0,
    width: float | Tensor = 0.4,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy plus beta times the squared maximum mean calibration error of the batch.

        loss  = (1/N) sum_i -log p_iy  +  beta MMCE^2
        MMCE^2 = (1/N^2) sum_ij (a_i - c_i) (a_j - c_j) exp(-|c_i - c_j| / width)

    with the confidence c_i = max_k p_ik and a_i = 1 where the prediction is right. a is a constant; the gradient flows
    through c, in the kernel too. The kernel is positive definite, so MMCE^2 >= 0. `lossbook.metrics.calibration.mmce`
    with `squared=True` is the same number.

    Rows are not independent. reduction="none" gives -log p_iy + beta (a_i - c_i) (1/N) sum_j (a_j - c_j) k_ij, whose
    mean is the loss; a row of it may be negative. weight counts a row weight[y] times in both sums, and N is the sum
    of the weights. Time O(N log N) and memory O(N), beside those of cross-entropy.

    Args:
        beta: >= 0.
        width: of the kernel, in units of confidence, at least 0.01.

    Source: Kumar, Sarawagi, Jain 2018, Trainable Calibration Measures for Neural Networks from Kernel Mean Embeddings.
        The penalty is the square, as in the code of Mukhoti et al. 2020; the root has no gradient at 0.
    """
    checks.parameter("beta", beta, 0)
    checks.parameter("width", width, 0.01)
    f, y = prepare(logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)
    log_p = f.log_softmax(dim=1)
    log_c, predicted = log_p.max(dim=1)
    c = log_c.exp()
    residual = (predicted == y).to(c.dtype) - c
    counts = (target.long() != ignore_index).to(c.dtype)
    if weight is not None:
        counts = counts * weight.to(c.dtype)[y]
    # Where nothing counts, 0 / 0 would be NaN: `reduce` has the word then.
    shared = _smoothed(counts * residual, c, width) / counts.sum().clamp_min(torch.finfo(c.dtype).tiny)
    loss = beta * residual * shared - at_label(log_p, y)
    return reduce(loss, logits, target, weight=weight, ignore_index=ignore_index, reduction=reduction)


def _smoothed(values: Tensor, c: Tensor, width: float | Tensor) -> Tensor:
    """sum_j exp(-|c_i - c_j| / width) values_j, for every i.

    Among sorted c the exponential of a difference is a product, and the sum over the smaller ones a running sum.
    """
    ordered, order = c.sort()
    # float64 holds e^(1 / 0.01), and a running sum in it loses nothing that counts.
    ordered, v = ordered.double(), values[order].double()
    rank = torch.arange(len(c), device=c.device)
    new = torch.cat((torch.ones_like(rank[:1], dtype=torch.bool), ordered[1:] > ordered[:-1]))
    # Equal confidences, those of rank first to last, are summed apart: between them the slope is 0.
    first = torch.where(new, rank, 0).cummax(dim=0).values
    last = torch.where(new.roll(-1), rank, len(c)).flip(0).cummin(dim=0).values.flip(0)
    up, down = torch.exp(ordered / width), torch.exp(-ordered / width)
    below = torch.cat((v.new_zeros(1), (v * up).cumsum(dim=0)))[first] * down
    above = torch.cat(((v * down).flip(0).cumsum(dim=0).flip(0), v.new_zeros(1)))[last + 1] * up
    running = torch.cat((v.new_zeros(1), v.cumsum(dim=0)))
    total = below + above + running[last + 1] - running[first]
    return total[order.argsort()].to(c.dtype)
