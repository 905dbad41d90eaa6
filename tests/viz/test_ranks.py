from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from lossbook import viz
from lossbook.viz.picture import description


def test_cells_hold_tau_with_ties():
    measures = {
        "a": [1, 2, 3, 4],
        "b": torch.tensor([1.0, 3.0, 2.0, 4.0]),
        "c": np.array([4, 3, 2, 1]),
        "d": [1, 1, 2, 3],
    }
    ax = viz.rank_correlation_heatmap(measures)
    tau = ax.images[0].get_array()
    assert tau[0, 1] == tau[1, 0] == pytest.approx(4 / 6)
    assert tau[0, 2] == pytest.approx(-1)
    # Five of six pairs agree and one is tied in d: 5 / sqrt(6 · 5).
    assert tau[0, 3] == pytest.approx(5 / 30**0.5)
    assert [label.get_text() for label in ax.get_yticklabels()] == list("abcd")
    assert "0.67" in [text.get_text() for text in ax.texts]
    assert "4 measures over 4 models" in description(ax)
    assert "from -1.00 to 0.91" in description(ax)


def test_many_measures_and_a_constant_one():
    values = np.random.default_rng(0).normal(size=(6, 20))
    values[:, 3] = 7.0
    frame = pd.DataFrame(values, columns=[f"m{i}" for i in range(20)])
    ax = viz.rank_correlation_heatmap(frame, colorbar=False)
    tau = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.isnan(tau[3]).all() and np.isnan(tau[:, 3]).all()
    assert np.isfinite(np.delete(np.delete(tau, 3, 0), 3, 1)).all()
    assert not ax.texts and len(ax.figure.axes) == 1


@pytest.mark.parametrize(
    ("measures", "sentence"),
    [
        ({"a": [1, 2]}, "measures must hold two or more, but holds 1"),
        ({"a": [1, 2], "b": [1, 2, 3]}, r"measures\['b'\] must have shape \(2\), but has shape \(3,\)"),
        ({"a": [1], "b": [2]}, "two or more models"),
        ({"a": [1, 2], "b": [1, np.nan]}, r"measures\['b'\] must be finite"),
    ],
)
def test_refuses_bad_input(measures, sentence):
    with pytest.raises(ValueError, match=sentence):
        viz.rank_correlation_heatmap(measures)
