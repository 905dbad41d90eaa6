"""Gradient descent on the logistic loss with large steps, and the batch perceptron that it becomes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lossbook import checks
from lossbook.train.settings import real


class Path(NamedTuple):
    """The iterates from 0 on: theta (T + 1, d), loss (T + 1,), error (T + 1,), the share of rows with z·θ <= 0."""

    theta: Tensor
    loss: Tensor
    error: Tensor


def logistic_gd(Z: Tensor, *, lr: float, steps: int, normalize: bool = False, tol: float = 0.0) -> Path:
    """Gradient descent on the logistic loss of a linear classifier, from θ = 0 until the classes are separated.

        loss(θ) = mean_i log(1 + exp(-z_i·θ)),    z_i = y_i a_i,    w_i = 1 / (1 + exp(z_i·θ))
        θ ← θ + (γ/n) Σ_i w_i z_i                 the gradient step
        θ ← θ + γ Σ_i w_i z_i / Σ_i w_i           with normalize: the step is an average of rows

    As γ → ∞ the weight of a row on the right side goes to 0 and that of one on the wrong side to 1, and θ/γ moves as
    `batch_perceptron` does. A step of normalize then has the length of a data point, however few rows are wrong.

    Args:
        Z: (n, d) the rows z_i: samples times their labels of +-1.
        lr: γ > 0.
        steps: at most this many.
        normalize: divide by the sum of the weights instead of n.
        tol: stop when every z_i·θ > tol, at least 0. Data that no θ separates are never done; that raises nothing.

    Returns:
        `Path` of theta (T + 1, d), loss (T + 1,) in nats and error (T + 1,) in [0, 1], T <= steps, from θ = 0 on, in
        the dtype of Z. A row on the boundary, z_i·θ = 0, counts as an error.

    Raises:
        ValueError, TypeError: an argument is refused.

    Source: Tyurin 2024 (arXiv 2412.08424). The normalised step is the one that its rate, free of n, asks for.
    """
    _check(Z, steps)
    real("lr", lr, positive=True)
    real("tol", tol)
    theta, path = Z.new_zeros(Z.shape[1]), []
    while True:
        margins = Z @ theta
        path.append((theta, softplus(-margins).mean(), (margins <= 0).to(Z.dtype).mean()))
        if len(path) > steps or margins.min() > tol:
            return Path(*map(torch.stack, zip(*path, strict=True)))
        # Softmax of the logarithms: with a large γ all weights may underflow, their ratios do not.
        weights = logsigmoid(-margins).softmax(dim=0) if normalize else torch.sigmoid(-margins) / len(Z)
        theta = theta + lr * (weights @ Z)


def batch_perceptron(Z: Tensor, *, steps: int) -> Path:
    """The batch perceptron: every step adds the rows on the wrong side, from v = 0 until there is none.

        v ← v + (1/n) Σ_i c_i z_i,    c_i = 1 if z_i·v < 0,  1/2 if z_i·v = 0,  0 if z_i·v > 0

    This is `logistic_gd` in the limit γ → ∞, with v = θ/γ; the 1/2 is the logistic function at 0. Its loss is the limit
    of loss(γv)/γ, mean_i max(0, -z_i·v), of which the step follows a subgradient.

    Args:
        Z: (n, d) samples times their labels of +-1.
        steps: at most this many.

    Returns:
        `Path`, as `logistic_gd`; theta holds v.

    Raises:
        ValueError, TypeError: an argument is refused.

    Source: Tyurin 2024 (arXiv 2412.08424).
    """
    _check(Z, steps)
    v, path = Z.new_zeros(Z.shape[1]), []
    while True:
        margins = Z @ v
        path.append((v, (-margins).relu().mean(), (margins <= 0).to(Z.dtype).mean()))
        if len(path) > steps or margins.min() > 0:
            return Path(*map(torch.stack, zip(*path, strict=True)))
        v = v + torch.heaviside(-margins, margins.new_tensor(0.5)) @ Z / len(Z)


def _check(Z: Tensor, steps: int) -> None:
    if not isinstance(Z, Tensor):
        raise TypeError(f"Z must be a torch.Tensor, but is {type(Z).__name__}")
    if Z.dim() != 2 or 0 in Z.shape or Z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Z must be float32 or float64 of shape (n, d), but is {Z.dtype} of shape {tuple(Z.shape)}")
    checks.finite("Z", Z)
    checks.whole("steps", steps, 0)
