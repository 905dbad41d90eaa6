"""Projected gradient ascent on the input: the attack that makes a loss large, and the one that moves the scores.

Both take a `model`, any callable from x `(N, ...)` to logits `(N, C)` whose rows do not influence one another. They
leave its parameters, their gradients and its mode alone, and return a constant: no gradient flows through the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lossbook import checks
from lossbook.losses._contract import at_label
from lossbook.losses.surrogate import cross_entropy

Model = Callable[[Tensor], Tensor]


def pgd(
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    bounds: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs near x with a large loss, by projected gradient ascent from a random point of the ball.

        delta <- project( delta + step_size * direction(gradient of loss at x + delta) ),    |delta| <= eps

    direction is the sign for "linf" and the gradient over its length for "l2"; the last iterate is returned.

    Args:
        x: `(N, ...)` floating point.
        target: `(N,)` labels.
        loss: `loss(logits, target)` -> scalar or `(N,)`.
        eps: radius >= 0 of the ball, in units of x.
        norm: "linf" or "l2", over all entries of an example.
        steps: >= 1.
        step_size: > 0; default 2.5 * eps / steps, which can cross the ball.
        bounds: (low, high) that every entry of the result keeps to, such as (0, 1) for pixels; default: none.
        generator: of the starting point; default: torch's own.

    Returns:
        the shape, dtype and device of x.

    Raises:
        ValueError, TypeError: an argument is refused; the sentence names it.

    Source: Madry et al. 2018 (arXiv 1706.06083), section 2.1.
    """
    _arguments(model, x, target, eps, norm, steps, step_size, bounds)
    return _ascend(lambda f: loss(f, target).sum(), model, x, _uniform(x, eps, norm, generator), eps, norm, steps,
                   step_size, bounds)  # fmt: skip


def max_score_shift(
    model: Model,
    x: Tensor,
    target: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    bounds: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inputs near x whose score differences are far from those at x, in the Euclidean norm.

        sup_{|x' - x| <= eps} |D(x', y) - D(x, y)|_2,    D_k(x, y) = f_y(x) - f_k(x),  k != y

    by the ascent of `pgd`, from x + 0.001 * Gaussian noise: at x itself the distance is 0 and has no direction. What it
    finds is a lower bound of the supremum, which for linear scores f = Wx in an l2 ball is eps times the largest
    singular value of the rows W_y - W_k.

    Args and errors as for `pgd`. Needed by `lossbook.losses.smooth_adversarial_comp_sum`.

    Source: Mao, Mohri, Zhong 2023 (arXiv 2304.07288), smooth adversarial comp-sum losses.
    """
    _arguments(model, x, target, eps, norm, steps, step_size, bounds)
    with torch.no_grad():
        before = model(x)

    def shift(f: Tensor) -> Tensor:
        moved = f - before
        return torch.linalg.vector_norm(at_label(moved, target.long())[:, None] - moved, dim=1).sum()

    return _ascend(shift, model, x, 1e-3 * _noise(x, generator, torch.randn), eps, norm, steps, step_size, bounds)


def _ascend(
    objective: Callable[[Tensor], Tensor],
    model: Model,
    x: Tensor,
    delta: Tensor,
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None,
    bounds: tuple[float, float] | None,
) -> Tensor:
    x = x.detach()
    step = 2.5 * eps / steps if step_size is None else step_size
    delta = _project(x, delta, eps, norm, bounds)
    for _ in range(steps):
        with torch.enable_grad(), checks.values(False):
            moved = (x + delta).requires_grad_(True)
            (gradient,) = torch.autograd.grad(objective(model(moved)), moved)
        direction = gradient.sign() if norm == "linf" else gradient / _lengths(gradient)
        delta = _project(x, delta + step * direction, eps, norm, bounds)
    return x + delta if bounds is None else (x + delta).clamp(*bounds)


def _project(x: Tensor, delta: Tensor, eps: float, norm: str, bounds: tuple[float, float] | None) -> Tensor:
    """The ball first, then the bounds: as x keeps the bounds, the second step only shortens delta."""
    delta = delta.clamp(-eps, eps) if norm == "linf" else delta * (eps / _lengths(delta)).clamp(max=1)
    return delta if bounds is None else (x + delta).clamp(*bounds) - x


def _lengths(delta: Tensor) -> Tensor:
    """Euclidean length of each example, shaped to divide it; never quite 0."""
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
    return length.view(-1, *[1] * (delta.dim() - 1))


def _uniform(x: Tensor, eps: float, norm: str, generator: torch.Generator | None) -> Tensor:
    """A point of the ball, drawn uniformly."""
    if norm == "linf":
        return eps * (2 * _noise(x, generator, torch.rand) - 1)
    direction = _noise(x, generator, torch.randn)
    radius = _noise(x.flatten(1)[:, :1], generator, torch.rand) ** (1 / math.prod(x.shape[1:]))
    return eps * radius.view(-1, *[1] * (x.dim() - 1)) * direction / _lengths(direction)


def _noise(x: Tensor, generator: torch.Generator | None, draw: Callable[..., Tensor]) -> Tensor:
    device = x.device if generator is None else generator.device
    return draw(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _arguments(
    model: Model,
    x: Tensor,
    target: Tensor,
    eps: float,
    norm: str,
    steps: int,
    step_size: float | None,
    bounds: tuple[float, float] | None,
) -> None:
    if not callable(model):
        raise TypeError(f"model must be callable, but is {type(model).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, but is {type(x).__name__}")
    if not x.is_floating_point() or x.dim() < 2 or x.numel() == 0:
        raise ValueError(f"x must hold examples (N, ...) in floating point, but has shape {tuple(x.shape)}, {x.dtype}")
    checks.finite("x", x)
    checks.parameter("eps", eps, 0)
    checks.whole("steps", steps, 1)
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', but is {norm!r}")
    if step_size is not None:
        checks.parameter("step_size", step_size, 0, open_low=True)
    if bounds is not None:
        if not isinstance(bounds, tuple) or len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be (low, high), but are {bounds!r}")
        if checks.can_read(x) and bool(((x < bounds[0]) | (x > bounds[1])).any()):
            raise ValueError(f"x must keep to bounds {bounds}, but spans [{x.min():g}, {x.max():g}]")
    with torch.no_grad():
        checks.logits_and_target(model(x), target)
