"""What every figure shares: the style sheet, one colour map for quantities, one palette for classes, one for losses.

Colours are never the only carrier of meaning: a class has a marker and a line style of its own, a loss a line style.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

#: The colour map for quantities (perceptually uniform, readable without colour vision) and the one for signed ones.
QUANTITY_CMAP = "viridis"
SIGNED_CMAP = "RdBu_r"

# M. Petroff, "Accessible color sequences for data visualization", arXiv:2107.02270: ten colours that stay apart
# under the common kinds of colour blindness.
_CLASS_COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
_CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)))

# Function -> colour, line style, name in a legend. There are more losses than colours that can be told apart: relatives
# share a hue, and no two share both colour and line. All have a contrast of at least 3:1 against the figure's ground.
_LOSSES: dict[str, tuple[str, Any, str]] = {
    "cross_entropy": ("#222222", "-", "cross-entropy"),
    "label_smoothing": ("#6f6f6f", "--", "label smoothing"),
    "comp_sum": ("#0072b2", (0, (8, 2)), "comp-sum"),
    "generalized_cross_entropy": ("#00876a", "-.", "generalized cross-entropy"),
    "mae": ("#d55e00", "-", "MAE"),
    "brier": ("#b3478a", "--", "Brier"),
    "focal": ("#a87700", "-.", "focal"),
    "crammer_singer": ("#6a3d9a", (0, (1, 1)), "Crammer-Singer"),
    "logistic": ("#222222", ":", "logistic"),
    "exponential": ("#d55e00", ":", "exponential"),
    "hinge": ("#6a3d9a", "-", "hinge"),
    "l2_svm": ("#6a3d9a", "--", "squared hinge"),
    "ensloss": ("#b3478a", "-", "EnsLoss"),
    "bias_loss": ("#a87700", "-", "bias loss"),
    "ldr_kl": ("#00876a", "-", "LDR-KL"),
    "aldr_kl": ("#00876a", "--", "ALDR-KL"),
    "z_loss": ("#0072b2", "-", "Z-loss"),
    "spherical_mse": ("#0072b2", ":", "spherical MSE"),
    "log_taylor_softmax": ("#0072b2", "--", "log-Taylor softmax"),
    "log_spherical_softmax": ("#0072b2", "-.", "log-spherical softmax"),
    "anyloss": ("#c8553d", "-", "AnyLoss"),
    "mann_whitney": ("#c8553d", "--", "Mann-Whitney"),
    "info_nce": ("#c8553d", ":", "InfoNCE"),
}
#: The colour of each loss, in every notebook.
LOSS_COLORS: dict[str, str] = {name: color for name, (color, _, _) in _LOSSES.items()}
# For losses the book has not named: colours no named loss has, handed out in the order of asking.
_SPARE_COLORS = ("#1f9ab5", "#a3333d", "#6b8e23", "#5566cc", "#9c5a2d", "#c2459b")
_given: dict[str, dict[str, Any]] = {}


def use_style() -> None:
    """Apply the book's matplotlib style sheet to every figure made from here on."""
    plt.style.use(Path(__file__).with_name("lossbook.mplstyle"))


def class_style(k: int) -> dict[str, Any]:
    """Colour, marker and line style of class k, as keyword arguments of `Axes.plot`.

    Ten classes are told apart by colour and marker; from the eleventh on the colours come again with another marker.

    Raises:
        ValueError: k is negative.
    """
    if k < 0:
        raise ValueError(f"k must be a class index of at least 0, but is {k}")
    rounds, place = divmod(k, len(_CLASS_COLORS))
    return {
        "color": _CLASS_COLORS[place],
        "marker": _CLASS_MARKERS[(place + 3 * rounds) % len(_CLASS_MARKERS)],
        "linestyle": _LINE_STYLES[(place + rounds) % len(_LINE_STYLES)],
    }


def scatter_class(ax: Axes, points: np.ndarray, k: int, label: str) -> None:
    """Points (n, 2) of class k, with a dark edge that sets them off from any ground."""
    style = class_style(k)
    ax.scatter(
        points[:, 0], points[:, 1], s=22, color=style["color"], marker=style["marker"], edgecolors="#222222",
        linewidths=0.5, label=label, zorder=3,
    )  # fmt: skip


def loss_style(name: str) -> dict[str, Any]:
    """Colour and line style of a loss, as keyword arguments of `Axes.plot`: the same loss looks the same everywhere.

    A name that is not in `LOSS_COLORS` gets the next free style, which it keeps as long as the process runs.
    """
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    if key in _LOSSES:
        color, line, _ = _LOSSES[key]
        return {"color": color, "linestyle": line}
    if key not in _given:
        place = len(_given)
        _given[key] = {
            "color": _SPARE_COLORS[place % len(_SPARE_COLORS)],
            "linestyle": _LINE_STYLES[(place + 1) % len(_LINE_STYLES)],
        }
    return dict(_given[key])


def loss_name(name: str) -> str:
    """What a loss is called in a legend: its usual name, else the name given, without underscores."""
    return _LOSSES[name][2] if name in _LOSSES else name.replace("_", " ")


def quantity_colors(values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """One colour of the quantity map per value, by rank: for curves that belong to an ordered parameter.

    The light end of the map is left out, because a thin pale line is lost on a light ground.

    Raises:
        ValueError: values holds NaN.
    """
    numbers = np.asarray(values, dtype=float)
    if np.isnan(numbers).any():
        raise ValueError(f"values must not hold NaN, but value {int(np.isnan(numbers).argmax())} is NaN")
    distinct, rank = np.unique(numbers, return_inverse=True)
    position = rank / max(len(distinct) - 1, 1)
    return [tuple(color) for color in mpl.colormaps[QUANTITY_CMAP](0.8 * position)]
