"""Do the lengths that training gives the classes lie on the curve that theory predicts from their sizes?"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from lossbook import checks
from lossbook.viz import _arrays
from lossbook.viz.picture import describe

_TICKS = 8  # class sizes up to which each has its tick


def lengths_vs_counts(
    counts: Any,
    theory: Any,
    trained: Any = None,
    *,
    threshold: float | None = None,
    ylabel: str = "length",
    label: str = "",
    color: str = "#0072b2",
    ax: Axes | None = None,
) -> Axes:
    """Lengths of classifier rows or class means over the class sizes: theory as circles, trained models as crosses.

    Several calls with the same axes draw several depths or decays, told apart by label and colour.

    Args:
        counts: (K,) class sizes of at least 1, in any order.
        theory: (K,) lengths, such as `lossbook.theory.mse_minimizer`'s `product_singular_values` or `mean_norms`.
        trained: (K,) lengths, or (S, K) of S runs; default: none.
        threshold: the class size up to which classes vanish (`lossbook.theory.collapse_threshold`), drawn as a band.
        ylabel: what the lengths are.
        label: what this call adds, for the legend.
        color: of circles and crosses.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: shapes or values are wrong; the sentence names the argument.
    """
    size = _arrays.numbers("counts", counts, (None,))
    if (size < 1).any():
        raise ValueError(f"counts must be class sizes of at least 1, but are {size.tolist()}")
    line = _arrays.numbers("theory", theory, (len(size),))
    found = None
    if trained is not None:
        shape = (len(size),) if np.ndim(trained) == 1 else (None, len(size))
        found = np.atleast_2d(_arrays.numbers("trained", trained, shape))
    if threshold is not None:
        checks.parameter("threshold", threshold, 0, open_low=True)
    ax = ax if ax is not None else plt.subplots()[1]
    ax.set_xscale("log")
    order = np.argsort(size, kind="stable")
    suffix = f", {label}" if label else ""
    ax.plot(
        size[order], line[order], ":o", color=color, linewidth=1.2, markerfacecolor="white", markersize=8,
        label=f"theory{suffix}", zorder=2,
    )  # fmt: skip
    if found is not None:
        name = f"trained{suffix}" if len(found) == 1 else f"trained{suffix}, {len(found)} runs"
        ax.plot(
            np.tile(size, len(found)), found.ravel(), "x", color=color, markeredgewidth=1.8, markersize=7, label=name,
            zorder=3,
        )  # fmt: skip
    distinct = np.unique(size)
    if len(distinct) <= _TICKS:
        ax.xaxis.set_major_locator(FixedLocator(distinct.tolist()))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())
    # Over all calls with these axes.
    ax.set(xlabel="samples of the class", ylabel=ylabel, ylim=(0, 1.06 * ax.dataLim.y1 or 1))
    if threshold is not None:
        left = min(ax.get_xlim()[0], 0.8 * threshold)
        ax.axvspan(left, threshold, color="#8a8a86", alpha=0.25, linewidth=0, zorder=0)
        ax.text(
            threshold, 0.97, "vanish ", transform=ax.get_xaxis_transform(), ha="right", va="top", color="#5c5c58",
            fontsize="small",
        )  # fmt: skip
        ax.set_xlim(left=left)
    ax.legend(loc="best")
    miss = "" if found is None else f" Trained runs lie within {np.abs(found - line).max():.2g} of it."
    describe(
        ax,
        f"{ylabel} over class sizes from {distinct[0]:g} to {distinct[-1]:g}: theory from {line[order][0]:.2f} to "
        f"{line[order][-1]:.2f}.{miss}",
    )
    return ax
