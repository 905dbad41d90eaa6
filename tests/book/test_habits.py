"""What pre-commit refuses, and that it passes on every committed file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lossbook.book import habits
from lossbook.book.scaffold.texts import UNWRITTEN


def test_every_committed_file_is_as_it_should_be(repository: Path) -> None:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [repository / name for name in done.stdout.split("\0") if name and (repository / name).is_file()]
    assert {str(path): found for path in files if (found := habits.problems(path))} == {}


@pytest.fixture
def notebook(repository: Path) -> dict:
    path = repository / "notebooks" / "01-surrogates" / "02-consistency-bounds.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))


def code(notebook: dict, number: int) -> dict:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][number]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda nb: code(nb, 2).update(execution_count=9), "not executed from top to bottom"),
        (lambda nb: code(nb, 3).update(execution_count=None, outputs=[]), "not executed from top to bottom"),
        (lambda nb: [cell.update(outputs=[]) for cell in nb["cells"] if "outputs" in cell], "its outputs are missing"),
        (lambda nb: nb["cells"].pop(0), "must be Markdown that begins with a title"),
        (lambda nb: code(nb, 1)["metadata"].clear(), "tagged `parameters`, but 0 are"),
        (lambda nb: nb["metadata"].update(papermill={"duration": 3.1}), "changes from run to run"),
        (lambda nb: code(nb, 2)["metadata"].update(execution={"iopub.status": "12:00"}), "changes from run to run"),
        (lambda nb: nb["metadata"]["language_info"].update(version="3.11.7"), "changes from run to run"),
        (
            lambda nb: code(nb, 2)["outputs"].append(
                {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
            ),
            "a cell ended with an error",
        ),
        (lambda nb: nb.pop("cells"), "it cannot be read: it has no 'cells'"),
    ],
)
def test_a_notebook_that_was_not_run_or_cleaned_is_refused(
    damage: Callable[[dict], object], sentence: str, notebook: dict, tmp_path: Path
) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert habits.problems(path) == []
    damage(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert sentence in " ".join(habits.problems(path))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.toml", b"a = [1", "it cannot be read"),
        ("x.yml", b"a: [1", "it cannot be read"),
        ("x.ipynb", b"{", "it cannot be read"),
        ("x.py", f'"""Title.\n\n{UNWRITTEN}: the formula."""\n'.encode(), "line 3 is still to be written"),
        ("x.csv", b"0" * 4_100_000, "it has 4.1 MB; at most 4 MB are committed"),
        ("model.pt", b"", "weights and pickles are not committed"),
        ("x.pkl", b"", "weights and pickles are not committed"),
    ],
)
def test_other_files(name: str, content: bytes, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert habits.main([str(path)]) == 1
    assert f"{path}: {sentence}" in capsys.readouterr().err


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").symlink_to("nowhere")
    assert "No such file" in " ".join(habits.problems(tmp_path / "x.csv"))


def test_good_files_are_passed_over_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, content in (("x.toml", "a = 1"), ("x.yaml", "a: 1"), ("x.py", "?")):
        (tmp_path / name).write_text(content)
        assert habits.main([str(tmp_path / name)]) == 0
    assert capsys.readouterr().err == ""


def test_the_hooks_are_the_parts_of_make_check(repository: Path) -> None:
    """Local, from the environment, so that nothing is downloaded; each command of the Makefile's `check` is one."""
    (repo,) = yaml.safe_load((repository / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local" and {hook["language"] for hook in repo["hooks"]} == {"system"}
    entries = " ".join(hook["entry"] for hook in repo["hooks"])
    makefile = (repository / "Makefile").read_text()
    for command in ("ruff check", "ruff format --check", "mypy lossbook"):
        assert f"-m {command}" in makefile and f"-m {command}" in entries
    assert '-m "not slow and not notebooks and not browser"' in entries


def test_pre_commit_takes_the_configuration(repository: Path) -> None:
    check = [sys.executable, "-m", "pre_commit", "validate-config", str(repository / ".pre-commit-config.yaml")]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
