from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lossbook import viz
from lossbook.viz.history import _apart


@pytest.fixture
def table():
    rows = [
        {"loss": loss, "seed": seed, "epoch": epoch, "val_accuracy": slope * epoch + 0.01 * seed}
        for loss, slope in (("mae", 0.01), ("cross_entropy", 0.02))
        for seed in range(3)
        for epoch in range(1, 6)
    ]
    return pd.DataFrame(rows)


def test_line_is_the_mean_and_band_runs_from_smallest_to_largest(table):
    ax = viz.history_bands(table[table["loss"] == "mae"], y="val_accuracy")
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), 0.01 * np.arange(1, 6) + 0.01)
    (band,) = ax.collections
    np.testing.assert_allclose(band.get_datalim(ax.transData).intervaly, [0.01, 0.07], atol=1e-9)
    assert ax.get_title(loc="left") == "lines: mean of 3 seeds; bands: smallest to largest"
    assert ax.get_ylabel() == "validation accuracy (fraction correct)"


def test_standard_deviation_is_said_and_drawn(table):
    ax = viz.history_bands(table[table["loss"] == "mae"], y="val_accuracy", band="sd")
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == (pytest.approx(0.02 - 0.01), pytest.approx(0.06 + 0.01))
    assert "±1 standard deviation" in ax.get_title(loc="left")


def test_losses_keep_their_colours_and_are_labelled_at_the_end(table):
    ax = viz.history_bands(table, y="val_accuracy", hue="loss")
    assert [line.get_color() for line in ax.lines] == [viz.LOSS_COLORS[name] for name in ("mae", "cross_entropy")]
    assert {text.get_text() for text in ax.texts} == {"MAE", "cross-entropy"}


def test_numbers_are_coloured_by_size_and_one_seed_has_no_band(table):
    one = table[table["seed"] == 0].assign(tau=lambda t: t["loss"].map({"mae": 2.0, "cross_entropy": 1.0}))
    ax = viz.history_bands(one, y="val_accuracy", hue="tau")
    assert [line.get_color() for line in ax.lines] == viz.quantity_colors([1.0, 2.0])
    assert {text.get_text() for text in ax.texts} == {"tau = 1", "tau = 2"}
    assert not ax.collections and ax.get_title(loc="left") == ""


def test_labels_do_not_overlap():
    for wanted in ([0.5, 0.5, 0.5], [0.0, 0.99, 1.0], [0.2, 0.6, 0.9]):
        placed = _apart(wanted, 0.1)
        assert (np.diff(placed) >= 0.1 - 1e-12).all() and max(placed) <= 1.0
    assert _apart([0.2, 0.6, 0.9], 0.1) == [0.2, 0.6, 0.9]


def test_collapse_is_on_a_log_axis_and_zero_stays_visible():
    epochs = np.arange(10)
    history = pd.DataFrame({"epoch": epochs, "nc1": 10.0**-epochs, "nc4": np.where(epochs < 5, 0.1, 0.0)})
    ax = viz.collapse_curves(history)
    assert ax.get_yscale() == "log" and len(ax.lines) == 2
    assert ax.lines[1].get_ydata().min() == pytest.approx(1e-9)
    assert [text.get_text()[:3] for text in ax.texts] == ["NC1", "NC4"]


def test_collapse_takes_the_names_of_the_metric(table):
    names = ["nc1", "nc1_ratio", "nc2_etf_means", "nc3_self_duality", "nc4"]
    ax = viz.collapse_curves(pd.DataFrame({"epoch": [0, 1]} | {name: [0.5, 0.1] for name in names}))
    assert [text.get_text()[:3] for text in ax.texts] == ["NC1", "NC2", "NC3", "NC4"]


def test_bad_input_is_refused_by_name(table):
    with pytest.raises(ValueError, match="column 'accuracy' is not in the table, which has"):
        viz.history_bands(table, y="accuracy")
    with pytest.raises(ValueError, match="table is empty"):
        viz.history_bands(table[:0], y="val_accuracy")
    with pytest.raises(ValueError, match="band must be 'range' or 'sd', but is 'ci'"):
        viz.history_bands(table, y="val_accuracy", band="ci")
    with pytest.raises(ValueError, match="column 'val_accuracy' holds no number where loss is mae"):
        viz.history_bands(table.assign(val_accuracy=float("nan")), y="val_accuracy", hue="loss")
    with pytest.raises(ValueError, match="history must have one of the columns nc1, nc2"):
        viz.collapse_curves(table)
    with pytest.raises(ValueError, match="no positive value"):
        viz.collapse_curves(pd.DataFrame({"epoch": [0], "nc1": [0.0]}))
