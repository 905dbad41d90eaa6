"""The book as a reader meets it: JupyterLab with a kernel, and the static site without one, in headless Chromium."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

NOTEBOOK = "00-start-here.ipynb"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium here: install it, or name it in CHROME_BIN")
    return found


@pytest.fixture
def page(chromium, request, repository):
    """A page that notes its console errors and every address it asks for; a picture is kept of a test that failed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.asked, page.errors = [], []
        page.on("request", lambda asked: page.asked.append(asked.url))
        page.on("websocket", lambda socket: page.asked.append(socket.url))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        failed_before = request.session.testsfailed
        yield page
        if request.session.testsfailed > failed_before:
            pictures = repository / "build" / "screenshots"
            pictures.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=pictures / f"{request.node.name}.png")
        browser.close()


def hosts(asked: list[str]) -> set[str]:
    return {urlsplit(url).hostname or urlsplit(url).scheme for url in asked}


@pytest.fixture(scope="module")
def notebook(repository) -> Path:
    path = repository / "notebooks" / NOTEBOOK
    if not path.is_file():
        pytest.skip(f"{NOTEBOOK} is not written yet")
    return path


@contextlib.contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[str]:
    """JupyterLab over a folder on a free loopback port, with a token and settings of its own; gives the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    flags = [
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    # HOME too: no settings, history or workspaces of the person who runs the tests are read or written.
    environment = {**os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config")}
    environment |= {"JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    environment.pop("LOSSBOOK_STATIC", None)
    log = home / "jupyter.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def lab(chromium, notebook, tmp_path) -> Iterator[str]:
    folder, home = tmp_path / "notebooks", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    shutil.copy(notebook, folder)
    with jupyterlab(folder, home) as address:
        yield address


# The server comes first, so that it still runs when a picture of a failure is taken.
def test_the_explorer_redraws_in_jupyterlab(lab, page):
    page.goto(lab)
    page.locator(".jp-Notebook").wait_for(timeout=60_000)
    _run_all_cells(page)
    boxes = page.locator(".jp-OutputArea-output", has=page.locator(".noUi-handle"))
    assert boxes.count() >= 1
    for i in range(boxes.count()):
        slider, picture = boxes.nth(i).locator(".noUi-handle").first, boxes.nth(i).locator("img")
        slider.scroll_into_view_if_needed()
        before, value = picture.get_attribute("src"), slider.get_attribute("aria-valuenow")
        slider.focus()
        page.keyboard.press("ArrowRight")
        redrawn = "([box, src]) => box.querySelector('img')?.getAttribute('src') !== src"
        page.wait_for_function(redrawn, arg=[boxes.nth(i).element_handle(), before])
        assert slider.get_attribute("aria-valuenow") != value
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert hosts(page.asked) <= {"127.0.0.1", "blob", "data"}
    assert page.errors == []


def _run_all_cells(page) -> None:
    """The menu's Run All Cells with the kernel ready, then wait until every code cell has its number and it is idle."""
    # The status bar: the notebook's own indicator says idle before there is a kernel.
    idle = page.get_by_text(re.compile(r"\| Idle$"))
    idle.wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("Run All Cells$")).click()
    # The committed outputs are static; the explorer's slider of ipywidgets appears when its cell was run.
    page.locator(".jp-OutputArea-output .noUi-handle").first.wait_for(state="attached", timeout=180_000)
    running = page.locator(".jp-InputPrompt", has_text="*")
    running.first.wait_for(state="detached", timeout=180_000)
    idle.wait_for(timeout=60_000)


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
