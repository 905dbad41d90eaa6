"""The list of losses: formula, picture, where each is used, where it is from, and what checks it."""

from __future__ import annotations

import html
import importlib
import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from lossbook.book.site.docstrings import formula, summary
from lossbook.book.site.markup import Book, heading, link, notebook_anchor, paper_anchor, plain, raw
from lossbook.book.site.names import Name, public, resolve, used
from lossbook.book.site.pictures import SIZE, draw


def losses_page(book: Book, folder: Path, *, tests: Path) -> str:
    """The page; its pictures are written into `folder`, which the page finds as `_static/losses`.

    Args:
        book: the notebooks, read for what they use.
        folder: made if it is missing.
        tests: the tests of a checkout, with `golden` in it; what is missing is counted as no test.
    """
    folder.mkdir(parents=True, exist_ok=True)
    in_notebooks = _users({name: _code(notebook) for name, notebook in book.notebooks.items()})
    files = sorted((tests / "losses").rglob("test_*.py"))
    in_tests = _users({path.relative_to(tests).as_posix(): [path.read_text(encoding="utf-8")] for path in files})
    checked = golden_files(tests / "golden")
    names = public("losses")
    lines = [
        "# The losses",
        "",
        f"The {len(names)} public names of `lossbook.losses`, by family. A formula is as the docstring has it. A "
        "picture shows the loss with its defaults: dark is low, bright is high, from its least to its largest value "
        "in it. For losses of logits the axes say by how much the label's logit leads two rivals. *Golden* names "
        "the files of numbers, computed by a paper's own public code, that a test holds the function to.",
        "",
    ]
    for module, family in groupby(names, key=lambda name: name.module):
        short = module.rpartition(".")[2]
        about = plain(summary(importlib.import_module(module)))
        cards = []
        for name in family:
            sources = [entry.key for entry in book.catalog.entries.values() if name in map(resolve, entry.functions)]
            rows = {
                "Used in": [notebook_anchor(book, one) for one in in_notebooks.get(name.full, [])]
                or ["no notebook yet"],
                "From": [paper_anchor(key, book.catalog.entries[key].title) for key in sources],
                "Golden": [f"<code>{key}.json</code>" for key in checked.get(name.full, [])] or ["no"],
                "Tests": [f"<code>{path}</code>" for path in in_tests.get(name.full, [])] or ["none of its own"],
            }
            cards.append(_card(name, rows, folder))
        lines += [f"## {heading(short)}", "", about, "", *raw(cards)]
    return "\n".join(lines)


def golden_files(folder: Path) -> dict[str, list[str]]:
    """Public name -> the golden files that hold numbers for it."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for function in dict.fromkeys(case.get("function", document["function"]) for case in document["cases"]):
            if name := resolve(function):
                found.setdefault(name.full, []).append(path.stem)
    return found


def _users(sources: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Public name -> the files whose code uses it."""
    found: dict[str, list[str]] = {}
    for file, code in sources.items():
        for full in used(code):
            found.setdefault(full, []).append(file)
    return found


def _code(notebook: Mapping) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _card(name: Name, rows: Mapping[str, list[str]], folder: Path) -> str:
    drawn = draw(name.short, name.value, folder / f"{name.short}.webp")
    picture = f'<p class="lb-reason">{html.escape(drawn.text)}</p>'
    if drawn.exists:
        picture = (
            f'<img src="_static/losses/{name.short}.webp" width="{SIZE[0]}" height="{SIZE[1]}" loading="lazy" '
            f'alt="{html.escape(drawn.text)}">'
        )
    text = formula(name.value)
    return "\n".join(
        [
            f'<section class="lb-loss" id="{name.short}">',
            f"<h3>{link(name.address, name.short)}</h3>",
            f"<p>{html.escape(summary(name.value)).replace('`', '')}</p>",
            f'<pre class="lb-formula">{html.escape(text)}</pre>' if text else "",
            f'<div class="lb-facts">{picture}<dl>',
            *(f"<dt>{what}</dt><dd>{', '.join(cells)}</dd>" for what, cells in rows.items() if cells),
            "</dl></div></section>",
        ]
    )
