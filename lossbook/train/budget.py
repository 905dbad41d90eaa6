"""`budget_sweep`: what is a budget for labels best spent on, many cheap ones that are often wrong or few right ones?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossbook import checks
from lossbook.train.settings import check_labels, examples, real

if TYPE_CHECKING:
    from pandas import DataFrame

_STEPS = 50  # of Newton's method, damped; it ends after 5 to 10
_ROWS = 2**22  # entries of the largest matrix that is held at once


def budget_sweep(
    data: Any,
    *,
    budgets: Sequence[float],
    costs: Sequence[float],
    accuracies: Sequence[float],
    weak_shares: Sequence[float] = (0.0, 0.5, 1.0),
    seeds: Sequence[int] = tuple(range(10)),
    ridge: float = 1.0,
    pull: float = 30.0,
) -> DataFrame:
    """Buy labels for a budget, fit a logistic regression on them, and test it on true labels.

    A right label costs 1, a weak one w. Of the budget B the share s goes to weak labels and the rest to right ones:

        n_weak = ⌊s B / w⌋,    n_right = ⌊(1 - s) B⌋

    A weak label is right with probability a, whatever the question. First the classifier learns from the weak labels,
    then from the right ones, starting at what it has learned:

        θ_weak = argmin_θ Σ_weak log(1 + exp(-±θ·x)) + (ridge/2) |θ|²
        θ      = argmin_θ Σ_right log(1 + exp(-±θ·x)) + (pull/2) |θ - θ_weak|²

    The pull stands for fine-tuning that stops early: it keeps θ near where it starts. Without weak labels θ_weak is 0
    and the ridge takes the place of the pull; without right ones θ is θ_weak. x has a constant appended, which is held
    like any other feature. The rows of a seed are drawn without replacement, weak ones from the front and right ones
    from the back of one permutation, so that larger budgets hold the labels of smaller ones, and weak labels of a
    higher accuracy err on a part of the rows of a lower one.

    Args:
        data: `.train` and `.test` of (x, y): x (N, d) floating point, y (N,) int64 of 0 and 1, the true labels.
        budgets: B, each at least 1.
        costs: w of a weak label, in (0, 1].
        accuracies: a of weak labels, in [0, 1].
        weak_shares: s in [0, 1].
        seeds: of the rows bought and of the errors in weak labels.
        ridge: strength of the pull towards 0, above 0.
        pull: strength of the pull towards θ_weak, above 0. Weak, the right labels forget the weak ones; strong, they
            change nothing.

    Returns:
        DataFrame, a row per combination: budget, cost, accuracy, weak_share, seed, n_weak, n_right, test_accuracy. A
        score of exactly 0 is the class 0.

    Raises:
        ValueError: an argument is out of its range, or a budget buys more labels than there are rows.

    Source: the question of Mallen and Belrose 2024 (arXiv 2410.13215), who fine-tune language models instead.
    """
    import pandas as pd

    x, y = _split(data, "train")
    x_test, y_test = _split(data, "test")
    if x.shape[1] != x_test.shape[1]:
        raise ValueError(f"train.x has {x.shape[1] - 1} features, but test.x has {x_test.shape[1] - 1}")
    limits = {"budgets": (budgets, 1, math.inf), "costs": (costs, 1e-9, 1), "accuracies": (accuracies, 0, 1)}
    for name, (values, low, high) in (limits | {"weak_shares": (weak_shares, 0, 1)}).items():
        for value in values:
            checks.parameter(name, value, low, high)
    real("ridge", ridge, positive=True)
    real("pull", pull, positive=True)
    rows = list(product(budgets, costs, accuracies, weak_shares, seeds))
    # A budget over a cost such as 3/0.1 may fall just short of the whole number that it is.
    counts = torch.tensor(
        [(math.floor(s * b / w + 1e-9), math.floor((1 - s) * b + 1e-9)) for b, w, _, s, _ in rows]
    ).view(-1, 2)
    for (budget, cost, _, share, _), count in zip(rows, counts.sum(dim=1).tolist(), strict=True):
        if count > len(x):
            raise ValueError(
                f"a budget of {budget:g} with the share {share:g} for weak labels of cost {cost:g} buys {count} "
                f"labels, but there are {len(x)} rows"
            )
    draws = {seed: _draw(len(x), seed) for seed in seeds}
    found = []
    for part in range(0, len(rows), step := max(1, _ROWS // len(x))):
        chunk = slice(part, part + step)
        place = torch.stack([draws[row[-1]][0] for row in rows[chunk]])
        luck = torch.stack([draws[row[-1]][1] for row in rows[chunk]])
        accuracy = torch.tensor([row[2] for row in rows[chunk]])[:, None]
        n_weak, n_right = counts[chunk, :1], counts[chunk, 1:]
        weak_y = torch.where(luck < accuracy, y, 1 - y)
        theta = torch.zeros(len(place), x.shape[1], dtype=x.dtype)
        strength = torch.full((len(place), 1), ridge, dtype=x.dtype)
        theta = _fit(x, weak_y, (place < n_weak).to(x.dtype), theta, strength)
        strength[n_weak > 0] = pull
        theta = _fit(x, y.expand_as(place), (place >= len(x) - n_right).to(x.dtype), theta, strength)
        found.append(((theta @ x_test.T > 0) == (y_test > 0)).double().mean(dim=1))
    table = pd.DataFrame(rows, columns=["budget", "cost", "accuracy", "weak_share", "seed"])
    table["n_weak"], table["n_right"] = counts.T.numpy()
    return table.assign(test_accuracy=torch.cat(found).numpy())


def _split(data: Any, name: str) -> tuple[Tensor, Tensor]:
    """Features with a constant appended and labels, in float64."""
    x, y = examples(data, name, torch.device("cpu"))
    check_labels(f"{name}.y", y, 2)
    return torch.cat([x.flatten(1), x.new_ones(len(x), 1)], dim=1).double(), y.double()


def _draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Each row's place in the order of buying, and the luck of its weak label, both (n,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator), torch.rand(n, generator=generator)


def _fit(x: Tensor, y: Tensor, weight: Tensor, start: Tensor, strength: Tensor) -> Tensor:
    """argmin_θ Σ_i weight_i log(1 + exp(-±θ·x_i)) + (strength/2) |θ - start|², (R, d), for R fits at once.

    y and weight are (R, N), strength (R, 1). Newton's method; where a step does not lower the objective, it is halved.
    """

    def objective(theta: Tensor) -> Tensor:
        z = theta @ x.T
        loss = (weight * torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")).sum(dim=1)
        return loss + strength[:, 0] / 2 * (theta - start).square().sum(dim=1)

    theta, value = start, objective(start)
    n, d = x.shape
    squares = (x[:, :, None] * x[:, None, :]).view(n, d * d)
    eye = strength[:, :, None] * torch.eye(d, dtype=x.dtype)
    for _ in range(_STEPS):
        p = torch.sigmoid(theta @ x.T)
        gradient = (weight * (p - y)) @ x + strength * (theta - start)
        if gradient.abs().max() < 1e-8:
            return theta
        curvature = ((weight * p * (1 - p)) @ squares).view(-1, d, d) + eye
        step = torch.linalg.solve(curvature, gradient)
        size = torch.ones(len(theta), 1, dtype=x.dtype)
        for _ in range(10):
            worse = objective(theta - size * step) > value + 1e-12 * value.abs()
            if not worse.any():
                break
            size[worse] /= 2
        theta = theta - size * step
        value = objective(theta)
    return theta
