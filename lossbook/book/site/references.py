"""The list of references: what the notebooks cite under "Further reading", and the papers of the catalogue."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field

from lossbook.book.site.markup import Book, link, notebook_anchor, paper_anchor, raw

# An item is a citation, then perhaps a colon and a remark. A colon inside a link or inside italics belongs to it.
_CITATION = re.compile(r"(?:\[[^\]]*\]\([^)]*\)|\*[^*]*\*|\$[^$]*\$|[^:\[*$])*")
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")


@dataclass
class Work:
    """A cited work: its citation in Markdown, and where it is cited."""

    citation: str
    notebooks: list[str] = field(default_factory=list)
    papers: list[str] = field(default_factory=list)

    @property
    def sorting(self) -> str:
        return re.sub(r"[^\w ]", "", self.citation).casefold()


def cited(source: str) -> list[str]:
    """The citations of a Markdown cell's list under "Further reading"; pointers into the book are left out."""
    items = re.split(r"\n[-*] ", source.partition("## Further reading\n")[2])[1:]
    found = []
    for item in items:
        text = " ".join(item.partition("\n\n")[0].split())
        citation = _CITATION.match(text)[0].strip(" .,;")  # type: ignore[index]
        if re.search(r"\b(1[6-9]|20)\d\d\b", citation) or _LINK.search(citation):
            found.append(citation)
    return found


def collect(book: Book) -> list[Work]:
    """Every work once, by its first author: the same link is the same work, and without one the same words."""
    works: dict[str, Work] = {}
    for name, notebook in book.notebooks.items():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                for citation in cited("".join(cell["source"])):
                    work = works.setdefault(_key(citation), Work(citation))
                    if name not in work.notebooks:
                        work.notebooks.append(name)
    for entry in book.catalog.entries.values():
        if entry.arxiv:
            citation = f"[{entry.title}](https://arxiv.org/abs/{entry.arxiv})"
            works.setdefault(_key(citation), Work(citation)).papers.append(entry.key)
    return sorted(works.values(), key=lambda work: work.sorting)


def _key(citation: str) -> str:
    address = _LINK.search(citation)
    if address is None:
        # The first words: the same work may be cited with the journal's name in full, or short.
        return re.sub(r"\W", "", citation).casefold()[:60]
    return re.sub(r"v\d+$", "", address[2].removesuffix("/").replace("/pdf/", "/abs/"))


def references_page(book: Book) -> str:
    works = collect(book)
    read = [work for work in works if work.notebooks]
    rest = [work for work in works if not work.notebooks]
    lines = [
        "# References",
        "",
        "Each work stands here once, with the notebooks that cite it.",
        "",
        f"## The {len(read)} works that notebooks cite",
        "",
        *raw(['<ul class="lb-references">', *(_item(work, book) for work in read), "</ul>"]),
        f"## The {len(rest)} other papers of the catalogue",
        "",
        *raw(['<ul class="lb-references">', *(_item(work, book) for work in rest), "</ul>"]),
    ]
    return "\n".join(lines)


def _item(work: Work, book: Book) -> str:
    where = [notebook_anchor(book, name) for name in work.notebooks]
    where += [paper_anchor(key, "in the list of papers") for key in work.papers]
    return f"<li>{_html(work.citation)}.<br><small>{', '.join(where)}</small></li>"


def _html(citation: str) -> str:
    """Links and italics of a citation in Markdown."""
    parts = re.split(r"(\[[^\]]*\]\([^)\s]*\)|\*[^*]+\*)", citation)
    for i, part in enumerate(parts):
        if match := _LINK.fullmatch(part):
            parts[i] = link(match[2], match[1])
        else:
            parts[i] = f"<em>{html.escape(part[1:-1])}</em>" if i % 2 else html.escape(part)
    return "".join(parts)
