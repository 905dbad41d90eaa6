"""Binning, shared by the calibration functions and their streaming classes.

What is known of a bin is a column of a (3, B) float64 tensor of sums: how many samples, the sum of their
confidences, the sum of their outcomes (1 for a correct prediction). Sums of two data sets add up to the sums of
both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossbook import checks


def check_bins(n_bins: int) -> None:
    checks.whole("n_bins", n_bins, 1)


def check_choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(repr(a) for a in allowed)}, but is {value!r}")


def uniform_edges(n_bins: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """B + 1 edges. Each is rounded once, so the edges of B bins are exactly among those of 2B."""
    return low + (high - low) * (torch.arange(n_bins + 1, dtype=torch.float64) / n_bins)


def uniform_index(values: Tensor, n_bins: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The bin of each value: (lo, hi], the first closed on the left."""
    # The edges are rounded like the values, so that a float32 0.7 lies on the edge 0.7 as a float64 0.7 does.
    edges = uniform_edges(n_bins, low, high)[1:-1].to(values.dtype).to(torch.float64)
    values = values.to(torch.float64)
    if values.device.type == "cpu":
        # torch's bucketize wakes its threads even for a few numbers, which on a busy machine costs more than it saves.
        return torch.from_numpy(np.searchsorted(edges.numpy(), values.numpy()))
    return torch.bucketize(values, edges.to(values.device))


def sums_by_index(index: Tensor, confidence: Tensor, outcome: Tensor, n_bins: int) -> Tensor:
    rows = torch.stack((torch.ones_like(confidence, dtype=torch.float64), confidence, outcome))
    return torch.zeros(3, n_bins, dtype=torch.float64, device=rows.device).index_add_(1, index, rows)


def uniform_sums(confidence: Tensor, outcome: Tensor, n_bins: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """(3, B) sums over bins of equal width."""
    return sums_by_index(uniform_index(confidence, n_bins, low, high), confidence, outcome, n_bins)


def equal_mass_sums(confidence: Tensor, outcome: Tensor, n_bins: int) -> Tensor:
    """(3, B) sums over bins of equal mass: sort, split into B groups whose sizes differ by at most one, lose nobody."""
    return split_equally(sorted_events(confidence, outcome), n_bins)


def sorted_events(confidence: Tensor, outcome: Tensor) -> Tensor:
    """(3, N) columns of one, confidence and outcome, in the order of the confidences."""
    order = torch.argsort(confidence, stable=True)
    return torch.stack((torch.ones_like(confidence, dtype=torch.float64), confidence, outcome))[:, order]


def split_equally(rows: Tensor, n_bins: int) -> Tensor:
    """(3, B) sums over B groups of neighbouring columns."""
    return torch.stack([group.sum(dim=1) for group in rows.tensor_split(n_bins, dim=1)], dim=1)


def equal_mass_from_fine(fine: Tensor, n_bins: int) -> Tensor:
    """(3, B) sums over bins of equal mass, from the (3, F) sums of a fine histogram.

    A fine bin that crosses a boundary is shared out in proportion; where no fine bin does, the result is exact.
    """
    start = torch.zeros(3, 1, dtype=fine.dtype, device=fine.device)
    cumulative = torch.cat((start, fine[:, fine[0] > 0].cumsum(dim=1)), dim=1)
    total = cumulative[0, -1]
    small, larger = divmod(int(total), n_bins)
    sizes = torch.full((n_bins,), float(small), dtype=fine.dtype, device=fine.device)
    sizes[:larger] += 1
    cut = torch.cat((start[0], sizes.cumsum(dim=0)))
    right = torch.searchsorted(cumulative[0].contiguous(), cut).clamp(1, cumulative.shape[1] - 1)
    left = right - 1
    share = (cut - cumulative[0, left]) / (cumulative[0, right] - cumulative[0, left])
    return (cumulative[:, left] + share * (cumulative[:, right] - cumulative[:, left])).diff(dim=1)


def gaps(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, accuracy, accuracy - mean confidence) of the bins that hold samples."""
    count, confidence, outcome = sums[:, sums[0] > 0]
    return count, outcome / count, (outcome - confidence) / count


def squared_error(sums: Tensor, debias: bool) -> Tensor:
    """Σ_b (n_b/N) gap_b², or its debiased and signed estimate; see `calibration.squared_calibration_error`."""
    count, accuracy, gap = gaps(sums)
    total = count.sum()
    if not debias:
        return (count * gap.square()).sum() / total
    keep = count >= 2
    noise = accuracy * (1 - accuracy) / (count - 1)
    return (count * (gap.square() - noise))[keep].sum() / total


def maximum_error(sums: Tensor, min_count: int = 1) -> Tensor:
    """max_b |gap_b| over the bins with at least `min_count` samples."""
    count, _, gap = gaps(sums)
    keep = count >= min_count
    if not keep.any():
        raise ValueError(f"no bin holds min_count = {min_count} samples: the fullest holds {int(count.max())}")
    return gap[keep].abs().max()


def calibration_error(sums: Tensor, norm: int, debias: bool = False) -> Tensor:
    """The calibration error of binned predictions; see `calibration.expected_calibration_error`."""
    if norm == 2:
        return squared_error(sums, debias).clamp_min(0).sqrt()
    count, accuracy, gap = gaps(sums)
    error = (count * gap.abs()).sum() / count.sum()
    if not debias:
        return error
    return error - ((count * _mean_absolute_gap(count, accuracy, gap)).sum() / count.sum() - error)


def _mean_absolute_gap(count: Tensor, accuracy: Tensor, gap: Tensor) -> Tensor:
    """E |gap + σ ε| for standard normal ε and σ² = acc (1 - acc)/n: the mean of the folded normal distribution."""
    sigma = (accuracy * (1 - accuracy) / count).clamp_min(0).sqrt()
    z = gap.abs() / sigma  # inf without noise: then the mean is |gap| itself
    folded = sigma * (2 / torch.pi) ** 0.5 * torch.exp(-z.square() / 2) + gap.abs() * torch.erf(z / 2**0.5)
    return torch.where(sigma > 0, folded, gap.abs())
