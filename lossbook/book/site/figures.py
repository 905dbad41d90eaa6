"""The list of figures: every picture of the executed notebooks, small, with a link to its place."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

from lossbook.book.site.build import SiteError
from lossbook.book.site.markup import Book, plain, raw

WIDTH = 320  # pixels of a thumbnail
_DATA = re.compile(r"data:image/\w+;base64,")


@dataclass(frozen=True)
class Figure:
    notebook: str
    anchor: str  # its id in the notebook's page
    alt: str
    data: str  # base64
    plays: bool  # it has a slider or a menu


class _Images(HTMLParser):
    """The embedded pictures of an HTML output; the frames of a player are data of its script, not elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.plays = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.plays = self.plays or (tag == "figure" and "lossbook-play" in values.get("class", ""))
        if tag == "img" and (start := _DATA.match(values.get("src", ""))):
            self.found.append((values.get("alt", ""), values["src"][start.end() :]))


def mark_figures(name: str, notebook: dict[str, Any]) -> list[Figure]:
    """The figures of a notebook. Each output that shows some is given an id, for links to lead there."""
    figures: list[Figure] = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            text = "".join(output.get("data", {}).get("text/html", ""))
            # The parser is slow on megabytes of frames: what comes after the first script is none of its business.
            images = _Images()
            images.feed(text.partition("<script")[0])
            if images.found:
                anchor = f"figure-{len(figures) + 1}"
                figures += [Figure(name, anchor, alt, data, images.plays) for alt, data in images.found]
                output["data"]["text/html"] = f'<div id="{anchor}">{text}</div>'
    return figures


def figures_page(book: Book, figures: list[Figure], folder: Path) -> str:
    """The page; the thumbnails are written into `folder`, which the page finds as `_static/figures`."""
    from PIL import UnidentifiedImageError

    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# The figures",
        "",
        f"All {len(figures)} figures of the notebooks, in the book's order. A picture leads to its place; *moves* "
        "marks those with a slider or a menu.",
        "",
    ]
    for number, (name, group) in enumerate(groupby(figures, key=lambda figure: figure.notebook)):
        lines += [f"## [{plain(book.title(name))}]({name})", ""]
        cards = []
        for i, figure in enumerate(group, start=1):
            file = f"{number:02}-{i:02}.webp"
            try:
                width, height = _thumbnail(figure.data, folder / file)
            except (UnidentifiedImageError, ValueError) as error:
                raise SiteError(
                    f"{name}: figure {i} is no picture that can be read; `lossbook run` makes it again"
                ) from error
            page = name.removesuffix(".ipynb") + ".html"
            moves = " <em>moves</em>" if figure.plays else ""
            cards.append(
                f'<figure><a href="{page}#{figure.anchor}"><img src="_static/figures/{file}" width="{width}" '
                f'height="{height}" loading="lazy" alt="Figure {i} of {html.escape(book.title(name))}"></a>'
                f"<figcaption>{html.escape(figure.alt)}{moves}</figcaption></figure>"
            )
        lines += raw(['<div class="lb-figures">', *cards, "</div>"])
    return "\n".join(lines)


def _thumbnail(data: str, path: Path) -> tuple[int, int]:
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.thumbnail((WIDTH, WIDTH), Image.Resampling.BOX, reducing_gap=2)
    image.convert("RGB").save(path, "webp", quality=70, method=2)
    return image.size
