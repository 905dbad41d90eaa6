"""`lossbook release`: what students get, on made-up notebooks and on the book."""

from __future__ import annotations

import ast
import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode, v4

from lossbook.book import cli
from lossbook.book._jobs import RunError
from lossbook.book.classroom.release import _exercises, read_book, release, student_version

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
BOOK = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)

ANSWER = """def double(x):
    \"\"\"Twice x.\"\"\"
    ### BEGIN SOLUTION
    return x + x  # nobody sees this
    ### END SOLUTION"""
TEST = """assert double(2) == 4, "twice two is four"
### BEGIN HIDDEN TESTS
assert double(-1) == -2, "a negative number too"
### END HIDDEN TESTS"""


def answer(source: str = ANSWER, name: str = "a-1", id: str = "", **changes: Any) -> NotebookNode:
    metadata = {"grade": False, "grade_id": name, "locked": False, "schema_version": 3, "solution": True, "task": False}
    return v4.new_code_cell(source, metadata={"nbgrader": {**metadata, **changes}}, id=id or f"answer-{name}")


def check(source: str = TEST, name: str = "a-1-test", id: str = "", **changes: Any) -> NotebookNode:
    metadata = {"grade": True, "grade_id": name, "locked": True, "points": 1, "schema_version": 3}
    metadata |= {"solution": False, "task": False}
    return v4.new_code_cell(source, metadata={"nbgrader": {**metadata, **changes}}, id=id or f"check-{name}")


def task(text: str = "**1. Twice.** Return twice `x`.") -> NotebookNode:
    return v4.new_markdown_cell(text, id=f"task-{len(text)}")


def lesson(*cells: NotebookNode) -> NotebookNode:
    shown = v4.new_code_cell("print('seen')", outputs=[v4.new_output("stream", text="seen\n")], execution_count=3)
    return v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), shown, *(cells or (task(), answer(), check()))])


@pytest.fixture
def teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a notebook of a book in the working folder."""
    monkeypatch.chdir(tmp_path)

    def write(nb: NotebookNode, name: str = "01-part/01-topic.ipynb") -> Path:
        path = tmp_path / "notebooks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, path)
        return path

    return write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_students_get_the_task_and_nothing_that_solves_it(teach: Callable[..., Path]) -> None:
    teach(lesson())
    made = release(out="out")
    assert (made.notebooks, made.exercises, made.kept) == (1, 1, [])
    nb = nbformat.read("out/01-part/01-topic.ipynb", as_version=4)
    nbformat.validate(nb)
    _, shown, _, stub, test = nb.cells
    assert shown.outputs == [] and shown.execution_count is None and shown.source == "print('seen')"
    assert stub.source == ('def double(x):\n    """Twice x."""\n    raise NotImplementedError("Exercise 1: Twice")')
    assert test.source == 'assert double(2) == 4, "twice two is four"'
    # As nbgrader locks them: an answer can be edited but not deleted, a test neither.
    assert stub.metadata.deletable is False and "editable" not in stub.metadata
    assert test.metadata.deletable is False and test.metadata.editable is False
    assert "01-part/01-topic.ipynb" in Path("out/README.md").read_text()


def test_the_book_itself_is_left_alone(teach: Callable[..., Path], tmp_path: Path) -> None:
    teach(lesson())
    before = files(tmp_path / "notebooks")
    release(out="out")
    assert files(tmp_path / "notebooks") == before
    for inside in ("notebooks", "notebooks/release"):
        with pytest.raises(RunError, match="is in the book itself"):
            release(out=inside, force=True)
    assert files(tmp_path / "notebooks") == before


def test_a_title_may_hold_formulas_and_quotes() -> None:
    title = r"""**3. The "slope" at $\tau = 0$.** And **bold** words in the text."""
    stub = student_version(lesson(task(title), answer(), check())).cells[3].source
    names: dict[str, Any] = {}
    exec(stub, names)
    with pytest.raises(NotImplementedError, match=re.escape(r'Exercise 3: The "slope" at $\tau = 0$')):
        names["double"](1)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([task(), answer(ANSWER.replace("    ### END SOLUTION", "")), check()], "SOLUTION do not alternate"),
        ([task(), answer(ANSWER.replace("    ### BEGIN SOLUTION\n", "")), check()], "SOLUTION do not alternate"),
        ([task(), answer("def double(x):\n    return 2 * x"), check()], "no part ### BEGIN SOLUTION"),
        ([task(), answer(), check(TEST.replace("### END HIDDEN TESTS", ""))], "HIDDEN TESTS do not alternate"),
        ([task(), answer(), check("assert double(2) == 4")], "no hidden part"),
        (
            [task(), answer(), check(), task("**2. Again.**"), answer(id="other"), check(name="b")],
            "grade_id is used twice",
        ),
        ([task(), answer(), check(), check(id="other")], "grade_id is used twice"),
        ([task(), answer(), check(points="one")], "gives no points"),
        ([task(), answer()], "has no test"),
        ([task(), check()], "tests no answer"),
        ([task("Return twice `x`."), answer(), check()], "no title stands before it"),
        ([task(), answer(), check(), answer(name="b"), check(name="b-test")], "no title stands before it"),
        ([task(), answer(grade=True, points=1)], "graded by hand"),
        ([task(), v4.new_code_cell(ANSWER), answer(), check()], "no nbgrader metadata"),
        ([task(), answer(ANSWER + "\n)"), check()], "is not Python"),
        (
            [
                task(),
                answer(
                    ANSWER.replace("    ### END", "### END")
                    .replace("def", "### BEGIN SOLUTION\ndef", 1)
                    .replace("    ### BEGIN SOLUTION\n", "")
                    + "\n    + 1"
                ),
                check(),
            ],
            "gets is not Python",
        ),
    ],
)
def test_an_error_names_notebook_and_exercise(
    teach: Callable[..., Path], tmp_path: Path, cells: list[NotebookNode], sentence: str
) -> None:
    teach(lesson(), "00-good.ipynb")
    teach(lesson(*cells))
    with pytest.raises(RunError) as error:
        release(out="out")
    message = str(error.value)
    assert "01-part/01-topic.ipynb: exercise " in message and sentence in message
    assert "00-good" not in message
    assert not (tmp_path / "out").exists(), "nothing is released unless all can be"


def test_all_that_is_wrong_is_said_at_once(teach: Callable[..., Path]) -> None:
    teach(lesson(task(), answer(), check("assert True")), "a.ipynb")
    teach(lesson(task(), answer()), "b.ipynb")
    with pytest.raises(RunError, match=r"a\.ipynb: .*\n.*b\.ipynb: "):
        release(out="out")


def test_a_corrected_notebook_is_released_again(teach: Callable[..., Path]) -> None:
    teach(lesson(), "a.ipynb")
    teach(lesson(), "b.ipynb")
    release(out="out")
    other = Path("out/b.ipynb").stat().st_mtime_ns
    teach(lesson(task("**1. Two times.** Corrected."), answer(), check()), "a.ipynb")
    made = release(["a.ipynb"], out="out")
    assert (made.notebooks, made.kept) == (1, [])
    assert "Two times" in Path("out/a.ipynb").read_text()
    assert Path("out/b.ipynb").stat().st_mtime_ns == other
    assert all(name in Path("out/README.md").read_text() for name in ("a.ipynb", "b.ipynb"))


def test_work_in_a_released_notebook_is_never_lost(teach: Callable[..., Path]) -> None:
    teach(lesson(), "a.ipynb")
    teach(lesson(), "b.ipynb")
    release(out="out")
    Path("out/a.ipynb").write_text("hours of work")
    before = files(Path("out"))
    teach(lesson(task("**1. Two times.**"), answer(), check()), "a.ipynb")
    teach(lesson(task("**1. Two times.**"), answer(), check()), "b.ipynb")
    with pytest.raises(RunError, match=r"a\.ipynb in .* changed since the release"):
        release(out="out")
    assert files(Path("out")) == before
    for number in (1, 2):
        made = release(out="out", force=True)
        assert [path.name for path in made.kept] == [f"a.kept-{number}.ipynb"]
        assert made.kept[0].read_text() == "hours of work"
        Path("out/a.ipynb").write_text("hours of work")
    assert "Two times" in Path("out/b.ipynb").read_text()


def test_a_folder_with_other_files_is_refused(teach: Callable[..., Path]) -> None:
    teach(lesson())
    Path("mine").mkdir()
    Path("mine/README.md").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        release(out="mine")
    assert files(Path("mine")) == {"README.md": b"mine"}
    made = release(out="mine", force=True)
    assert [path.name for path in made.kept] == ["README.kept-1.md"]
    assert made.kept[0].read_text() == "mine"


def test_a_link_is_not_written_through(teach: Callable[..., Path], tmp_path: Path) -> None:
    teach(lesson(), "a.ipynb")
    (tmp_path / "elsewhere").write_text("mine")
    Path("out").mkdir()
    Path("out/a.ipynb").symlink_to(tmp_path / "elsewhere")
    release(out="out", force=True)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not Path("out/a.ipynb").is_symlink()


def test_a_damaged_record_is_no_licence_to_write(teach: Callable[..., Path]) -> None:
    teach(lesson(), "a.ipynb")
    release(out="out")
    Path("out/a.ipynb").write_text("work")
    Path("out/.lossbook-release.json").write_text("[]")
    with pytest.raises(RunError, match="holds other files"):
        release(out="out")


def test_the_command(teach: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    teach(lesson())
    assert cli._main(["release", "--out", "out"]) == 0
    assert "1 notebooks with 1 exercises in out" in capsys.readouterr().out
    Path("out/01-part/01-topic.ipynb").write_text("work")
    assert cli._main(["release", "--out", "out"]) == 1
    assert "--force" in capsys.readouterr().err
    assert cli._main(["release", "--out", "out", "--force"]) == 0
    assert "is kept as" in capsys.readouterr().err


def test_nothing_is_read_from_nbgraders_configuration(
    teach: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teach(lesson())
    config = tmp_path / "config"
    config.mkdir()
    for place in (config, tmp_path):
        (place / "nbgrader_config.py").write_text("raise SystemExit('read')\nc.ClearOutput.enabled = False")
        (place / "nbgrader_config.json").write_text(json.dumps({"ClearSolutions": {"begin_solution_delimeter": "X"}}))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    release(out="out")
    assert "nobody sees this" not in Path("out/01-part/01-topic.ipynb").read_text()
    assert capfd.readouterr() == ("", "")


# The book


@pytest.mark.slow
def test_every_exercise_of_the_book_can_be_released() -> None:
    found = [exercise for _, exercises in read_book(None, NOTEBOOKS).values() for exercise in exercises]
    assert len(found) > 200
    assert len({exercise.answer for exercise in found}) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOK, ids=[str(path.relative_to(NOTEBOOKS)) for path in BOOK])
def test_a_released_notebook_holds_no_solution(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    released = student_version(nb)
    nbformat.validate(released)
    text = nbformat.writes(released)
    assert not any(marker in text for marker in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS"))
    pairs = zip(nb.cells, released.cells, strict=True)
    exercises = {exercise.answer: exercise for exercise in _exercises(nb)[0]}
    for before, after in pairs:
        assert after.get("outputs", []) == []
        if after.cell_type == "code":
            ast.parse(after.source)
        metadata = before.metadata.get("nbgrader", {})
        if not metadata:
            assert after.source == before.source
            continue
        # Line by line, and by a search of our own: what stands between the markers is nowhere in the cell.
        kept = after.source.split("\n")
        for line in hidden_lines(before.source):
            public = before.source.split("\n").count(line) - hidden_lines(before.source).count(line)
            assert kept.count(line) <= public, f"{line!r} is still there"
        if metadata.get("solution"):
            assert f"NotImplementedError({json.dumps(exercises[metadata.grade_id].task, ensure_ascii=False)})" in (
                after.source
            )
            assert raises_the_task(after.source) == exercises[metadata.grade_id].task


def hidden_lines(source: str) -> list[str]:
    lines, inside = [], False
    for line in source.split("\n"):
        inside = inside and "### END" not in line
        if inside and line.strip():
            lines.append(line)
        inside = inside or "### BEGIN" in line
    return lines


def raises_the_task(source: str) -> str:
    """What the stub says: the first function that is no more than a docstring and a raise, called as Python would."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            assert isinstance(node.exc.func, ast.Name)
            error = getattr(builtins, node.exc.func.id)(*[ast.literal_eval(a) for a in node.exc.args])
            assert isinstance(error, NotImplementedError)
            return str(error)
    raise AssertionError("no stub")
