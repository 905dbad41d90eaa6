from __future__ import annotations

import base64
import io
import json
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lossbook import viz
from lossbook.viz import interactive
from lossbook.viz._player import Control, thin


class Page(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.elements[-1][1], data))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> dict:
        (text,) = [text for attributes, text in self.scripts if attributes.get("type") == "application/json"]
        return json.loads(text)

    def frames(self) -> list[Image.Image]:
        """All frames in order, the one shown first among them."""
        first = self.all("img")[0]["src"].removeprefix("data:image/webp;base64,")
        data = self.data
        encoded = [data["frames"][i] or first for i in data["index"]]
        return [Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in encoded]


@pytest.fixture
def static(monkeypatch):
    monkeypatch.setenv("LOSSBOOK_STATIC", "1")


@pytest.fixture
def live(monkeypatch):
    monkeypatch.delenv("LOSSBOOK_STATIC", raising=False)
    monkeypatch.setattr(interactive, "_in_kernel", lambda: True)


def bar(height=1.0, color="red", width=2.0):
    figure, ax = plt.subplots(figsize=(width, 1), layout="none")
    ax.set_position((0, 0, 1, 1))
    ax.bar([0], [height], color=color)
    ax.set(ylim=(0, 4))
    ax.axis("off")
    return figure


def shown(html: str) -> Image.Image:
    (element,) = Page(html).all("img")
    data = element["src"].removeprefix("data:image/webp;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def filled(image: Image.Image) -> float:
    """Share of the picture that the red bar covers."""
    pixels = list(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())
    return sum(r > 180 and g < 100 for r, g, b in pixels) / len(pixels)


def test_plain_python_gets_the_figure_at_the_defaults(monkeypatch):
    monkeypatch.delenv("LOSSBOOK_STATIC", raising=False)
    figure = viz.play(bar, alt="a bar", height=(1, 4, 1))
    assert isinstance(figure, Figure)
    assert figure.axes[0].patches[0].get_height() == 1


def test_static_player_has_a_frame_for_each_combination(static):
    picture = viz.play(bar, alt="A bar.", height=(1, 4, 1, "cm"), color=["red", "blue"])
    page = Page(picture.html)
    assert [c["texts"] for c in page.data["controls"]] == [["1 cm", "2 cm", "3 cm", "4 cm"], ["red", "blue"]]
    frames = page.frames()
    assert len(frames) == 8 and {frame.size for frame in frames} == {(250, 125)}
    share = [filled(frame) for frame in frames]
    # Row-major order: the last control runs fastest.
    assert share[1::2] == [0, 0, 0, 0]
    assert [s / share[6] for s in share[::2]] == pytest.approx([0.25, 0.5, 0.75, 1], abs=0.02)
    assert picture.alt == "A bar. (8 frames: 4 of height x 2 of color)"


def test_static_player_can_be_read_and_used_by_everyone(static):
    page = Page(viz.play(bar, alt='A "bar" <b>', height=(1, 4, 1), color=["red", "blue"]).html)
    (slider,) = page.all("input")
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "3", "0")
    assert slider["aria-label"] == "height" and slider["aria-valuetext"] == "1"
    (menu,) = page.all("select")
    # Else JupyterLab takes the arrow keys for itself.
    assert slider["data-lm-suppress-shortcuts"] == menu["data-lm-suppress-shortcuts"] == "true"
    assert menu["aria-label"] == "color" and len(page.all("option")) == 2
    (image,) = page.all("img")
    assert image["alt"] == 'A "bar" <b> (height: 1, color: red)'
    assert image["src"].startswith("data:image/webp;base64,")
    # Without a script the controls do not show, and nothing is fetched from anywhere.
    assert any(a.get("class") == "controls" and "hidden" in a for a in page.all("div"))
    assert not page.all("link") and all("src" not in a for a in page.all("script"))
    assert not any("id" in attributes for _, attributes in page.elements)


def test_text_cannot_break_out_of_the_script(static):
    page = Page(viz.play(bar, alt="</script><b>", color={"</script>": "red", "<!--": "blue"}).html)
    assert page.data["controls"][0]["texts"] == ["</script>", "<!--"]
    assert not page.all("b")


def test_static_player_is_reproducible_and_leaves_no_figure(static):
    first, second = (viz.play(bar, alt="A bar.", height=(1, 4, 1)).html for _ in range(2))
    assert first == second
    assert plt.get_fignums() == []


def test_equal_frames_are_stored_once(static):
    page = Page(viz.play(lambda height: bar(min(height, 2)), alt="A bar.", height=(1, 4, 1)).html)
    assert page.data["index"] == [0, 1, 1, 1]
    assert len(page.data["frames"]) == 2


def test_frames_have_the_size_of_the_first(static):
    page = Page(viz.play(bar, alt="A bar.", width=(2, 4, 1)).html)
    assert {frame.size for frame in page.frames()} == {(250, 125)}


def test_a_control_starts_at_the_default_of_f_else_in_the_middle(static):
    start = Page(viz.play(bar, alt="A bar.", height=[0.5, 1.0, 4.0]).html).all("input")[0]
    assert start["aria-valuetext"] == "1"
    middle = Page(viz.play(lambda height: bar(height), alt="A bar.", height=(0.0, 1.0, 0.1)).html).all("input")[0]
    assert middle["aria-valuetext"] == "0.5"


def test_an_error_of_f_stops_the_static_player_and_says_where(static):
    def fails(height=1):
        if height == 3:
            raise RuntimeError("three is too many")
        return bar(height)

    with pytest.raises(RuntimeError, match="three is too many") as caught:
        viz.play(fails, alt="A bar.", height=(1, 4, 1))
    assert "{'height': 3}" in caught.value.__notes__[0]


def test_ready_made_widgets_are_taken(static):
    import ipywidgets as w

    page = Page(
        viz.play(
            lambda a, b, c: bar(a + 10 * b + c),
            alt="A bar.",
            a=w.FloatSlider(min=0, max=1, step=0.5, value=0.5),
            b=w.FloatLogSlider(min=-2, max=0, step=1, value=0.1),
            c=w.Checkbox(value=True),
        ).html
    )
    assert [c["texts"] for c in page.data["controls"]] == [["0", "0.5", "1"], ["0.01", "0.1", "1"], ["off", "on"]]
    assert page.all("input")[1]["aria-valuetext"] == "0.1"
    with pytest.raises(ValueError, match="a must be a slider, a menu or a checkbox, but is Text"):
        viz.play(lambda a: bar(), alt="A bar.", a=w.Text())


def test_thinning_keeps_ends_and_start_and_all_names():
    slider = Control("x", [str(i) for i in range(101)], 37)
    menu = Control("m", ["a", "b", "c"], 0, slider=False)
    (one,) = thin([slider], 12)
    assert len(one) == 12 and {0, 37, 100} <= set(one)
    assert max(b - a for a, b in pairwise(one)) <= 2 * 100 / 11
    x, m = thin([slider, menu], 60)
    assert len(x) == 20 and m == [0, 1, 2]
    with pytest.raises(ValueError, match="max_frames is 5, but the menus and the ends of the sliders alone have 9"):
        thin([slider, menu], 5)


def test_a_large_player_warns(static, monkeypatch):
    monkeypatch.setattr("lossbook.viz._player._WARN", 1000)
    with pytest.warns(UserWarning, match="MB of the notebook"):
        viz.play(bar, alt="A bar.", height=(1, 2, 1))


def test_live_controls_redraw_the_image(live):
    box = viz.play(bar, alt="A bar.", height=(1, 4, 1), color=["red", "blue"])
    slider, menu, message, image = box.children
    assert (type(slider).__name__, slider.description, slider.value) == ("IntSlider", "height", 1)
    assert type(menu).__name__ == "Dropdown"
    before = image.value
    slider.value = 4
    assert filled(shown(image.value)) > 3 * filled(shown(before))
    assert Page(image.value).all("img")[0]["alt"] == "A bar. (height: 4, color: red)" and message.value == ""
    menu.value = "blue"
    assert filled(shown(image.value)) == 0
    assert plt.get_fignums() == []


def test_live_errors_are_shown_and_go_away(live):
    def fails(height=1):
        if height == 3:
            raise ValueError("height must not be <3>")
        return bar(height)

    slider, message, image = viz.play(fails, alt="A bar.", height=(1, 4, 1)).children
    before = image.value
    slider.value = 3
    assert message.value == '<p role="alert">ValueError: height must not be &lt;3&gt;</p>'
    assert image.value == before
    slider.value = 4
    assert message.value == "" and image.value != before


def test_live_sliders_have_units_and_steps(live):
    a, b, *_ = viz.play(lambda a, b: bar(a), alt="A bar.", a=(0.0, 1.0, 0.05, "nats"), b=[0.1, 1.0, 10.0]).children
    assert (a.description, a.step, a.readout_format, a.value) == ("a (nats)", 0.05, ".2f", 0.5)
    assert type(b).__name__ == "SelectionSlider" and b.value == 0.1


@pytest.mark.parametrize(
    ("controls", "sentence"),
    [
        ({}, "controls are missing"),
        ({"height": (1, 2)}, r"height must be \(low, high, step\).* but is \(1, 2\)"),
        ({"height": (2, 1, 1)}, "height must rise from low to high"),
        ({"height": (1, 2, 0)}, "height must rise from low to high"),
        ({"height": []}, "height must be .* but is \\[\\]"),
        ({"height": "tall"}, "height must be .* but is 'tall'"),
        ({"height": (2, 4, 1)}, "height starts at f's default 1.0, which the control does not offer"),
        ({"depth": (1, 2, 1)}, "f does not take the control 'depth': its parameters are height, color, width"),
        ({"height": (1, 2, 1), "max_frames": 0}, "max_frames must be a whole number of at least 1, but is 0"),
        ({"height": (1, 2, 1), "alt": ""}, "alt must say in words"),
    ],
)
def test_bad_input_is_refused_by_name(static, controls, sentence):
    with pytest.raises(ValueError, match=sentence):
        viz.play(bar, **{"alt": "A bar."} | controls)


@pytest.mark.parametrize("mode", ["static", "live"])
def test_f_must_return_a_figure(mode, request):
    request.getfixturevalue(mode)
    with pytest.raises(ValueError, match="what f returns must be a matplotlib Figure or Axes, but is NoneType"):
        viz.play(lambda height: None, alt="A bar.", height=(1, 2, 1))


def test_animation_plays_the_frames(static):
    picture = viz.animate(bar, [1, 2, 3.5], alt="A growing bar.", fps=4, label="height")
    page = Page(picture.html)
    assert len(page.all("button")) == 1 and page.data["fps"] == 4
    assert page.data["controls"] == [{"name": "height", "texts": ["1", "2", "3.5"]}]
    share = [filled(frame) for frame in page.frames()]
    assert share[0] < share[1] < share[2]
    assert picture.html == viz.animate(bar, [1, 2, 3.5], alt="A growing bar.", fps=4, label="height").html


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"frames": 1}, "frames must be at least two, but there are 1"),
        ({"frames": 3, "fps": 0}, r"fps must lie in \(0, 60\], but is 0"),
        ({"frames": 3, "alt": " "}, "alt must say in words"),
    ],
)
def test_bad_animations_are_refused_by_name(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        viz.animate(bar, **{"alt": "A bar."} | arguments)


@pytest.mark.browser
def test_static_players_move_in_a_browser(static, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).is_file()), None)
    if chromium is None:
        pytest.skip("no Chromium here")
    page_file = tmp_path / "page.html"
    players = [
        viz.play(bar, alt="One.", height=(1, 4, 1), color={"scarlet": "red", "navy": "blue"}),
        viz.play(bar, alt="Two.", height=(1, 4, 1)),
        viz.play(bar, alt="Two.", height=(1, 4, 1)),
        viz.animate(bar, [1, 2, 3], alt="Film.", fps=20),
    ]
    page_file.write_text("<!doctype html><meta charset=utf-8>" + "".join(p.html for p in players), encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri())
        figures = page.locator("figure.lossbook-play")
        images = [figures.nth(i).locator("img") for i in range(4)]
        start = [image.get_attribute("src") for image in images]

        figures.nth(0).get_by_role("slider").focus()
        page.keyboard.press("ArrowRight")
        assert images[0].get_attribute("src") != start[0]
        assert images[0].get_attribute("alt") == "One. (height: 2, color: scarlet)"
        assert figures.nth(0).locator("output").inner_text() == "2"
        page.keyboard.press("Home")
        assert images[0].get_attribute("src") == start[0]
        figures.nth(0).get_by_role("combobox").select_option(label="navy")
        assert images[0].get_attribute("src") != start[0]

        figures.nth(2).get_by_role("slider").focus()
        page.keyboard.press("End")
        # Twins do not move each other.
        assert images[1].get_attribute("src") == start[1] != images[2].get_attribute("src")

        figures.nth(3).get_by_role("button").focus()
        page.keyboard.press("Enter")
        deadline = time.monotonic() + 5
        while images[3].get_attribute("alt") != "Film. (frame: 3)" and time.monotonic() < deadline:
            page.wait_for_timeout(20)
        assert images[3].get_attribute("alt") == "Film. (frame: 3)"
        assert figures.nth(3).get_by_role("button").inner_text() == "▶ play"

        assert not errors
        assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
        browser.close()
