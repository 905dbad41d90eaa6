"""The book's site as a reader meets it: from a file or a server, by keyboard, without sight, on a phone, in the dark.

The links and pictures of every page are checked. In Chromium a few pages stand for the rest; `LOSSBOOK_EVERY_PAGE=1`
opens them all, which takes about half an hour.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser"), pytest.mark.timeout(3600)]

EVERY_PAGE = os.environ.get("LOSSBOOK_EVERY_PAGE") == "1"
# A page of each kind and a notebook of each part, the lighter ones.
PAGES = (
    "index",
    "00-start-here",
    "01-surrogates/03-adversarial-margins",
    "02-calibration/10-bought-labels",
    "03-geometry/04-counting-directions",
    "04-temperature/13-temperature-in-sampling",
    "audits/calibration",
    "api/adapt",
    "claims",
    "figures",
    "for-teachers",
    "guides/your-own-training-loop",
    "losses",
    "papers",
    "search",
    "speed",
)
in_chromium = pytest.mark.browser


@pytest.fixture(scope="module")
def site(repository, tmp_path_factory) -> Path:
    """The site of the committed notebooks as they were executed."""
    from lossbook.book.site import build_site

    return build_site(repository / "notebooks", tmp_path_factory.mktemp("book") / "site").parent


def find_pages(site: Path) -> list[Path]:
    return sorted(page for page in site.rglob("*.html") if "_static" not in page.relative_to(site).parts)


@pytest.fixture(scope="module")
def looked_at(site) -> list[Path]:
    return find_pages(site) if EVERY_PAGE else [site / f"{name}.html" for name in PAGES]


def visit(page, address: str | Path, **options) -> None:
    """Open a page and wait until its formulas are set."""
    page.goto(address.as_uri() if isinstance(address, Path) else address, **options)
    page.evaluate("() => window.MathJax?.startup?.promise")
    # book.js looks at the formulas after that.
    page.evaluate("() => new Promise((done) => setTimeout(done))")


class Elements(HTMLParser):
    """A page's addresses, the ids that an address may name, its pictures and its headings' levels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.pictures: list[dict[str, str | None]] = []
        self.levels: list[int] = []
        # Pictures and frames are most of a page, and none of it is looked at.
        self.feed(re.sub(r"base64,[A-Za-z0-9+/=]+|<script\b[^>]*>.*?</script>", "", text, flags=re.DOTALL))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[name] for name in ("href", "src") if values.get(name)]
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "img":
            self.pictures.append(values)
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))


@pytest.fixture(scope="module")
def elements(site) -> dict[Path, Elements]:
    return {page: Elements(page.read_text(encoding="utf-8")) for page in find_pages(site)}


def test_every_link_leads_somewhere(site, elements):
    broken = []
    for page, found in elements.items():
        for address in found.addresses:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                sound = parts.scheme == "https" and "." in parts.netloc and not re.search(r"\s", address)
            else:
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                sound = target.is_file() and (
                    not parts.fragment or target not in elements or unquote(parts.fragment) in elements[target].ids
                )
            if not sound:
                broken.append(f"{page.relative_to(site)}: {address}")
    assert len(elements) > 50
    assert broken == []


def test_every_picture_says_what_it_shows(site, elements):
    for page, found in elements.items():
        for picture in found.pictures:
            alt, where = picture.get("alt"), f"{page.relative_to(site)}: {str(picture)[:200]}"
            if "logo__image" in (picture.get("class") or ""):
                assert alt == "", f"{where}: the name stands beside the logo"
            else:
                assert alt, where
                assert len(alt.split()) > 2 and not re.search(r"\.(png|svg|webp|jpe?g)$", alt), where


def test_headings_leave_no_level_out(site, elements):
    for page, found in elements.items():
        assert found.levels[:1] == [1] and found.levels.count(1) == 1, page.relative_to(site)
        steps = [after - before for before, after in zip(found.levels, found.levels[1:], strict=False)]
        assert max(steps, default=0) <= 1, page.relative_to(site)


# The colour of a piece of code depends on its kind and its panel alone, and axe takes long over thousands of pieces.
ONE_OF_EACH_KIND = """() => {
  const seen = new Set();
  for (const piece of document.querySelectorAll("pre span[class]")) {
    const kind = piece.className + " in " + piece.closest("pre").parentElement.parentElement.className;
    if (seen.has(kind)) piece.remove();
    else seen.add(kind);
  }
}"""


@in_chromium
def test_axe_finds_nothing_serious(page, looked_at, site):
    from axe_playwright_python.base import AXE_SCRIPT

    # Stylesheets are not read again, which a page from a file may not do.
    run = "more => axe.run({resultTypes: ['violations'], preload: false, ...more})"
    colours = {"runOnly": ["color-contrast"]}
    found = []
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    for path in looked_at:
        visit(page, path)
        page.evaluate(AXE_SCRIPT)
        violations = page.evaluate(run, {"rules": {"color-contrast": {"enabled": False}}})["violations"]
        page.evaluate(ONE_OF_EACH_KIND)
        for mode in ("light", "dark"):
            page.evaluate("mode => { document.documentElement.dataset.theme = mode }", mode)
            violations += page.evaluate(run, colours)["violations"]
            for violation in violations:
                if violation["impact"] in ("serious", "critical"):
                    targets = [node["target"] for node in violation["nodes"]]
                    found.append((path.relative_to(site).as_posix(), mode, violation["id"], targets[:3]))
            violations = []
    assert found == []


@in_chromium
def test_pages_open_from_a_file_without_a_network_or_an_error(page, looked_at):
    for path in looked_at:
        visit(page, path)
        assert page.locator("mjx-merror").count() == 0, path
        assert page.evaluate("[...document.images].filter((i) => i.complete && !i.naturalWidth).length") == 0, path
    assert {urlsplit(url).scheme for url in page.asked} <= {"file", "data", "blob"}
    assert page.errors == []


@pytest.fixture
def server(site) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@in_chromium
def test_pages_are_served_without_a_missing_file(page, looked_at, site, server):
    missing = []
    page.on("response", lambda answer: missing.append(answer.url) if answer.status >= 400 else None)
    for path in looked_at:
        visit(page, f"{server}/{path.relative_to(site).as_posix()}")
    assert missing == []
    assert {urlsplit(url).hostname for url in page.asked if not url.startswith(("data:", "blob:"))} == {"127.0.0.1"}
    assert page.errors == []


@in_chromium
def test_nothing_but_boxes_scrolls_sideways(page, looked_at, site):
    """On a phone, a tablet and a desk; the theme's article would scroll before the page does."""
    wider = "[document.documentElement, ...document.querySelectorAll('.bd-article-container')]"
    wider = f"() => {wider}.map((box) => box.scrollWidth - box.clientWidth)"
    found = []
    for path in looked_at:
        page.set_viewport_size({"width": 390, "height": 844})
        visit(page, path)
        for width in (390, 768, 1400):
            page.set_viewport_size({"width": width, "height": 900})
            if max(page.evaluate(wider)) > 0:
                found.append((path.relative_to(site).as_posix(), width, page.evaluate(wider)))
    assert found == []


# For each control of each player: every value is set, and what the picture shows and says is noted.
MOVE = """async (figure) => {
  const image = figure.querySelector("img");
  const found = [];
  for (const control of figure.querySelectorAll("input, select")) {
    const start = control.value, before = [image.src, image.alt];
    const values = control.options ? [...control.options].map((option) => option.value)
                                   : [...Array(Number(control.max) + 1).keys()];
    const frames = new Set(), texts = new Set();
    const set = async (value) => {
      control.value = value;
      control.dispatchEvent(new Event("input", { bubbles: true }));
      await image.decode();
    };
    for (const value of values) {
      await set(value);
      frames.add(image.src);
      texts.add(image.alt);
    }
    await set(start);
    const back = image.src === before[0] && image.alt === before[1];
    found.push({ name: control.ariaLabel, values: values.length, frames: frames.size, texts: texts.size, back });
  }
  return found;
}"""


@in_chromium
def test_every_control_moves_its_picture_without_a_kernel(page, looked_at, site):
    moved = 0
    for path in looked_at:
        visit(page, path)
        for player in page.locator(".lossbook-play").all():
            controls = player.evaluate(MOVE)
            assert controls, path
            for control in controls:
                where = f"{path.relative_to(site)}: {control}"
                assert control["frames"] > 1, where
                assert control["texts"] == control["values"], where
                assert control["name"] and control["back"], where
            moved += 1
    assert moved >= 6


# The key that changes a control: a slider goes to its other end, a menu to a neighbour.
KEY = """(control) => {
  if (control.tagName === "BUTTON") return "Enter";
  if (control.tagName === "SELECT") return control.selectedIndex ? "ArrowUp" : "ArrowDown";
  return control.value === control.max ? "Home" : "End";
}"""


@in_chromium
def test_players_are_worked_by_keyboard_in_the_order_of_the_page(page, site):
    visit(page, site / "03-geometry" / "01-neural-collapse.html")
    kinds = set()
    for player in page.locator(".lossbook-play").all():
        picture, controls = player.locator("img"), player.locator("button, input, select")
        controls.first.focus()
        page.keyboard.press("Shift+Tab")
        for control in controls.all():
            page.keyboard.press("Tab")
            assert control.evaluate("one => one === document.activeElement")
            assert control.evaluate("one => parseFloat(getComputedStyle(one).outlineWidth)") >= 2
            words, key = picture.get_attribute("alt"), control.evaluate(KEY)
            kinds.add(key)
            page.keyboard.press(key)
            moved = "([image, words]) => image.alt !== words"
            page.wait_for_function(moved, arg=[picture.element_handle(), words], timeout=10_000)
            if key == "Enter":
                assert "pause" in control.inner_text()
                page.keyboard.press(key)
                assert "play" in control.inner_text()
    assert len(kinds) >= 3


@in_chromium
def test_nothing_moves_by_itself(browser, site):
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    visit(page, site / "00-start-here.html")
    pictures = "[...document.querySelectorAll('.lossbook-play img')].map((image) => image.src)"
    before = page.evaluate(pictures)
    page.wait_for_timeout(700)
    assert before == page.evaluate(pictures) != []
    assert page.evaluate("document.getAnimations().length") == 0
    context.close()


@in_chromium
def test_without_scripts_the_first_frame_is_there(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "00-start-here.html").as_uri())
    for player in page.locator(".lossbook-play").all():
        assert player.locator("img").is_visible()
        assert player.locator(".controls").is_hidden()
    assert page.locator(".lossbook-play").count() >= 1
    context.close()


@in_chromium
def test_the_first_tab_skips_to_the_text(page, site):
    visit(page, site / "00-start-here.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")


@in_chromium
def test_the_colours_change_by_keyboard(page, site):
    page.emulate_media(color_scheme="light")
    visit(page, site / "index.html")
    page.locator(".theme-switch-button").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    theme = "document.documentElement.dataset.theme"
    while page.evaluate("document.activeElement.dataset.mode") != "dark":
        before = page.evaluate("document.activeElement.dataset.mode")
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.dataset.mode") != before
    assert page.evaluate(theme) == "light"
    page.keyboard.press("Enter")
    assert page.evaluate(theme) == "dark"


@in_chromium
@pytest.mark.parametrize("key", ["/", "Control+k"])
def test_a_key_opens_the_search_and_a_word_finds_its_page(page, site, key):
    visit(page, site / "02-calibration" / "10-bought-labels.html")
    page.keyboard.press(key)
    page.wait_for_function("document.activeElement.name === 'q'")
    page.keyboard.type("reliability")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("search.html"))
    page.locator("#search-results li a", has_text="When 90 % means 90 %").first.wait_for(timeout=10_000)


@in_chromium
@pytest.mark.parametrize(
    "words, title",
    [
        ("temperature", "Temperature in sampling"),
        ("neural collapse", "Neural collapse"),
        ("focal", "Calibrating while training"),
        ("Papyan", "Neural collapse"),
        ("comp_sum", "From log-loss to absolute error"),
    ],
)
def test_the_search_finds_what_one_types(page, site, words, title):
    visit(page, f"{(site / 'search.html').as_uri()}?q={words.replace(' ', '+')}")
    page.locator("#search-results li a", has_text=re.compile(f"^{re.escape(title)}$")).first.wait_for(timeout=10_000)
    assert {urlsplit(url).scheme for url in page.asked} <= {"file", "data", "blob"}
    assert page.errors == []


@in_chromium
def test_a_formula_wider_than_a_phone_is_reached_by_keyboard(page, site):
    page.set_viewport_size({"width": 390, "height": 844})
    visit(page, site / "01-surrogates" / "10-losses-from-metrics.html")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("div.math, mjx-container[display='true']")]
          .filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.tabIndex)"""
    )
    assert set(boxes) == {0}
