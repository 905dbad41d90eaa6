"""Claims are read from the outputs of executed notebooks and held against the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest

from lossbook.book.catalog import Catalog, Claim, Entry
from lossbook.book.claims import MIME
from lossbook.book.results import ClaimResult, ResultsError, claims_of, claims_table


def payload(key: str, status: str = "reproduced") -> dict[str, Any]:
    return {"key": key, "status": status, "holds": [True] * 3, "seeds": 3, "measured": {"ece": 0.02}}


def executed(path: Path, *payloads: Any) -> Path:
    v4 = nbformat.v4
    outputs = [v4.new_output("display_data", {MIME: data, "text/plain": "a claim"}) for data in payloads]
    cells = [v4.new_markdown_cell("text"), v4.new_code_cell("claim(...)", outputs=outputs)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def catalog() -> Catalog:
    claims = (
        Claim("p/one", "one", "reproduced", "a.ipynb"),
        Claim("p/two", "two", "not reproduced", "a.ipynb", reason="small data"),
        Claim("p/three", "three", "reproduced", "b.ipynb"),
    )
    return Catalog({"p": Entry("p", "A paper", notebook="a.ipynb", claims=claims)}, {})


def test_claims_are_read_in_order_of_the_cells(tmp_path: Path) -> None:
    path = executed(tmp_path / "a.ipynb", payload("p/two", "not reproduced"), payload("p/one"))
    assert claims_of(nbformat.read(path, as_version=4)) == [
        ClaimResult("p/two", "not reproduced", 3, {"ece": 0.02}),
        ClaimResult("p/one", "reproduced", 3, {"ece": 0.02}),
    ]


def test_the_claim_function_and_the_reader_agree(monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> None:
    from lossbook.book import claims

    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("lossbook.book.catalog.load_catalog", lambda: catalog)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    claims.claim("p/one", [True, False, True], measured={"ece": 0.123})
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", shown[0])])
    assert claims_of(nbformat.v4.new_notebook(cells=[cell])) == [
        ClaimResult("p/one", "not reproduced", 3, {"ece": 0.123})
    ]


def test_each_claim_of_the_catalogue_has_a_row(tmp_path: Path, catalog: Catalog) -> None:
    executed(tmp_path / "01-part/a.ipynb", payload("p/one", "not reproduced"), payload("p/two", "not reproduced"))
    executed(tmp_path / "b.ipynb", payload("q/unknown"))
    executed(tmp_path / "b.failed.ipynb", payload("p/three"))
    table = claims_table(tmp_path, catalog)
    assert table.columns.tolist() == ["claim", "notebook", "expected", "measured", "seeds", "ok"]
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        ("p/one", "a.ipynb", "reproduced", "not reproduced", 3, False),
        ("p/two", "a.ipynb", "not reproduced", "not reproduced", 3, True),
        ("p/three", "b.ipynb", "reproduced", "not measured", 0, False),
        ("q/unknown", "", "not in the catalogue", "reproduced", 3, False),
    ]


def test_the_same_claim_twice_has_to_agree(tmp_path: Path, catalog: Catalog) -> None:
    executed(tmp_path / "a.ipynb", payload("p/one"), payload("p/one"))
    assert claims_table(tmp_path, catalog).ok.tolist() == [True, False, False]
    executed(tmp_path / "b.ipynb", payload("p/one", "not reproduced"))
    with pytest.raises(ResultsError, match=r"b.ipynb: claim 'p/one' is made twice, with different statuses$"):
        claims_table(tmp_path, catalog)


def test_bad_folders_and_files_are_one_sentence(tmp_path: Path, catalog: Catalog) -> None:
    with pytest.raises(ResultsError, match=r"^there are no executed notebooks in .*; `lossbook run` makes them$"):
        claims_table(tmp_path, catalog)
    path = executed(tmp_path / "a.ipynb", {"key": "p/one"})
    with pytest.raises(ResultsError, match=r"a.ipynb: the claim output {'key': 'p/one'} has no 'status'$"):
        claims_table(tmp_path, catalog)
    path.write_text("{")
    with pytest.raises(ResultsError, match=r"a.ipynb is damaged; `lossbook run` makes it again$"):
        claims_table(tmp_path, catalog)
