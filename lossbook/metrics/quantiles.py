"""How good predicted quantiles are: the score that adds up their intervals, and how often the outcome lies below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses.regression import pinball
from lossbook.metrics._inputs import as_matrix, as_tensor, finite_chunks


def weighted_interval_score(pred: Any, target: Any, *, quantiles: Sequence[float] | Tensor) -> float:
    """Twice the mean pinball loss over rows and levels: WIS = (2/m) Σ_l mean_i ρ_{τ_l}(y_i - g_l(x_i)).

    For levels that are symmetric about 1/2 it is the usual form. With K central intervals [l, u] of coverage 1 - α
    (levels α/2 and 1 - α/2) and the median g, where m = 2K + 1:

        WIS = ( |y - g|/2 + Σ_k (α_k/2) [ (u - l) + (2/α_k)(l - y)_+ + (2/α_k)(y - u)_+ ] ) / (K + 1/2)

    Without a median its term is left out and the divisor is K. In the unit of y, at least 0, lower is better; a proper
    score. With more and more levels it becomes the continuous ranked probability score.

    Args:
        pred: (N, m) quantiles g, a column a level. Torch or NumPy.
        target: (N,) outcomes y.
        quantiles: m levels in (0, 1), in the order of the columns.

    Returns:
        A number, computed in float64.

    Raises:
        ValueError: shapes that do not fit, no rows, NaN or infinity, a level outside (0, 1).

    Source: Bracher, Ray, Gneiting, Reich 2021 (arXiv 2005.12881), equations 1 to 3; Fakoor et al. 2023 (arXiv
    2103.00083).
    """
    pred, target = _predictions(pred, target)
    total = 0.0
    for rows, chunk in finite_chunks("pred", pred):
        levels = torch.as_tensor(quantiles, dtype=torch.float64)
        total += float(pinball(chunk.double(), target[rows].double(), quantiles=levels, reduction="sum"))
    return 2 * total / pred.numel()


def quantile_coverage(pred: Any, target: Any) -> np.ndarray:
    """For each level, how often the outcome is at most the predicted quantile: (1/N) #{i: y_i ≤ g_l(x_i)}.

    Right quantiles of a continuous outcome give τ_l. The difference of two columns that do not cross is the coverage of
    the interval between them, its lower end left out.

    Args:
        pred: (N, m) quantiles g, a column a level; -inf and inf are welcome. Torch or NumPy.
        target: (N,) outcomes y.

    Returns:
        (m,) float64 array of numbers in [0, 1].

    Raises:
        ValueError: shapes that do not fit, no rows, NaN, an infinite outcome.
    """
    pred, target = _predictions(pred, target)
    if checks.can_read(pred) and (bad := torch.isnan(pred)).any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"pred[{row}, {column}] is NaN")
    # Compared in the wider of the two types: float64 outcomes are not rounded to float32 predictions.
    return (target[:, None] <= pred).sum(dim=0).cpu().numpy() / len(pred)


def _predictions(pred: Any, target: Any) -> tuple[Tensor, Tensor]:
    pred, target = as_matrix("pred", pred, "(N, m)"), as_tensor("target", target)
    if target.shape != pred.shape[:1] or target.is_complex():
        raise ValueError(
            f"target must have shape ({len(pred)},), a number a row of pred, but has shape {tuple(target.shape)}"
        )
    checks.finite("target", target)
    return pred, target.to(pred.device)
