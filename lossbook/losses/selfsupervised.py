"""Losses without labels: several views of the same rows, whose representations shall agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossbook import checks

Views = Sequence[Tensor] | Tensor


def eckart_young(views: Views, *, independent: Views | None = None) -> Tensor:
    """The Eckart-Young loss of the canonical correlation family: an eigenproblem without constraints.

        loss = -2 tr C + tr(V V'),    C = (1/M) sum_{i,j} Cov(Z_i, Z_j),    V = (1/M) sum_i Cov(Z_i, Z_i)

    C sums all ordered pairs, i = j included; Cov centres its batch and divides by n - 1. For linear Z_i = X_i W_i this
    is -2 tr(Uᵀ A U) + tr((Uᵀ B U)²) of `theory.eigen.cca_pencil`, and its least value is minus the sum of the squares
    of the k largest generalised eigenvalues: for two views -sum (1 + ρ_i)², ρ the canonical correlations. Not bounded
    below by 0; the gradient in Z_i is 4/(M (n - 1)) (Z̃_i V - sum_j Z̃_j), Z̃ the centred Z. Only the subspace is
    determined: an orthogonal matrix that rotates all views alike changes nothing.

    With n <= k rows V cannot have full rank, and the minimum is another one.

    Args:
        views: Z_1, ..., Z_M, M >= 2, floating point `(n, k)` each, n >= 2, row i of all from the same example; or one
            tensor `(M, n, k)`.
        independent: the same M representations of an independent batch `(n', k)`. V' is their V, and a mini-batch's
            loss is then an unbiased estimate of that of all data. None: V' = V, which is biased up by about 1/n.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Chapman, Wells, Lawry Aguila 2024 (arXiv 2310.01012).
    """
    cross, auto = mean_covariances("views", views)
    other = auto
    if independent is not None:
        if len(independent) != len(views):
            raise ValueError(f"independent must hold {len(views)} views, as views do, but holds {len(independent)}")
        _, other = mean_covariances("independent", independent)
        if other.shape != auto.shape:
            raise ValueError(f"independent must have {len(auto)} columns, as views have, but has {len(other)}")
    # tr(V V') as a sum of products: both are symmetric.
    return (-2 * cross.trace() + (auto * other).sum()).to(views[0].dtype)


def mean_covariances(name: str, views: Views) -> tuple[Tensor, Tensor]:
    """C and V `(k, k)` of `eckart_young`, in at least float32; refuses under this name what are no views."""
    if not isinstance(views, Tensor | Sequence):
        raise TypeError(f"{name} must be a list of tensors, but is {type(views).__name__}")
    if len(views) < 2:
        raise ValueError(f"{name} must hold at least two views, but holds {len(views)}")
    for i, view in enumerate(views):
        if not isinstance(view, Tensor):
            raise TypeError(f"{name}[{i}] must be a torch.Tensor, but is {type(view).__name__}")
        if view.dim() != 2 or len(view) < 2 or view.shape[1] == 0 or not view.is_floating_point():
            raise ValueError(
                f"{name}[{i}] must be floating point of shape (n, k) with n >= 2, but is {view.dtype} of shape "
                f"{tuple(view.shape)}"
            )
        if view.shape != views[0].shape:
            raise ValueError(
                f"{name}[{i}] must have the shape of {name}[0], {tuple(views[0].shape)}, but has {tuple(view.shape)}"
            )
        checks.finite(f"{name}[{i}]", view)
    z = torch.stack(list(views))
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    z = z - z.mean(dim=1, keepdim=True)
    total = z.sum(dim=0)
    scale = len(views) * (z.shape[1] - 1)
    return total.T @ total / scale, torch.einsum("mni,mnj->ij", z, z) / scale
