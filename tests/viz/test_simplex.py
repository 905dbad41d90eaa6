from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook import viz
from lossbook.viz.picture import description


def entropy(p):
    return -(p * np.log(p)).sum(axis=1)


def test_the_grid_is_probabilities_and_covers_the_triangle():
    seen = []
    viz.simplex_contours(lambda p: seen.append(p) or p[:, 0])
    (p,) = seen
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert p.min() > 0 and p.max(axis=0) == pytest.approx([1, 1, 1], abs=1e-3)


def test_contours_of_a_coordinate_are_parallel_to_the_opposite_edge():
    ax = viz.simplex_contours(lambda p: p[:, 2], levels=[0.0, 0.25, 0.5, 1.0])
    # Class 2 is the upper corner: where its probability is 0.5, the height is half that of the triangle.
    line = ax.collections[-1].get_paths()[2].vertices
    np.testing.assert_allclose(line[:, 1], np.sqrt(3) / 4, atol=1e-3)


def test_corners_and_colour_bar_are_named_and_poles_do_not_use_up_the_levels():
    ax = viz.simplex_contours(
        lambda p: np.where(p[:, 0] < 2e-4, np.inf, -np.log(p[:, 0])), vertices="abc", label="loss (nats)"
    )
    assert {"a", "b", "c"} <= {text.get_text() for text in ax.texts}
    assert ax.figure.axes[1].get_ylabel() == "loss (nats)"
    assert ax.collections[0].levels.max() < 6


def test_entropy_is_highest_in_the_middle_and_tensors_are_taken():
    ax = viz.simplex_contours(lambda p: torch.tensor(entropy(p)))
    assert "highest near (0.33, 0.33, 0.33)" in description(ax)


def test_points_lie_at_their_barycentres_on_top_of_contours():
    probs = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.4]])
    ax = viz.simplex_contours(entropy)
    before = len(ax.lines)
    assert viz.simplex_scatter(probs, np.array([0, 1, 2, 2]), ax=ax) is ax
    assert len(ax.lines) == before
    points = [np.asarray(c.get_offsets()) for c in ax.collections[-3:]]
    height = np.sqrt(3) / 2
    np.testing.assert_allclose(points[2], [[0.5, height], [0.5, 0.4 * height]], atol=1e-12)
    assert description(ax).startswith("Contours") and "100% lie in the right third" in description(ax)


def test_bad_input_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"f must return one value per row, shape \(4753,\), but returned shape \(4753, 3\)"
    ):
        viz.simplex_contours(lambda p: p)
    with pytest.raises(ValueError, match="f returned NaN at the probabilities"):
        viz.simplex_contours(lambda p: np.where(p[:, 0] > 0.5, p[:, 0], np.nan))
    with pytest.raises(ValueError, match="levels must be two or more rising values"):
        viz.simplex_contours(entropy, levels=[1.0, 0.5])
    with pytest.raises(ValueError, match="vertices must name three corners"):
        viz.simplex_contours(entropy, vertices=["a", "b"])
    with pytest.raises(ValueError, match=r"probs must have shape \(any, 3\)"):
        viz.simplex_scatter([[0.5, 0.5]], [0])
