"""Weighted ensembles of quantile regressors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lossbook import checks

_KINDS = ("average", "coarse", "medium", "fine")


class QuantileAggregator(nn.Module):
    """Combines the quantiles of p models at m levels, with weights that are learned by the pinball loss.

        average   g_l = (1/p) Σ_j g_jl
        coarse    g_l = Σ_j w_j g_jl               w on the simplex over models
        medium    g_l = Σ_j w_jl g_jl              for each level l a simplex over models
        fine      g_l = Σ_j Σ_k w_jkl g_jk         for each level l a simplex over models and levels

    w = softmax(θ), with θ = 0 at first: all weights are equal, so that coarse and medium start as the average; fine
    starts with the same number, the mean over models and levels, at every level. With `in_features` the weights are
    local: θ = θ(x) is the output of a network with ELU after its hidden layers, whose last layer starts at 0.

    Average and coarse keep quantiles in order where all models do; medium and fine may cross, see
    `losses.crossing_penalty` and `theory.isotonic_sort`. Fit on predictions of models that did not see the rows.

    Args:
        kind: "average" (nothing to learn), "coarse", "medium" or "fine".
        num_models: p, at least 1.
        num_levels: m, at least 1.
        in_features: entries of x for local weights; None for weights that are the same everywhere.
        hidden: widths of the hidden layers of the network for local weights.

    Shapes: pred (N, p, m), x (N, in_features), output (N, m) in pred's dtype. `weights(x)` is (p,) of "average" and
    "coarse", (p, m) of "medium" and (p, m, m) of "fine", its last axis the level aggregated for; with (N, …) in front
    where local.

    Raises:
        ValueError: an argument is out of its range, "average" with `in_features`, or an input has another shape.

    Source: Fakoor et al. 2023 (arXiv 2103.00083) and its code: global and local, coarse, medium and fine.
    """

    def __init__(
        self,
        kind: str,
        num_models: int,
        num_levels: int,
        *,
        in_features: int | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, but is {kind!r}")
        self.kind = kind
        self.num_models = checks.whole("num_models", num_models, 1)
        self.num_levels = checks.whole("num_levels", num_levels, 1)
        p, m = self.num_models, self.num_levels
        self.shape = {"average": (p,), "coarse": (p,), "medium": (p, m), "fine": (p, m, m)}[kind]
        self.in_features = None
        if in_features is None:
            theta = torch.zeros(self.shape)
            if kind == "average":
                self.register_buffer("theta", theta)
            else:
                self.theta = nn.Parameter(theta)
            return
        if kind == "average":
            raise ValueError("in_features must be None for the average, which has no weights to learn")
        self.in_features = checks.whole("in_features", in_features, 1)
        widths = [self.in_features, *(checks.whole(f"hidden[{i}]", width, 1) for i, width in enumerate(hidden))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ELU()]
        last = nn.Linear(widths[-1], math.prod(self.shape))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def weights(self, x: Tensor | None = None) -> Tensor:
        """The weights, at least 0; those of one aggregated level sum to 1. Shapes as above."""
        if self.in_features is None:
            if x is not None:
                raise ValueError("x must be None: these weights are the same everywhere")
            theta = self.theta
        else:
            if x is None or x.dim() != 2 or x.shape[1] != self.in_features:
                got = "is None" if x is None else f"has shape {tuple(x.shape)}"
                raise ValueError(f"x must have shape (N, {self.in_features}), but {got}")
            theta = self.network(x).unflatten(1, self.shape)
        if self.kind == "fine":
            first = theta.dim() - 3
            return theta.flatten(first, first + 1).softmax(dim=first).unflatten(first, self.shape[:2])
        return theta.softmax(dim=theta.dim() - len(self.shape))

    def forward(self, pred: Tensor, x: Tensor | None = None) -> Tensor:
        """Aggregated quantiles, (N, m)."""
        if pred.dim() != 3 or tuple(pred.shape[1:]) != (self.num_models, self.num_levels):
            raise ValueError(
                f"pred must have shape (N, {self.num_models}, {self.num_levels}), but has shape {tuple(pred.shape)}"
            )
        w = self.weights(x)
        if self.in_features is not None and len(w) != len(pred):
            raise ValueError(f"x has {len(w)} rows, but pred has {len(pred)}")
        row = "n" if self.in_features is not None else ""
        model = {"average": "j", "coarse": "j", "medium": "jl", "fine": "jkl"}[self.kind]
        level = "k" if self.kind == "fine" else "l"
        return torch.einsum(f"nj{level},{row}{model}->nl", pred, w.to(pred.dtype))
