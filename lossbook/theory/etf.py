"""Frames: K vectors as far apart as K vectors can be, and K orthogonal ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def simplex_etf(
    num_classes: int, dim: int, *, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A simplex equiangular tight frame: K unit vectors with m_j · m_k = -1/(K-1) for j ≠ k, in a random orientation.

    No K unit vectors have a smaller largest cosine. E = √(K/(K-1)) V Qᵀ, where the columns of V (K, K-1) are an
    orthonormal basis of the vectors whose entries sum to 0, and Q (d, K-1) has random orthonormal columns. Gram
    matrix (K I - J)/(K-1) with J all ones; the rows sum to 0. For K = 2: ±v.

    Args:
        num_classes: K, at least 2.
        dim: d, at least K - 1.
        generator: source of the orientation; torch's global one if None.
        dtype: of the result; the construction is in float64.

    Returns:
        (K, d), a vector a row.

    Raises:
        ValueError: K < 2 or d < K - 1.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, but is {num_classes}")
    if dim < num_classes - 1:
        raise ValueError(f"dim must be at least num_classes - 1 = {num_classes - 1}, but is {dim}")
    centring = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    basis = torch.linalg.qr(centring[:, :-1]).Q
    directions = _orthonormal_columns(dim, num_classes - 1, generator)
    return ((num_classes / (num_classes - 1)) ** 0.5 * basis @ directions.T).to(dtype)


def orthogonal_frame(
    lengths: Sequence[float] | Any,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """K mutually orthogonal vectors of given lengths, in a random orientation.

    Args:
        lengths: K numbers, at least 0.
        dim: d, at least K.
        generator, dtype: as in `simplex_etf`.

    Returns:
        (K, d), a vector a row.

    Raises:
        ValueError: d < K, no lengths, or a length that is negative or not finite.
    """
    length = torch.as_tensor(lengths, dtype=torch.float64)
    if length.dim() != 1 or len(length) == 0:
        raise ValueError(f"lengths must be K numbers, but have shape {tuple(length.shape)}")
    if not bool((torch.isfinite(length) & (length >= 0)).all()):
        raise ValueError(f"lengths must be finite and not negative, but are {length.tolist()}")
    if dim < len(length):
        raise ValueError(f"dim must be at least {len(length)}, the number of lengths, but is {dim}")
    return (length[:, None] * _orthonormal_columns(dim, len(length), generator).T).to(dtype)


def _orthonormal_columns(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """(rows, columns), uniform over all such matrices: the sign of R's diagonal is what QR leaves open."""
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))
