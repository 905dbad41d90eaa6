"""`fit_stochastic_cca`: canonical correlations and partial least squares by stochastic gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses.selfsupervised import mean_covariances
from lossbook.theory.eigen import canonical_correlations, two_views
from lossbook.train.settings import one_of, real


@dataclass(frozen=True, repr=False)
class StochasticCCA:
    """What `fit_stochastic_cca` found. Columns are ordered: the first pair of directions matters most."""

    weights: tuple[Tensor, Tensor]  #: W_x (p, k) and W_y (q, k), float64
    means: tuple[Tensor, Tensor]  #: of the training data, (p,) and (q,)
    objective: Tensor  #: (epochs + 1,) the loss over all training data, before the first epoch and after each
    captured: Tensor  #: (epochs + 1,) the sum of the canonical correlations of the two projections, in [0, k]

    def transform(self, X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
        """The projections (X - mean) W_x and (Y - mean) W_y, `(n, k)` each, in float64."""
        checked = two_views(X, Y, rows=1)
        pairs = zip(checked, self.means, self.weights, strict=True)
        for name, view, mean in zip("XY", checked, self.means, strict=True):
            if view.shape[1] != len(mean):
                raise ValueError(f"{name} must have {len(mean)} columns, but has shape {tuple(view.shape)}")
        x, y = ((view - mean) @ weight for view, mean, weight in pairs)
        return x, y

    def __repr__(self) -> str:
        (p, k), q = self.weights[0].shape, len(self.weights[1])
        return f"StochasticCCA({p} + {q} columns, k={k}, objective {float(self.objective[-1]):.6g})"


def fit_stochastic_cca(
    X: Tensor,
    Y: Tensor,
    k: int,
    *,
    c: float = 0.0,
    independent: bool = False,
    epochs: int = 50,
    batch_size: int | None = 64,
    lr: float = 0.01,
    optimizer: str = "adam",
    momentum: float = 0.9,
    schedule: str = "cosine",
    seed: int = 0,
) -> StochasticCCA:
    """The CCA family by gradient descent on the Eckart-Young loss of mini-batches, without constraints.

        loss = -2 tr(C - c V) + tr(V_c V_c'),    V_c = (1 - c) V + c (W_xᵀW_x + W_yᵀW_y)/2

    C and V are those of `losses.selfsupervised.eckart_young` for Z_x = X W_x, Z_y = Y W_y. c = 0 is CCA, c = 1 partial
    least squares, between them ridge CCA; exactly solved by `theory.eigen.ey_optimum(*cca_pencil(X, Y, c=c), k)`.

    The start is a random subspace, scaled so that V_c = I on the first batch. At the end both weights are turned by the
    eigenvectors of V_c, which changes neither loss nor subspace.

    Args:
        X: `(n, p)` floating point; centred here.
        Y: `(n, q)`.
        k: 1 to min(p, q).
        c: in [0, 1]. At 0 nearly collinear columns are fitted slowly or not at all, and few rows overfit; 0.1 helps.
        independent: V_c' from a second batch of the epoch, which makes the gradient unbiased at the cost of noise.
        epochs: passes over the data; rows that do not fill a batch wait for the next shuffle.
        batch_size: more than k; None, or more than n: all rows.
        lr: > 0.
        optimizer: "adam" or "sgd" with `momentum` in [0, 1).
        schedule: "constant" or "cosine", from lr to 0.
        seed: of start and batches. torch's global generator stays as it was.

    Raises:
        TypeError, ValueError: an argument is refused; the sentence names it.
        FloatingPointError: the loss left the finite numbers.

    Source: Chapman, Wells, Lawry Aguila 2024 (arXiv 2310.01012).
    """
    x, y = two_views(X, Y, rows=2)
    n = len(x)
    k = checks.whole("k", k, 1, min(x.shape[1], y.shape[1]))
    checks.parameter("c", c, 0, 1)
    checks.whole("epochs", epochs, 1)
    checks.whole("seed", seed, 0)
    rows = n if batch_size is None else min(checks.whole("batch_size", batch_size, 2), n)
    if rows <= k:
        raise ValueError(f"batch_size must be more than k = {k} rows, but is {rows}")
    real("lr", lr, positive=True)
    real("momentum", momentum, below=1.0)
    one_of("optimizer", optimizer, ("adam", "sgd"))
    one_of("schedule", schedule, ("constant", "cosine"))

    generator = torch.Generator().manual_seed(seed)
    means = x.mean(dim=0), y.mean(dim=0)
    data = x - means[0], y - means[1]
    weights = [weight.requires_grad_() for weight in _start(data, k, c, rows, generator)]
    step: Any = (
        torch.optim.Adam(weights, lr=lr) if optimizer == "adam" else torch.optim.SGD(weights, lr=lr, momentum=momentum)
    )
    batches = n // rows
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(step, epochs * batches) if schedule == "cosine" else None
    path = [_state(data, weights, c)]
    for epoch in range(epochs):
        orders = [torch.randperm(n, generator=generator).to(x.device) for _ in range(2 if independent else 1)]
        # A loss that leaves the finite numbers is named after the epoch.
        with checks.values(False):
            for batch in range(batches):
                chosen = [order[batch * rows : (batch + 1) * rows] for order in orders]
                parts = [[view[i] for view in data] for i in chosen]
                loss = _loss(parts[0], parts[-1], weights, c)
                step.zero_grad()
                loss.backward()
                step.step()
                if decay is not None:
                    decay.step()
        path.append(_state(data, weights, c))
        if not torch.isfinite(path[-1]).all():
            raise FloatingPointError(f"the loss is not finite after epoch {epoch + 1}: a smaller lr or c > 0 may help")
    with torch.no_grad():
        turn = torch.linalg.eigh(_blend(data, weights, c)[1]).eigenvectors.flip(1)
        final = weights[0] @ turn, weights[1] @ turn
    objective, captured = torch.stack(path).T
    return StochasticCCA(final, means, objective, captured)


def _blend(data: Any, weights: list[Tensor], c: float) -> tuple[Tensor, Tensor]:
    """The reward C - c V and V_c."""
    cross, auto = mean_covariances("views", [view @ weight for view, weight in zip(data, weights, strict=True)])
    gram = (weights[0].T @ weights[0] + weights[1].T @ weights[1]) / 2
    return cross - c * auto, (1 - c) * auto + c * gram


def _loss(data: Any, other: Any, weights: list[Tensor], c: float) -> Tensor:
    reward, auto = _blend(data, weights, c)
    partner = auto if other is data else _blend(other, weights, c)[1]
    return -2 * reward.trace() + (auto * partner).sum()


@torch.no_grad()
def _state(data: Any, weights: list[Tensor], c: float) -> Tensor:
    """The loss and the captured correlation over all data; NaN where the weights are no longer finite."""
    if not all(torch.isfinite(weight).all() for weight in weights):
        return weights[0].new_full((2,), float("nan"))
    captured = canonical_correlations(data[0] @ weights[0], data[1] @ weights[1]).sum()
    return torch.stack((_loss(data, data, weights, c), captured))


def _start(data: Any, k: int, c: float, rows: int, generator: torch.Generator) -> list[Tensor]:
    first = torch.randperm(len(data[0]), generator=generator)[:rows].to(data[0].device)
    weights = []
    for view in data:
        noise = torch.randn(view.shape[1], k, dtype=torch.float64, generator=generator).to(view.device)
        weight = torch.linalg.qr(noise).Q
        z = view[first] @ weight
        z = z - z.mean(dim=0)
        auto = (1 - c) * z.T @ z / (rows - 1) + c * torch.eye(k, dtype=z.dtype, device=z.device)
        root, failed = torch.linalg.cholesky_ex(auto)
        if failed:
            raise ValueError(f"the rank of X or Y within a batch is below k = {k}: set c > 0 or a smaller k")
        weights.append(torch.linalg.solve_triangular(root, weight.T, upper=False).T)
    return weights
