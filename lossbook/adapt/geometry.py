"""Labels that live in a metric space: predict the point that is nearest to all that the model finds probable."""

from __future__ import annotations

import torch
from torch import Tensor

from lossbook import checks

# Costs that differ by less than this share of the largest possible one are equal, but for rounding.
_TIE = 1e-12
_CHUNK = 2**22  # costs at a time


def frechet_predict(probs: Tensor, distances: Tensor, *, temperature: float | Tensor = 1.0) -> Tensor:
    """Loki: the Frechet mean of the predicted distribution in place of its largest entry.

        prediction_i = argmin over all labels y of sum_k P_ik D(y, lambda_k)^2

    The model knows the K observed labels lambda_k, the answer is one of all m labels: one between two that the model
    hesitates between, though no example of it was ever seen. Where all distances are 1 the answer is the argmax. Of
    labels that cost the same, but for rounding, the first one is taken. Nothing is trained. In float64.

    Args:
        probs: P `(N, K)`, probabilities of the observed labels; not logits.
        distances: D `(m, K)`, from each label to each observed one: at least 0, and not squared. With the observed
            labels' indices in a full matrix this is `full[:, observed]`.
        temperature: T > 0: P^(1/T), normalised, takes the place of P. Below 1 it trusts the largest entry more.

    Returns:
        `(N,)` int64, rows of `distances`.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Roberts et al. 2023 (arXiv 2307.12226) and its code.
    """
    squared = _squared(distances)
    checks.matrix("probs", probs, "(N, K)")
    if probs.shape[1] != squared.shape[1]:
        hint = ": is it transposed?" if probs.shape[1] == len(squared) else ""
        raise ValueError(
            f"distances must have a column for each of the {probs.shape[1]} columns of probs, but have shape "
            f"{tuple(distances.shape)}{hint}"
        )
    checks.parameter("temperature", temperature, 0, open_low=True)
    p = probs.detach().double()
    total = p.sum(dim=1)
    if (bad := ((total - 1).abs() > 1e-2) | (p < 0).any(dim=1)).any():
        row = int(bad.nonzero()[0, 0])
        raise ValueError(f"probs[{row}] is not a probability vector: {probs[row].tolist()}: are these logits?")
    log_p = p.log()
    p = ((log_p - log_p.max(dim=1, keepdim=True).values) / temperature).softmax(dim=1)
    squared = squared.to(p.device)
    tie = _TIE * squared.max()
    predicted = []
    for rows in p.split(max(1, _CHUNK // len(squared))):
        cost = rows @ squared.T
        predicted.append((cost <= cost.min(dim=1, keepdim=True).values + tie).int().argmax(dim=1))
    return torch.cat(predicted)


def locus(distances: Tensor) -> Tensor:
    """Which labels the Frechet mean can reach at all, whatever the model says.

        y is in the locus  <=>  for some probabilities w: sum_k w_k D(y, lambda_k)^2 <= sum_k w_k D(y', lambda_k)^2
        for all labels y'

    The observed labels are in it. In a tree it is all nodes on the paths between observed ones: with the leaves
    observed, every node. On a complete graph it is the observed labels alone. A label that at best ties with another is
    in it, though `frechet_predict` gives the first of the two. Exact: a linear program a label, of K + 1 variables and
    m constraints: 50 labels take a second, 400 take seven.

    Args:
        distances: D `(m, K)`, as for `frechet_predict`.

    Returns:
        `(m,)` bool, on the CPU.

    Raises:
        TypeError, ValueError: distances are refused.

    Source: Roberts et al. 2023 (arXiv 2307.12226), who characterise it for trees and other spaces.
    """
    import numpy as np
    from scipy.optimize import linprog

    squared = _squared(distances).cpu().numpy()
    m, k = squared.shape
    squared = squared / (squared.max() or 1.0)
    # Variables w and t: the largest t by which all other labels cost at least as much. The simplex bounds w.
    simplex = np.append(np.ones(k), 0.0)[None]
    objective = np.append(np.zeros(k), -1.0)
    bounds = [(0, None)] * k + [(None, 1)]
    reachable = np.zeros(m, dtype=bool)
    for y in range(m):
        others = np.delete(squared, y, axis=0)
        rows = np.hstack((squared[y] - others, np.ones((m - 1, 1))))
        best = linprog(objective, A_ub=rows, b_ub=np.zeros(m - 1), A_eq=simplex, b_eq=[1.0], bounds=bounds)
        reachable[y] = -best.fun >= -1e-7  # the solver's tolerance
    return torch.from_numpy(reachable)


def _squared(distances: Tensor) -> Tensor:
    """Squared distances in float64; refuses what is no matrix of numbers >= 0."""
    checks.matrix("distances", distances, "(m, K)")
    d = distances.detach().double()
    if (bad := d < 0).any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"distances must be at least 0, but distances[{row}, {column}] is {d[row, column]:g}")
    return d.square()
