"""Three-class probabilities as points of a triangle: a corner is certainty, the centre is a three-way tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import Triangulation

from lossbook import checks
from lossbook.viz import _arrays
from lossbook.viz.picture import describe, description
from lossbook.viz.style import QUANTITY_CMAP, scatter_class

_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
_NAMES = ("class 0", "class 1", "class 2")


def simplex_contours(
    f: Callable[[np.ndarray], Any],
    *,
    vertices: Sequence[str] = _NAMES,
    levels: int | Sequence[float] = 12,
    label: str = "value",
    ax: Axes | None = None,
) -> Axes:
    """Contours of a function of three-class probabilities over the probability simplex.

    Args:
        f: (N, 3) float64 probabilities -> (N,) values. It is called once, on a barycentric grid that stays 1e-4 away
            from the edges, where logarithms end.
        vertices: the names of the three corners.
        levels: their number, or the rising values themselves. A number spreads them, at round values, between the
            1st and the 95th percentile, so that a pole at a corner does not use them up.
        label: what the values are, with their unit; written at the colour bar.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: f does not return N numbers, returns NaN, or another argument is wrong.
    """
    triangles, probs = _grid(96)
    values = np.asarray(_detached(f(probs)), dtype=np.float64)
    if values.shape != (len(probs),):
        raise ValueError(f"f must return one value per row, shape ({len(probs)},), but returned shape {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"f returned NaN at the probabilities {probs[np.isnan(values).argmax()].round(4).tolist()}")
    steps = _levels(values, levels)
    ax = _triangle(ax, vertices)
    inside = np.clip(values, steps[0] - 1e9, steps[-1] + 1e9)
    filled = ax.tricontourf(triangles, inside, levels=steps, cmap=QUANTITY_CMAP, extend="both")
    ax.tricontour(triangles, inside, levels=steps, colors="white", linewidths=0.5, alpha=0.6)
    ax.figure.colorbar(filled, ax=ax, shrink=0.8, label=label, pad=0.08)
    low, high = probs[values.argmin()], probs[values.argmax()]
    describe(
        ax,
        f"Contours of {label} over the probabilities of {', '.join(vertices)}: lowest near {_point(low)}, "
        f"highest near {_point(high)}.",
    )
    return ax


def simplex_scatter(probs: Any, y: Any, *, vertices: Sequence[str] = _NAMES, ax: Axes | None = None) -> Axes:
    """Three-class predictions as points of the triangle, coloured and marked by true class.

    Args:
        probs: (N, 3) probabilities.
        y: (N,) integer labels in {0, 1, 2}.
        vertices: the names of the three corners.
        ax: axes to draw into, such as those of `simplex_contours`; default: a new figure.

    Raises:
        ValueError: shapes or values are wrong; the sentence names the argument.
    """
    points = _arrays.probabilities("probs", probs, 3)
    truth = _arrays.labels("y", y, len(points), 3)
    ax = _triangle(ax, vertices)
    for k in range(3):
        scatter_class(ax, points[truth == k] @ _CORNERS, k, vertices[k])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, handlelength=1.0)
    right = float((points.argmax(axis=1) == truth).mean())
    text = f"{len(points)} predictions in the probability simplex by true class; {right:.0%} lie in the right third."
    describe(ax, f"{description(ax)} {text}")
    return ax


def _grid(n: int) -> tuple[Triangulation, np.ndarray]:
    i, j = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    keep = i + j <= n
    probs = np.stack([n - i[keep] - j[keep], i[keep], j[keep]], axis=1) / n
    probs = (1 - 3e-4) * probs + 1e-4
    x, y = (probs @ _CORNERS).T
    return Triangulation(x, y), probs


def _levels(values: np.ndarray, levels: int | Sequence[float]) -> np.ndarray:
    if isinstance(levels, int | np.integer):
        low, high = np.percentile(values[np.isfinite(values)], [1, 95])
        # A constant function still gets a picture.
        ticks = MaxNLocator(checks.whole("levels", levels, 2))
        return np.asarray(ticks.tick_values(low, high if high > low else low + 1))
    steps = _arrays.numbers("levels", levels, (None,))
    if len(steps) < 2 or (np.diff(steps) <= 0).any():
        raise ValueError(f"levels must be two or more rising values, but are {steps.tolist()}")
    return steps


def _triangle(ax: Axes | None, vertices: Sequence[str]) -> Axes:
    if len(vertices) != 3:
        raise ValueError(f"vertices must name three corners, but are {list(vertices)}")
    if ax is None:
        ax = plt.subplots(figsize=(5.6, 4.4))[1]
    if ax.get_aspect() == 1.0 and not ax.axison:
        return ax
    ax.set_aspect("equal")
    ax.axis("off")
    ax.plot(*np.vstack([_CORNERS, _CORNERS[:1]]).T, color="#444444", linewidth=1.0, zorder=2)
    for corner, name, place in zip(_CORNERS, vertices, ((0, -8), (0, -8), (0, 7)), strict=True):
        ax.annotate(
            name, corner, xytext=place, textcoords="offset points", ha="center", va="top" if place[1] < 0 else "bottom"
        )
    return ax


def _point(p: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:.2f}" for v in p) + ")"


def _detached(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
