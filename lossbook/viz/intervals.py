"""Values with their intervals, a row each: which differ by more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from lossbook.viz.picture import describe

_POINT, _MARK = "#0b4f8a", "#d55e00"


def interval_plot(
    names: Sequence[str],
    value: Any,
    low: Any,
    high: Any,
    *,
    marks: Any = None,
    mark_label: str = "",
    zero: bool = True,
    xlabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A dot and a line from `low` to `high` for each name, the first on top.

    Args:
        names: one for each row.
        value, low, high: numbers of the same length; a row whose interval is NaN shows its dot alone. A value may lie
            outside its interval.
        marks: further numbers, drawn as upright strokes; NaN draws none.
        mark_label: what they are, for the legend.
        zero: whether the axis shows 0, by an upright line.
        xlabel: what the numbers are, with their unit.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: no names, or other lengths than theirs.
    """
    columns = {"value": value, "low": low, "high": high} | ({} if marks is None else {"marks": marks})
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    if not len(names):
        raise ValueError("names is empty: there is nothing to draw")
    for name, array in arrays.items():
        if array.shape != (len(names),):
            raise ValueError(f"{name} must have shape ({len(names)},), one for each name, but has shape {array.shape}")
    if ax is None:
        ax = plt.subplots(figsize=(6.4, 0.9 + 0.3 * len(names)), layout="constrained")[1]
    place = np.arange(len(names))
    if zero:
        ax.axvline(0, color="#444444", linewidth=1, zorder=0)
    ax.hlines(place, arrays["low"], arrays["high"], color=_POINT, linewidth=2.5, alpha=0.6, label="95 % interval")
    ax.plot(arrays["value"], place, "o", color=_POINT, markersize=5.5, label="measured")
    if marks is not None:
        ax.plot(arrays["marks"], place, "|", color=_MARK, markersize=13, markeredgewidth=2, label=mark_label)
    # A dollar sign is one, and starts no formula.
    labels = [str(name).replace("$", r"\$") for name in names]
    ax.set(yticks=place, yticklabels=labels, ylim=(len(names) - 0.5, -0.5), xlabel=xlabel)
    ax.grid(axis="y", visible=False)
    # Above the rows, where no row can be.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small", frameon=False, borderaxespad=0.2)
    first = f"{names[0]}: {arrays['value'][0]:.3g} ({arrays['low'][0]:.3g} to {arrays['high'][0]:.3g})"
    describe(ax, f"{len(names)} values of {xlabel or 'a number'} with 95 % intervals; the first is {first}.")
    return ax
