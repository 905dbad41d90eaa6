"""The interval plot: each number where it belongs, and other lengths refused."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lossbook.viz import interval_plot


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_rows_from_the_top() -> None:
    ax = interval_plot(["a", "b"], [1, 2], [0.5, np.nan], [3, np.nan], marks=[0.1, np.nan], mark_label="m", xlabel="x")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()
    first, *_ = ax.collections[0].get_segments()
    np.testing.assert_allclose(first, [[0.5, 0], [3, 0]])
    dots, marks = [line for line in ax.lines if line.get_marker() in ("o", "|")]
    np.testing.assert_allclose(dots.get_xdata(), [1, 2])
    np.testing.assert_allclose(marks.get_xdata(), [0.1, np.nan])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["95 % interval", "measured", "m"]


@pytest.mark.parametrize(
    ("names", "value", "low", "high", "sentence"),
    [
        ([], [], [], [], "names is empty"),
        (["a"], [1, 2], [0], [1], r"value must have shape \(1,\)"),
        (["a"], [1], [0, 1], [1], r"low must have shape"),
        (["a"], [1], [0], 1, r"high must have shape"),
    ],
)
def test_bad_input(names, value, low, high, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        interval_plot(names, value, low, high)


def test_a_dollar_sign_starts_no_formula() -> None:
    ax = interval_plot(["$5 to $10", "a_$x^{$"], [0, 1], [0, 1], [0, 1])
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"\$5 to \$10", r"a_\$x^{\$"]
