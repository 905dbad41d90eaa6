"""Mixup: training on convex combinations of examples and of their labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lossbook import checks


def mixup(
    x: Tensor, y: Tensor, *, alpha: float = 1.0, points: int = 2, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each example, and its label, with other examples of the batch.

        x~_i = sum_m l_im x_{s_m(i)},    y~_i = sum_m l_im y_{s_m(i)},    l_i ~ Dirichlet(alpha, ..., alpha)

    s_1(i) = i; the other partners come from a random permutation of the batch each. With two points l_i1 is
    Beta(alpha, alpha). points = d + 1 is d-Mixup. alpha -> 0 leaves single examples, alpha -> infinity averages.

    Args:
        x: `(N, ...)` floating point.
        y: `(N, K)` floating point: one-hot labels or probabilities.
        alpha: > 0.
        points: examples in a mixture, at least 2.
        generator: where the weights and the partners come from; it moves on.

    Returns:
        x~ and y~ in the shapes and dtypes of x and y. y~ is a target for a loss of soft labels.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz 2018 (arXiv 1710.09412); with more points Chidambaram and Ge 2023 (arXiv
        2306.00740).
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(value).__name__}")
    if x.dim() == 0 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"x must be floating point of shape (N, ...), but is {x.dtype} of shape {tuple(x.shape)}")
    if y.dim() != 2 or len(y) != len(x) or not y.is_floating_point():
        raise ValueError(
            f"y must be floating point of shape ({len(x)}, K), one-hot labels or probabilities, "
            f"but is {y.dtype} of shape {tuple(y.shape)}"
        )
    checks.parameter("alpha", alpha, 0, open_low=True)
    points = checks.whole("points", points, 2)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, but is {type(generator).__name__}")
    # torch has no Dirichlet that takes a generator.
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    shares = torch.from_numpy(np.random.default_rng(int(seed)).dirichlet([float(alpha)] * points, len(x))).to(x.device)
    partners = [torch.randperm(len(x), generator=generator, device=generator.device) for _ in range(points - 1)]
    mixed = []
    for rows in (x, y):
        share = shares.to(rows.dtype).view(len(x), points, *[1] * (rows.dim() - 1))
        mixed.append(share[:, 0] * rows + sum(share[:, m + 1] * rows[s.to(x.device)] for m, s in enumerate(partners)))
    return mixed[0], mixed[1]
