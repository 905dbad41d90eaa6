"""A figure as a picture with alternative text, which plain inline output cannot carry.

Every plot of this package describes itself (`describe`); `show` turns a figure into an `<img alt="…">`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

#: CSS pixels per inch of a figure: 6.4 inches fill a notebook's column.
CSS_DPI = 100
_descriptions: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


class Picture:
    """What `show` returns: notebooks display its HTML, a terminal its text.

    Attributes:
        html: the element that is displayed.
        alt: the alternative text.
    """

    def __init__(self, html: str, alt: str) -> None:
        self.html = html
        self.alt = alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.alt}

    def __repr__(self) -> str:
        return self.alt


def describe(target: Figure | Axes, text: str) -> None:
    """Store the alternative text of a figure or of one of its axes; `show` uses it when it is given none.

    Raises:
        ValueError: text is empty.
    """
    _descriptions[target] = alt_text(text)


def description(target: Figure | Axes) -> str:
    """The stored text: the figure's own, else those of its axes one after the other, else an empty string."""
    if target in _descriptions or not isinstance(target, Figure):
        return _descriptions.get(target, "")
    return " ".join(_descriptions[ax] for ax in target.axes if ax in _descriptions)


def show(drawn: Figure | Axes | Sequence[Axes], *, alt: str | None = None) -> Picture:
    """A displayable picture of the figure, with alternative text; the figure is closed, so it appears once.

    The picture is WebP at twice the screen's resolution inside an HTML `<img>`.

    Args:
        drawn: a figure, its axes, or a sequence of axes of one figure.
        alt: what the figure shows, in a sentence or two. Default: what `describe` stored; the plots of this package
            store one.

    Raises:
        ValueError: there is no alternative text, or drawn is neither figure nor axes.
    """
    if isinstance(drawn, Sequence) and len(drawn) > 0:
        drawn = drawn[0]
    figure = figure_of("drawn", drawn)
    text = alt_text(alt if alt is not None else description(figure))
    width, height = figure.get_size_inches()
    data = encode(pixels(figure, dpi=2 * CSS_DPI), quality=80)
    plt.close(figure)
    return Picture(image_element(data, text, (width, height)), text)


def image_element(data: str, alt: str, size: tuple[float, float]) -> str:
    """`<img>` of base64 WebP, size inches large, smaller where the column is narrower."""
    width, height = (round(inches * CSS_DPI) for inches in size)
    # Decoded at once, so that a picture that takes another's place does not flash.
    return (
        f'<img src="data:image/webp;base64,{data}" alt="{html.escape(alt)}" width="{width}" height="{height}"'
        ' decoding="sync" style="max-width:100%;height:auto">'
    )


def alt_text(text: str) -> str:
    """text on one line; refused when there is none."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"alt must say in words what the figure shows, but is {text!r}")
    return " ".join(text.split())


def figure_of(name: str, drawn: Any) -> Figure:
    """The figure itself, or the one that the axes belong to."""
    figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    if not isinstance(figure, Figure):
        raise ValueError(f"{name} must be a matplotlib Figure or Axes, but is {type(drawn).__name__}")
    return figure


def pixels(figure: Figure, *, dpi: float) -> Image.Image:
    """The figure drawn by Agg, without the alpha channel."""
    buffer = io.BytesIO()
    # bbox_inches is spelled out because the style in force may crop, and then frames would differ in size.
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches=figure.bbox_inches, pil_kwargs={"compress_level": 0})
    drawn = Image.open(buffer).convert("RGBA")
    ground = Image.new("RGBA", drawn.size, "white")
    return Image.alpha_composite(ground, drawn).convert("RGB")


def encode(image: Image.Image, *, quality: int) -> str:
    """image as WebP in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=quality, method=4)
    return base64.b64encode(buffer.getvalue()).decode()
