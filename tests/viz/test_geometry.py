from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lossbook import viz
from lossbook.viz.picture import description

TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=float)


def disc(points):
    """Class 1 inside the unit circle."""
    p = 1 / (1 + np.exp(-4 * (1 - (points**2).sum(axis=1))))
    return np.stack([1 - p, p], axis=1)


def test_the_boundary_of_a_disc_is_the_circle():
    x = np.random.default_rng(0).uniform(-1.5, 1.5, (60, 2))
    ax = viz.decision_surface(disc, x, disc(x).argmax(axis=1))
    (contour,) = [c for c in ax.collections if type(c).__name__ == "QuadContourSet"]
    radius = np.linalg.norm(contour.get_paths()[0].vertices, axis=1)
    np.testing.assert_allclose(radius, 1, atol=2e-3)
    np.testing.assert_allclose(ax.images[0].get_array().min(), 0.5, atol=0.02)
    assert ax.figure.axes[1].get_ylabel() == "confidence (probability)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["class 0", "class 1"]


def test_decision_surface_takes_tensors_and_refuses_bad_input():
    x, y = torch.randn(20, 2), torch.zeros(20, dtype=torch.long)
    viz.decision_surface(lambda p: torch.softmax(torch.tensor(p) @ torch.ones(2, 3, dtype=torch.float64), 1), x, y)
    with pytest.raises(ValueError, match=r"x must have shape \(any, 2\), but has shape \(20, 3\)"):
        viz.decision_surface(disc, torch.randn(20, 3), y)
    with pytest.raises(ValueError, match=r"predict\(x\)\[0\] is not a probability vector"):
        viz.decision_surface(lambda p: p, x, y)
    with pytest.raises(ValueError, match="y has label 5, but there are 2 classes"):
        viz.decision_surface(disc, x, y + 5)


def test_basis_keeps_four_means_without_loss_and_does_not_flip():
    rng = np.random.default_rng(1)
    means = rng.normal(size=(4, 12))
    basis = viz.class_mean_basis(means)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)
    centred = means - means.mean(axis=0)
    np.testing.assert_allclose(centred @ basis @ basis.T, centred, atol=1e-12)
    np.testing.assert_allclose(viz.class_mean_basis(means * (1 + 1e-9)), basis, atol=1e-6)


def wire(ax):
    return np.array(
        [[np.asarray(axis) for axis in line.get_data_3d()] for line in ax.lines if len(line.get_data_3d()[0]) == 2]
    )


@pytest.mark.parametrize("classes", [3, 4])
def test_collapsed_means_coincide_with_the_etf_in_any_pose(classes):
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(9, 9)))[0][:3]
    etf = TETRAHEDRON if classes == 4 else np.array([[2, -1, -1], [-1, 2, -1], [-1, -1, 2.0]])
    means = 3 * etf @ rotation + 7
    ax = viz.class_means_3d(means)
    edges = wire(ax)
    assert len(edges) == classes * (classes - 1) // 2
    arrows = (means - means.mean(axis=0)) @ viz.class_mean_basis(means)
    corners = edges.transpose(0, 2, 1).reshape(-1, 3)
    nearest = np.linalg.norm(corners[:, None] - arrows, axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=1e-9)
    assert "0% of their length away" in description(ax)


def test_features_weights_and_labels_are_drawn():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 100)
    ax = viz.class_means_3d(
        TETRAHEDRON, features=TETRAHEDRON[y] + 0.1 * rng.normal(size=(100, 3)), target=y, weight=TETRAHEDRON
    )
    kinds = [type(c).__name__ for c in ax.collections]
    assert kinds.count("Path3DCollection") == 4 and kinds.count("Line3DCollection") == 8
    assert sum(len(c.get_offsets()) for c in ax.collections if "Path3D" in type(c).__name__) == 100
    assert [t.get_text() for t in ax.texts] == ["0", "1", "2", "3"]
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"simplex ETF", "class mean", "classifier row"}
    assert "axis" not in ax.get_xlabel() and ax.get_xlabel() == "feature 1"


def test_drawing_does_not_move_the_callers_random_numbers():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    viz.class_means_3d(TETRAHEDRON)
    assert torch.rand(1) == wanted


def test_limit_holds_the_scale():
    a, b = (viz.class_means_3d(s * TETRAHEDRON, limit=3).get_xlim() for s in (1, 1.5))
    assert a == b


def test_class_means_3d_refuses_bad_input():
    with pytest.raises(ValueError, match=r"means must have shape \(3 or 4, at least 3\)"):
        viz.class_means_3d(np.eye(5))
    with pytest.raises(ValueError, match="target is missing"):
        viz.class_means_3d(TETRAHEDRON, features=TETRAHEDRON)
    with pytest.raises(ValueError, match="ax must be 3-D axes"):
        viz.class_means_3d(TETRAHEDRON, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="limit must be positive, but is 0"):
        viz.class_means_3d(TETRAHEDRON, limit=0)


def test_cosines_of_a_tetrahedron():
    ax = viz.gram_heatmap(torch.tensor(TETRAHEDRON), names="abcd")
    np.testing.assert_allclose(ax.images[0].get_array(), np.eye(4) * 4 / 3 - 1 / 3, atol=1e-12)
    assert [t.get_text() for t in ax.texts].count("-0.33") == 12
    assert [t.get_text() for t in ax.get_xticklabels()] == list("abcd")
    assert len(viz.gram_heatmap(np.eye(13)).texts) == 0
    with pytest.raises(ValueError, match=r"vectors\[1\] is zero"):
        viz.gram_heatmap([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="names must have 2 entries"):
        viz.gram_heatmap(np.eye(2), names=["a"])
