"""Generalised eigenproblems and canonical correlations, exactly: what stochastic solvers are held against."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks


def generalized_eigenvalues(A: Tensor, B: Tensor, k: int | None = None) -> Tensor:
    """The k largest λ of A u = λ B u, in descending order, in float64.

    With B = L Lᵀ these are the eigenvalues of L⁻¹ A L⁻ᵀ.

    Args:
        A: `(p, p)` symmetric.
        B: `(p, p)` symmetric and positive definite.
        k: 1 to p; None: all.

    Returns:
        `(k,)`.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.
    """
    a, b = _symmetric("A", A), _symmetric("B", B)
    if b.shape != a.shape:
        raise ValueError(f"B must have the shape of A, {tuple(a.shape)}, but has {tuple(b.shape)}")
    k = len(a) if k is None else checks.whole("k", k, 1, len(a))
    root, failed = torch.linalg.cholesky_ex(b)
    if failed:
        raise ValueError(f"B must be positive definite, but its leading minor of order {int(failed)} is not")
    whitened = torch.linalg.solve_triangular(root, a, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.T, upper=False)
    return torch.linalg.eigvalsh((whitened + whitened.T) / 2).flip(0)[:k]


def ey_optimum(A: Tensor, B: Tensor, k: int) -> float:
    """The least value of the Eckart-Young loss of a generalised eigenproblem over U `(p, k)`.

        min_U -2 tr(Uᵀ A U) + tr((Uᵀ B U)²) = -sum_{i <= k} max(λ_i, 0)²

    λ_1 >= λ_2 >= ... the generalised eigenvalues. The minimisers span the eigenvectors of the positive ones among the
    first k, and there Uᵀ B U has the eigenvalues λ_i. Negative ones contribute nothing: their column is 0.

    Args, Raises: as `generalized_eigenvalues`.

    Source: Chapman, Wells, Lawry Aguila 2024 (arXiv 2310.01012).
    """
    return -float(generalized_eigenvalues(A, B, k).clamp_min(0).square().sum())


def cca_pencil(X: Tensor, Y: Tensor, *, c: float = 0.0) -> tuple[Tensor, Tensor]:
    """The matrices A and B of canonical correlation analysis and partial least squares, in float64.

        A = [(1 - c) Σ_xx, Σ_xy; Σ_yx, (1 - c) Σ_yy],    B = (1 - c) [Σ_xx, 0; 0, Σ_yy] + c I

    c = 0: the eigenvalues are 1 ± ρ_i with the canonical correlations ρ, and 1. c = 1: ± the singular values of Σ_xy,
    partial least squares. Between them, ridge CCA. Σ divide by n - 1. With U = [W_x; W_y]/√2 the loss of `ey_optimum`
    is that of `losses.selfsupervised.eckart_young` at c = 0.

    Args:
        X: `(n, p)` floating point, n >= 2.
        Y: `(n, q)`.
        c: in [0, 1].

    Returns:
        A, B `(p + q, p + q)`.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.
    """
    checks.parameter("c", c, 0, 1)
    x, y = _centred(X, Y)
    scale = len(x) - 1
    xx, yy, xy = x.T @ x / scale, y.T @ y / scale, x.T @ y / scale
    auto = torch.block_diag(xx, yy)
    cross = torch.cat((torch.cat((torch.zeros_like(xx), xy), 1), torch.cat((xy.T, torch.zeros_like(yy)), 1)))
    return (1 - c) * auto + cross, (1 - c) * auto + c * torch.eye(len(auto), dtype=auto.dtype, device=auto.device)


def canonical_correlations(X: Tensor, Y: Tensor, *, k: int | None = None) -> Tensor:
    """The canonical correlations ρ_1 >= ρ_2 >= ... in [0, 1]: the cosines of the angles between the column spaces.

    The singular values of Q_xᵀ Q_y, Q orthonormal bases of the centred columns (Björck, Golub 1973). Columns that
    others already span, or that are constant, are no obstacle, nor is n < p.

    Args:
        X: `(n, p)` floating point, n >= 2.
        Y: `(n, q)`.
        k: how many; at most min(p, q), which None stands for. Beyond the smaller rank they are 0.

    Returns:
        `(k,)` float64.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.
    """
    x, y = _centred(X, Y)
    most = min(x.shape[1], y.shape[1])
    k = most if k is None else checks.whole("k", k, 1, most)
    cosines = torch.linalg.svdvals(_basis(x).T @ _basis(y)).clamp_max(1)[:k]
    return torch.nn.functional.pad(cosines, (0, k - len(cosines)))


def _basis(x: Tensor) -> Tensor:
    """An orthonormal basis (n, rank) of the column space."""
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    return u[:, s > max(x.shape) * torch.finfo(x.dtype).eps * s[0]]


def two_views(X: Tensor, Y: Tensor, *, rows: int) -> tuple[Tensor, Tensor]:
    """Both in float64; refuses by name what are not floating-point matrices with as many rows, at least these."""
    for name, value in (("X", X), ("Y", Y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
        if value.dim() != 2 or len(value) < rows or value.shape[1] == 0 or not value.is_floating_point():
            raise ValueError(
                f"{name} must be floating point of shape (n, p) with n >= {rows}, but is {value.dtype} of shape "
                f"{tuple(value.shape)}"
            )
        checks.finite(name, value)
    if len(Y) != len(X):
        raise ValueError(f"Y must have {len(X)} rows, as X has, but has {len(Y)}")
    return X.detach().double(), Y.detach().double()


def _centred(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = two_views(X, Y, rows=2)
    return x - x.mean(dim=0), y - y.mean(dim=0)


def _symmetric(name: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    if value.dim() != 2 or value.shape[0] != value.shape[1] or value.numel() == 0 or not value.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape (p, p), but is {value.dtype} of shape {tuple(value.shape)}"
        )
    checks.finite(name, value)
    gap = float((value - value.T).detach().abs().max())
    if gap > 1e-5 * float(value.detach().abs().max()):
        raise ValueError(f"{name} must be symmetric, but differs from its transpose by {gap:g}")
    return value.detach().double()
