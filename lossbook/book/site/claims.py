"""The page of claims: what each paper reported, and what the notebooks measure."""

from __future__ import annotations

from collections.abc import Iterable

from lossbook.book.catalog import Claim
from lossbook.book.claims import short_number
from lossbook.book.results import ClaimResult
from lossbook.book.site.markup import Book, heading, notebook_link, paper_anchor, plain, row


def claims_page(book: Book) -> str:
    catalog, measured = book.catalog, book.measured
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
        lines += [f"Measured in {notebook_link(notebook, book.notebooks)}.", ""]
        lines += ["| claim | the paper reported | here | measured |", "|---|---|---|---|"]
        for entry in catalog.entries.values():
            for claim in entry.claims:
                if claim.notebook == notebook:
                    text = f"{plain(claim.text)}{f' *{plain(claim.reason)}*' if claim.reason else ''}"
                    reported = plain(claim.paper)
                    if entry.arxiv or entry.key in catalog.papers:
                        reported += " " + paper_anchor(entry.key, "About the paper")
                    result = measured.get(claim.key)
                    lines.append(row(text, reported, _status(claim.expected, result), _numbers(result)))
    return "\n".join([*lines, ""])


def count_claims(claims: Iterable[Claim], book: Book) -> str:
    """How many claims came out how, in words: "3 reproduced, 1 not reproduced, 2 not run"."""
    found: dict[str, int] = {"reproduced": 0, "not reproduced": 0, "not run": 0}
    for claim in claims:
        result = book.measured.get(claim.key)
        found[result.status if result else "not run"] += 1
    return ", ".join(f"{number} {status}" for status, number in found.items() if number)


def _status(expected: str, result: ClaimResult | None) -> str:
    if result is None:
        return f"not run (expected: {expected})"
    mark = "✓" if result.status == "reproduced" else "✗"
    return f"{mark} {result.status}" + ("" if result.status == expected else f", **expected: {expected}**")


def _numbers(result: ClaimResult | None) -> str:
    measured = result.measured if result else {}
    return ", ".join(f"{plain(name)} = {plain(short_number(value))}" for name, value in measured.items())
