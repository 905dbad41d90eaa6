"""The reliability diagram: is a prediction made with confidence 0.8 right in 80 % of the cases?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator

from lossbook.viz import _arrays
from lossbook.viz.picture import describe

if TYPE_CHECKING:
    from lossbook.metrics.calibration import ReliabilityBins

_BAR, _POINT, _GAP = "#9ecae1", "#0b4f8a", "#d55e00"


def reliability_diagram(
    probs: Any,
    target: Any = None,
    *,
    n_bins: int = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy over confidence per bin, with 95 % Wilson intervals, and below it how many predictions each bin holds.

    Bars reach from the bin's lower to its upper edge; the dot sits at the bin's mean confidence, and its distance from
    the diagonal is what the calibration error adds up. Where the interval crosses the diagonal, the bin does not show
    a miscalibration. Counts are drawn on a log axis, since most predictions tend to share the last bin.

    Args:
        probs: (N, K) probabilities; or (N,) probabilities of an event; or a `lossbook.metrics.ReliabilityBins`, which
            needs no target.
        target: (N,) integer labels; for an event, whether it happened (booleans or 0 and 1).
        n_bins: number of bins.
        strategy: "uniform" (equal width) or "quantile" (equal mass), as for `lossbook.metrics.reliability_bins`.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: shapes or values are wrong; the sentence names the argument.
    """
    bins = probs if hasattr(probs, "mean_confidence") else _bins(probs, target, n_bins, strategy)
    edges, count, confidence, accuracy, lower, upper = (
        np.asarray(getattr(bins, name), dtype=np.float64)
        for name in ("edges", "count", "mean_confidence", "accuracy", "lower", "upper")
    )
    held = count > 0
    n = int(count.sum())
    if n == 0:
        raise ValueError("probs holds bins without any prediction")
    ax = ax if ax is not None else plt.subplots(figsize=(5.6, 5.2))[1]
    left, width = edges[:-1][held], np.diff(edges)[held]
    ax.bar(left, accuracy[held], width, align="edge", color=_BAR, edgecolor="white", linewidth=0.8)
    ax.plot([0, 1], [0, 1], color="#444444", linestyle="--", linewidth=1.2, label="perfect calibration")
    ax.vlines(
        confidence[held],
        accuracy[held],
        confidence[held],
        color=_GAP,
        linewidth=3,
        alpha=0.75,
        label="gap to confidence",
    )
    error = np.abs(np.stack([accuracy - lower, upper - accuracy]))[:, held]
    ax.errorbar(
        confidence[held], accuracy[held], error, fmt="o", color=_POINT, markersize=4.5, linewidth=1.4, capsize=2.5,
        label="accuracy, 95 % interval",
    )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (fraction correct)")
    # Translucent, because the interval of a bin with few predictions may reach behind it.
    ax.legend(loc="upper left", fontsize="small", frameon=True, framealpha=0.8, edgecolor="none")
    _counts(ax, left, width, count[held], n)
    gap = float((accuracy - confidence)[held] @ count[held]) / n
    describe(
        ax,
        f"Reliability diagram of {n:,} predictions in {int(held.sum())} non-empty bins. Accuracy "
        f"{'exceeds' if gap > 0 else 'falls short of'} confidence by {abs(gap):.1%} on average.",
    )
    return ax


def _bins(probs: Any, target: Any, n_bins: int, strategy: Literal["uniform", "quantile"]) -> ReliabilityBins:
    from lossbook.metrics import reliability_bins

    if target is None:
        raise ValueError("target is missing: probabilities need the true labels")
    if np.ndim(probs) == 1:
        return reliability_bins(probs, target, n_bins=n_bins, strategy=strategy)
    points = _arrays.probabilities("probs", probs)
    correct = points.argmax(axis=1) == _arrays.labels("target", target, *points.shape)
    return reliability_bins(points.max(axis=1), correct, n_bins=n_bins, strategy=strategy)


def _counts(ax: Axes, left: np.ndarray, width: np.ndarray, count: np.ndarray, n: int) -> None:
    """The panel of bin counts under the diagram. An inset moves with its parent, wherever that is placed."""
    ax.tick_params(labelbottom=False)
    panel = ax.inset_axes((0, -0.27, 1, 0.22), sharex=ax)
    panel.bar(left, count, width, align="edge", color="#8a8a86", edgecolor="white", linewidth=0.8)
    # A bin that holds a single prediction still shows: the axis starts below 1.
    panel.set(yscale="log", ylim=(0.5, 2.5 * count.max()), ylabel="count", xlim=(0, 1))
    panel.yaxis.set_major_locator(LogLocator(numticks=4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.minorticks_off()
    panel.set_xlabel(f"confidence (predicted probability), n = {n:,}")
