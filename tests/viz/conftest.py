"""Plots are drawn without a screen, in the book's style, and closed after each test."""

from __future__ import annotations

import matplotlib
import pytest


@pytest.fixture(autouse=True)
def style():
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from lossbook.viz import use_style

    with plt.rc_context():
        use_style()
        yield
        plt.close("all")
