"""Do several measures put the same models first?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from lossbook.viz import _arrays
from lossbook.viz.picture import describe
from lossbook.viz.style import SIGNED_CMAP

_WRITTEN = 12  # rows up to which a cell has room for its number


def rank_correlation_heatmap(measures: Mapping[str, Any], *, colorbar: bool = True, ax: Axes | None = None) -> Axes:
    """Kendall's τ between every two measures of the same M models; written in up to 12 rows.

        τ = (C - D) / √((C + D + T_1) (C + D + T_2))

    with C pairs of models that both measures order alike, D that they order oppositely, and T_j ties in measure j alone
    (τ_b). 1 is the same ranking, -1 the reverse, 0 no relation. A measure that is the same for all models has no τ: its
    cells are grey.

    Args:
        measures: name -> M numbers, one for each model; a DataFrame with a column for each measure will do.
        colorbar: draw the scale beside the map.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: fewer than two measures or models, other lengths, numbers that are not finite.

    Source: Kendall 1945, The treatment of ties in ranking problems.
    """
    from scipy.stats import kendalltau

    names = [str(name) for name in measures]
    if len(names) < 2:
        raise ValueError(f"measures must hold two or more, but holds {len(names)}")
    models = None
    columns = []
    for name, key in zip(names, measures, strict=True):
        columns.append(_arrays.numbers(f"measures[{name!r}]", measures[key], (models,)))
        models = len(columns[0])
    if models is not None and models < 2:
        raise ValueError("measures must rank two or more models, but there is one")
    tau = np.eye(len(names))
    for i, j in combinations(range(len(names)), 2):
        tau[i, j] = tau[j, i] = kendalltau(columns[i], columns[j]).statistic
    constant = np.array([column.min() == column.max() for column in columns])
    tau[constant, constant] = np.nan
    if ax is None:
        side = 1.6 + min(0.45 * len(names), 7)
        ax = plt.subplots(figsize=(side + 0.8, side), layout="constrained")[1]
    ax.set_facecolor("#bbbbbb")
    image = ax.imshow(tau, cmap=SIGNED_CMAP, vmin=-1, vmax=1)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="Kendall's τ", pad=0.02)
    size = 9 if len(names) <= 24 else 6
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    ax.set_yticks(range(len(names)), names, fontsize=size)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if len(names) <= _WRITTEN:
        for (i, j), value in np.ndenumerate(tau):
            if np.isfinite(value):
                color = "white" if abs(value) > 0.6 else "#222222"
                ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)
    off = tau[~np.eye(len(names), dtype=bool)]
    off = off[np.isfinite(off)]
    span = f"; between two they run from {off.min():.2f} to {off.max():.2f}" if len(off) else ""
    describe(ax, f"Heat map of the rank correlations of {len(names)} measures over {models} models{span}.")
    return ax
