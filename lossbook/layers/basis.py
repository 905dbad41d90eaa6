"""Orthonormal changes of basis that make room for an old embedding inside a new one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from lossbook import checks


class BasisTransformation(nn.Module):
    """BT²: a new embedding whose first block may imitate an old one, without losing anything of itself.

        u = [e; C P f],    v = Q u_{1..d},    new = [v; u_{d+1..d+a}]

    P and Q are learned orthonormal matrices (d, d), kept so by torch's parametrisation, not by a penalty. The map from
    (f, e) to the new embedding is thus invertible, and |new|² = |e|² + C²|f|² exactly: what v gives up to agree with
    the old space stays readable in the other a coordinates. The old gallery is compared with v, `new[:, :dim]`; padded
    with zeros it may be compared with all of new by cosine, which ranks the gallery the same for every query.

    Normalise f and e to unit length before, not the new embedding after: that would break the identity.

    Args:
        dim: d, of the features f and of the old embedding.
        extra: a, the dimensions added; 0 to dim. The paper takes 32.
        scale: C > 0, how much f counts against e.
        dtype: of P and Q, torch's default if None. A layer that is widened later stays orthonormal to the rounding of
            the type it was made in.

    Shapes: features `(N, dim)` and extra `(N, extra)` -> `(N, dim + extra)`.

    Raises:
        ValueError: an argument is refused.

    Source: Zhou et al. 2022 (arXiv 2211.03989).
    """

    P: Any
    Q: Any

    def __init__(self, dim: int, extra: int, *, scale: float = 3.0, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dim = checks.whole("dim", dim, 1)
        self.extra = checks.whole("extra", extra, 0, dim)
        checks.parameter("scale", scale, 0, open_low=True)
        self.scale = scale
        self.P = orthogonal(nn.Linear(dim, dim, bias=False, dtype=dtype))
        self.Q = orthogonal(nn.Linear(dim, dim, bias=False, dtype=dtype))

    def forward(self, features: Tensor, extra: Tensor) -> Tensor:
        """`(N, dim + extra)`, the compatible block first."""
        _matrix("features", features, self.dim)
        _matrix("extra", extra, self.extra)
        if len(extra) != len(features):
            raise ValueError(f"extra must have {len(features)} rows, as features have, but has {len(extra)}")
        u = torch.cat((extra, self.P(self.scale * features)), dim=1)
        return torch.cat((self.Q(u[:, : self.dim]), u[:, self.dim :]), dim=1)

    def inverse(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The features `(N, dim)` and extra `(N, extra)` that the layer maps to this embedding."""
        _matrix("embedding", embedding, self.dim + self.extra)
        u = torch.cat((embedding[:, : self.dim] @ self.Q.weight, embedding[:, self.dim :]), dim=1)
        return u[:, self.extra :] @ self.P.weight / self.scale, u[:, : self.extra]

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.extra}, scale={self.scale}"


def _matrix(name: str, value: Tensor, columns: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    if value.dim() != 2 or value.shape[1] != columns or not value.is_floating_point():
        raise ValueError(
            f"{name} must be floating point of shape (N, {columns}), but is {value.dtype} of shape {tuple(value.shape)}"
        )
    checks.finite(name, value)
