"""Names in a file that mean something to a shell, a path, a page or a terminal stay names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossbook.book.cli import _main

NAMES = (
    "../../evil",
    "<script>alert(1)</script>",
    "\x1b[31mred",
    "x" * 3000,
    '"; rm -rf ~; "',
    "=1+1",
    "<img src=x onerror=alert(2)>",
)


@pytest.fixture
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a folder for temporary files, both of the test."""
    for name in ("cwd", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


def outside(folder: Path) -> set[Path]:
    """All that lies outside the output folder, besides the folder that torch makes for compiled code."""
    paths = (path for path in folder.rglob("*") if "out" not in path.relative_to(folder).parts)
    return {path for path in paths if not path.name.startswith("torchinductor_")}


def page_is_harmless(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for live in ("<script>alert(1)", "<img src=x"):
        assert live not in text


@pytest.mark.slow
def test_an_audit_of_calibration(surroundings: Path) -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(len(NAMES)), 300)
    frame = pd.DataFrame(probs, columns=list(NAMES))
    frame["label"] = [NAMES[k] for k in rng.integers(len(NAMES), size=300)]
    path = surroundings / "<b>mine<b>.parquet"
    frame.to_parquet(path)
    out = surroundings / "out"
    before = outside(surroundings)
    assert _main(["audit", "calibration", "--predictions", str(path), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "report.ipynb",
        "numbers.json",
        "classes.csv",
        "calibrator.json",
    }
    page_is_harmless(out / "report.html")
    done = out / "calibrated.csv"
    command = ["calibrate", "--calibrator", str(out / "calibrator.json"), "--predictions", str(path)]
    assert _main([*command, "--out", str(done)]) == 0
    assert tuple(pd.read_csv(done).columns) == NAMES
    assert outside(surroundings) == before


@pytest.mark.slow
def test_an_audit_of_collapse(surroundings: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(350, 4)), columns=[f"h{i}" for i in range(4)])
    frame["label"] = [NAMES[i % len(NAMES)] for i in range(350)]
    path = surroundings / "mine.parquet"
    frame.to_parquet(path)
    out = surroundings / "out"
    before = outside(surroundings)
    assert _main(["audit", "collapse", "--features", str(path), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"report.html", "report.ipynb", "numbers.json", "classes.csv"}
    page_is_harmless(out / "report.html")
    assert outside(surroundings) == before
