"""Putting predicted quantiles in order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook import checks


def isotonic_sort(pred: Any, *, method: str = "sort") -> Tensor:
    """Quantiles in the order of their levels, row by row: by sorting, or the closest non-decreasing sequence.

    "sort" puts each row's numbers in increasing order. "isotonic" is the projection argmin_s Σ_l (s_l - g_l)² over
    s_1 ≤ … ≤ s_m, which is s_l = max_{a ≤ l} min_{b ≥ l} mean(g_a, …, g_b): where levels cross, their mean. Rows in
    order stay as they are.

    For both, and every y, Σ_l ρ_{τ_l}(y - s_l) ≤ Σ_l ρ_{τ_l}(y - g_l) with ρ the pinball loss and increasing levels τ:
    putting quantiles in order never worsens a row's total. A single level may get worse.

    Differentiable almost everywhere in pred. Memory O(N m); time O(N m log m) for "sort", O(N m²) for "isotonic".

    Args:
        pred: (N, m) quantiles g, the columns in increasing order of their levels. Torch or NumPy.
        method: "sort" or "isotonic".

    Returns:
        (N, m) tensor s of pred's dtype.

    Raises:
        ValueError: not a floating-point matrix, empty, NaN or infinity, another method.

    Source: Fakoor et al. 2023 (arXiv 2103.00083), post sorting and post isotonic regression; sorting: Chernozhukov,
    Fernández-Val, Galichon 2010. Max-min formula: Robertson, Wright, Dykstra 1988.
    """
    g = torch.as_tensor(pred)
    if g.dim() != 2 or not g.is_floating_point() or not g.numel():
        raise ValueError(
            f"pred must be floating point of shape (N, m), not empty, but is {g.dtype} of shape {tuple(g.shape)}"
        )
    checks.finite("pred", g)
    if method == "sort":
        return g.sort(dim=1).values
    if method != "isotonic":
        raise ValueError(f"method must be 'sort' or 'isotonic', but is {method!r}")
    m = g.shape[1]
    ordered = torch.full_like(g, -torch.inf)
    for a in range(m):
        means = g[:, a:].cumsum(dim=1) / torch.arange(1, m - a + 1, dtype=g.dtype, device=g.device)
        least = means.flip(1).cummin(dim=1).values.flip(1)  # over b >= l
        ordered = torch.cat((ordered[:, :a], torch.maximum(ordered[:, a:], least)), dim=1)
    return ordered
