"""The text of the site's generated pages, without Sphinx."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from lossbook import losses
from lossbook.book.catalog import Catalog, Claim, Entry, load_catalog
from lossbook.book.results import ClaimResult
from lossbook.book.site.api import _directive
from lossbook.book.site.build import find_notebooks
from lossbook.book.site.claims import claims_page
from lossbook.book.site.docstrings import formula, restructured, summary
from lossbook.book.site.figures import mark_figures
from lossbook.book.site.losses import golden_files
from lossbook.book.site.markup import Book, plain
from lossbook.book.site.names import PACKAGES, Name, public, resolve, used
from lossbook.book.site.papers import papers_page
from lossbook.book.site.pictures import draw
from lossbook.book.site.references import cited, collect, references_page

# What has no formula of its own: results, a wrapper, and what is defined by another function's formula.
WITHOUT_FORMULA = {"BackwardCompatible", "Criterion", "LossGate", "hyperbolic_cross_entropy"}


def cell(text: str) -> dict:
    return {"cell_type": "markdown", "source": [text], "metadata": {}}


def page(*cells: dict) -> dict:
    return {"cells": [cell("# Title"), *cells]}


@pytest.fixture
def book() -> Book:
    why = {"paper": "3 > 2", "reason": "too < small"}
    claims = tuple(Claim(f"held/{i}", "text", "reproduced", "a.ipynb", **why) for i in range(4))
    held = Entry("held", "A <b> | $title$", kind="core", arxiv="2301.00001", notebook="a.ipynb", claims=claims,
                 functions=("losses.surrogate.comp_sum", "losses.not_there"), golden=("one", "two"))  # fmt: skip
    catalog = Catalog(
        {"held": held, "later": Entry("later", "Later", verified=True, functions=("losses.planned",))}, {}
    )
    statuses = {"held/0": "reproduced", "held/1": "reproduced", "held/2": "not reproduced"}
    measured = {key: ClaimResult(key, status, 3, {"a_b": 0.5, "c": [1, 2]}) for key, status in statuses.items()}
    return Book(catalog, {"a.ipynb": page()}, measured)


def test_a_row_of_the_papers_says_what_is_built_and_what_came_out(book):
    text = papers_page(book)
    first, second = re.findall("<tr id=.*", text)
    assert first.startswith('<tr id="held">')
    assert '<a href="https://arxiv.org/abs/2301.00001">A &lt;b&gt; | $title$</a>' in first
    assert re.sub("<[^>]*>", "", first).count("2 reproduced, 1 not reproduced, 1 not run") == 1
    assert '<span class="lb-status lb-not-reproduced">1 not reproduced</span>' in first
    assert '<a href="a.html">Title</a>' in first
    assert '<a href="api/losses.html#lossbook.losses.comp_sum"><code>losses.comp_sum</code></a>' in first
    assert "not_there" not in first and "<code>losses.planned</code>" in second
    assert "numbers of public code (2 files)" in first
    assert "planned" in second and "public code, read" in second and "none yet" in second


def test_a_claim_shows_its_paper_what_came_out_and_why(book):
    text = claims_page(book)
    assert "## [Title](a.ipynb)" in text
    assert '<th colspan="3" scope="rowgroup"><a href="papers.html#held">A &lt;b&gt; | $title$</a></th>' in text
    rows = re.findall("<tr id=.*", text)
    assert [re.search(r'lb-status ([\w-]+)">', row)[1] for row in rows] == [
        "lb-reproduced",
        "lb-reproduced",
        "lb-not-reproduced",
        "lb-not-run",
    ]
    assert "✗ not reproduced</span> <strong>expected: reproduced</strong><p>too &lt; small</p>" in rows[2]
    assert '<th scope="row">text<p>The paper: 3 &gt; 2</p></th>' in rows[2]
    assert '<td data-label="measured">a_b = 0.5<br>c = [1, 2]</td>' in rows[2]


@pytest.mark.parametrize("name", [one.short for one in public("losses")])
def test_a_loss_has_words_and_a_formula(name):
    loss = getattr(losses, name)
    assert summary(loss)
    assert bool(formula(loss)) == (name not in WITHOUT_FORMULA)
    assert all(formula(loss).count(a) == formula(loss).count(b) for a, b in ("{}", "[]"))


def test_a_formula_is_the_first_block_and_not_the_arguments():
    def loss():
        """Words.

            loss = 1
              + 2

        More.

            other = 3

        Args:
            x: not a formula
        """

    assert formula(loss) == "loss = 1\n  + 2"
    assert formula(len) == ""


def test_a_docstring_becomes_restructured_text():
    lines = ["Stars * and |bars| and x_ of `comp_sum` and `logits`.", "", "    f = a * b_", "", "Args:", "    q: a*b"]
    assert restructured(lines, {"logits"}, "losses") == [
        r"Stars \* and \|bars\| and x\_ of :py:obj:`comp_sum <lossbook.losses.comp_sum>` and ``logits``.",
        "",
        ".. code-block:: none",
        "   :class: formula",
        "",
        "   f = a * b_",
        "",
        "Args:",
        r"    q: a\*b",
    ]


class Bag:
    """Words.

    Attributes:
        unused: of no use.
    """

    size: int  #: how `comp_sum` is meant
    other: int

    def __init__(self, size=Path("/on/this/machine"), *, third=1 / 3, loss=losses.comp_sum, dtype=torch.float32):
        pass

    @property
    def rows(self) -> int:
        """A property's words."""

    def take(self, n: int = 2):
        """A method's words.

        Args:
            n: a number.
        """

    def unexplained(self):
        pass

    @classmethod
    def empty(cls):
        """Made of nothing."""


def test_a_class_stands_in_the_reference_with_what_it_documents():
    text = "\n".join(_directive(Name("lossbook.losses.Bag", "lossbook.losses.here", Bag)))
    first, second, *_ = text.splitlines()
    assert first == ".. py:class:: Bag(size=..., *, third=0.3333, loss=comp_sum, dtype=torch.float32)"
    assert second == "   :module: lossbook.losses"
    size = "   .. py:attribute:: Bag.size\n      :module: lossbook.losses\n\n      how :py:obj:`comp_sum <"
    assert size in text
    assert "   .. py:property:: Bag.rows" in text and "   .. py:method:: Bag.take(n=2)" in text
    assert "      :Parameters: **n** -- a number." in text
    assert "   .. py:method:: Bag.empty()\n      :module: lossbook.losses\n      :classmethod:\n" in text
    assert "unexplained" not in text and "other" not in text


@pytest.mark.parametrize(
    ("name", "corner"),
    [("cross_entropy", "0.036 at (4, 4)"), ("hinge", "from 5 at score of the label −4 to 0 at 4, convex")],
)
def test_a_picture_says_what_one_sees(tmp_path, name, corner):
    drawn = draw(name, getattr(losses, name), tmp_path / "x.webp")
    assert drawn.exists and (tmp_path / "x.webp").stat().st_size < 20_000
    assert corner in drawn.text


def test_every_loss_has_a_picture_or_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("lossbook.book.site.pictures._STEPS", 3)
    monkeypatch.setattr("lossbook.book.site.pictures._paint", lambda seen, path: path.touch())
    for name in public("losses"):
        drawn = draw(name.short, name.value, tmp_path / name.short)
        assert drawn.exists == (tmp_path / name.short).is_file()
        assert "nan" not in drawn.text and len(drawn.text) > 20
        assert drawn.exists or not drawn.text.startswith("No picture: it takes more than two")


def test_a_loss_that_no_view_fits_says_so(tmp_path):
    drawn = draw("new", lambda a, b, c: torch.zeros(()), tmp_path / "x.webp")
    assert (drawn.text, drawn.exists) == ("No picture: it takes more than two axes can show.", False)


def test_a_name_is_found_by_any_path():
    assert resolve("losses.surrogate.comp_sum") is resolve("lossbook.losses.comp_sum")
    assert resolve("lossbook.losses.surrogate.family.comp_sum").full == "lossbook.losses.comp_sum"
    assert resolve("losses.not_there") is None and resolve("nowhere.at.all") is None
    for package in PACKAGES:
        assert public(package), package


def test_used_reads_code_and_not_text():
    cells = [
        "%matplotlib inline\nfrom lossbook import losses as L, metrics\nimport lossbook as lb, torch",
        "# losses.mae\nx = 'L.brier'\nL.comp_sum(1)\nlb.viz.show(2)",
        "def unfinished(:",
        "from lossbook.losses.surrogate import hinge",
    ]
    assert used(cells) == {"lossbook.losses.comp_sum", "lossbook.viz.show", "lossbook.losses.hinge"}


def test_golden_files_belong_to_the_functions_of_their_cases(tmp_path, repository):
    case = {"function": "lossbook.losses.surrogate.mae"}
    document = {"function": "lossbook.losses.brier", "cases": [case, case, {}, {"function": "lossbook.no.such"}]}
    (tmp_path / "one.json").write_text(json.dumps(document))
    assert golden_files(tmp_path) == {"lossbook.losses.mae": ["one"], "lossbook.losses.brier": ["one"]}
    assert golden_files(repository / "tests" / "golden")["lossbook.losses.z_loss"] == ["z-loss"]


def test_the_pictures_of_an_output_are_figures_and_frames_are_not():
    image = '<img alt="one" src="data:image/webp;base64,AAAA">'
    frames = f'<figure class="lossbook-play">{image}<script>"<img src=data:image/webp;base64,BBBB>"</script></figure>'
    outputs = [{"data": {"text/html": [image]}}, {"data": {"text/plain": "x"}}, {"data": {"text/html": frames}}]
    notebook = {"cells": [{"cell_type": "code", "outputs": outputs}]}
    figures = mark_figures("a.ipynb", notebook)
    assert [(f.anchor, f.alt, f.data, f.plays) for f in figures] == [
        ("figure-1", "one", "AAAA", False),
        ("figure-2", "one", "AAAA", True),
    ]
    assert outputs[0]["data"]["text/html"] == f'<div id="figure-1">{image}</div>'


def test_citations_are_read_and_listed_once():
    reading = (
        "## Further reading\n\n- Doe, [A: title](https://arxiv.org/abs/2301.00001v2), 2023: a remark.\n"
        "- Roe, *Old: and good*, 1936.\n- In this book: *Title* for more.\n\nAfter the list."
    )
    assert cited(reading) == ["Doe, [A: title](https://arxiv.org/abs/2301.00001v2), 2023", "Roe, *Old: and good*, 1936"]
    entry = Entry("one", "A title", arxiv="2301.00001")
    again = reading.replace("v2", "").replace("Doe", "Doe <b>")
    notebooks = {"a.ipynb": page(cell(reading)), "b.ipynb": page(cell(again))}
    book = Book(Catalog({"one": entry}, {}), notebooks)
    works = collect(book)
    assert [(work.notebooks, work.papers) for work in works] == [
        (["a.ipynb", "b.ipynb"], ["one"]),
        (["a.ipynb", "b.ipynb"], []),
    ]
    text = references_page(book)
    assert 'Doe, <a href="https://arxiv.org/abs/2301.00001v2">A: title</a>, 2023.' in text
    assert "Roe, <em>Old: and good</em>, 1936." in text


def test_the_book_cites_in_one_form(repository):
    """Authors, a title, a year, and an address that is https."""
    folder = repository / "notebooks"
    notebooks = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in find_notebooks(folder)}
    for work in collect(Book(load_catalog(), notebooks)):
        if work.notebooks:
            words = re.sub(r"\(https://[^)\s]+\)", "", work.citation)
            assert "](" not in words, work.citation
            assert re.search(r"\b(1[6-9]|20)\d\d\b", words) or "](https://" in work.citation, work.citation


def test_plain_shows_every_letter():
    assert plain("a|b <i> $x$ *y* _z_\n`c`") == r"a\|b \<i\> \$x\$ \*y\* \_z\_ \`c\`"
