"""Lay out the site's pages, run Sphinx over them, and put the result in place."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lossbook.book.catalog import load_catalog
from lossbook.book.results import ClaimResult, claims_of
from lossbook.book.site.markup import Book, heading, toctree

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ("conf.py", "index.md", "_static", "_templates")
SPEED = "_static/bench.json"  # `lossbook bench --json notebooks/_static/bench.json` writes it
CONTENTS = "<!-- contents -->"
# nbgrader's parts of an exercise. A part without an end goes to the end of its cell.
_HIDDEN = re.compile(r"^[^\n]*### BEGIN HIDDEN TESTS.*?(?:^[^\n]*### END HIDDEN TESTS[^\n]*(?:\n|\Z)|\Z)", re.M | re.S)
_MARKER = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[^\n]*(?:\n|\Z)", re.M)
LISTS = ("losses", "papers", "claims", "figures", "references", "api/index", "speed")


class SiteError(RuntimeError):
    """The site could not be built; the message says what to do."""


def build_site(
    executed: Path = ROOT / "build" / "notebooks",
    out: Path = ROOT / "build" / "site",
    *,
    source: Path = ROOT / "notebooks",
) -> Path:
    """Build the site from executed notebooks and return the page to open.

    The pages are written beside `out` and moved there when they are complete, so that an interrupted build leaves the
    site as it was. Sphinx's warnings go to stderr.

    Args:
        executed: folder of executed notebooks, laid out as `source` is. One that `source` no longer has is left out.
        out: the site's folder; what it held is replaced.
        source: folder of the book, with `conf.py`, `index.md` and what they name, and pages in Markdown.

    Raises:
        SiteError: no executed notebooks, no Sphinx, Sphinx failed, or the site cannot be written.
    """
    executed, out, source = Path(executed), Path(out), Path(source)
    if missing := [name for name in (*SOURCE, SPEED) if not (source / name).exists()]:
        raise SiteError(f"{source / missing[0]} is missing; the site is built from a checkout of the book")
    notebooks = [name for name in find_notebooks(source) if (executed / name).is_file()]
    if not notebooks:
        raise SiteError(f"there are no executed notebooks in {executed}; `lossbook run` makes them")
    if missing := [name for name in ("sphinx", "myst_nb", "pydata_sphinx_theme") if find_spec(name) is None]:
        raise SiteError(
            f"the site needs {missing[0]}, which is not installed; `pip install lossbook[site]` installs it"
        )
    pages, fresh = out.with_name(f"{out.name}-src"), out.with_name(f"{out.name}.new")
    try:
        _write_pages(source, executed, notebooks, pages)
        _replace(_run_sphinx(pages, fresh), out)
    except OSError as error:
        # A copy of a folder holds its errors as a list.
        why = error.strerror or "the disk is full, or a file of the book cannot be read"
        raise SiteError(f"cannot write {error.filename or out}: {why}") from error
    finally:
        # Nothing half-written stays to fill the disk.
        for unfinished in (fresh, pages.with_name(f"{pages.name}.new")):
            shutil.rmtree(unfinished, ignore_errors=True)
    return out / "index.html"


def find_notebooks(folder: Path) -> list[str]:
    """The notebooks below a folder in the book's order: those at the top, then the parts as the listing has them."""
    return _find(folder, "*.ipynb")


def _find(folder: Path, pattern: str) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob(pattern))
    names = [path.as_posix() for path in found if not any(part.startswith((".", "_")) for part in path.parts)]
    return _in_order(names)


def _in_order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: ("/" in name, name))


def _write_pages(source: Path, executed: Path, notebooks: list[str], pages: Path) -> None:
    """Lay out what Sphinx reads: the committed pages, the executed notebooks, the generated lists."""
    from lossbook.book.site.api import api_pages
    from lossbook.book.site.claims import claims_page
    from lossbook.book.site.figures import figures_page, mark_figures
    from lossbook.book.site.losses import losses_page
    from lossbook.book.site.papers import papers_page
    from lossbook.book.site.references import references_page
    from lossbook.book.site.speed import speed_page

    new = pages.with_name(f"{pages.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in SOURCE:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, new / name)
    texts = [name for name in _find(source, "*.md") if name != "index.md"]
    for name in texts:
        _write(new / name, (source / name).read_text(encoding="utf-8"))
    contents: dict[str, dict[str, Any]] = {}
    measured: dict[str, ClaimResult] = {}
    figures = []
    for name in notebooks:
        notebook = json.loads((executed / name).read_text(encoding="utf-8"))
        measured |= {result.key: result for result in claims_of(notebook)}
        contents[name] = notebook
        figures += mark_figures(name, notebook)
        _tidy_exercises(notebook)
        _write(new / name, json.dumps(notebook))
    book = Book(load_catalog(), contents, measured)
    lists = {
        "papers.md": papers_page(book),
        "claims.md": claims_page(book),
        "figures.md": figures_page(book, figures, new / "_static" / "figures"),
        "losses.md": losses_page(book, new / "_static" / "losses", tests=ROOT / "tests"),
        "references.md": references_page(book),
        "speed.md": speed_page(json.loads((new / SPEED).read_text(encoding="utf-8"))),
        **api_pages(),
    }
    for name, text in lists.items():
        _write(new / name, text)
    index = (new / "index.md").read_text(encoding="utf-8")
    _write(new / "index.md", index.replace(CONTENTS, _contents(_in_order([*notebooks, *texts]))))
    _replace(new, pages)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _run_sphinx(pages: Path, folder: Path) -> Path:
    """The folder of the built site, below `folder`, where Sphinx and MyST-NB also put what only they need."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-j", "auto"]
    done = subprocess.run([*command, "-d", folder / "doctrees", pages, folder / "html"], check=False)
    if done.returncode:
        raise SiteError(f"Sphinx could not build the site from {pages}; its messages are above")
    return folder / "html"


def _replace(new: Path, old: Path) -> None:
    """Put a finished folder in another's place."""
    gone = old.with_name(f"{old.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    if old.exists():
        os.replace(old, gone)
    os.replace(new, old)
    shutil.rmtree(gone, ignore_errors=True)


def _tidy_exercises(notebook: dict[str, Any]) -> None:
    """Leave out hidden tests, and fold solutions, so that a reader can try first. nbgrader's markers go."""
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        metadata, source = cell["metadata"], "".join(cell["source"])
        cell["source"] = _MARKER.sub("", _HIDDEN.sub("", source)).rstrip("\n")
        if metadata.get("nbgrader", {}).get("solution"):
            metadata["tags"] = [*metadata.get("tags", []), "hide-cell"]
            metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}


def _contents(pages: list[str]) -> str:
    """One table of contents a part, its folder's name as caption, and one for the lists at the end."""
    parts: dict[str, list[str]] = {}
    for name in pages:
        parts.setdefault(name.rpartition("/")[0], []).append(name.rpartition(".")[0])
    blocks = [toctree(heading(part), names) for part, names in parts.items()]
    return "\n".join([*blocks, toctree("Lists", list(LISTS), ":hidden:\n")])
