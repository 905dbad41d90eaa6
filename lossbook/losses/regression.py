"""Losses of real-valued responses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossbook import checks


def bag_loss(
    pred: Tensor,
    bag_response: Tensor,
    bag_index: Tensor,
    *,
    rho: float | Tensor = 0.0,
    loss: str = "mse",
    reduction: str = "mean",
) -> Tensor:
    """Learning from bags, of which only the mean response is known: between the bag loss and the instance loss.

        loss_a = (1 - rho) l(ybar_a, mean_{i in a} h_i) + rho mean_{i in a} l(ybar_a, h_i)

    rho = 0 asks the mean prediction of a bag to match its response; rho = 1 asks every prediction to. For both l below
    the second term is at least the first (Jensen). With "mse" the loss is (ybar_a - hbar_a)^2 + rho times the variance
    of the predictions within the bag. Bags of one row: rho changes nothing.

    Args:
        pred: `(N,)` floating point f, a real number a row.
        bag_response: `(m,)` ybar, the mean response of each bag; of "bce" the share of ones, in [0, 1].
        bag_index: `(N,)` integers in [0, m), the bag of each row; every bag has a row. A batch must hold whole bags,
            numbered from 0.
        rho: in [0, 1].
        loss: "mse": h = f, l = (y - h)^2. "bce": f is a logit, h = sigmoid(f), l = -y log h - (1 - y) log(1 - h), in
            nats.
        reduction: "none" gives `(m,)`; "mean" is the mean over bags, whatever their size; "sum" the sum over bags.

    Raises:
        TypeError, ValueError: an argument is no tensor, has the wrong shape or dtype, is not finite or out of range.

    Source: Javanmard et al. 2024 (arXiv 2401.11081): bag-level, instance-level and interpolating loss.
    """
    checks.parameter("rho", rho, 0, 1)
    checks.reduction(reduction)
    if loss not in ("mse", "bce"):
        raise ValueError(f"loss must be 'mse' or 'bce', but is {loss!r}")
    _check_bags(pred, bag_response, bag_index, share=loss == "bce")
    f = pred.float() if pred.dtype in (torch.float16, torch.bfloat16) else pred
    y, index = bag_response.to(f.dtype), bag_index.long()
    if loss == "mse":
        bag, instance = (y - _mean(f, index, y)).square(), _mean((y[index] - f).square(), index, y)
    else:
        log_h, log_not_h = logsigmoid(f), logsigmoid(-f)
        bag = -y * _log_mean_exp(log_h, index, y) - (1 - y) * _log_mean_exp(log_not_h, index, y)
        instance = -y * _mean(log_h, index, y) - (1 - y) * _mean(log_not_h, index, y)
    value = (1 - rho) * bag + rho * instance
    if reduction == "mean":
        value = value.mean()
    elif reduction == "sum":
        value = value.sum()
    return value.to(pred.dtype)


def _mean(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Mean of the rows of each bag, `(N,)` -> `(m,)`."""
    zeros = torch.zeros_like(like)
    return zeros.index_add(0, index, rows) / zeros.index_add(0, index, torch.ones_like(rows))


def _log_mean_exp(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    # Relative to the largest of the bag, so that a bag of hopeless rows keeps its value and gradient.
    top = torch.full_like(like, -torch.inf).scatter_reduce(0, index, rows.detach(), "amax")
    return _mean((rows - top[index]).exp(), index, like).log() + top


def _check_bags(pred: Tensor, bag_response: Tensor, bag_index: Tensor, *, share: bool) -> None:
    for name, tensor in (("pred", pred), ("bag_response", bag_response), ("bag_index", bag_index)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
    for name, tensor in (("pred", pred), ("bag_response", bag_response)):
        if tensor.dim() != 1 or not tensor.is_floating_point() or not len(tensor):
            raise ValueError(
                f"{name} must be floating point of shape (N,), not empty, but is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        checks.finite(name, tensor)
    checks.bags(bag_index, len(pred), len(bag_response))
    if share and checks.can_read(bag_response):
        bad = (bag_response < 0) | (bag_response > 1)
        if bad.any():
            a = int(bad.nonzero()[0, 0])
            raise ValueError(f"bag_response must lie in [0, 1] for 'bce', but bag_response[{a}] is {bag_response[a]:g}")
