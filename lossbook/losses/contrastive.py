"""Contrastive losses: a similarity matrix, and the right partner of each row among its columns."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses.surrogate.family import cross_entropy


def info_nce(sim: Tensor, *, temperature: float | Tensor = 1.0, reduction: str = "mean") -> Tensor:
    """InfoNCE with the negatives of the batch: the cross-entropy of each query's own passage.

        loss_i = -log softmax(S_i / T)_i,    S_ij the similarity of query i and passage j

    In nats, range [0, inf), log B where all similarities are equal. Rows are judged on their own: a number added to all
    of row i changes nothing, so that scores of different queries need not be comparable. A passage that comes twice in
    the batch counts as a negative of its own query.

    Args:
        sim: S, `(B, B)` floating point, the matching pairs on the diagonal.
        temperature: T > 0; cosine similarities need one around 0.05. May be a 0-d tensor, and learned.
        reduction: none gives `(B,)`, mean and sum a scalar.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: van den Oord, Li, Vinyals 2018 (arXiv 1807.03748), equation 4.
    """
    square("sim", sim)
    checks.parameter("temperature", temperature, 0, open_low=True)
    wide = sim.float() if sim.dtype in (torch.float16, torch.bfloat16) else sim
    loss = cross_entropy(wide / temperature, torch.arange(len(sim), device=sim.device), reduction=reduction)
    return loss.to(sim.dtype)


def square(name: str, sim: Tensor) -> None:
    """Refuse what is not a floating-point matrix (B, B) of finite numbers."""
    if not isinstance(sim, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(sim).__name__}")
    if sim.dim() != 2 or sim.shape[0] != sim.shape[1] or sim.numel() == 0:
        raise ValueError(f"{name} must have shape (B, B), a row a query, but has shape {tuple(sim.shape)}")
    if not sim.is_floating_point():
        raise ValueError(f"{name} must be floating point, but has dtype {sim.dtype}")
    checks.finite(name, sim)
