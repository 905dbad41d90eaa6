from __future__ import annotations

import base64
import io
import re

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from lossbook import viz


def image_of(html: str) -> Image.Image:
    (data,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_show_returns_an_image_with_alt_text_and_closes_the_figure():
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.plot([0, 1])
    picture = viz.show(ax, alt='a "rising"\n line <b>')
    bundle = picture._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert bundle["text/plain"] == 'a "rising" line <b>'
    assert 'alt="a &quot;rising&quot; line &lt;b&gt;"' in bundle["text/html"]
    assert 'width="400" height="300"' in bundle["text/html"]
    assert image_of(picture.html).size == (800, 600)
    assert not plt.fignum_exists(figure.number)


def test_show_is_not_cropped_by_the_style_in_force():
    with plt.rc_context({"savefig.bbox": "tight"}):
        assert image_of(viz.show(plt.figure(figsize=(3, 2)), alt="nothing").html).size == (600, 400)


def test_show_uses_the_stored_descriptions_of_all_axes():
    figure, (left, right) = plt.subplots(1, 2)
    viz.describe(left, "Left.")
    viz.describe(right, "Right.")
    assert viz.show([left, right]).alt == "Left. Right."
    viz.describe(figure, "Both.")
    assert viz.show(figure).alt == "Both."


def test_a_picture_without_words_is_refused():
    with pytest.raises(ValueError, match="alt must say in words"):
        viz.show(plt.figure())
    with pytest.raises(ValueError, match="alt must say in words"):
        viz.describe(plt.figure(), "  ")
    with pytest.raises(ValueError, match="drawn must be a matplotlib Figure or Axes, but is int"):
        viz.show(3, alt="three")
