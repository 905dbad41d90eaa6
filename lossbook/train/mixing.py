"""Mixup: training on convex combinations of examples and of their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lossbook import checks
from lossbook.losses import cross_entropy
from lossbook.train.loop import fit
from lossbook.train.settings import function

if TYPE_CHECKING:
    from pandas import DataFrame


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


def fit_mixup(
    model: nn.Module,
    data: Any,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    *,
    alpha: float = 1.0,
    mixtures: int = 1,
    **settings: Any,
) -> DataFrame:
    """Train a network on examples and on mixtures of them, made anew in every step.

    Each step minimises loss(logits, mixup_logits, target, mixup_target) over a batch of B examples, where the mixtures
    are those of `mixup`: `losses.calibration.rankmixup_mrl` for example. Mixup itself takes the cross-entropy of
    mixup_logits to mixup_target and leaves the other two. Evaluation is cross-entropy on the examples alone.

    Args:
        model, data: as for `fit`.
        loss: its arguments are `(B, K)`, `(J B, K)`, integer `(B,)` and `(J B, K)`; mixture after mixture, so that row
            j B + i is mixture j of example i. Returns a scalar. No argument is detached.
        alpha: of the Beta distribution of the shares, > 0.
        mixtures: J >= 1 of each example.
        settings: what else `fit` takes, by name. Its seed decides the mixtures too.

    Returns, Raises: as `fit`.

    Source: the training loops of Zhang, Cisse, Dauphin, Lopez-Paz 2018 (arXiv 1710.09412) and of Noh, Park, Lee, Ham
        2023 (arXiv 2308.11990). Here each row has a share of its own; the authors' code draws one for the batch.
    """
    function("loss", loss)
    checks.parameter("alpha", alpha, 0, open_low=True)
    mixtures = checks.whole("mixtures", mixtures, 1)

    def objective(logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None:
            return cross_entropy(logits, target)
        x = data.train[0].to(logits.device)[index]
        y = nn.functional.one_hot(target, logits.shape[1]).to(x.dtype)
        # The global generator, because `fit` seeds it and keeps its state in checkpoints.
        pairs = [mixup(x, y, alpha=alpha, generator=torch.default_generator) for _ in range(mixtures)]
        mixed_x, mixed_y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return loss(logits, model(mixed_x), target, mixed_y)

    return fit(model, data, objective, **settings)
