"""Precomputed frames in one piece of HTML: `play` uses it without a kernel, `animate` always.

Nothing is loaded from elsewhere, so the figure moves in the site, in a file opened from disk and in a trusted notebook.
Where no script may run, the frame at the starting values is an ordinary image and the controls are hidden (JupyterLab
shows them disabled in a notebook it does not trust).
"""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any

import matplotlib.pyplot as plt
from PIL import Image

from lossbook.viz.picture import CSS_DPI, Picture, encode, figure_of, image_element, pixels

# A player's frames together are brought to this many bytes of HTML if the quality allows it.
_BUDGET = 500_000
_WARN = 1_000_000
_QUALITIES = (80, 65, 50, 40)
# JupyterLab leaves the arrow keys to an element that carries this.
_KEYS = 'data-lm-suppress-shortcuts="true"'


@dataclass(frozen=True)
class Control:
    """One control: its name, what it is set to in words, where it starts, and whether it is a slider or a menu."""

    name: str
    texts: Sequence[str]
    start: int
    slider: bool = True


Size = tuple[float, float]


def frame(draw: Callable[[], Any], name: str, *, dpi: float, size: Size | None = None) -> tuple[Image.Image, Size]:
    """What draw() returns as an image, and its size in inches; the figure is closed. size resizes it."""
    figure = figure_of(f"what {name} returns", draw())
    if size is not None:
        figure.set_size_inches(size)
    image = pixels(figure, dpi=dpi)
    plt.close(figure)
    width, height = figure.get_size_inches()
    return image, (float(width), float(height))


def player(
    name: str, draw: Sequence[Callable[[], Any]], controls: Sequence[Control], *, alt: str, fps: float | None = None
) -> Picture:
    """Frames drawn one after the other (in row-major order of the controls) and the HTML that steps through them."""
    dpi = 1.25 * CSS_DPI if len(draw) <= 24 else CSS_DPI
    places: dict[bytes, int] = {}
    images: list[Image.Image] = []
    index = []
    size = None
    for one in draw:
        image, size = frame(one, name, dpi=dpi, size=size)
        place = places.setdefault(image.tobytes(), len(images))
        if place == len(images):
            images.append(image)
        index.append(place)
    assert size is not None
    text = html_player(_encode(images), index, controls, size=size, alt=alt, fps=fps)
    if len(text) > _WARN:
        warnings.warn(
            f"the player of {name} takes {len(text) / 1e6:.1f} MB of the notebook: use fewer or smaller figures",
            stacklevel=3,
        )
    sizes = " x ".join(f"{len(control.texts)} of {control.name}" for control in controls)
    return Picture(text, f"{alt} ({len(index)} frames: {sizes})")


def html_player(
    encoded: Sequence[str],
    index: Sequence[int],
    controls: Sequence[Control],
    *,
    size: Size,
    alt: str,
    fps: float | None,
) -> str:
    """The figure, its controls, its frames and the script, as one element."""
    place = 0
    for control in controls:
        place = place * len(control.texts) + control.start
    start = index[place]
    data = {
        "alt": alt,
        "fps": fps,
        "controls": [{"name": control.name, "texts": list(control.texts)} for control in controls],
        "index": list(index),
        "frames": [None if i == start else one for i, one in enumerate(encoded)],
    }
    # "<" is escaped so that no text can end the script element early.
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    now = ", ".join(f"{control.name}: {control.texts[control.start]}" for control in controls)
    button = f'<button type="button" {_KEYS}>▶ play</button>' if fps is not None else ""
    return (
        '<figure class="lossbook-play">'
        f"<style>{_asset('player.css')}</style>"
        f'<div aria-live="polite">{image_element(encoded[start], f"{alt} ({now})", size)}</div>'
        f'<div class="controls" hidden>{button}{"".join(map(_control, controls))}</div>'
        f'<script type="application/json">{payload}</script>'
        f"<script>{_asset('player.js')}</script></figure>"
    )


def _control(control: Control) -> str:
    name = html.escape(control.name)
    if control.slider:
        text = html.escape(control.texts[control.start])
        return (
            f'<label>{name} <input type="range" min="0" max="{len(control.texts) - 1}" step="1" value="{control.start}"'
            f' {_KEYS} aria-label="{name}" aria-valuetext="{text}"> <output>{text}</output></label>'
        )
    options = "".join(
        f'<option value="{i}"{" selected" if i == control.start else ""}>{html.escape(text)}</option>'
        for i, text in enumerate(control.texts)
    )
    return f'<label>{name} <select aria-label="{name}" {_KEYS}>{options}</select></label>'


def _encode(images: Sequence[Image.Image]) -> list[str]:
    """base64 WebP in the best quality that keeps the budget; judged on four of the images."""
    sample = images[:: max(1, len(images) // 4)]
    for quality in _QUALITIES:
        size = sum(len(encode(image, quality=quality)) for image in sample) / len(sample)
        if size * len(images) <= _BUDGET:
            break
    return [encode(image, quality=quality) for image in images]


@cache
def _asset(name: str) -> str:
    return files("lossbook.viz").joinpath(name).read_text(encoding="utf-8").strip()


def thin(controls: Sequence[Control], most: int) -> list[list[int]]:
    """Which positions of each control are drawn, at most `most` combinations.

    Sliders lose positions evenly, the longest first; the ends and the start stay. Menus keep all their names.

    Raises:
        ValueError: not even the ends and the starts fit.
    """
    kept = [list(range(len(control.texts))) for control in controls]
    while prod(map(len, kept)) > most:
        long = [i for i, control in enumerate(controls) if control.slider and len(kept[i]) > len(_least(control))]
        if not long:
            raise ValueError(
                f"max_frames is {most}, but the menus and the ends of the sliders alone have {prod(map(len, kept))} "
                "combinations: offer fewer choices or raise max_frames"
            )
        i = max(long, key=lambda i: len(kept[i]))
        kept[i] = _evenly(controls[i], len(kept[i]) - 1)
    return kept


def _least(control: Control) -> set[int]:
    return {0, control.start, len(control.texts) - 1}


def _evenly(control: Control, n: int) -> list[int]:
    last = len(control.texts) - 1
    places = sorted({round(i * last / (n - 1)) for i in range(n)}) if n > 1 else [0]
    if control.start not in places:
        # The start takes the place of its nearest neighbour that is not an end.
        inner = [i for i in places if i not in (0, last)]
        places[places.index(min(inner, key=lambda i: abs(i - control.start)))] = control.start
    return places
