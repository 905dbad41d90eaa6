from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lossbook import viz
from lossbook.viz.picture import description


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5, 0.5, 0.5], size=400)
    return probs, (rng.random((400, 1)) > probs.cumsum(axis=1)).sum(axis=1)


def bins():
    return SimpleNamespace(
        edges=np.array([0.0, 0.5, 0.75, 1.0]),
        count=np.array([0, 10, 1000]),
        mean_confidence=np.array([np.nan, 0.7, 0.9]),
        accuracy=np.array([np.nan, 0.5, 0.8]),
        lower=np.array([np.nan, 0.24, 0.77]),
        upper=np.array([np.nan, 0.76, 0.82]),
    )


def test_bars_dots_and_counts_are_the_bins():
    ax = viz.reliability_diagram(bins())
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in ax.patches] == [
        (0.5, 0.25, 0.5),
        (0.75, 0.25, 0.8),
    ]
    (error,) = ax.containers[1:]
    dots, _, (whisker,) = error.lines
    np.testing.assert_allclose(dots.get_xydata(), [[0.7, 0.5], [0.9, 0.8]])
    np.testing.assert_allclose([segment[:, 1] for segment in whisker.get_segments()], [[0.24, 0.76], [0.77, 0.82]])
    (panel,) = ax.child_axes
    assert [bar.get_height() for bar in panel.patches] == [10, 1000]
    assert panel.get_yscale() == "log" and "n = 1,010" in panel.get_xlabel()
    assert ax.get_ylabel() == "accuracy (fraction correct)"


def test_the_description_gives_the_sign_of_the_gap():
    gap = (10 * 0.2 + 1000 * 0.1) / 1010
    assert f"falls short of confidence by {gap:.1%}" in description(viz.reliability_diagram(bins()))


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_arrays_and_tensors_agree_and_no_prediction_is_lost(predictions, strategy):
    probs, target = predictions
    drawn = [
        viz.reliability_diagram(p, y, n_bins=8, strategy=strategy)
        for p, y in ((probs, target), (torch.tensor(probs), torch.tensor(target)))
    ]
    heights = [[bar.get_height() for bar in ax.patches] for ax in drawn]
    assert heights[0] == heights[1]
    assert sum(bar.get_height() for bar in drawn[0].child_axes[0].patches) == 400


def test_an_event_with_one_probability_each():
    ax = viz.reliability_diagram(np.array([0.1, 0.2, 0.9]), np.array([0, 1, 1]), n_bins=2)
    assert [bar.get_height() for bar in ax.patches] == [0.5, 1.0]


def test_two_diagrams_share_a_figure(predictions):
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5))
    for ax in axes:
        assert viz.reliability_diagram(*predictions, ax=ax) is ax
    figure.draw_without_rendering()
    left, right = (ax.get_tightbbox() for ax in axes)
    assert left.x1 <= right.x0


@pytest.mark.parametrize(
    ("probs", "target", "sentence"),
    [
        ([[0.5, 0.6]], [0], r"probs\[0\] is not a probability vector"),
        ([[0.5, 0.5]], None, "target is missing"),
        ([[0.5, 0.5]], [2], "target has label 2, but there are 2 classes"),
        ([[0.5, 0.5]], [0.0], "target must hold integer labels"),
        ([[0.5, float("nan")]], [0], r"probs must be finite, but probs\[0, 1\] is nan"),
        ([[0.5, 0.5]], [0, 1], r"target must have shape \(1,\)"),
    ],
)
def test_bad_input_is_refused_by_name(probs, target, sentence):
    with pytest.raises(ValueError, match=sentence):
        viz.reliability_diagram(probs, target)
