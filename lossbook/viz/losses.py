"""A loss as a curve: its value and its gradient over the margin or over the probability of the true class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from lossbook import checks
from lossbook.viz.picture import describe
from lossbook.viz.style import loss_name, loss_style

Loss = Callable[..., Tensor]
_LABELS = {
    "margin": r"margin $f_y - \max_{k \neq y} f_k$ (logit units)",
    "probability": r"probability of the true class $p_y$",
}


def loss_curves(
    losses: Mapping[str, Loss] | Sequence[Loss],
    *,
    num_classes: int = 2,
    x: Literal["margin", "probability"] = "margin",
    ax: Axes | None = None,
) -> Axes:
    """Draw losses over the margin f_y - max_k f_k or over the probability p_y of the true class.

    The curve runs along the line on which all wrong classes have the same logit, so that margin m and probability
    p_y = e^m / (e^m + C - 1) determine each other. A curve that leaves the top of the plot goes on growing.

    Args:
        losses: name -> `f(logits, target, reduction="none")`, or a list of loss functions, named by themselves.
        num_classes: C, at least 2.
        x: "margin" (-4 to 4 logit units) or "probability" (0.01 to 0.99).
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: losses is empty or holds something unnamed or not callable, or another argument is out of range.
    """
    return _draw(losses, num_classes, x, ax, gradient=False)


def gradient_curves(
    losses: Mapping[str, Loss] | Sequence[Loss],
    *,
    num_classes: int = 2,
    x: Literal["margin", "probability"] = "margin",
    ax: Axes | None = None,
) -> Axes:
    """Draw the derivative of each loss with respect to the true class's logit f_y; arguments as for `loss_curves`.

    The further below zero, the harder one step of gradient descent raises f_y.
    """
    return _draw(losses, num_classes, x, ax, gradient=True)


def _draw(losses: Any, num_classes: int, x: str, ax: Axes | None, *, gradient: bool) -> Axes:
    named = _named(losses)
    classes = checks.whole("num_classes", num_classes, 2)
    if x not in _LABELS:
        raise ValueError(f"x must be 'margin' or 'probability', but is {x!r}")
    margin, position = _line(x, classes)
    curves = {name: _evaluate(name, loss, margin, classes, gradient) for name, loss in named.items()}
    ax = ax if ax is not None else plt.subplots()[1]
    for name, curve in curves.items():
        ax.plot(position, curve, label=loss_name(name), **loss_style(name))
    _frame(ax, curves, x, classes, gradient)
    return ax


def _named(losses: Any) -> dict[str, Loss]:
    if isinstance(losses, Mapping):
        named = dict(losses)
    else:
        named = {}
        for loss in losses if isinstance(losses, Sequence) else [losses]:
            name = getattr(loss, "__name__", None)
            if name is None or name == "<lambda>":
                raise ValueError(f"losses holds {loss!r}, which has no name: give a dict of name -> loss")
            named[name] = loss
    if not named:
        raise ValueError("losses must hold at least one loss, but is empty")
    for name, loss in named.items():
        if not callable(loss):
            raise ValueError(f"losses[{name!r}] must be a function of logits and target, but is {loss!r}")
    return named


def _line(x: str, classes: int) -> tuple[Tensor, np.ndarray]:
    """The margins to evaluate at, and where they are drawn. 401 points put one at margin 0."""
    if x == "margin":
        margin = torch.linspace(-4, 4, 401, dtype=torch.float64)
        return margin, margin.numpy()
    probability = torch.linspace(0.01, 0.99, 401, dtype=torch.float64)
    return torch.logit(probability) + np.log(classes - 1), probability.numpy()


def _evaluate(name: str, loss: Loss, margin: Tensor, classes: int, gradient: bool) -> np.ndarray:
    logits = torch.zeros(len(margin), classes, dtype=torch.float64)
    logits[:, 0] = margin
    target = torch.zeros(len(margin), dtype=torch.long)
    logits.requires_grad_(gradient)
    value = loss(logits, target, reduction="none")
    if value.shape != margin.shape:
        raise ValueError(
            f"losses[{name!r}] must return one value per example with reduction='none', {tuple(margin.shape)}, "
            f"but returned shape {tuple(value.shape)}"
        )
    if not gradient:
        return value.detach().numpy()
    (slope,) = torch.autograd.grad(value.sum(), logits)
    return slope[:, 0].numpy()


def _frame(ax: Axes, curves: dict[str, np.ndarray], x: str, classes: int, gradient: bool) -> None:
    border = 0.0 if x == "margin" else 1 / classes
    ax.axvline(border, color="#8a8a86", linewidth=0.9, zorder=0)
    where = "margin" if x == "margin" else "the true class's probability"
    ax.set_xlabel(_LABELS[x])
    # One steep curve must not press the others flat: the plot ends at 2.5 times the middle curve's peak.
    peak = {name: float(np.abs(curve).max()) for name, curve in curves.items()}
    limit = min(max(peak.values()), 2.5 * median_low(peak.values())) or 1.0
    if gradient:
        ax.set_ylabel(r"gradient $\partial\,\mathrm{loss} / \partial f_y$ (per logit unit)")
        ax.set_ylim(-1.06 * limit, 0.06 * limit + max(0.0, *(float(curve.max()) for curve in curves.values())))
    else:
        ax.set_ylabel("loss (nats where logarithmic)")
        lowest = min(0.0, *(float(curve.min()) for curve in curves.values()))
        ax.set_ylim(lowest - 0.04 * limit, 1.06 * limit)
    ax.margins(x=0.01)
    label = "wrong | right" if classes == 2 or x == "margin" else "tie"
    ax.annotate(
        label, (border, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
        ha="center", va="bottom", fontsize="small", color="#5c5c58",
    )  # fmt: skip
    ax.legend()
    what = "Gradient with respect to the true logit" if gradient else "Loss"
    describe(ax, f"{what} of {', '.join(loss_name(name) for name in curves)} over {where}, {classes} classes.")
