"""The command line: what it shows, the status it ends with, and one sentence for each error."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from lossbook.book import cli
from lossbook.book.catalog import load_catalog
from lossbook.book.cli import _join_pairs, _main, _parameters
from lossbook.book.runner import Result


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[pd.DataFrame]:
    """The claims table that the next command is given; empty it for none."""
    rows = [("p/one", "a.ipynb", "reproduced", "reproduced", 3, True)]
    columns = ["claim", "notebook", "expected", "measured", "seeds", "ok"]
    tables = [pd.DataFrame(rows, columns=columns)]
    monkeypatch.setattr("lossbook.book.results.claims_table", lambda executed: tables[0])
    return tables


def test_help_is_fast_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lossbook.book import cli; cli._main(['--help']); cli._main(['run', '--help'])\n"
        "print({'torch', 'numpy', 'pandas', 'papermill', 'jupyter_client'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
    for command in ("run", "claims", "papers", "data", "bench", "site", "book"):
        assert f" {command} " in shown


def test_parameters_are_literals_or_strings() -> None:
    assert _parameters(["seed=3", "lr=1e-3", "dataset=mnist", "sizes=(1, 2)", "flag=True", "text=a=b", "none="]) == {
        "seed": 3,
        "lr": 1e-3,
        "dataset": "mnist",
        "sizes": (1, 2),
        "flag": True,
        "text": "a=b",
        "none": "",
    }


def test_a_parameter_is_given_as_name_and_value_or_with_an_equals_sign() -> None:
    assert _join_pairs(["run", "-p", "seed", "3", "-p", "lr=2", "a.ipynb"]) == [
        "run",
        "-p",
        "seed=3",
        "-p",
        "lr=2",
        "a.ipynb",
    ]
    assert _join_pairs(["run", "-p"]) == ["run", "-p"]


def test_run_hands_its_options_over_and_shows_the_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}
    good = Result(Path("a.ipynb"), "ok", Path("x"), 12.34, 0.56)
    results = [good, Result(Path("b.ipynb"), "failed", None, 1, 1, "cell 3")]

    def run_notebooks(**arguments: Any) -> list[Result]:
        given.update(arguments)
        return results

    monkeypatch.setattr("lossbook.book.runner.run_notebooks", run_notebooks)
    options = (
        "--profile full -p seed 3 --device cpu --workers 2 --timeout 9 --out there --force --cluster tcp://there:8786"
    )
    assert _main(["run", "a.ipynb", *options.split()]) == 1
    assert given == {
        "paths": [Path("a.ipynb")],
        "profile": "full",
        "parameters": {"seed": 3},
        "device": "cpu",
        "workers": 2,
        "timeout": 9.0,
        "out": Path("there"),
        "in_place": False,
        "force": True,
        "cluster": "tcp://there:8786",
    }
    shown = capsys.readouterr().out
    for word in ("a.ipynb", "12.3 s", "0.6 s", "failed", "cell 3"):
        assert word in shown
    results.pop()
    assert _main(["run", "--in-place"]) == 0
    assert given["paths"] is None
    assert given["in_place"]


@pytest.mark.slow
def test_run_runs(book: Path, tools: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    tools.write(book / "notebooks/a.ipynb", "print(seed)")
    assert _main(["run", "-p", "seed", "3"]) == 0
    assert '"3\\n"' in (book / "build/notebooks/a.ipynb").read_text()
    assert "notebooks/a.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("run nowhere.ipynb", 1, "lossbook: there is no notebook nowhere.ipynb"),
        ("run", 1, "lossbook: there is no folder notebooks here: change to the book's folder, or name the notebooks"),
        ("run --profile fast", 2, "lossbook: Invalid value for '--profile'"),
        ("run --workers 0", 2, "lossbook: Invalid value for '--workers'"),
        ("run -p seed", 2, "lossbook: Invalid value: -p takes a name and a value, not 'seed'"),
        ("run --in-place --profile full", 1, "lossbook: in_place writes the committed form"),
        ("claims", 1, "lossbook: there are no executed notebooks in build/notebooks; `lossbook run` makes them"),
        ("site", 1, "lossbook: there are no executed notebooks in build/notebooks; `lossbook run` makes them"),
        ("bench nothing", 1, "lossbook: no benchmark is called 'nothing'"),
        ("nonsense", 2, "lossbook: No such command 'nonsense'."),
    ],
)
def test_an_error_is_one_sentence_and_a_status(
    command: str,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _main(command.split()) == status
    shown = capsys.readouterr()
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(("file", "said"), [("b.json", "b.json"), (None, "the output")])
def test_a_full_disk_is_a_sentence(
    file: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    monkeypatch.setattr(cli, "_show_claims", full)
    assert _main(["claims"]) == 1
    assert capsys.readouterr().err == f"lossbook: {said}: No space left on device\n"


def test_a_mistake_of_the_package_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise TypeError("a mistake")

    monkeypatch.setattr("lossbook.book.runner.run_notebooks", broken)
    with pytest.raises(TypeError, match="a mistake"):
        _main(["run"])


def test_claims_end_with_one_if_a_status_is_unexpected(
    table: list[pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(["claims"]) == 0
    shown = capsys.readouterr().out
    assert "p/one" in shown
    assert "1 of 1 claims are as the catalogue expects" in shown
    table[0].loc[0, ["measured", "ok"]] = ["not reproduced", False]
    assert _main(["claims"]) == 1
    assert "0 of 1 claims are as the catalogue expects" in capsys.readouterr().out


def test_papers_are_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    papers = load_catalog().papers.values()
    assert _main(["papers"]) == 0
    assert f"\n{len(papers)} papers, {sum(p.built for p in papers)} with a notebook" in capsys.readouterr().out
    part = max(papers, key=lambda paper: not paper.built).part[:6]  # one with planned papers, as long as there are any
    assert _main(["papers", "--planned", "--part", part]) == 0
    chosen = [paper for paper in papers if part in paper.part and not paper.built]
    shown = capsys.readouterr().out
    assert f"{len(chosen)} papers, 0 with a notebook" in shown
    assert all(paper.key in shown for paper in chosen)
    assert _main(["papers", "--built"]) == 0
    assert f"{sum(p.built for p in papers)} papers, {sum(p.built for p in papers)} with" in capsys.readouterr().out


def test_data_says_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path))
    assert _main(["data"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "bundled" in rows["digits"]
    assert "generated" in rows["two_moons"]
    assert "download" in rows["cifar10"]


def test_book_runs_builds_and_shows_the_page_even_if_something_failed(
    table: list[pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = Result(Path("a.ipynb"), "ok", Path("x"), 1.0, 0.5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lossbook.book.runner.run_notebooks", lambda **_: [result])
    monkeypatch.setattr("lossbook.book.site.build_site", lambda executed, out: out / "index.html")
    assert _main(["book"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Open {tmp_path / 'build/site/index.html'}"
    table[0]["ok"] = False
    assert _main(["book"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"Open {tmp_path / 'build/site/index.html'}"


def test_main_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lossbook", "nonsense"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
