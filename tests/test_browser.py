"""The book's site as a reader meets it: static pages from file://, in headless Chromium."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

NOTEBOOK = "00-start-here.ipynb"


@pytest.fixture(scope="module")
def notebook(repository) -> Path:
    path = repository / "notebooks" / NOTEBOOK
    if not path.is_file():
        pytest.skip(f"{NOTEBOOK} is not written yet")
    return path


@pytest.fixture(scope="module")
def site(notebook, tmp_path_factory) -> Path:
    """The site of the committed notebooks as they were executed."""
    from lossbook.book.site import build_site

    folder = tmp_path_factory.mktemp("book")
    return build_site(notebook.parent, folder / "site").parent


def test_the_sliders_of_the_site_move_without_a_kernel(page, site):
    page.goto((site / NOTEBOOK).with_suffix(".html").as_uri())
    players = page.locator(".lossbook-play")
    assert players.count() >= 1
    for i in range(players.count()):
        player = players.nth(i)
        control, picture = player.locator("input[type=range], select").first, player.locator("img")
        before, words = picture.get_attribute("src"), picture.get_attribute("alt")
        control.focus()
        page.keyboard.press("ArrowRight" if control.get_attribute("type") == "range" else "ArrowDown")
        assert picture.get_attribute("src") != before
        assert picture.get_attribute("alt") != words
    page.locator("mjx-container").first.wait_for(timeout=10_000)
    assert page.locator("mjx-merror").count() == 0
    assert {urlsplit(url).scheme for url in page.asked} <= {"file", "data", "blob"}
    assert page.errors == []


def test_the_site_is_searched_without_a_server(page, site):
    page.goto((site / "search.html").as_uri() + "?q=calibration")
    page.locator("#search-results li a").first.wait_for(timeout=10_000)
    assert {urlsplit(url).scheme for url in page.asked} <= {"file", "data", "blob"}
    assert page.errors == []
