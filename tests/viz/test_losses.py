from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lossbook import viz


def cross_entropy(logits, target, reduction="mean"):
    return F.cross_entropy(logits, target, reduction=reduction)


def steep(logits, target, reduction="none"):
    return torch.exp(-5 * logits[:, 0])


def line(ax, label):
    (found,) = [one for one in ax.get_lines() if one.get_label() == label]
    return found.get_xdata(), found.get_ydata()


@pytest.mark.parametrize("classes", [2, 10])
def test_cross_entropy_over_the_margin(classes):
    m, value = line(viz.loss_curves([cross_entropy], num_classes=classes), "cross-entropy")
    np.testing.assert_allclose(value, np.log1p((classes - 1) * np.exp(-m)), rtol=1e-12)
    assert abs(m).min() < 1e-12


@pytest.mark.parametrize("classes", [2, 10])
def test_cross_entropy_over_the_probability_has_value_minus_log_p_and_gradient_p_minus_one(classes):
    p, value = line(viz.loss_curves([cross_entropy], num_classes=classes, x="probability"), "cross-entropy")
    np.testing.assert_allclose(value, -np.log(p), rtol=1e-10)
    p, slope = line(viz.gradient_curves([cross_entropy], num_classes=classes, x="probability"), "cross-entropy")
    np.testing.assert_allclose(slope, p - 1, rtol=1e-10)


def test_axes_are_labelled_and_a_steep_loss_does_not_flatten_the_others():
    ax = viz.loss_curves({"cross_entropy": cross_entropy, "steep": steep})
    assert "logit units" in ax.get_xlabel() and "nats" in ax.get_ylabel()
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"cross-entropy", "steep"}
    assert ax.get_ylim()[1] < 3 * math.log1p(math.exp(4))
    assert "per logit unit" in viz.gradient_curves([cross_entropy]).get_ylabel()


def test_the_losses_of_the_package_draw():
    from lossbook import losses

    names = ["cross_entropy", "comp_sum", "generalized_cross_entropy", "mae", "brier", "focal", "crammer_singer"]
    for draw in (viz.loss_curves, viz.gradient_curves):
        ax = draw([getattr(losses, name) for name in names], num_classes=3)
        for name, drawn in zip(names, ax.get_lines(), strict=False):
            assert drawn.get_color() == viz.LOSS_COLORS[name]
            assert np.isfinite(drawn.get_ydata()).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"losses": []}, "losses must hold at least one loss"),
        ({"losses": [lambda f, y: f]}, "has no name: give a dict"),
        ({"losses": {"a": 3}}, r"losses\['a'\] must be a function"),
        ({"losses": {"a": lambda f, y, reduction: f.sum()}}, r"losses\['a'\] must return one value per example"),
        ({"losses": [cross_entropy], "num_classes": 1}, "num_classes must be a whole number of at least 2, but is 1"),
        ({"losses": [cross_entropy], "x": "logit"}, "x must be 'margin' or 'probability', but is 'logit'"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        viz.loss_curves(**arguments)
