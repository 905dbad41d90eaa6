"""What the texts say about speed, what the bench promises, and what it measured: the three agree."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lossbook.book.bench import GROUPS

WORDS = {"twice": 2.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "six": 6.0, "eight": 8.0, "ten": 10.0}
NUMBER = rf"\d[\d,.]*|{'|'.join(WORDS)}"
SPEED = re.compile(rf"\b(?:({NUMBER})(?: times)? as fast|({NUMBER}) times faster)\b", re.IGNORECASE)


class Statement(NamedTuple):
    """A sentence of a text, by a piece of it that holds the number, and the measurement that backs it."""

    file: str
    words: str
    group: str
    name: str
    peer: str


STATEMENTS = [
    Statement(
        "README.md", "more than 40 times as fast as one of log-softmax",
        "z-loss", "output layer, 500,000 classes", "log-softmax, dense",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def report(repository: Path) -> dict[str, Any]:
    """The committed measurements, which the site shows."""
    return json.loads((repository / "notebooks/_static/bench.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(repository: Path) -> dict[str, str]:
    """README, changelog, the site's own pages and the docstrings of the package, each on one line."""
    files = [repository / "README.md", repository / "CHANGELOG.md", *(repository / "notebooks").glob("*.md")]
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    # Those of the bench itself stand beside the promises.
    for path in set((repository / "lossbook").rglob("*.py")) - set((repository / "lossbook/book/bench").iterdir()):
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts[path] = "\n".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))
    return {path.relative_to(repository).as_posix(): " ".join(text.split()) for path, text in texts.items()}


def speeds(text: str) -> list[tuple[str, float]]:
    """The statements on speed in a text: the words, and the number in them."""
    found = [(match.group(), (match.group(1) or match.group(2)).lower()) for match in SPEED.finditer(text)]
    return [(words, WORDS.get(number) or float(number.replace(",", ""))) for words, number in found]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 40 times as fast.", 40.0),
        ("1.5 times as fast as torchmetrics", 1.5),
        ("Twice as fast.", 2.0),
        ("five times faster", 5.0),
        ("1,000 times as fast", 1000.0),
    ],
)
def test_a_statement_is_recognised(text: str, number: float) -> None:
    assert [found for _, found in speeds(text)] == [number]


def test_no_number_no_statement() -> None:
    assert speeds("many times as fast, three times the memory, at four times 5") == []


def test_every_statement_on_speed_is_backed_by_a_measurement(texts: dict[str, str]) -> None:
    known = {name: [words for s in STATEMENTS if s.file == name for words, _ in speeds(s.words)] for name in texts}
    assert {name: [words for words, _ in speeds(text)] for name, text in texts.items()} == known


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: f"{s.file}: {s.words}")
def test_a_statement_is_in_its_text_and_promised(
    statement: Statement, texts: dict[str, str], report: dict[str, Any]
) -> None:
    assert statement.words in texts[statement.file]
    ((_, number),) = speeds(statement.words)
    (row,) = (
        row
        for row in report["measurements"]
        if row["group"] == statement.group
        and row["name"].startswith(statement.name)
        and row["peer_name"] == statement.peer
    )
    assert row["at_least"] is not None
    assert row["at_least"] >= number


def test_the_committed_measurements_have_every_group(report: dict[str, Any]) -> None:
    groups = [row["group"] for row in report["measurements"]]
    assert list(dict.fromkeys(groups)) == list(GROUPS), "lossbook bench --json notebooks/_static/bench.json"


def test_the_committed_measurements_keep_their_promises(report: dict[str, Any]) -> None:
    for row in report["measurements"]:
        assert len(row["samples"]) >= 3
        if row["at_least"] is not None:
            assert row["ratio"] >= row["at_least"], row["name"]
