"""The static site: the executed notebooks, the papers and the claims, as pages that open from a file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lossbook.book.catalog import Catalog, Entry, load_catalog
from lossbook.book.claims import short_number
from lossbook.book.results import ClaimResult, claims_of

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ("conf.py", "index.md", "_static", "_templates")
SPEED = "_static/bench.json"  # `lossbook bench --json notebooks/_static/bench.json` writes it
CONTENTS = "<!-- contents -->"


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
        source: folder of the book, with `conf.py`, `index.md` and what they name.

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
        _run_sphinx(pages, fresh)
        _replace(fresh, out)
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
    found = (path.relative_to(folder) for path in folder.rglob("*.ipynb") if not _hidden(path.relative_to(folder)))
    return sorted((path.as_posix() for path in found), key=lambda name: ("/" in name, name))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _write_pages(source: Path, executed: Path, notebooks: list[str], pages: Path) -> None:
    """Lay out what Sphinx reads: the committed pages, the executed notebooks, the generated lists."""
    new = pages.with_name(f"{pages.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name in SOURCE:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy(source / name, new / name)
    measured: dict[str, ClaimResult] = {}
    for name in notebooks:
        notebook = json.loads((executed / name).read_text(encoding="utf-8"))
        measured |= {result.key: result for result in claims_of(notebook)}
        _fold_solutions(notebook)
        page = new / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(json.dumps(notebook), encoding="utf-8")
    catalog = load_catalog()
    index = (new / "index.md").read_text(encoding="utf-8")
    (new / "index.md").write_text(index.replace(CONTENTS, _contents(notebooks)), encoding="utf-8")
    (new / "papers.md").write_text(_papers_page(catalog, notebooks, measured), encoding="utf-8")
    (new / "claims.md").write_text(_claims_page(catalog, notebooks, measured), encoding="utf-8")
    report = json.loads((new / SPEED).read_text(encoding="utf-8"))
    (new / "speed.md").write_text(_speed_page(report), encoding="utf-8")
    _replace(new, pages)


def _run_sphinx(pages: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-j", "auto"]
    doctrees = out.with_name(f"{out.name}.doctrees")
    done = subprocess.run([*command, "-d", doctrees, pages, out], check=False)
    shutil.rmtree(doctrees, ignore_errors=True)
    if done.returncode:
        raise SiteError(f"Sphinx could not build the site from {pages}; its messages are above")


def _replace(new: Path, old: Path) -> None:
    """Put a finished folder in another's place."""
    gone = old.with_name(f"{old.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    if old.exists():
        os.replace(old, gone)
    os.replace(new, old)
    shutil.rmtree(gone, ignore_errors=True)


def _fold_solutions(notebook: dict[str, Any]) -> None:
    """Fold the cells that nbgrader knows as solutions, so that a reader can try first."""
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        if cell["cell_type"] == "code" and metadata.get("nbgrader", {}).get("solution"):
            metadata["tags"] = [*metadata.get("tags", []), "hide-cell"]
            metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}


def _contents(notebooks: list[str]) -> str:
    """One table of contents a part, its folder's name as caption, and one for the lists at the end."""
    parts: dict[str, list[str]] = {}
    for name in notebooks:
        parts.setdefault(name.rpartition("/")[0], []).append(name.removesuffix(".ipynb"))
    blocks = [_toctree(heading(part), pages) for part, pages in parts.items()]
    return "\n".join([*blocks, _toctree("Lists", ["papers", "claims", "speed"], ":hidden:\n")])


def _toctree(caption: str, pages: list[str], options: str = "") -> str:
    options += f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:maxdepth: 1\n:titlesonly:\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def heading(name: str) -> str:
    """A numbered folder or file as a heading: "07-metric-learning" is "Metric learning"."""
    return re.sub(r"^\d+-", "", name).replace("-", " ").capitalize()


def _papers_page(catalog: Catalog, notebooks: list[str], measured: Mapping[str, ClaimResult]) -> str:
    built = sum(entry.built for entry in catalog.papers.values())
    lines = [
        f"# The {len(catalog.papers)} papers",
        "",
        f"In the book so far: {built}; planned: {len(catalog.papers) - built}. A *core* paper gets the full treatment; "
        "of a *mechanism* paper the mechanism is built and shown small; of an *idea* paper the one idea is shown. A "
        "*foundation* is standard material that several papers build on. The names below a title are the functions "
        "that build it, or will. A fraction beside a notebook counts the paper's claims that it reproduces.",
    ]
    # A foundation without a source is the book's own: it has no row among the papers.
    listed = {key: entry for key, entry in catalog.entries.items() if key in catalog.papers or entry.arxiv}
    for part in sorted({entry.part for entry in listed.values()}):
        lines += ["", f"## {heading(part)}", "", "| paper | kind | in the book |", "|---|---|---|"]
        for key, entry in listed.items():
            if entry.part == part:
                kind = "foundation" if key in catalog.foundations else entry.kind
                lines.append(_row(_paper(entry), kind, _where(entry, notebooks, measured)))
    return "\n".join([*lines, ""])


def _claims_page(catalog: Catalog, notebooks: list[str], measured: Mapping[str, ClaimResult]) -> str:
    run = {key: measured[key].status for key in catalog.claims if key in measured}
    agree = sum(status == catalog.claims[key].expected for key, status in run.items())
    lines = [
        "# The claims",
        "",
        "A claim is a statement that a notebook's own numbers can refute, checked over at least three seeds. It is "
        "*reproduced* if it holds for every seed. The catalogue says what to expect; where a paper's claim does not "
        "hold here, it says why.",
        "",
        f"Of {len(catalog.claims)} claims, {len(run)} were measured when this site was built; "
        f"{agree} came out as the catalogue expects.",
    ]
    for notebook in sorted({claim.notebook for claim in catalog.claims.values()}):
        lines += ["", f"## {heading(notebook.removesuffix('.ipynb').rpartition('/')[2])}", ""]
        lines += [f"Measured in {_notebook_link(notebook, notebooks)}.", ""]
        lines += ["| claim | the paper reported | here | measured |", "|---|---|---|---|"]
        for key, claim in catalog.claims.items():
            if claim.notebook == notebook:
                text = f"{_plain(claim.text)}{f' *{_plain(claim.reason)}*' if claim.reason else ''}"
                result = measured.get(key)
                lines.append(_row(text, _plain(claim.paper), _status(claim.expected, result), _numbers(result)))
    return "\n".join([*lines, ""])


def _speed_page(report: Mapping[str, Any]) -> str:
    """The measurements that `lossbook bench` wrote."""
    from lossbook.book.bench.measure import promised

    machine, rows = report["machine"], report["measurements"]
    pairs = sorted({len(row["samples"]) for row in rows})
    lines = [
        "# How fast is it?",
        "",
        "Each row times two things in turn, in one run: what this package does, and another way to the same result, or "
        "a unit of work such as one product of matrices. The ratio says how many times as fast the package is; below 1 "
        f"it is the slower one. It is the median of {' or '.join(map(str, pairs))} pairs, with the smallest and the "
        "largest in brackets. What is promised is what the README and the documentation say; the command fails where "
        "one is slower. The memory is how far the package, and the other, raise its peak. The last column is the "
        "package's share of what a copy or a product of matrices reaches on the same machine.",
        "",
        f"Measured on {_plain(machine['device'])}, {machine['cores']} cores, {machine['memory']:g} GiB of memory, with "
        f"Python {machine['python']}, torch {_plain(machine['torch'])} (threads: {machine['threads']}) and lossbook "
        f"{machine['lossbook']}. On your own machine `lossbook bench` prints the same table, with seconds, and "
        "`lossbook bench import` one group of it.",
        "",
        "| group | what | against | times as fast | promised | memory in MiB | of the ceiling |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = _plain(row["name"]) + (f"<br>*{_plain(row['note'])}*" if row["note"] else "")
        # A line for the ratio and, held together by spaces that do not break, one for its range.
        ratio = f"{_times(row['ratio'])}<br>({_times(row['low'])}\u00a0to\u00a0{_times(row['high'])})"
        promise = "" if row["at_least"] is None else promised(row["at_least"])
        memory = "" if row["memory"] is None else "{:,.0f} against {:,.0f}".format(*row["memory"])
        ceiling = "" if row["ceiling"] is None else f"{row['ceiling']:.0%}"
        lines.append(_row(f"`{row['group']}`", what, _plain(row["peer_name"]), ratio, promise, memory, ceiling))
    return "\n".join([*lines, ""])


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _paper(entry: Entry) -> str:
    title = _plain(entry.title)
    link = f"[{title}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else title
    names = " ".join(f"`{name}`" for name in entry.functions)
    return link + (f"<br>{names}" if names else "")


def _where(entry: Entry, notebooks: Iterable[str], measured: Mapping[str, ClaimResult]) -> str:
    if not entry.built:
        return "planned"
    held = sum(claim.key in measured and measured[claim.key].status == "reproduced" for claim in entry.claims)
    count = f", {held}/{len(entry.claims)}" if entry.claims else ""
    return _notebook_link(entry.notebook, notebooks) + count


def _notebook_link(notebook: str, notebooks: Iterable[str]) -> str:
    """A link that takes the notebook's title as its text; the bare name where this site does not hold the notebook."""
    return f"[]({notebook})" if notebook in notebooks else f"`{notebook}`"


def _status(expected: str, result: ClaimResult | None) -> str:
    if result is None:
        return f"not run (expected: {expected})"
    mark = "✓" if result.status == "reproduced" else "✗"
    return f"{mark} {result.status}" + ("" if result.status == expected else f", **expected: {expected}**")


def _numbers(result: ClaimResult | None) -> str:
    measured = result.measured if result else {}
    return ", ".join(f"{_plain(name)} = {_plain(short_number(value))}" for name, value in measured.items())


def _plain(text: str) -> str:
    """Text as Markdown shows it letter by letter, also inside a table."""
    return re.sub(r"([\\`*_\[\]<>|$#~])", r"\\\1", text).replace("\n", " ")
