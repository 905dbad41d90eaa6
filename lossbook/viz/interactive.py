"""A figure with controls: computed while you move them in a live kernel, precomputed where there is none."""

from __future__ import annotations

import html
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from numbers import Real
from typing import Any

from PIL import Image

from lossbook import checks
from lossbook.viz._player import Control, frame, player, thin
from lossbook.viz.picture import CSS_DPI, alt_text, encode, figure_of, image_element

_FORMS = "(low, high, step), (low, high, step, unit), a list, a dict or an ipywidgets widget"

# In JupyterLab an arrow key pressed on a menu would move to another cell; what says so to it, ipywidgets cannot set.
_FREE_KEYS = (
    "this.closest('.widget-vbox')?.querySelectorAll('select')"
    ".forEach(menu => menu.dataset.lmSuppressShortcuts = 'true')"
)


@dataclass(frozen=True)
class _Setting:
    """A control as it was asked for: the values it takes, in f's terms and in words."""

    name: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    start: int
    form: str  # "range", "steps" (a slider over a list of numbers), "menu", "widget"
    unit: str = ""
    widget: Any = None

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")


def play(f: Callable[..., Any], /, *, alt: str, max_frames: int = 60, **controls: Any) -> Any:
    """A figure that its controls redraw.

    In a live kernel this is a box of ipywidgets: each change calls `f(**values)` and shows the new figure. A value that
    is passed over while f still draws is skipped: ipywidgets holds changes back until the kernel is idle and then sends
    the latest. With the environment variable LOSSBOOK_STATIC=1 all figures are drawn beforehand and put into HTML that
    needs no kernel. In plain Python the figure at the starting values is returned.

    Args:
        f: takes the controls as keywords and returns a Figure or Axes, which is closed after drawing.
        alt: what the figure shows, in words; the values on show are added to it.
        max_frames: how many figures may be drawn beforehand. Where the combinations are more, sliders lose values
            evenly; their ends and starting values stay.
        controls: name=control. A tuple (low, high, step) or (low, high, step, unit) or a list of numbers is a slider,
            a list of names or a dict label -> value a menu; an ipywidgets slider, menu or checkbox is taken as it is. A
            control starts at f's default for it, else in the middle of a (low, high, step), else at its first value.
            The names alt and max_frames are taken.

    Returns:
        An `ipywidgets.VBox`, a `Picture` or a Figure.

    Raises:
        ValueError: a control is malformed, f does not take it, or f returns no figure; the sentence names the argument.
    """
    text = alt_text(alt)
    most = checks.whole("max_frames", max_frames, 1)
    if not controls:
        raise ValueError("controls are missing: give at least one, such as temperature=(0.5, 3, 0.1)")
    settings = [_setting(name, spec, _default(f, name)) for name, spec in controls.items()]
    if os.environ.get("LOSSBOOK_STATIC") == "1":
        return _static(f, settings, text, most)
    if _in_kernel():
        return _live(f, settings, text)
    return figure_of("what f returns", f(**{s.name: s.values[s.start] for s in settings}))


def _static(f: Callable[..., Any], settings: list[_Setting], alt: str, most: int) -> Any:
    full = [Control(s.label, s.texts, s.start, s.form != "menu") for s in settings]
    kept = thin(full, most)
    drawn = [
        Control(control.name, [control.texts[i] for i in places], places.index(control.start), control.slider)
        for control, places in zip(full, kept, strict=True)
    ]
    combinations = [{s.name: s.values[i] for s, i in zip(settings, places, strict=True)} for places in product(*kept)]
    return player("f", [partial(_call, f, values) for values in combinations], drawn, alt=alt)


def _call(f: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return f(**values)
    except Exception as error:
        error.add_note(f"play called f with {values}")
        raise


def _live(f: Callable[..., Any], settings: list[_Setting], alt: str) -> Any:
    import ipywidgets

    dpi = 1.25 * CSS_DPI
    widgets = {s.name: _widget(s) for s in settings}
    first, size = frame(partial(f, **{name: widget.value for name, widget in widgets.items()}), "f", dpi=dpi)
    # HTML, not ipywidgets.Image, which cannot carry alternative text.
    picture, message = ipywidgets.HTML(), ipywidgets.HTML()

    def put(image: Image.Image) -> None:
        now = ", ".join(f"{s.label}: {_worded(s, widgets[s.name].value)}" for s in settings)
        element = image_element(encode(image, quality=80), f"{alt} ({now})", size)
        picture.value = element.replace("<img ", f'<img onload="{_FREE_KEYS}" ', 1)

    def redraw(_change: Any) -> None:
        values = {name: widget.value for name, widget in widgets.items()}
        try:
            image, _ = frame(partial(f, **values), "f", dpi=dpi, size=size)
        # Whatever f raises belongs to the reader, who would not see it in a widget's callback.
        except Exception as error:
            message.value = f'<p role="alert">{html.escape(f"{type(error).__name__}: {error}")}</p>'
            return
        message.value = ""
        put(image)

    put(first)
    for widget in widgets.values():
        widget.observe(redraw, "value")
    return ipywidgets.VBox([*widgets.values(), message, picture])


def _widget(s: _Setting) -> Any:
    import ipywidgets as w

    if s.widget is not None:
        return s.widget
    shared = {"description": s.label, "style": {"description_width": "initial"}, "layout": {"width": "24em"}}
    if s.form == "range":
        low, step = s.values[0], s.values[1] - s.values[0] if len(s.values) > 1 else 1
        whole = all(isinstance(value, int) for value in s.values)
        slider = w.IntSlider if whole else w.FloatSlider
        if s.unit:
            shared["description"] = f"{s.label} ({s.unit})"
        if not whole:
            shared["readout_format"] = f".{_decimals(s.values)}f"
        return slider(value=s.values[s.start], min=low, max=s.values[-1], step=step, **shared)
    kind = w.SelectionSlider if s.form == "steps" else w.Dropdown
    return kind(options=list(zip(s.texts, s.values, strict=True)), value=s.values[s.start], **shared)


def _in_kernel() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def _default(f: Callable[..., Any], name: str) -> Any:
    """f's default for the control, or `inspect.Parameter.empty`."""
    parameters = inspect.signature(f).parameters
    if name in parameters:
        return parameters[name].default
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return inspect.Parameter.empty
    raise ValueError(f"f does not take the control {name!r}: its parameters are {', '.join(parameters) or 'none'}")


def _setting(name: str, spec: Any, default: Any) -> _Setting:
    if hasattr(spec, "trait_names"):
        return _from_widget(name, spec)
    if isinstance(spec, tuple):
        values, unit = _range(name, spec)
        start = _start(name, values, default, len(values) // 2)
        return _Setting(name, values, _texts(values, unit), start, "range", unit)
    if isinstance(spec, Mapping) and spec:
        values = tuple(spec.values())
        return _Setting(name, values, tuple(map(str, spec)), _start(name, values, default, 0), "menu")
    if isinstance(spec, list) and spec:
        values = tuple(spec)
        form = "steps" if all(_is_number(value) for value in values) else "menu"
        return _Setting(name, values, _texts(values), _start(name, values, default, 0), form)
    raise ValueError(f"{name} must be {_FORMS}, but is {spec!r}")


def _range(name: str, spec: tuple[Any, ...]) -> tuple[tuple[Any, ...], str]:
    *limits, unit = spec if len(spec) == 4 else (*spec, "")
    if len(limits) != 3 or not all(map(_is_number, limits)) or not isinstance(unit, str):
        raise ValueError(f"{name} must be {_FORMS}, but is {spec!r}")
    low, high, step = limits
    if not low < high or not 0 < step <= high - low:
        raise ValueError(f"{name} must rise from low to high by a positive step, but is {spec!r}")
    count = int((high - low) / step + 1e-9) + 1
    # Rounded, because 3 * 0.1 is not 0.3; whole numbers stay whole.
    return tuple(
        low + i * step if isinstance(low + step, int) else round(low + i * step, 10) for i in range(count)
    ), unit


def _start(name: str, values: tuple[Any, ...], default: Any, otherwise: int) -> int:
    if default is inspect.Parameter.empty:
        return otherwise
    if all(map(_is_number, values)) and _is_number(default) and min(values) <= default <= max(values):
        return min(range(len(values)), key=lambda i: abs(values[i] - default))
    for i, value in enumerate(values):
        if value is default or (type(value) is type(default) and value == default):
            return i
    raise ValueError(f"{name} starts at f's default {default!r}, which the control does not offer")


def _from_widget(name: str, widget: Any) -> _Setting:
    """The values a ready-made widget runs through, for the frames drawn beforehand."""
    if not widget.description:
        widget.description = name.replace("_", " ")
    if hasattr(widget, "options"):
        texts, values = map(tuple, zip(*_pairs(widget.options), strict=True))
        form = "steps" if type(widget).__name__ == "SelectionSlider" else "menu"
        return _Setting(name, values, tuple(map(str, texts)), values.index(widget.value), form, widget=widget)
    if isinstance(widget.value, bool):
        return _Setting(name, (False, True), ("off", "on"), int(widget.value), "menu", widget=widget)
    if not all(hasattr(widget, trait) for trait in ("min", "max", "step")):
        raise ValueError(f"{name} must be a slider, a menu or a checkbox, but is {type(widget).__name__}")
    values, _ = _range(name, (widget.min, widget.max, widget.step))
    if hasattr(widget, "base"):
        values = tuple(widget.base**value for value in values)
    return _Setting(name, values, _texts(values), _start(name, values, widget.value, 0), "range", widget=widget)


def _pairs(options: Any) -> list[tuple[Any, Any]]:
    if isinstance(options, Mapping):
        return list(options.items())
    return [option if isinstance(option, tuple) else (option, option) for option in options]


def _texts(values: tuple[Any, ...], unit: str = "") -> tuple[str, ...]:
    after = unit if unit in ("", "%", "°") else f" {unit}"
    return tuple(f"{value:g}{after}" if _is_number(value) else str(value) for value in values)


def _worded(s: _Setting, value: Any) -> str:
    """value as the control words it; a slider that is typed into may hold one in between."""
    return s.texts[s.values.index(value)] if value in s.values else f"{value:g}"


def _decimals(values: tuple[float, ...]) -> int:
    """How many decimals a step of the slider needs."""
    return max(len(f"{value:g}".partition(".")[2]) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
