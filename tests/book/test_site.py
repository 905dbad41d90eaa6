"""The site: complete, in the book's order, and without a request to any other host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lossbook.book.catalog import load_catalog
from lossbook.book.claims import MIME
from lossbook.book.site import SOURCE, SPEED, SiteError, build_site, find_notebooks, heading
from lossbook.book.site.build import _tidy_exercises
from lossbook.book.site.names import everything, public
from lossbook.book.site.speed import speed_page

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
# A picture that PIL can read, with an alternative text that HTML and Markdown could misread.
PICTURE = "UklGRiQAAABXRUJQVlA4IBgAAAAwAQCdASoIAAQAAUAmJaQAA3AA/vz0AAA="
FIGURE = f'<img src="data:image/webp;base64,{PICTURE}" alt="a &lt; b | $x$ &amp; `c`" width="1" height="1">'
PLAYER = f"""<figure class="lossbook-play"><input type="range" min="0" max="1" value="0">
<img alt="a pixel" src="{PIXEL}"><script>document.title += "";</script></figure>"""
SOLUTION = "def answer():\n    ### BEGIN SOLUTION\n    return 42\n    ### END SOLUTION"
TEST = "assert answer() > 1\n### BEGIN HIDDEN TESTS\nassert answer() == the_secret\n### END HIDDEN TESTS\nprint(7)"
SETTINGS = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}


def html(text: str, **more):
    return new_output("display_data", data={"text/html": text, "text/plain": "shown", **more})


def notebook(title: str, *cells):
    return new_notebook(metadata=SETTINGS, cells=[new_markdown_cell(f"# {title}"), *cells])


@pytest.fixture(scope="module")
def first_claim():
    return next(iter(load_catalog().claims))


@pytest.fixture(scope="module")
def book(tmp_path_factory, repository, first_claim) -> Path:
    """A book of three small notebooks with a formula, a player, a claim and a folded solution."""
    source = tmp_path_factory.mktemp("book") / "notebooks"
    source.mkdir()
    for name in SOURCE:
        origin = repository / "notebooks" / name
        (shutil.copytree if origin.is_dir() else shutil.copy)(origin, source / name)
    payload = {"key": first_claim, "status": "reproduced", "holds": [True] * 3, "seeds": 3, "measured": {"ece": 0.0123}}
    claim = [html("<div class='lossbook-claim'>held</div>", **{MIME: payload})]
    pages = {
        "00-start-here.ipynb": notebook(
            "Start here",
            new_markdown_cell(
                "The loss $\\ell = -\\log p_y$ and\n\n$$\n\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}\n$$"
            ),
            new_code_cell("play(f)", execution_count=1, outputs=[html(PLAYER)]),
            new_code_cell("claim()", execution_count=2, outputs=claim),
            new_code_cell("from lossbook import losses\nlosses.comp_sum", execution_count=4, outputs=[html(FIGURE)]),
            new_code_cell(SOLUTION, execution_count=3, metadata={"nbgrader": {"solution": True}}),
            new_code_cell(TEST, execution_count=5, metadata={"nbgrader": {"grade": True}}),
        ),
        "02-second-part/01-later.ipynb": notebook("Later"),
        "01-first-part/01-earlier.ipynb": notebook("Earlier"),
    }
    for name, page in pages.items():
        (source / name).parent.mkdir(exist_ok=True)
        nbformat.write(page, source / name)
    (source / "for-teachers.md").write_text("# For teachers\n\nA page of text.\n")
    return source


@pytest.fixture(scope="module")
def built(book, tmp_path_factory) -> tuple[Path, str]:
    """The site, and what Sphinx had to say while it was built."""
    capture = pytest.MonkeyPatch()
    said = tmp_path_factory.mktemp("said") / "sphinx.log"
    run = subprocess.run
    with said.open("w") as log, capture.context() as patch:
        patch.setattr(subprocess, "run", lambda command, **options: run(command, **options, stdout=log, stderr=log))
        index = build_site(book, tmp_path_factory.mktemp("build") / "site", source=book)
    return index.parent, said.read_text()


class Loads(HTMLParser):
    """The addresses that a page makes a browser fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found += [values[name] for name in ("src", "srcset") if values.get(name)]
        if tag == "link" and not {"canonical", "next", "prev", "search", "index", "author"} & set(
            values["rel"].split()
        ):
            self.found.append(values["href"])


@pytest.mark.slow
def test_nothing_is_fetched_from_another_host(built):
    site, _ = built
    pages = [page for page in site.rglob("*.html") if "_static" not in page.parts]
    assert len(pages) >= 6
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for address in loads.found:
            assert not address.startswith(("http:", "https:", "//")), f"{page.name} fetches {address}"
            if not address.startswith("data:"):
                assert (page.parent / address.partition("?")[0]).is_file(), f"{page.name} names {address}"
    for sheet in site.rglob("*.css"):
        outside = re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", sheet.read_text(encoding="utf-8"))
        assert outside is None, f"{sheet.name} fetches {outside}"


@pytest.mark.slow
def test_sphinx_has_nothing_to_complain_about(built):
    assert built[1] == ""


@pytest.mark.slow
def test_the_page_of_a_notebook_has_its_formula_player_and_claim(built):
    page = (built[0] / "00-start-here.html").read_text(encoding="utf-8")
    assert r"\(\ell = -\log p_y\)" in page
    assert "mathjax/tex-svg.js" in page
    assert 'class="lossbook-play"' in page
    assert PIXEL in page
    assert '<script>document.title += "";</script>' in page


@pytest.mark.slow
def test_solutions_are_folded(built):
    page = (built[0] / "00-start-here.html").read_text(encoding="utf-8")
    folded = page[page.index("<details") : page.index("</details>")]
    assert "Show the solution" in folded
    assert "42" in folded


@pytest.mark.slow
def test_hidden_tests_and_markers_stand_nowhere_in_the_site(built):
    texts = [page.read_text(encoding="utf-8") for page in built[0].rglob("*") if page.suffix in (".html", ".js")]
    assert any("Show the solution" in text for text in texts)
    for word in ("the_secret", "BEGIN HIDDEN TESTS", "END HIDDEN TESTS", "BEGIN SOLUTION", "END SOLUTION"):
        assert not any(word in text for text in texts), word


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (SOLUTION, "def answer():\n    return 42"),
        (TEST, "assert answer() > 1\nprint(7)"),
        (
            "a\n### BEGIN HIDDEN TESTS\nb\n### END HIDDEN TESTS\nc\n### BEGIN HIDDEN TESTS\nd\n### END HIDDEN TESTS",
            "a\nc",
        ),
        ("a\n    ### BEGIN HIDDEN TESTS\nnever ended", "a"),
        ("# what a BEGIN of hidden tests is", "# what a BEGIN of hidden tests is"),
    ],
)
def test_what_a_reader_sees_of_an_exercise(source, shown):
    page = {"cells": [{"cell_type": "code", "metadata": {}, "source": source.splitlines(keepends=True)}]}
    _tidy_exercises(page)
    assert page["cells"][0]["source"] == shown


@pytest.mark.slow
def test_beside_the_site_stands_only_what_sphinx_has_read(built):
    assert {path.name for path in built[0].parent.iterdir()} == {"site", "site-src"}


@pytest.mark.slow
def test_the_contents_have_the_order_of_the_folders(built):
    index = (built[0] / "index.html").read_text(encoding="utf-8")
    contents = index[index.index('id="contents"') :]
    places = [contents.index(text) for text in ("Start here", "First part", "Earlier", "Second part", "Later")]
    assert places == sorted(places)


@pytest.mark.slow
def test_the_lists_name_every_paper_and_the_measured_claim(built, first_claim):
    catalog = load_catalog()
    papers = (built[0] / "papers.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr id="([^"]+)">.*?<td data-label="kind">(\w+)</td>', papers)
    assert {key for key, kind in rows if kind != "foundation"} == catalog.papers.keys()
    assert len(rows) == len(dict(rows))
    assert all(f"https://arxiv.org/abs/{entry.arxiv}" in papers for entry in catalog.papers.values() if entry.arxiv)
    claims = (built[0] / "claims.html").read_text(encoding="utf-8")
    assert "ece = 0.0123" in claims
    assert claims.count("✓ reproduced") == 1
    assert re.search(r'<h2><a [^>]*href="00-start-here.html"', claims)
    assert f"Of {len(catalog.claims)} claims, 1 " in claims


@pytest.mark.slow
def test_the_page_on_speed_has_a_row_a_measurement(book, built):
    report = json.loads((book / SPEED).read_text(encoding="utf-8"))
    page = (built[0] / "speed.html").read_text(encoding="utf-8")
    assert page.count("<tr") == 1 + len(report["measurements"])
    assert 'href="speed.html"' in (built[0] / "index.html").read_text(encoding="utf-8")


def test_a_row_on_speed_shows_ratio_promise_memory_and_ceiling():
    machine = {
        "device": "a_b", "cores": 2, "memory": 23.5, "python": "3.11.7", "torch": "2.13.0+cpu", "lossbook": "0.1.0",
        "threads": 2,
    }  # fmt: skip
    row = {"group": "g", "name": "what", "peer_name": "a*b", "ratio": 2.345, "low": 0.5, "high": 1234.5, "note": "so"}
    ratio = "2.35<br>(0.50\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}1,234)"
    row |= {"at_least": 1.5, "memory": [1.2, 3456.7], "ceiling": 0.425, "samples": [[1.0, 2.0]] * 3}
    bare = row | {"note": "", "at_least": None, "memory": None, "ceiling": None}
    page = speed_page({"machine": machine, "measurements": [row, bare]})
    first, second = page.splitlines()[-2:]
    assert first == rf"| g | what<br>*so* | a\*b | {ratio} | ≥ 1.5 | 1 against 3,457 | 42% |"
    assert second == rf"| g | what | a\*b | {ratio} |  |  |  |"
    assert "the median of 3 pairs" in page
    assert r"a\_b, 2 cores, 23.5 GiB" in page


@pytest.mark.slow
def test_a_site_that_cannot_be_built_leaves_the_old_one(book, tmp_path):
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("the old site")
    broken = tmp_path / "notebooks"
    shutil.copytree(book, broken)
    (broken / "conf.py").write_text("raise RuntimeError('broken on purpose')")
    with pytest.raises(SiteError, match="Sphinx could not build the site"):
        build_site(broken, out, source=broken)
    assert (out / "index.html").read_text() == "the old site"


def test_without_executed_notebooks_it_says_what_to_run(book, tmp_path):
    with pytest.raises(SiteError, match="no executed notebooks in .*lossbook run"):
        build_site(tmp_path, tmp_path / "site", source=book)
    with pytest.raises(SiteError, match=r"conf\.py is missing"):
        build_site(tmp_path, tmp_path / "site", source=tmp_path)
    shutil.copytree(book, tmp_path / "book")
    (tmp_path / "book" / SPEED).unlink()
    with pytest.raises(SiteError, match=r"bench\.json is missing"):
        build_site(tmp_path, tmp_path / "site", source=tmp_path / "book")


def test_a_damaged_picture_is_named(book, tmp_path):
    broken = tmp_path / "notebooks"
    shutil.copytree(book, broken)
    damaged = notebook("Start here", new_code_cell(outputs=[html(FIGURE.replace(PICTURE, "AAAA"))]))
    nbformat.write(damaged, broken / "00-start-here.ipynb")
    with pytest.raises(SiteError, match="00-start-here.ipynb: figure 1 is no picture that can be read"):
        build_site(broken, tmp_path / "site", source=broken)
    assert not (tmp_path / "site").exists()


def test_find_notebooks_leaves_out_checkpoints(tmp_path):
    for name in ("02-b/01-x.ipynb", "01-a/02-y.ipynb", "00-z.ipynb", "01-a/.ipynb_checkpoints/02-y-checkpoint.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find_notebooks(tmp_path) == ["00-z.ipynb", "01-a/02-y.ipynb", "02-b/01-x.ipynb"]


@pytest.mark.parametrize(
    ("name", "title"), [("07-metric-learning", "Metric learning"), ("audits", "Audits"), ("guides", "Guides"), ("", "")]
)
def test_heading(name, title):
    assert heading(name) == title


def test_a_full_disk_is_one_sentence_and_leaves_nothing(book, tmp_path, monkeypatch):
    def full(source, target, **_):
        Path(target).mkdir()
        raise shutil.Error([(str(source), str(target), "No space left on device")])

    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("of an earlier build")
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(SiteError, match="cannot write .*site: the disk is full, or"):
        build_site(book, out, source=book)
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    assert (out / "index.html").read_text() == "of an earlier build"


@pytest.mark.slow
def test_every_loss_has_its_card_and_every_name_its_entry(built):
    site, _ = built
    text = (site / "losses.html").read_text(encoding="utf-8")
    for name in public("losses"):
        card = text[text.index(f'<section class="lb-loss" id="{name.short}">') :].partition("</section>")[0]
        drawn = (site / "_static" / "losses" / f"{name.short}.webp").is_file()
        assert (f'src="_static/losses/{name.short}.webp"' in card, "No picture: " in card) == (drawn, not drawn)
    card = text[text.index('id="comp_sum"') : text.index('id="crammer_singer"')]
    assert '<a href="00-start-here.html">Start here</a>' in card
    assert 'href="papers.html#comp-sum"' in card
    reference = {path.stem: path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html")}
    missing = [full for full, name in everything().items() if f'id="{full}"' not in reference[name.package]]
    assert not missing


@pytest.mark.slow
def test_a_figure_is_listed_with_its_words_and_leads_to_its_place(built):
    site, _ = built
    text = (site / "figures.html").read_text(encoding="utf-8")
    assert text.count("<figcaption>") == 2  # the player and the figure
    assert "a &lt; b | $x$ &amp; `c`" in text
    assert 'href="00-start-here.html#figure-2"' in text
    assert 'id="figure-2"' in (site / "00-start-here.html").read_text(encoding="utf-8")
    assert (site / "_static" / "figures" / "00-02.webp").is_file()


@pytest.mark.slow
def test_a_page_of_text_stands_in_the_contents(built):
    index = (built[0] / "index.html").read_text(encoding="utf-8")
    assert 'href="for-teachers.html"' in index
    assert "A page of text." in (built[0] / "for-teachers.html").read_text(encoding="utf-8")
