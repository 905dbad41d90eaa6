"""The free-feature model: a network whose last-layer features are variables, one vector for each training sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lossbook import checks


class FreeFeatures(nn.Module):
    """Features h_i, M linear layers on top, no network below: what a network could do at best, if it could do anything.

    objective = data term + Σ_j λ_j/2 |W_j|_F² + λ_H/2 Σ_i |h_i|²,   z_i = W_M ⋯ W_1 h_i + b,

    with the data term (1/2N) Σ_i |z_i - e_{y_i}|² ("mse", e_k the one-hot vector of class k) or (1/N) Σ_i CE(z_i, y_i)
    in nats ("ce"). The bias is not penalised. `lossbook.theory` has its minima in closed form, `lossbook.train.
    fit_free_features` goes there by gradient steps.

    Attributes: `weights`, a ParameterList of W_1 … W_M, (d, d) each but the last, (K, d); `features` (N, d), a
    parameter, classes one after the other; `bias` (K,), a parameter that starts at 0, or None; `target` (N,).

    Args:
        counts: K class sizes n_k ≥ 1, K ≥ 2.
        dim: d, of the features and of every hidden layer.
        depth: M ≥ 1.
        bias: whether the last layer has one.
        weight_decay: λ_j ≥ 0, one number for all layers or M numbers, λ_1 first.
        feature_decay: λ_H ≥ 0; the penalty sums over samples.
        std: standard deviation > 0 of the entries at the start, normal with mean 0.
        generator: source of the start; torch's global one if None.
        dtype: of all parameters.

    Raises:
        ValueError: a size or a number is out of range.

    Source: Dang et al. 2023, Neural Collapse in Deep Linear Networks, and the free-feature literature it names.
    """

    target: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        dim: int,
        depth: int = 1,
        bias: bool = False,
        *,
        weight_decay: float | Sequence[float],
        feature_decay: float,
        std: float = 0.3,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.counts = tuple(checks.whole(f"counts[{k}]", n, 1) for k, n in enumerate(counts))
        if len(self.counts) < 2:
            raise ValueError(f"counts must have two or more classes, but are {list(counts)}")
        checks.whole("dim", dim, 1)
        checks.whole("depth", depth, 1)
        decays = tuple(weight_decay) if isinstance(weight_decay, Sequence) else (weight_decay,) * depth
        if len(decays) != depth:
            raise ValueError(f"weight_decay must be one number or {depth}, one a layer, but is {weight_decay}")
        for decay in decays:
            checks.parameter("weight_decay", decay, 0)
        checks.parameter("feature_decay", feature_decay, 0)
        checks.parameter("std", std, 0, open_low=True)
        self.weight_decay, self.feature_decay = decays, feature_decay

        def start(rows: int) -> nn.Parameter:
            return nn.Parameter(std * torch.randn(rows, dim, generator=generator, dtype=dtype))

        classes = len(self.counts)
        self.weights = nn.ParameterList([start(dim) for _ in range(depth - 1)] + [start(classes)])
        self.features = start(sum(self.counts))
        self.bias = nn.Parameter(torch.zeros(classes, dtype=dtype)) if bias else None
        self.register_buffer("target", torch.arange(classes).repeat_interleave(torch.tensor(self.counts)))

    def product(self) -> Tensor:
        """W_M ⋯ W_1, (K, d): the classifier that the layers amount to."""
        return product_of(list(self.weights))

    def layer_features(self) -> list[Tensor]:
        """(N, d) inputs of W_1 … W_M: the features, and what each layer but the last makes of them."""
        return list(itertools.accumulate(list(self.weights)[:-1], lambda h, w: h @ w.T, initial=self.features))

    def forward(self) -> Tensor:
        """Logits of all samples, (N, K)."""
        logits = self.features @ self.product().T
        return logits if self.bias is None else logits + self.bias

    def objective(self, loss: str = "mse") -> Tensor:
        """The objective, a scalar; `loss` is "mse" or "ce", in the class's docstring."""
        check_loss(loss)
        value = self.features.new_tensor
        return objective_of(
            list(self.weights), self.features, self.bias, nn.functional.one_hot(self.target, len(self.counts)),
            weight_decay=value(self.weight_decay), feature_decay=value(self.feature_decay), loss=loss,
        )  # fmt: skip


def check_loss(loss: str) -> None:
    """Refuse a loss that is neither "mse" nor "ce"."""
    if loss not in ("mse", "ce"):
        raise ValueError(f"loss must be 'mse' or 'ce', but is {loss!r}")


def product_of(weights: Sequence[Tensor]) -> Tensor:
    """W_M ⋯ W_1 of (..., rows, columns) matrices."""
    product = weights[-1]
    for w in reversed(weights[:-1]):
        product = product @ w
    return product


def objective_of(
    weights: Sequence[Tensor],
    features: Tensor,
    bias: Tensor | None,
    onehot: Tensor,
    *,
    weight_decay: Tensor,
    feature_decay: Tensor,
    loss: str,
) -> Tensor:
    """The objective (...,) of models stacked along leading dimensions; a row of `onehot` that is all zero is no sample.

    Shapes: weights (..., d, d) and (..., K, d), features (..., N, d), bias (..., K), onehot (..., N, K), weight_decay
    (..., M), feature_decay (...).
    """
    onehot = onehot.to(features.dtype)
    real = onehot.sum(dim=-1)
    logits = features @ product_of(weights).transpose(-1, -2)
    if bias is not None:
        logits = logits + bias.unsqueeze(-2)
    if loss == "mse":
        each = (logits - onehot).square().sum(dim=-1) / 2
    else:
        each = -(logits.log_softmax(dim=-1) * onehot).sum(dim=-1)
    data = (each * real).sum(dim=-1) / real.sum(dim=-1)
    price = feature_decay * (features.square().sum(dim=-1) * real).sum(dim=-1)
    for j, w in enumerate(weights):
        price = price + weight_decay[..., j] * w.square().sum(dim=(-2, -1))
    return data + price / 2
