"""The page of claims: what each paper reported, and what the notebooks measure."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable

from lossbook.book.catalog import Claim, Entry
from lossbook.book.claims import short_number
from lossbook.book.results import ClaimResult
from lossbook.book.site.markup import Book, heading, paper_anchor, plain, raw

COLUMNS = ("claim", "here", "measured")
STATUSES = ("reproduced", "not reproduced", "not run")
# lists.css hides the others.
ONLY = '<p class="lb-tools"><label><input type="checkbox" id="lb-only"> Show only what is not reproduced</label></p>'


def claims_page(book: Book) -> str:
    claims = book.catalog.claims
    run = {key: book.measured[key].status for key in claims if key in book.measured}
    agree = sum(status == claims[key].expected for key, status in run.items())
    lines = [
        "# The claims",
        "",
        "A claim is a statement that a notebook's own numbers can refute, checked over at least three seeds. It is "
        "*reproduced* if it holds for every seed. The catalogue says what to expect; where a paper's claim does not "
        "hold here, it says why.",
        "",
        f"Of {len(claims)} claims, {len(run)} were measured when this site was built; {agree} came out as the "
        "catalogue expects.",
        "",
        *raw([f"<p>{count_claims(claims.values(), book)}.</p>", ONLY]),
    ]
    homes = {claim.notebook for claim in claims.values()}
    for notebook in [*book.notebooks, *sorted(homes - book.notebooks.keys())]:
        if notebook in homes:
            lines += [f"## {_title(notebook, book)}", "", *raw(_table(notebook, book))]
    return "\n".join([*lines, ""])


def count_claims(claims: Iterable[Claim], book: Book) -> str:
    """How many claims came out how, as HTML that reads "3 reproduced, 1 not reproduced, 2 not run"."""
    found = Counter(_status(claim, book) for claim in claims)
    counts = {status: f"{found[status]} {status}" for status in STATUSES if found[status]}
    if failed := counts.get("not reproduced"):
        counts["not reproduced"] = _mark("not reproduced", failed)
    return ", ".join(counts.values())


def _title(notebook: str, book: Book) -> str:
    if notebook in book.notebooks:
        return f"[{plain(book.title(notebook))}]({notebook})"
    return heading(notebook.removesuffix(".ipynb").rpartition("/")[2])


def _table(notebook: str, book: Book) -> list[str]:
    """A group of rows for each paper whose claims the notebook measures."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    lines = ['<table class="lb-list lb-claims">', f"<thead><tr>{heads}</tr></thead>"]
    for entry in book.catalog.of_notebook(notebook):
        rows = [_row(claim, book) for claim in entry.claims if claim.notebook == notebook]
        if rows:
            source = f'<tr><th colspan="{len(COLUMNS)}" scope="rowgroup">{_source(entry, book)}</th></tr>'
            lines += ["<tbody>", source, *rows, "</tbody>"]
    return [*lines, "</table>"]


def _source(entry: Entry, book: Book) -> str:
    listed = entry.arxiv or entry.key in book.catalog.papers
    return paper_anchor(entry.key, entry.title) if listed else html.escape(entry.title)


def _row(claim: Claim, book: Book) -> str:
    result = book.measured.get(claim.key)
    cells = (
        html.escape(claim.text) + (f"<p>The paper: {html.escape(claim.paper)}</p>" if claim.paper else ""),
        _came_out(claim, book) + (f"<p>{html.escape(claim.reason)}</p>" if claim.reason else ""),
        _numbers(result),
    )
    rest = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(COLUMNS[1:], cells[1:], strict=True))
    return f'<tr id="{html.escape(claim.key)}"><th scope="row">{cells[0]}</th>{rest}</tr>'


def _status(claim: Claim, book: Book) -> str:
    result = book.measured.get(claim.key)
    return result.status if result else "not run"


def _came_out(claim: Claim, book: Book) -> str:
    status = _status(claim, book)
    sign = {"reproduced": "✓ ", "not reproduced": "✗ "}.get(status, "")
    surprise = "" if status == claim.expected else f" <strong>expected: {claim.expected}</strong>"
    return _mark(status, sign + status) + surprise


def _mark(status: str, text: str) -> str:
    """A status is told by its words and its frame; colour comes on top."""
    return f'<span class="lb-status lb-{status.replace(" ", "-")}">{text}</span>'


def _numbers(result: ClaimResult | None) -> str:
    measured = result.measured if result else {}
    return "<br>".join(html.escape(f"{name} = {short_number(value)}") for name, value in measured.items())
