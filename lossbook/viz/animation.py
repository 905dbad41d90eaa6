"""A process as a film that the reader stops, winds and plays: no kernel and no video encoder needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lossbook.viz._player import Control, player
from lossbook.viz.picture import Picture, alt_text


def animate(
    draw: Callable[[Any], Any], frames: int | Sequence[Any], *, alt: str, fps: float = 10, label: str = "frame"
) -> Picture:
    """A player with a play button and a slider over the figures draw(i).

    All frames get the size of the first. Equal frames are stored once. The result is HTML that carries the frames, the
    same in a live notebook and in the site.

    Args:
        draw: takes one entry of frames and returns a Figure or Axes; the figure is closed afterwards.
        frames: the values to draw, such as epochs, or their number n for 0 ... n - 1; at least two.
        alt: what the film shows, in words.
        fps: frames per second, in (0, 60].
        label: what the slider counts, such as "epoch".

    Raises:
        ValueError: an argument is out of range, or draw returns something else.
    """
    values = list(range(frames)) if isinstance(frames, int) else list(frames)
    if len(values) < 2:
        raise ValueError(f"frames must be at least two, but there are {len(values)}")
    if not 0 < fps <= 60:
        raise ValueError(f"fps must lie in (0, 60], but is {fps!r}")
    control = Control(label, [f"{v:g}" if isinstance(v, float) else str(v) for v in values], 0)
    return player("draw", [partial(draw, value) for value in values], [control], alt=alt_text(alt), fps=fps)
