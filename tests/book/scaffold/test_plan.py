"""`lossbook new-paper`: what it writes for every planned paper is well formed, says what is missing, and fails."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lossbook.book.catalog import load_catalog
from lossbook.book.cli import _main
from lossbook.book.scaffold import plan as scaffold
from lossbook.book.scaffold import source
from lossbook.book.scaffold.plan import ScaffoldError, new_paper

PLANNED = [entry.key for entry in load_catalog().entries.values() if not entry.built]
KEY = "plackett-luce-distillation"
PLD = Path("lossbook/losses/distillation.py")
NOTEBOOK = Path("notebooks/06-distillation/01-plackett-luce-distillation.ipynb")

pytestmark = pytest.mark.skipif(
    KEY not in PLANNED, reason=f"{KEY} is built: name another planned paper here and in CONTRIBUTING.md"
)


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """The parts of the repository that are added to: the package's sources, the contract table, golden numbers."""
    for path in [
        *(repository / "lossbook").rglob("*.py"),
        repository / scaffold.CATALOG,
        repository / "pyproject.toml",
    ]:
        copy(path, repository, tmp_path)
    for path in [repository / scaffold.CONTRACT, *(repository / "tests" / "golden").glob("*.json")]:
        copy(path, repository, tmp_path)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def copy(path: Path, repository: Path, root: Path) -> None:
    target = root / path.relative_to(repository)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_everything_is_written_and_nothing_else_changes(checkout: Path) -> None:
    before = contents(checkout)
    plan = new_paper(KEY, root=checkout)
    after = contents(checkout)
    changed = {path.relative_to(checkout) for path in after if after[path] != before.get(path)}
    assert changed == set(plan.files) and before.keys() <= after.keys()
    assert plan.new == {NOTEBOOK, Path("tests/losses/test_plackett_luce_distillation.py")}
    row = tomllib.loads((checkout / scaffold.CATALOG).read_text())["papers"][KEY]
    assert row["notebook"] == NOTEBOOK.relative_to("notebooks").as_posix()
    assert [claim["id"] for claim in row["claims"]] == ["to-be-written"]
    assert '"pld_loss": (losses.pld_loss, None, None, None),' in (checkout / scaffold.CONTRACT).read_text()
    exports = source.exports((checkout / "lossbook/losses/__init__.py").read_text())
    assert "pld_loss" in exports["distillation"] and "list_mle" in exports["retrieval"]
    assert exports["distillation"] == sorted(exports["distillation"])
    # What stood in a file before stands there still.
    for path in plan.files.keys() - plan.new:
        lines = iter(after[checkout / path].decode().splitlines())
        assert all(line in lines for line in before[checkout / path].decode().splitlines()), path


def test_the_signature_is_that_of_the_golden_numbers(checkout: Path) -> None:
    tree = ast.parse(new_paper(KEY, root=checkout, dry_run=True).files[PLD])
    (stub,) = (node for node in tree.body if getattr(node, "name", "") == "pld_loss")
    assert [a.arg for a in stub.args.args] == ["student_logits", "teacher_logits", "target"]
    assert [a.arg for a in stub.args.kwonlyargs] == ["teacher_temperature", "weight", "ignore_index", "reduction"]


def test_a_dry_run_writes_nothing(checkout: Path) -> None:
    before = contents(checkout)
    assert NOTEBOOK in new_paper(KEY, root=checkout, dry_run=True).files
    assert contents(checkout) == before


@pytest.mark.slow
def test_until_it_is_written_its_tests_fail_and_its_notebook_stops(checkout: Path) -> None:
    plan = new_paper(KEY, root=checkout)
    (test,) = (path for path in plan.new if path.suffix == ".py")
    code = f"""
import runpy, torch
from lossbook import losses
logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
for call in (lambda: losses.pld_loss(logits, logits, target, teacher_temperature=1.0), losses.list_mle):
    try:
        call()
    except NotImplementedError as error:
        print(error)
for name, function in runpy.run_path({str(test)!r}).items():
    if name.startswith("test_"):
        try:
            function()
        except BaseException as error:
            print(type(error).__name__, name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"{KEY}: pld_loss is not written yet",
        f"{KEY}: list_mle is not written yet",
        "Failed test_pld_loss_has_its_closed_form",
        "Failed test_list_mle_has_its_closed_form",
    ], done.stderr
    cells = json.loads((checkout / NOTEBOOK).read_text())["cells"]
    headings = [
        line for cell in cells for line in cell["source"] if line.startswith("#") and cell["cell_type"] != "code"
    ]
    assert [h.strip() for h in headings] == [
        "# PLD", "## The idea", "## What it does to a network", "## Play", "## Claims", "## Exercises",
        "## Where it breaks down", "## Further reading",
    ]  # fmt: skip
    tags = [tag for cell in cells for tag in cell["metadata"].get("tags", [])]
    assert tags == ["parameters", "nbval-check-output"]
    graded = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell["metadata"]]
    assert graded == [f"06-01-{number}{test}" for number in (1, 2, 3) for test in ("", "-test")]
    assert sum("NotImplementedError" in "".join(cell["source"]) for cell in cells) == 10


@pytest.mark.parametrize("key", [KEY, "transicd", "rsq", "crossmax", "fast-certified"])
def test_what_is_generated_passes_ruff(key: str, checkout: Path) -> None:
    """A loss of a family, a new package, a function named like its module, one named like the paper."""
    files = [str(path) for path in new_paper(key, root=checkout).files if path.suffix in (".py", ".ipynb")]
    for command in (["check", "--quiet"], ["format", "--check", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, *files]
        done = subprocess.run(ruff, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("key", [KEY, "rsq"])
def test_what_is_generated_passes_mypy(key: str, checkout: Path) -> None:
    plan = new_paper(key, root=checkout)
    files = [str(path) for path in plan.files if path.suffix == ".py" and path.parts[0] == "lossbook"]
    mypy = [sys.executable, "-m", "mypy", "--follow-imports=skip", *files]
    done = subprocess.run(mypy, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_every_planned_paper_can_be_scaffolded(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    monkeypatch.setattr(scaffold, "load_catalog", lambda path: catalog)
    # The two slow steps, which are tested on some papers above.
    monkeypatch.setattr(scaffold, "_formatted", lambda text, path, root: text)
    monkeypatch.setattr(source, "with_row", lambda text, **row: text)
    for key in PLANNED:
        plan = scaffold._plan(key, None, None, scaffold.ROOT)
        sources = [text for path, text in plan.files.items() if path.suffix == ".py"]
        stubs = {name for text in sources for name in source.defined(text)}
        functions = [name for name in catalog.entries[key].functions if name not in plan.present]
        assert {name.rpartition(".")[2] for name in functions} <= stubs, key


@pytest.mark.parametrize("taken", [NOTEBOOK, Path("tests/losses/test_plackett_luce_distillation.py")])
def test_nothing_is_written_where_a_target_exists(taken: Path, checkout: Path) -> None:
    (checkout / taken).parent.mkdir(parents=True, exist_ok=True)
    (checkout / taken).write_text("mine")
    before = contents(checkout)
    with pytest.raises(ScaffoldError, match=f"{taken} exists already, and nothing is overwritten: no file was written"):
        new_paper(KEY, root=checkout, notebook=NOTEBOOK)
    assert contents(checkout) == before


def test_a_write_that_fails_takes_back_the_others(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = contents(checkout), scaffold.write_atomically

    def full(path: Path, content: str | bytes) -> None:
        if path.suffix == ".toml":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(scaffold, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        new_paper(KEY, root=checkout)
    assert contents(checkout) == before


def test_the_next_number_of_the_part_is_taken(checkout: Path) -> None:
    folder = checkout / "notebooks" / "06-distillation"
    folder.mkdir()
    (folder / "07-something.ipynb").write_text("{}")
    assert new_paper(KEY, root=checkout, dry_run=True).notebook.name == "08-plackett-luce-distillation.ipynb"
    elsewhere = new_paper(KEY, root=checkout, notebook="06-distillation/02-lists.ipynb", dry_run=True)
    assert elsewhere.notebook == Path("notebooks/06-distillation/02-lists.ipynb")


@pytest.mark.slow
def test_a_paper_without_functions_is_given_one(checkout: Path) -> None:
    catalog = checkout / scaffold.CATALOG
    catalog.write_text(f'{catalog.read_text()}\n[papers.a-new-one]\ntitle = "A new one"\npart = "05-labels"\n')
    with pytest.raises(ScaffoldError, match="names no function of a-new-one: name one, --loss losses.family.name"):
        new_paper("a-new-one", root=checkout)
    for bad in ("new_one", "losses.new_one", "theory.labels.x"):
        with pytest.raises(ScaffoldError, match="--loss takes losses.family.name"):
            new_paper("a-new-one", root=checkout, loss=bad)
    plan = new_paper("a-new-one", root=checkout, loss="losses.surrogate.new_one")
    assert Path("lossbook/losses/surrogate/a_new_one.py") in plan.new
    row = tomllib.loads(catalog.read_text())["papers"]["a-new-one"]
    assert row["functions"] == ["losses.surrogate.new_one"] and row["notebook"] == "05-labels/01-a-new-one.ipynb"
    assert '"new_one": (losses.new_one, None, None, None),' in (checkout / scaffold.CONTRACT).read_text()
    code = "from lossbook import losses; print(losses.new_one is losses.surrogate.a_new_one.new_one)"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plackett-luce"], "the catalogue has no paper 'plackett-luce'; near it are plackett-luce-distillation"),
        (["PLD"], "the catalogue has no paper 'PLD'; near it are plackett-luce-distillation"),
        (["Plackett-Luce"], "the catalogue has no paper 'Plackett-Luce'; near it are plackett-luce-distillation"),
        ([""], "the catalogue has no paper ''; `lossbook papers --planned` lists the planned ones"),
        (["qqqqqq"], "the catalogue has no paper 'qqqqqq'; `lossbook papers --planned` lists the planned ones"),
        (["comp-sum"], "comp-sum is built already, in notebooks/01-surrogates/01-cross-entropy-family.ipynb"),
        ([KEY, "--notebook", "../x.ipynb"], "--notebook takes a path below notebooks/ that ends in .ipynb"),
        ([KEY, "--notebook", "06-distillation/x.py"], "--notebook takes a path below notebooks/ that ends in .ipynb"),
        ([KEY, "--loss", "losses.distillation.x"], f"the catalogue names the functions of {KEY}"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(["new-paper", *arguments, "--dry-run"]) == 1
    assert capsys.readouterr().err.startswith(f"lossbook: {sentence}")


@pytest.mark.parametrize(
    ("key", "functions", "sentence"),
    [
        ("x", ["losses.surrogate.class"], "'losses.surrogate.class' cannot be a function of lossbook"),
        ("x", ["losses.retrieval.print"], "'losses.retrieval.print' cannot be a function of lossbook"),
        ("x", ["losses.retrieval._x"], "'losses.retrieval._x' cannot be a function of lossbook"),
        ("x", ["losses.retrieval.a b"], "'losses.retrieval.a b' cannot be a function of lossbook"),
        ("x", ["alone"], "'alone' cannot be a function of lossbook: it takes package.name"),
        ("x", ["losses.retrieval.y", "losses.retrieval.y"], "the catalogue names losses.retrieval.y twice"),
        ("x", ["losses.retrieval.Tensor"], "lossbook/losses/retrieval.py has a Tensor already: no file was written"),
        ("x", ["losses.retrieval.focal"], "lossbook/losses/__init__.py exports a focal already, from calibration"),
        ("x", ["losses.retrieval.noise"], "lossbook/losses/__init__.py has a module noise, which would hide"),
        ("x", ["losses.a.b.c"], "lossbook/losses/__init__.py assigns nothing to _SUBPACKAGES"),
        ("comp-sum-2", ["losses.surrogate.comp_sum_2"], None),
        ("X", ["losses.retrieval.y"], "the key X is not lower-case words joined by hyphens"),
        ("class", ["losses.surrogate.y"], "the key class is not lower-case words"),
    ],
)
def test_a_row_with_a_name_that_is_taken_is_refused(
    key: str, functions: list[str], sentence: str | None, checkout: Path
) -> None:
    with (checkout / scaffold.CATALOG).open("a") as catalog:
        catalog.write(f'\n[foundations.{key}]\ntitle = "A \\"\\"\\"new\\\\ one"\nfunctions = {json.dumps(functions)}\n')
    before = contents(checkout)
    if sentence is None:
        assert new_paper(key, root=checkout, dry_run=True).new
        return
    with pytest.raises(ScaffoldError, match=re.escape(sentence)):
        new_paper(key, root=checkout)
    assert contents(checkout) == before


def test_a_file_that_does_not_parse_is_named(checkout: Path) -> None:
    with (checkout / PLD).open("a") as module:
        module.write("def (\n")
    with pytest.raises(ScaffoldError, match=rf"{PLD} is not Python: invalid syntax, line \d+"):
        new_paper(KEY, root=checkout)


def test_the_command_lists_files_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["new-paper", KEY, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{NOTEBOOK} would be written" in lines and f"{PLD} would be added to" in lines
    assert f"1. write losses.distillation.pld_loss in {PLD}" in lines


def test_outside_a_checkout_nothing_is_done(tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match="a paper is added to a checkout of the book"):
        new_paper(KEY, root=tmp_path)
