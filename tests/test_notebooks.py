"""The book as a regression test: every notebook runs, with another seed than the committed one, and its claims hold.

One execution serves every check. The runner executes all notebooks at once; the tests then read what came out: no
error or warning, the claims as the catalogue expects them, and, by nbval's own comparison, the committed output of each
cell that is tagged `nbval-check-output` because it depends on no seed and no machine.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbval.plugin import IPyNbFile

from lossbook.book.catalog import load_catalog
from lossbook.book.results import claims_of
from lossbook.book.runner import Result, run_notebooks

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
SEED = 10
LIMIT = 40.0  # seconds of the quick profile on two idle cores; a busy machine gets twice that before it fails

pytestmark = [pytest.mark.notebooks, pytest.mark.timeout(3600)]
every_notebook = pytest.mark.parametrize("path", PATHS, ids=[str(p.relative_to(NOTEBOOKS)) for p in PATHS])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Result]:
    out = tmp_path_factory.mktemp("executed")
    found = run_notebooks(None, root=NOTEBOOKS, out=out, parameters={"seed": SEED}, progress=False)
    return {result.notebook.resolve(): result for result in found}


@every_notebook
def test_it_runs_and_its_claims_hold(path: Path, results: dict[Path, Result]) -> None:
    result = results[path.resolve()]
    assert result.status == "ok", result.error
    executed = nbformat.read(result.executed, as_version=4)
    printed = [out for cell in executed.cells for out in cell.get("outputs", []) if out.output_type == "stream"]
    assert not [out.text for out in printed if out.name == "stderr"], "a reader would see these warnings"
    measured = {claim.key: claim for claim in claims_of(executed)}
    notebook = str(path.relative_to(NOTEBOOKS))
    expected = {key: claim.expected for key, claim in load_catalog().claims.items() if claim.notebook == notebook}
    assert {key: claim.status for key, claim in measured.items()} == expected, {
        key: dict(claim.measured) for key, claim in measured.items() if claim.status != expected.get(key)
    }


@every_notebook
def test_tagged_outputs_are_the_committed_ones(
    path: Path, results: dict[Path, Result], request: pytest.FixtureRequest
) -> None:
    result = results[path.resolve()]
    assert result.status == "ok", result.error
    executed = [cell for cell in nbformat.read(result.executed, as_version=4).cells if cell.cell_type == "code"]
    by_source = {cell.source: cell.outputs for cell in executed}
    committed = [
        cell
        for cell in IPyNbFile.from_parent(request.session, path=path).collect()
        if "nbval-check-output" in cell.cell.metadata.get("tags", [])
    ]
    assert committed, "tag a cell whose output depends on no seed with nbval-check-output"
    for cell in committed:
        same = cell.compare_outputs(by_source[cell.cell.source], cell.cell.outputs)
        assert same, f"cell {cell.cell_num}: " + "\n".join(cell.comparison_traceback)


@every_notebook
def test_it_is_quick(path: Path, results: dict[Path, Result]) -> None:
    assert results[path.resolve()].seconds < 2 * LIMIT
