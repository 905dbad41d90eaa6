"""The command `lossbook compare`: its report, what it refuses, and one that is interrupted."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossbook.book import compare as comparing
from lossbook.book.cli import _main


def test_bad_commands_say_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,label\n1,2\n")
    for arguments, sentence in [
        (
            ["--data", str(tmp_path / "no.csv"), "--losses", "mae"],
            "no.csv does not exist, and is no dataset of the book",
        ),
        (["--data", str(table), "--losses", "maee"], "there is no loss 'maee'; did you mean mae"),
        (["--data", str(table), "--losses", ""], "losses is empty"),
        (["--data", str(table), "--losses", "mae", "--lr", "-1"], "lr must lie in"),
        (["--data", str(tmp_path), "--losses", "mae", "--out", str(tmp_path / "o")], "lies in the folder of the data"),
        (["--data", str(table), "--losses", "mae", "--device", "abacus"], "device must be 'auto' or"),
    ]:
        assert _main(["compare", "--out", str(tmp_path / "report"), *arguments]) == 1
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_interrupted_it_says_where_the_networks_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossbook.book.audit import command
    from lossbook.book.runner import Interrupted

    def run_notebooks(*args: object, parameters: dict, **how: object) -> None:
        Path(parameters["networks"]).mkdir()
        raise Interrupted(signal.SIGINT, [])

    monkeypatch.setattr(command, "run_notebooks", run_notebooks)
    arguments = ["compare", "--data", "digits", "--losses", "mae", "--out", str(tmp_path / "out")]
    assert _main(arguments) == 130
    said = capsys.readouterr().err
    assert (
        f"what was trained is kept in {tmp_path / 'out' / 'networks'}, and the same command goes on from there" in said
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["networks"]


def inside(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_report_on_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.datasets import load_wine

    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    load_wine(as_frame=True).frame.to_csv(tmp_path / "<b>wine.csv", index=False)
    out = tmp_path / "report"
    out.mkdir()
    (out / "notes.txt").write_text("keep me")
    arguments = [
        "--data",
        str(tmp_path / "<b>wine.csv"),
        "--losses",
        "cross_entropy, focal(gamma=[1, 2])",
        "--seeds",
        "3",
    ]
    assert _main(["compare", *arguments, "--epochs", "5", "--lr", "0.01", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "<b>wine.csv, 178 rows:" in said
    assert "cross_entropy" in said.splitlines()[1]
    files = {"report.html", "report.ipynb", "results.json", "results.csv", "classes.csv", "notes.txt", "networks"}
    assert {path.name for path in out.iterdir()} == files
    assert inside(tmp_path) - {f"report/{name}" for name in inside(out)} == {"work", "report", "<b>wine.csv"}
    # The page shows the means of results.csv.
    page = (out / "report.html").read_text(encoding="utf-8")
    results = pd.read_csv(out / "results.csv")
    means = results.groupby("loss")[list(comparing.MEASURES)].mean()
    for loss, row in means.iterrows():
        shown = re.search(rf"<th>{re.escape(str(loss))}</th>(.*?)</tr>", page, re.DOTALL)
        assert shown, loss
        numbers = (f"{100 * row.accuracy:.1f}", f"{100 * row.macro_accuracy:.1f}", f"{row.log_loss:.3f}")
        assert all(f"<td>{number}" in shown[1] for number in (*numbers, f"{row.ece_debiased:.3f}")), shown[1]
    found = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert math.isclose(found["losses"]["cross_entropy"]["accuracy"], means.accuracy["cross_entropy"])
    assert 'src="http' not in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_report_on_images_and_one_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in np.flatnonzero(digits.target < 3)[:90]:
        place = tmp_path / "pictures" / f"digit {digits.target[i]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((15 * digits.images[i]).astype(np.uint8)).save(place / f"{i}.png")
    command = ["compare", "--data", str(tmp_path / "pictures"), "--losses", "cross_entropy, mae", "--seeds", "3"]
    command += ["--epochs", "4", "--lr", "0.01", "--out", str(tmp_path / "out")]
    assert _main(command) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert found["settings"]["model"] == "cnn"
    assert list(found["classes"]) == ["digit 0", "digit 1", "digit 2"]
    capsys.readouterr()
    (tmp_path / "pictures" / "digit 0" / "bad.png").write_text("no image")
    assert _main([*command[:-1], str(tmp_path / "out2")]) == 1
    assert "'digit 0/bad.png', which cannot be decoded as an image" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "out2").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_report_on_one_loss_that_diverges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.standard_normal((60, 2)), columns=["a", "b"]).assign(label=np.arange(60) % 2)
    table.to_csv(tmp_path / "t.csv", index=False)
    command = ["compare", "--data", str(tmp_path / "t.csv"), "--losses", "cross_entropy", "--seeds", "3"]
    assert _main([*command, "--epochs", "2", "--lr", "1e30", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "cross_entropy is the only loss" in said
    assert "cross_entropy diverged at every learning rate with seed 0, 1 and 2" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert re.search(r"networks \(0.\d MB\) are kept in the folder <code>networks</code> beside", page)
