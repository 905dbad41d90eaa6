"""Text as Markdown and as HTML, and the links between pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lossbook.book.catalog import Catalog
from lossbook.book.results import ClaimResult


@dataclass(frozen=True)
class Book:
    """What the generated pages are made of."""

    catalog: Catalog
    notebooks: Mapping[str, dict[str, Any]]  # "01-surrogates/01-cross-entropy-family.ipynb" -> notebook, in order
    measured: Mapping[str, ClaimResult] = field(default_factory=dict)

    def title(self, notebook: str) -> str:
        """The notebook's first heading; its file's name as a heading where it has none."""
        for cell in self.notebooks[notebook]["cells"]:
            if cell["cell_type"] == "markdown":
                for line in "".join(cell["source"]).splitlines():
                    if line.startswith("# "):
                        return line.removeprefix("# ").strip()
        return heading(notebook.removesuffix(".ipynb").rpartition("/")[2])


def heading(name: str) -> str:
    """A numbered folder or file as a heading: "07-metric-learning" is "Metric learning"."""
    return re.sub(r"^\d+-", "", name).replace("-", " ").capitalize()


def plain(text: str) -> str:
    """Text as Markdown shows it letter by letter, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|$#~])", r"\\\1", text).replace("\n", " ")


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def link(address: str, text: str) -> str:
    """An HTML link; the text is escaped."""
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'


def notebook_anchor(book: Book, notebook: str) -> str:
    """A link with the notebook's title, for a page at the top of the site; the bare name where this site lacks it."""
    if notebook not in book.notebooks:
        return f"<code>{html.escape(notebook)}</code>"
    return link(notebook.removesuffix(".ipynb") + ".html", book.title(notebook))


def paper_anchor(key: str, text: str) -> str:
    """A link to a paper's row in the list of papers."""
    return link(f"papers.html#{key}", text)


def raw(lines: Iterable[str]) -> list[str]:
    """HTML inside a Markdown page, as it is."""
    return ["``````````{raw} html", *lines, "``````````", ""]


def toctree(caption: str, pages: list[str], options: str = "") -> str:
    options += f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:maxdepth: 1\n:titlesonly:\n" + options + "\n" + "\n".join(pages) + "\n```\n"
