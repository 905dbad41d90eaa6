"""Training targets that are probabilities: what happened to the samples that the network takes to be alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossbook import checks
from lossbook.metrics._inputs import as_unit_interval

# Entries of the (rows, 2 window) arrays that are worked on at a time.
_CHUNK = 2**22


def cape_targets(
    probs: Any,
    target: Any,
    *,
    kind: str = "bin",
    n_bins: int = 10,
    sigma: float = 0.1,
    window: int = 500,
) -> Tensor:
    """CaPE's targets: the observed frequency of the event among the samples of similar predicted probability.

    The samples are sorted by probability (ties keep their order), p_1 <= ... <= p_N. Then

        kind="bin":  t_i = mean of y over the group of i; group b holds the places [int(b N/B), int((b + 1) N/B))
        kind="kde":  t_i = sum_j w_ij y_j / sum_j w_ij,  w_ij = exp(-(p_j - p_i)^2 / (2 sigma^2)),  j in [i - W, i + W)

    One bin gives everyone the base rate, N bins give y back. Compute the probabilities on the whole training split in
    evaluation mode, not on a batch. An epoch on these targets minimises the binary cross-entropy
    -mean[t log p + (1 - t) log(1 - p)], t constant; it alternates with epochs on y.

    Args:
        probs: `(N,)` floating point, predicted probability of the event, in [0, 1]. Tensor or array.
        target: `(N,)` outcomes 0 and 1.
        kind: "bin" or "kde".
        n_bins: B, from 1 to N; only of "bin".
        sigma: > 0, in units of probability; only of "kde".
        window: W >= 1 neighbours to either side; only of "kde". Time O(N W), memory O(N).

    Returns:
        `(N,)` in the order and dtype of probs, in [0, 1], without gradient.

    Raises:
        ValueError: an argument is refused, by name.

    Source: Liu, Kaku, Zhu et al. 2022 (arXiv 2111.10734); grouping and window as in the authors' code.
    """
    if kind not in ("bin", "kde"):
        raise ValueError(f"kind must be 'bin' or 'kde', but is {kind!r}")
    p = as_unit_interval("probs", probs)
    y = as_unit_interval("target", target, p)
    if checks.can_read(y) and bool((bad := (y != 0) & (y != 1)).any()):
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"target must hold 0 and 1, but target[{row}] is {y[row].item():g}")
    n_bins, window = checks.whole("n_bins", n_bins, 1), checks.whole("window", window, 1)
    checks.parameter("sigma", sigma, 0, open_low=True)
    if kind == "bin" and n_bins > len(p):
        raise ValueError(f"n_bins must be at most the number of samples, {len(p)}, but is {n_bins}")
    ranked, order = p.double().sort(stable=True)
    outcome = y.double()[order]
    found = _group_means(outcome, n_bins) if kind == "bin" else _kernel_means(ranked, outcome, sigma, window)
    return torch.empty_like(found).scatter(0, order, found).to(p.dtype)


def _group_means(y: Tensor, n_bins: int) -> Tensor:
    edges = torch.arange(n_bins + 1, device=y.device) * len(y) // n_bins
    sizes = edges.diff()
    running = torch.cat((y.new_zeros(1), y.cumsum(0)))
    return (running[edges].diff() / sizes).repeat_interleave(sizes)


def _kernel_means(p: Tensor, y: Tensor, sigma: float, window: int) -> Tensor:
    window = min(window, len(p))
    # A neighbour beyond either end is infinitely far away and weighs 0.
    sides = (window, window - 1)
    near_p = torch.nn.functional.pad(p, sides, value=float("inf")).unfold(0, 2 * window, 1)
    near_y = torch.nn.functional.pad(y, sides).unfold(0, 2 * window, 1)
    rows = max(1, _CHUNK // (2 * window))
    means = []
    for center, some_p, some_y in zip(p.split(rows), near_p.split(rows), near_y.split(rows), strict=True):
        w = torch.exp(-((some_p - center[:, None]) / sigma).square() / 2)
        means.append((w * some_y).sum(dim=1) / w.sum(dim=1))
    return torch.cat(means)
