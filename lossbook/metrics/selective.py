"""Selective prediction: how well the confidence says which predictions to trust.

A model that answers only where it is most confident covers part of the data (coverage) and errs on part of that
(risk). Only the order of the confidences counts, so any score serves: a probability, a margin, a negative entropy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics._inputs import as_tensor, as_unit_interval


class RiskCoverage(NamedTuple):
    """The risk-coverage curve, from the most confident sample alone to all of them."""

    coverage: np.ndarray  #: (N,) j/N, the share of samples kept
    risk: np.ndarray  #: (N,) mean loss of the j most confident samples


def risk_coverage(confidence: Any, correct: Any) -> RiskCoverage:
    """risk(j) = (1/j) Σ of 1 - a_i over the j most confident samples, at coverage j/N.

    Of equal confidences nothing says which comes first: there, the risk is its mean over all orders.

    Args:
        confidence: (N,) finite scores, larger for more confident; they need not be probabilities.
        correct: (N,) outcomes a_i: booleans, or numbers in [0, 1].

    Returns:
        RiskCoverage of NumPy arrays.

    Raises:
        ValueError: unequal lengths, no samples, a score that is not finite, an outcome outside [0, 1].

    Source: El-Yaniv, Wiener 2010; Geifman, El-Yaniv 2017.
    """
    risk = _risk(*_scores(confidence, correct))
    steps = np.arange(1, len(risk) + 1)
    return RiskCoverage(steps / len(risk), risk.cpu().numpy())


def aurc(confidence: Any, correct: Any) -> float:
    """Area under the risk-coverage curve: (1/N) Σ_j risk(j), in [0, 1]. Small is good.

    Args, Raises: as `risk_coverage`.

    Source: Geifman, Uziel, El-Yaniv 2019, Bias-Reduced Uncertainty Estimation.
    """
    return float(_risk(*_scores(confidence, correct)).mean())


def eaurc(confidence: Any, correct: Any) -> float:
    """Excess AURC: `aurc` minus that of the best order of the same outcomes.

    That is, for n_e errors, AURC* = (1/N) Σ_{m=1}^{n_e} m/(N - n_e + m).

    At least 0, and 0 where every error is less confident than every success: what is left of AURC when the accuracy is
    taken out. Public code often has r + (1-r) log(1-r), r = n_e/N, in the place of AURC*: its limit for large N.

    Args, Raises: as `risk_coverage`.

    Source: Geifman, Uziel, El-Yaniv 2019.
    """
    scores, loss = _scores(confidence, correct)
    return float((_risk(scores, loss) - _risk(-loss, loss)).mean().clamp_min(0))


def _scores(confidence: Any, correct: Any) -> tuple[Tensor, Tensor]:
    """(N,) scores and (N,) float64 losses 1 - a."""
    scores = as_tensor("confidence", confidence)
    if scores.dim() != 1 or len(scores) == 0:
        raise ValueError(f"confidence must have shape (N,) with N of at least 1, but has shape {tuple(scores.shape)}")
    checks.finite("confidence", scores)
    return scores, 1 - as_unit_interval("correct", correct, like=scores).to(torch.float64)


def _risk(scores: Tensor, loss: Tensor) -> Tensor:
    """(N,) risk(j), each group of equal scores with its mean loss."""
    scores, order = scores.sort(descending=True)
    group = torch.zeros_like(order)
    group[1:] = (scores[1:] != scores[:-1]).cumsum(dim=0)
    count = torch.bincount(group)
    total = torch.zeros_like(count, dtype=torch.float64).index_add_(0, group, loss[order])
    steps = torch.arange(1, len(loss) + 1, dtype=torch.float64, device=loss.device)
    return (total / count)[group].cumsum(dim=0) / steps
