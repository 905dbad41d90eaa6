"""The training step of a factored output layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lossbook.layers.factored import FactoredOutput


def factored_step(
    layer: FactoredOutput,
    hidden: Tensor,
    target: Tensor,
    loss: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    lr: float,
    *,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent on a `FactoredOutput`; the network below it is the caller's.

        value, grad_hidden = factored_step(layer, hidden, target, losses.surrogate.z_loss_from_stats, lr=0.1)
        hidden.backward(grad_hidden)

    Args:
        layer: in training mode.
        hidden: H (m, d). Its graph is left alone.
        target: labels (m,), or class ids (m, K) for a loss that reads several outputs of a row.
        loss: `loss(a, q, s, num_classes)` -> scalar, with a (m,) for labels and (m, K) otherwise. Bind its parameters
            with functools.partial. It is differentiated in a, q and s only.
        lr, weight_decay: as for `FactoredOutput.update`.

    Returns:
        The loss before the step, and its derivative in hidden (m, d).

    Raises:
        ValueError, TypeError: an argument is refused by name; the layer is then as it was before.
    """
    if not isinstance(layer, FactoredOutput):
        raise TypeError(f"layer must be a FactoredOutput, but is {type(layer).__name__}")
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a torch.Tensor, but is {type(target).__name__}")
    labels = target.dim() == 1
    a, q, s = (statistic.requires_grad_() for statistic in layer(hidden, target[:, None] if labels else target))
    value = loss(a[:, 0] if labels else a, q, s, layer.num_classes)
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must return a scalar tensor, but returns {shape}")
    if not value.requires_grad:
        raise ValueError("loss must depend on its first three arguments, but its value has no gradient")
    grad_a, grad_q, grad_s = torch.autograd.grad(value, (a, q, s), materialize_grads=True)
    return value.detach(), layer.update(grad_a, grad_q, grad_s, lr, weight_decay=weight_decay)
