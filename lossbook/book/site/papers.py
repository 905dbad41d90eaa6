"""The list of papers: what is built, where, with which claims, and how it was checked."""

from __future__ import annotations

import html

from lossbook.book.catalog import Entry
from lossbook.book.site.claims import count_claims
from lossbook.book.site.markup import Book, heading, link, notebook_anchor, raw
from lossbook.book.site.names import resolve

COLUMNS = ("paper", "part", "kind", "in the book", "claims", "checked against")


def papers_page(book: Book) -> str:
    """A row for each paper, and for each foundation that has a source. A row's anchor is the paper's key."""
    catalog = book.catalog
    built = sum(entry.built for entry in catalog.papers.values())
    listed = [entry for entry in catalog.entries.values() if entry.key in catalog.papers or entry.arxiv]
    listed.sort(key=lambda entry: entry.part)
    return "\n".join(
        [
            f"# The {len(catalog.papers)} papers",
            "",
            f"In the book so far: {built}; planned: {len(catalog.papers) - built}. A *core* paper gets the full "
            "treatment; of a *mechanism* paper the mechanism is built and shown small; of an *idea* paper the one idea "
            "is shown. A *foundation* is standard material that several papers build on. The names below a title are "
            "the functions that build it, or will. A claim is *reproduced* if it holds for every seed.",
            "",
            *raw(
                [
                    '<table class="lb-list">',
                    "<caption>The papers, by part of the book</caption>",
                    "<thead><tr>" + "".join(f'<th scope="col">{name}</th>' for name in COLUMNS) + "</tr></thead>",
                    "<tbody>",
                    *(_row(entry, book) for entry in listed),
                    "</tbody></table>",
                    '<script src="_static/lists.js"></script>',
                ]
            ),
        ]
    )


def _row(entry: Entry, book: Book) -> str:
    # What a built paper needed after all is what exists; of a planned one the names are part of the plan.
    names = " ".join(_function(path) for path in entry.functions if resolve(path) or not entry.built)
    title = link(f"https://arxiv.org/abs/{entry.arxiv}", entry.title) if entry.arxiv else html.escape(entry.title)
    cells = (
        title + (f'<br><span class="lb-names">{names}</span>' if names else ""),
        html.escape(heading(entry.part)),
        "foundation" if entry.key in book.catalog.foundations else entry.kind,
        notebook_anchor(book, entry.notebook) if entry.built else "planned",
        count_claims(entry.claims, book) or "none yet",
        _checked(entry),
    )
    rest = "".join(f'<td data-label="{name}">{cell}</td>' for name, cell in zip(COLUMNS[1:], cells[1:], strict=True))
    return f'<tr id="{html.escape(entry.key)}"><th scope="row">{cells[0]}</th>{rest}</tr>'


def _function(path: str) -> str:
    name = resolve(path)
    code = f"<code>{html.escape(name.full.removeprefix('lossbook.') if name else path)}</code>"
    return f'<a href="{name.address}">{code}</a>' if name else code


def _checked(entry: Entry) -> str:
    """What its formula was held against."""
    if entry.golden:
        count = len(entry.golden)
        return "numbers of public code" + (f" ({count} files)" if count > 1 else "")
    return "public code, read" if entry.verified else "no code"
