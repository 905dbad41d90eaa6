"""The notebooks as a reader meets them in JupyterLab: run by the menu, moved by keyboard, found through the contents.

A few notebooks stand for the rest in `make test`. The others carry the mark `lab`: `make lab-test` runs them all, about
a minute each.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser"), pytest.mark.timeout(900)]

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(
    path.relative_to(NOTEBOOKS).as_posix()
    for path in NOTEBOOKS.rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
ALWAYS = {
    "00-start-here.ipynb",
    "01-surrogates/10-losses-from-metrics.ipynb",
    "audits/calibration.ipynb",
    "guides/02-compare-losses-on-your-own-data.ipynb",
}
every_notebook = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.lab, id=name) for name in NAMES]
)
# Milliseconds. A cold kernel runs a notebook that is to take 40 s on two idle cores; a busy machine has neither.
STARTED, RAN, ANSWERED = 60_000, 600_000, 60_000


class Server:
    """JupyterLab over a copy of the notebooks on a free loopback port, with a token and settings of its own."""

    def __init__(self, folder: Path) -> None:
        self.notebooks, home = folder / "notebooks", folder / "home"
        shutil.copytree(NOTEBOOKS, self.notebooks, ignore=shutil.ignore_patterns("_static", ".ipynb_checkpoints"))
        home.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        self.log = home / "jupyter.log"
        # What `make lab` says, and a port and a token that the test knows.
        flags = [
            "--no-browser",
            "--allow-root",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.notebooks}",
            f"--IdentityProvider.token={self.token}",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            "--LabApp.extension_manager=readonly",
        ]
        # HOME too: no settings, history or workspaces of the person who runs the tests are read or written.
        environment = {**os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config")}
        environment |= {"JUPYTER_DATA_DIR": str(home / "data"), "JUPYTER_RUNTIME_DIR": str(home / "runtime")}
        environment.pop("LOSSBOOK_STATIC", None)
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *flags],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.ask("status")
                return
            time.sleep(0.2)
        pytest.fail(f"JupyterLab did not start:\n{self.log.read_text()[-2000:]}")

    def page_of(self, name: str) -> str:
        # "reset": without the tabs of the notebooks before it.
        return f"{self.address}/lab/tree/{name}?reset&token={self.token}"

    def ask(self, what: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"{self.address}/api/{what}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("lab"))
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture
def lab(server) -> Iterator[Server]:
    """The server, with no kernel left running afterwards."""
    yield server
    server.end_kernels()


# The server comes before the page, so that its kernel still runs when a picture of a failure is taken.
@every_notebook
def test_it_runs_and_its_widgets_answer(name, lab, page, record_property):
    page.goto(lab.page_of(name))
    page.locator(".jp-Notebook").wait_for(timeout=STARTED)
    started = time.perf_counter()
    _run_all_cells(page)
    record_property("seconds to run", round(time.perf_counter() - started, 1))
    problems = _bad_cells(page)
    moves = [move for box in _explorers(page) for move in _move_all(page, box)]
    seconds = [move.seconds for move in moves if move.seconds is not None]
    record_property("widgets", len(moves))
    record_property("seconds to answer", [round(s, 2) for s in seconds])
    record_property("median", round(statistics.median(seconds), 2) if seconds else None)
    problems += [f"{move.control}: {move.problem}" for move in moves if move.problem]
    problems += _bad_contents(page, NOTEBOOKS / name)
    strange = {urlsplit(url).hostname or urlsplit(url).scheme for url in page.asked} - {"127.0.0.1", "blob", "data"}
    problems += [f"asked {host}" for host in sorted(strange)] + [f"console: {error}" for error in page.errors]
    assert not problems, "\n".join(problems)
    assert moves, "no widget was found"


def _run_all_cells(page) -> None:
    """The menu's Run All Cells with the kernel ready, then wait until every code cell has its number and it is idle."""
    # The status bar: the notebook's own indicator says idle before there is a kernel.
    idle = page.get_by_text(re.compile(r"\| Idle$"))
    idle.wait_for(timeout=STARTED)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("Run All Cells$")).click()
    waiting = page.locator(".jp-InputPrompt", has_text="*")
    waiting.first.wait_for(state="attached", timeout=STARTED)
    page.wait_for_function(
        "[...document.querySelectorAll('.jp-InputPrompt')].every(prompt => !prompt.textContent.includes('*'))",
        timeout=RAN,
    )
    idle.wait_for(timeout=STARTED)


def _bad_cells(page) -> list[str]:
    """What the code cells say that they must not: an error, a word on stderr, no number because they did not run."""
    return page.evaluate("""
        () => [...document.querySelectorAll('.jp-CodeCell')].flatMap((cell, i) => {
            const says = type => [...cell.querySelectorAll(`[data-mime-type="application/vnd.jupyter.${type}"]`)]
                .map(output => `code cell ${i}, ${type}: ${output.textContent.trim().slice(-400)}`);
            const ran = /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt').textContent);
            return [...says('error'), ...says('stderr'), ...(ran ? [] : [`code cell ${i} did not run`])];
        })
    """)


def _explorers(page) -> list[Any]:
    """Each output that holds widgets."""
    outputs = page.locator(".jp-OutputArea-output", has=page.locator(".widget-vbox"))
    return [outputs.nth(i) for i in range(outputs.count())]


def _move_all(page, box) -> list[SimpleNamespace]:
    controls = box.locator(".noUi-handle, select, input[type=checkbox]")
    return [_move(page, box, controls.nth(i)) for i in range(controls.count())]


def _move(page, box, control) -> SimpleNamespace:
    """Move a control by a key until the picture is another, at most three steps; how long the first step took."""
    picture = box.locator("img")
    name = control.evaluate("e => e.closest('.jupyter-widgets').querySelector('.widget-label, label')?.textContent")
    control.scroll_into_view_if_needed()
    control.focus()
    moved = SimpleNamespace(control=name, seconds=None, problem="three steps left the picture as it was")
    before = picture.get_attribute("src")
    for _ in range(3):
        words, key = picture.get_attribute("alt"), control.evaluate(_KEY)
        pressed = time.perf_counter()
        page.keyboard.press(key)
        try:
            page.wait_for_function(_ANSWERED, arg=[box.element_handle(), words], timeout=ANSWERED)
        except sync_api.TimeoutError:
            moved.problem = f"{key} was not answered"
            return moved
        moved.seconds = moved.seconds or time.perf_counter() - pressed
        if alert := box.locator("[role=alert]").all_inner_texts():
            moved.problem = alert[0]
            return moved
        if picture.get_attribute("src") != before:
            moved.problem = ""
            return moved
    return moved


_KEY = """
    control => control.matches('.noUi-handle')
        ? (+control.ariaValueNow < +control.ariaValueMax ? 'ArrowRight' : 'ArrowLeft')
        : control.matches('select')
        ? (control.selectedIndex < control.options.length - 1 ? 'ArrowDown' : 'ArrowUp')
        : 'Space'
"""
_ANSWERED = "([box, words]) => box.querySelector('img').alt !== words || box.querySelector('[role=alert]')"


def _bad_contents(page, notebook: Path) -> list[str]:
    """The table of contents beside the notebook: what it lacks of the headings, and which entries lead elsewhere."""
    page.get_by_role("tab", name=re.compile("^Table of Contents")).click()
    entries = page.locator("#table-of-contents .jp-tocItem-content")
    entries.first.wait_for(timeout=10_000)
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "markdown"]
    written = [title for source in cells for title in re.findall(r"^#{1,4} +(.+)$", source, re.MULTILINE)]
    problems = []
    if entries.count() != len(written):
        problems.append(f"contents: {entries.all_inner_texts()} for the headings {written}")
    for i in range(entries.count()):
        entries.nth(i).click()
        text = entries.nth(i).inner_text().strip()
        try:
            page.wait_for_function(_ON_SCREEN, arg=text, timeout=10_000)
        except sync_api.TimeoutError:
            problems.append(f"contents: a click on {text!r} does not bring its heading into view")
    return problems


_ON_SCREEN = """
    text => {
        const plain = heading => heading.textContent.replace('¶', '').trim();
        const headings = [...document.querySelectorAll('.jp-RenderedMarkdown :is(h1, h2, h3, h4)')];
        const view = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect();
        return headings.filter(heading => plain(heading) === text).some(heading => {
            const { top, bottom } = heading.getBoundingClientRect();
            return top >= view.top - 1 && bottom <= view.bottom + 1;
        });
    }
"""
