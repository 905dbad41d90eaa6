"""Training histories: mean lines with a band over seeds, and the four measures of neural collapse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from lossbook.viz.picture import describe
from lossbook.viz.style import LOSS_COLORS, class_style, loss_name, loss_style, quantity_colors

if TYPE_CHECKING:
    import pandas as pd

# What the columns of `lossbook.train.fit` and `sweep` are called on an axis.
_LABELS = {
    "train_loss": "training loss",
    "val_loss": "validation loss",
    "test_loss": "test loss",
    "train_accuracy": "training accuracy (fraction correct)",
    "val_accuracy": "validation accuracy (fraction correct)",
    "test_accuracy": "test accuracy (fraction correct)",
    "seconds": "time (s)",
    "lr": "learning rate",
}
# What the columns of `lossbook.metrics.NeuralCollapse` are called, with their colours and lines.
_NC1 = ("NC1 within-class spread", "#222222", "-")
_NC2 = ("NC2 distance to ETF", "#0072b2", "--")
_NC3 = ("NC3 self-duality", "#d55e00", "-.")
_NC4 = ("NC4 nearest-centre", "#00876a", ":")
_COLLAPSE = {"nc1": _NC1, "nc2": _NC2, "nc2_etf_means": _NC2, "nc3": _NC3, "nc3_self_duality": _NC3, "nc4": _NC4}


def history_bands(
    table: pd.DataFrame,
    *,
    x: str = "epoch",
    y: str,
    hue: str | None = None,
    units: str = "seed",
    band: Literal["range", "sd"] = "range",
    ax: Axes | None = None,
) -> Axes:
    """Mean of a column over repetitions, with a band of their spread, a line per value of another column.

    Lines are labelled at their right end. Losses keep their colours, numbers get the colours of the quantity map.

    Args:
        table: a row per step and repetition, such as the history of `fit` or `sweep`.
        x: column of the horizontal axis.
        y: column to draw.
        hue: column that tells lines apart; default: one line.
        units: column that tells repetitions apart. Without such a column in the table there is no band.
        band: "range" (smallest to largest) or "sd" (mean plus and minus one standard deviation).
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: the table is empty or lacks a column, y holds no number, or band is unknown.
    """
    _columns(table, [x, y, *([hue] if hue else [])])
    if band not in ("range", "sd"):
        raise ValueError(f"band must be 'range' or 'sd', but is {band!r}")
    groups = {None: table} if hue is None else dict(iter(table.groupby(hue, sort=not _is_text(table[hue]))))
    ax = ax if ax is not None else plt.subplots()[1]
    ends: list[tuple[float, float, str, Any]] = []
    repeats = table[units].nunique() if units in table else 1
    for (key, part), style in zip(groups.items(), _styles(list(groups)), strict=True):
        spread = part.groupby(x)[y].agg(["mean", "min", "max", "std"]).dropna(subset=["mean"])
        if spread.empty:
            raise ValueError(f"column {y!r} holds no number{'' if key is None else f' where {hue} is {key}'}")
        ax.plot(spread.index, spread["mean"], **style)
        if repeats > 1:
            low, high = _band(spread, band)
            ax.fill_between(spread.index, low, high, color=style["color"], alpha=0.18, linewidth=0)
        if key is not None:
            ends.append((spread.index[-1], spread["mean"].iloc[-1], _name(hue, key), style["color"]))
    ax.set(xlabel=_LABELS.get(x, x.replace("_", " ")), ylabel=_LABELS.get(y, y.replace("_", " ")))
    _say_band(ax, repeats, units, band)
    _label_ends(ax, ends)
    lines = "" if hue is None else f", a line for each of {len(groups)} values of {hue}"
    describe(ax, f"{ax.get_ylabel()} over {ax.get_xlabel()}{lines}; mean of {repeats} {_plural(units, repeats)}.")
    return ax


def collapse_curves(history: pd.DataFrame, *, x: str = "epoch", units: str = "seed", ax: Axes | None = None) -> Axes:
    """The measures of neural collapse over training on a log axis; the band runs from the smallest to the largest seed.

    Args:
        history: a column for x and at least one of nc1, nc2_etf_means (or nc2), nc3_self_duality (or nc3) and nc4, as
            `lossbook.metrics.NeuralCollapse` names them. Zeros, which have no place on a log axis, are drawn on the
            power of ten below the smallest positive value.
        x: column of the horizontal axis.
        units: column that tells repetitions apart, if the history has one.
        ax: axes to draw into; default: a new figure.

    Raises:
        ValueError: there is no such column, or no positive value.
    """
    present = [name for name in _COLLAPSE if name in history]
    if not present:
        raise ValueError(
            f"history must have one of the columns {', '.join(_COLLAPSE)}, but has {list(history.columns)}"
        )
    _columns(history, [x])
    values = history[present].to_numpy(dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size == 0:
        raise ValueError(f"history holds no positive value in {', '.join(present)}")
    floor = 10.0 ** np.floor(np.log10(positive.min()))
    ax = ax if ax is not None else plt.subplots()[1]
    ax.set_yscale("log")
    repeats = history[units].nunique() if units in history else 1
    ends = []
    for name in present:
        label, color, line = _COLLAPSE[name]
        spread = history.groupby(x)[name].agg(["mean", "min", "max"]).dropna().clip(lower=floor)
        ax.plot(spread.index, spread["mean"], color=color, linestyle=line)
        if repeats > 1:
            ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=0.18, linewidth=0)
        ends.append((spread.index[-1], spread["mean"].iloc[-1], label, color))
    ax.set(xlabel=_LABELS.get(x, x.replace("_", " ")), ylabel="distance from collapse (no unit)")
    _say_band(ax, repeats, units, "range")
    _label_ends(ax, ends)
    describe(ax, f"{', '.join(_COLLAPSE[name][0] for name in present)} over {x} on a log axis.")
    return ax


def _columns(table: Any, wanted: list[str]) -> None:
    if len(table) == 0:
        raise ValueError("table is empty")
    for name in wanted:
        if name not in table:
            raise ValueError(f"column {name!r} is not in the table, which has {list(table.columns)}")


def _is_text(column: Any) -> bool:
    return column.dtype.kind not in "fiub"


def _styles(keys: list[Any]) -> list[dict[str, Any]]:
    """A loss keeps its style, numbers are coloured by size, names by the class palette; lines only, no markers."""
    if keys == [None]:
        return [{"color": "#0072b2", "linestyle": "-"}]
    if all(isinstance(key, str) for key in keys) and any(key in LOSS_COLORS for key in keys):
        return [loss_style(key) for key in keys]
    if all(isinstance(key, int | float | np.number) and not isinstance(key, bool) for key in keys):
        return [{"color": color, "linestyle": "-"} for color in quantity_colors(keys)]
    return [class_style(k) | {"marker": None} for k in range(len(keys))]


def _band(spread: Any, band: str) -> tuple[Any, Any]:
    if band == "range":
        return spread["min"], spread["max"]
    sd = spread["std"].fillna(0.0)
    return spread["mean"] - sd, spread["mean"] + sd


def _name(hue: str | None, key: Any) -> str:
    if isinstance(key, str):
        return loss_name(key)
    return f"{hue} = {key:g}" if isinstance(key, int | float | np.number) else f"{hue} = {key}"


def _say_band(ax: Axes, repeats: int, units: str, band: str) -> None:
    if repeats > 1:
        kind = "smallest to largest" if band == "range" else "±1 standard deviation"
        ax.set_title(
            f"lines: mean of {repeats} {_plural(units, repeats)}; bands: {kind}", fontsize="small", fontweight="normal",
            color="#5c5c58",
        )  # fmt: skip


def _plural(units: str, n: int) -> str:
    return units if n == 1 else f"{units}s"


def _label_ends(ax: Axes, ends: list[tuple[float, float, str, Any]]) -> None:
    """Write each name at the right end of its line, moved apart so that no two overlap."""
    if not ends:
        return
    figure = ax.get_figure(root=True)
    assert figure is not None
    # One label takes this share of the axes' height; their places are found in axes coordinates.
    step = 1.35 * plt.rcParams["font.size"] / 72 / (ax.get_position().height * figure.get_figheight())
    ax.margins(x=0.01)
    to_axes = (ax.transData + ax.transAxes.inverted()).transform
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    wanted = [float(to_axes((ends[i][0], ends[i][1]))[1]) for i in order]
    for place, height in zip(order, _apart(wanted, step), strict=True):
        across, up, name, color = ends[place]
        ax.annotate(
            name, (across, up), xycoords="data", xytext=(1.03, height), textcoords="axes fraction", color=color,
            va="center", fontsize="small", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def _apart(wanted: list[float], step: float) -> list[float]:
    """Rising heights moved as little as a pass up and a pass down need to be at least step apart."""
    placed = list(wanted)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + step)
    excess = max(0.0, placed[-1] - 1.0)
    placed[-1] -= excess
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - step)
    return placed
