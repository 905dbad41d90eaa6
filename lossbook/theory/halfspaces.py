"""A learner of halfspaces that tests its assumptions on the sample before it vouches for its answer."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lossbook import checks

# E x^k of a standard normal x, k = 0..8.
_NORMAL_MOMENTS = (1.0, 0.0, 1.0, 0.0, 3.0, 0.0, 15.0, 0.0, 105.0)


def tester_learner(
    X: Tensor,
    y: Tensor,
    *,
    width: float = 0.2,
    tolerance: float = 6.0,
    steps: int = 500,
    batch_size: int = 128,
    lr: float = 0.1,
    seed: int = 0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Learn a halfspace sign(w·x), and accept it only if the sample looks Gaussian where that matters.

    1. Moments: every moment of the inputs up to degree 4 is near its value under N(0, I).
    2. Learn: w on the unit sphere by projected stochastic gradient descent on mean sigmoid(-y w·x / width), from the
       normalised mean of y x, with steps lr / sqrt(step). Gradients come from the points near the boundary only, which
       is what makes it stand noise of up to one half, provided that there are enough of them, spread evenly.
    3. Band: that is tested at the w found. In |w·x| <= width, the share of points is near 2 Φ(width) - 1, and the
       covariance C of their part orthogonal to w near the identity there, P = I - w w'.

    Each distance is in standard errors of n Gaussian samples: a fixed tolerance would refuse every small sample. For
    the covariance of the m points in the band it is (χ - k)/sqrt(2k), with χ = m |C - P|²_F / 2, which has about
    k = d(d - 1)/2 degrees of freedom.

    This is a teaching version, for two to some tens of dimensions. The paper's tests have other degrees, further
    conditions and constants, from which its guarantee follows: error at most opt + ε under Massart noise on every
    sample it accepts. Nothing is guaranteed here.

    Args:
        X: (..., n, d) inputs, d >= 2; leading dimensions are independent samples.
        y: (..., n) labels -1 and 1.
        width: of the sigmoid and half that of the band, > 0.
        tolerance: standard errors, > 0.
        steps: of the descent, at least 1.
        batch_size: points a step, drawn with replacement, at least 1.
        lr: first step length, > 0.
        seed: of the batches.

    Returns:
        accepted (...) bool; w (..., d) in the dtype of X; report, the three statistics by the names "moments" (the
        largest), "band_mass" and "band_covariance", each (...) and infinite where it is not defined.

    Raises:
        ValueError, TypeError: an argument is refused.

    Source: Gollakota, Klivans, Stavropoulos, Vasilyan 2023 (arXiv 2302.14853), reduced to its idea.
    """
    _check(X, y)
    for name, value in (("width", width), ("tolerance", tolerance), ("lr", lr)):
        checks.parameter(name, value, 0, open_low=True)
    checks.whole("steps", steps, 1)
    checks.whole("batch_size", batch_size, 1)
    generator = torch.Generator(X.device).manual_seed(checks.whole("seed", seed, 0))

    y = y.to(X.dtype)
    w = normalize((y[..., None] * X).mean(dim=-2), dim=-1)
    for step in range(1, steps + 1):
        rows = torch.randint(X.shape[-2], (batch_size,), generator=generator, device=X.device)
        x, label = X[..., rows, :], y[..., rows]
        p = torch.sigmoid(-label * _dot(x, w) / width)
        slope = -((p * (1 - p) * label)[..., None] * x).mean(dim=-2) / width
        w = normalize(w - lr / math.sqrt(step) * slope, dim=-1)

    mass, covariance = _band(X, w, width)
    report = {"moments": _moments(X), "band_mass": mass, "band_covariance": covariance}
    report = {name: value.nan_to_num(nan=math.inf, posinf=math.inf) for name, value in report.items()}
    return torch.stack(list(report.values())).amax(dim=0) <= tolerance, w, report


def _dot(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w[..., None]).squeeze(-1)


def _moments(X: Tensor) -> Tensor:
    """The largest distance of an empirical moment of degree 1 to 4 from the Gaussian's, in standard errors."""
    n, d = X.shape[-2:]
    i, j = torch.triu_indices(d, d)
    # Products of two of the columns 1, x_i, x_i x_j have every moment up to degree 4 as their means.
    columns = torch.cat([torch.ones_like(X[..., :1]), X, X[..., i] * X[..., j]], dim=-1)
    unit = torch.eye(d, dtype=torch.long)
    powers = torch.cat([torch.zeros(1, d, dtype=torch.long), unit, unit[i] + unit[j]])
    power = powers[:, None] + powers
    table = torch.tensor(_NORMAL_MOMENTS, dtype=torch.float64)
    mean = table[power].prod(dim=-1)
    std = (table[2 * power].prod(dim=-1) - mean**2).sqrt()
    std[0, 0] = 1.0  # the moment of degree 0 is 1 for everyone
    off = columns.mT @ columns / n - mean.to(X)
    return (off * math.sqrt(n) / std.to(X)).abs().amax(dim=(-2, -1))


def _band(X: Tensor, w: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """How far the band's mass and its orthogonal covariance are from the Gaussian's, in standard errors."""
    n, d = X.shape[-2:]
    along = _dot(X, w)
    inside = (along.abs() <= width).to(X.dtype)
    count = inside.sum(dim=-1)
    share = math.erf(width / math.sqrt(2))
    mass = (count - n * share).abs() / math.sqrt(n * share * (1 - share))

    across = (X - along[..., None] * w[..., None, :]) * inside[..., None]
    projector = torch.eye(d, dtype=X.dtype, device=X.device) - w[..., :, None] * w[..., None, :]
    off = across.mT @ across / count[..., None, None] - projector
    freedom = d * (d - 1) / 2
    chi = count * off.square().sum(dim=(-2, -1)) / 2
    return mass, (chi - freedom).abs() / math.sqrt(2 * freedom)


def _check(X: Tensor, y: Tensor) -> None:
    for name, tensor in (("X", X), ("y", y)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, but is {type(tensor).__name__}")
    if X.dim() < 2 or X.dtype not in (torch.float32, torch.float64) or X.shape[-1] < 2 or X.numel() == 0:
        raise ValueError(
            f"X must be float32 or float64 of shape (..., n, d) with d >= 2, but is {X.dtype} of {tuple(X.shape)}"
        )
    if y.shape != X.shape[:-1] or y.device != X.device:
        raise ValueError(f"y must have shape {tuple(X.shape[:-1])} to go with X, but has shape {tuple(y.shape)}")
    checks.finite("X", X)
    if not bool(((y == 1) | (y == -1)).all()):
        raise ValueError(f"y must hold -1 and 1, but holds {y[(y != 1) & (y != -1)][0].item():g}")
