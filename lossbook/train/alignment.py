"""Two objectives that pull the same parameters apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def align_gradients(losses: Sequence[Tensor], params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of the sum of losses, without what the later ones would undo of the first.

        g_i <- g_i - (g_i . g_1 / |g_1|^2) g_1   where g_i . g_1 < 0, for i = 2, 3, ...;    result g_1 + g_2 + ...

    The inner products run over all parameters that both losses reach, taken as one vector; elsewhere the gradients are
    added as they are. A small step down the projected g_i does not raise the first loss. Without conflict the result
    is the gradient of the sum. For DHKD the first loss is cross-entropy, the second alpha times the auxiliary head's:

        for p, g in zip(params, align_gradients([ce, alpha * kd], params)):
            p.grad = g
        optimizer.step()

    Args:
        losses: scalars, the one to protect first; their weights are in them. Their graph is freed.
        params: tensors that require gradients, each reached by at least one loss.

    Returns:
        One detached tensor a parameter, of its shape.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Yang, Zong, Huang, Feng, An 2024 (arXiv 2411.08937), after Yu et al. 2020, PCGrad (arXiv 2001.06782), where
        each loss is projected on each other. The paper's code takes |g_1|^2 over all parameters, also those that the
        other loss does not reach: its projection stops short, and scales up the first loss's gradient in them.
    """
    params = list(params)
    if len(losses) == 0 or not params:
        raise ValueError(f"there is nothing to align: {len(losses)} losses and {len(params)} params")
    for i, loss in enumerate(losses):
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{i}] must be a torch.Tensor, but is {type(loss).__name__}")
        if loss.dim() != 0 or not loss.requires_grad:
            raise ValueError(
                f"losses[{i}] must be a scalar with a gradient, but has shape {tuple(loss.shape)} and requires_grad "
                f"{loss.requires_grad}"
            )
    for i, param in enumerate(params):
        if not param.requires_grad:
            raise ValueError(f"params[{i}] does not require gradients")
    last = len(losses) - 1
    gradients = [
        torch.autograd.grad(loss, params, retain_graph=i < last, allow_unused=True) for i, loss in enumerate(losses)
    ]
    sums = list(gradients[0])
    for gradient in gradients[1:]:
        shared = [(a, b) for a, b in zip(gradients[0], gradient, strict=True) if a is not None and b is not None]
        factor = _conflict(shared) if shared else 0.0
        for i, (first, other) in enumerate(zip(gradients[0], gradient, strict=True)):
            if other is None:
                continue
            if first is not None:
                other = other - factor * first
            sums[i] = other if sums[i] is None else sums[i] + other
    for i, total in enumerate(sums):
        if total is None:
            raise ValueError(f"params[{i}] has no part in any of the losses")
    return tuple(sums)


def _conflict(shared: list[tuple[Tensor, Tensor]]) -> Tensor:
    """min(g_1 . g_i, 0) / |g_1|^2: no branch, which on a GPU would wait for the value."""
    product = torch.stack([(a * b).sum() for a, b in shared]).sum()
    squared = torch.stack([a.square().sum() for a, _ in shared]).sum()
    return product.clamp(max=0) / squared.clamp(min=torch.finfo(squared.dtype).tiny)
