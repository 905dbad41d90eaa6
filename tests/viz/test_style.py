from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb

from lossbook import viz
from lossbook.viz.style import loss_name


def luminance(color) -> float:
    """Relative luminance of WCAG 2.1."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def contrast(a, b) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_figures_are_opaque_and_nearly_white():
    assert luminance(mpl.rcParams["figure.facecolor"]) > 0.95
    assert mpl.rcParams["axes.facecolor"] == mpl.rcParams["figure.facecolor"]


@pytest.mark.parametrize("name", sorted(viz.LOSS_COLORS))
def test_loss_colours_stand_out_from_the_ground(name):
    assert contrast(viz.LOSS_COLORS[name], mpl.rcParams["figure.facecolor"]) >= 3


def test_a_loss_looks_the_same_however_it_is_written():
    assert viz.loss_style("cross_entropy") == viz.loss_style("Cross-Entropy") == viz.loss_style("cross entropy")
    assert len({str(viz.loss_style(name)) for name in viz.LOSS_COLORS}) == len(viz.LOSS_COLORS)
    assert loss_name("crammer_singer") == "Crammer-Singer"


def test_an_unknown_loss_keeps_the_style_it_was_given():
    one, other = viz.loss_style("one unheard of"), viz.loss_style("another unheard of")
    assert one != other
    assert viz.loss_style("one unheard of") == one
    assert one["color"] not in viz.LOSS_COLORS.values()


def test_unknown_losses_do_not_depend_on_the_hash_seed():
    code = "from lossbook import viz; print([viz.loss_style(n) for n in ('x', 'y', 'z')])"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_classes_differ_in_colour_and_in_marker_and_combinations_do_not_come_again_soon():
    first = [viz.class_style(k) for k in range(10)]
    assert len({s["color"] for s in first}) == len({s["marker"] for s in first}) == 10
    both = {(s["color"], s["marker"]) for s in map(viz.class_style, range(30))}
    assert len(both) == 30
    with pytest.raises(ValueError, match="k must be a class index of at least 0, but is -1"):
        viz.class_style(-1)


def test_quantity_colours_follow_rank_and_refuse_nan():
    colors = viz.quantity_colors([3.0, 1.0, 2.0, 1.0])
    assert colors[1] == colors[3]
    assert luminance(colors[1]) < luminance(colors[2]) < luminance(colors[0])
    with pytest.raises(ValueError, match="value 1 is NaN"):
        viz.quantity_colors([0.0, float("nan")])


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, lossbook.viz; print('matplotlib' in sys.modules, 'ipywidgets' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


def test_every_exported_name_is_there():
    for name in viz.__all__:
        assert getattr(viz, name) is not None
    assert callable(viz.play) and callable(viz.animate) and callable(viz.play)
