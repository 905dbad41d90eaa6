from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook import viz
from lossbook.viz.picture import description


def test_theory_is_sorted_by_size_and_runs_are_crosses():
    trained = torch.tensor([[2.0, 0.1, 1.0], [2.2, 0.0, 1.1]])
    ax = viz.lengths_vs_counts([70, 2, 20], np.array([2.1, 0.0, 1.0]), trained, threshold=6, ylabel="row length")
    theory, crosses = ax.lines[:2]
    np.testing.assert_array_equal(theory.get_xydata(), [[2, 0], [20, 1], [70, 2.1]])
    assert sorted(crosses.get_ydata()) == pytest.approx([0, 0.1, 1, 1.1, 2, 2.2])
    assert ax.get_ylabel() == "row length" and ax.get_ylim()[1] > 2.2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["theory", "trained, 2 runs"]
    assert ax.patches[0].get_extents().transformed(ax.transData.inverted()).x1 == pytest.approx(6)
    assert "from 2 to 70" in description(ax) and "within 0.1" in description(ax)


def test_calls_share_axes_and_a_scale():
    ax = viz.lengths_vs_counts([5, 10], [1.0, 2.0], label="1 layer")
    viz.lengths_vs_counts([5, 10], [1.0, 9.0], [1.0, 9.0], label="2 layers", color="#d55e00", ax=ax)
    assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 9
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["theory, 1 layer", "theory, 2 layers", "trained, 2 layers"]


def test_all_classes_may_vanish():
    ax = viz.lengths_vs_counts([3, 3], [0.0, 0.0], threshold=50)
    assert ax.get_ylim() == (0, 1) and ax.get_xlim()[0] < 3 and ax.get_xlim()[1] > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], [1, 1]), "counts must be class sizes of at least 1"),
        (([1, 2], [1]), r"theory must have shape \(2\)"),
        (([1, 2], [1, float("nan")]), "theory must be finite"),
        (([1, 2], [1, 1], [[1, 1, 1]]), r"trained must have shape \(any, 2\)"),
        (([1, 2], [1, 1], [1, 1, 1]), r"trained must have shape \(2\)"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        viz.lengths_vs_counts(*arguments)
    with pytest.raises(ValueError, match="threshold must lie in"):
        viz.lengths_vs_counts([1, 2], [1, 1], threshold=0)
