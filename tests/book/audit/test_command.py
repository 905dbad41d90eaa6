"""The commands as a user gives them: an audit's report, a calibrator applied, and files that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lossbook import _files
from lossbook.book.audit import command
from lossbook.book.audit.command import _write_page
from lossbook.book.audit.compare import fitted, log_probabilities, to_json
from lossbook.book.cli import _main
from lossbook.data import read_predictions


def draw(n: int, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, k))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return 2 * z, (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def calibrator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    z, y = draw(800)
    path = tmp_path_factory.mktemp("calibrator") / "calibrator.json"
    path.write_text(to_json(fitted("temperature", softmax(z), y), ("cat", "dog", "eel")))
    return path


@pytest.mark.slow
def test_an_audit_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, y = draw(300)
    np.savez(tmp_path / "mine.npz", logits=z, labels=y)
    out = tmp_path / "report"
    (tmp_path / "report").mkdir()
    (out / "notes.txt").write_text("keep me")
    assert _main(["audit", "calibration", "--predictions", str(tmp_path / "mine.npz"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "mine.npz:\nThe model is overconfident. It is right in" in said
    assert str(out / "report.html") in said.replace("\n", "")
    files = {path.name for path in out.iterdir()}
    assert files == {
        "report.html", "report.ipynb", "numbers.json", "classes.csv", "calibrator.json", "notes.txt",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert "The model is overconfident." in page
    assert "mine.npz" in page
    assert 'src="http' not in page
    assert "read_predictions(" not in page  # the code stays in the notebook

    done = tmp_path / "calibrated.npy"
    command = ["calibrate", "--calibrator", str(out / "calibrator.json"), "--out", str(done)]
    assert _main([*command, "--predictions", str(tmp_path / "mine.npz")]) == 0
    probs = np.load(done)
    assert np.log(probs[np.arange(300), y]).mean() > np.log(softmax(z)[np.arange(300), y]).mean()


@pytest.mark.slow
def test_a_bad_row_is_named_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z, y = draw(60)
    z[41, 2] = np.nan
    np.savez(tmp_path / "bad.npz", logits=z, labels=y)
    out = tmp_path / "report"
    assert _main(["audit", "calibration", "--predictions", str(tmp_path / "bad.npz"), "--out", str(out)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"lossbook: {tmp_path / 'bad.npz'}: row 41 (counting from 0) has nan in score 2")
    assert list(out.iterdir()) == []


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["audit", "calibration", "--predictions", str(tmp_path / "no.npy"), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"lossbook: {tmp_path / 'no.npy'} does not exist\n"


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_calibrated_files(tmp_path: Path, calibrator: Path, suffix: str, dtype: type) -> None:
    z, _ = draw(50, seed=1)
    p = softmax(z).astype(dtype)
    np.save(tmp_path / "p.npy", p)
    out = tmp_path / f"q{suffix}"
    command = ["calibrate", "--calibrator", str(calibrator), "--predictions", str(tmp_path / "p.npy")]
    assert _main([*command, "--out", str(out)]) == 0
    temperature = json.loads(calibrator.read_text())["calibrator"]["fitted"]["temperature"]
    expected = softmax(log_probabilities(p) / temperature)
    if suffix == ".npy":
        found = np.load(out, allow_pickle=False)
        assert found.dtype == dtype
    else:
        frame = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
        assert list(frame.columns) == ["cat", "dog", "eel"]
        found = frame.to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    # What was written is what the audit reads.
    assert read_predictions(out, with_labels=False).kind == "probabilities"


def test_labels_beside_the_predictions_are_ignored(tmp_path: Path, calibrator: Path) -> None:
    z, y = draw(20)
    frame = pd.DataFrame(softmax(z), columns=["cat", "dog", "eel"]).assign(label=y + 7)
    frame.to_csv(tmp_path / "p.csv", index=False)
    out = tmp_path / "q.npy"
    command = ["calibrate", "--calibrator", str(calibrator), "--predictions", str(tmp_path / "p.csv")]
    assert _main([*command, "--out", str(out)]) == 0
    assert np.load(out).shape == (20, 3)


def test_what_cannot_be_calibrated(tmp_path: Path, calibrator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "p.npy", np.full((4, 5), 0.2))
    np.save(tmp_path / "good.npy", np.full((4, 3), 1 / 3))
    (tmp_path / "bad.json").write_text("{}")
    p, good, q = tmp_path / "p.npy", tmp_path / "good.npy", tmp_path / "q.npy"
    for given, sentence in [
        ((calibrator, p, q), f"{p} has 5 classes, but {calibrator} is for 3"),
        ((tmp_path / "bad.json", good, q), "bad.json: it is not a saved calibrator"),
        ((calibrator, good, tmp_path / "q.txt"), "can be written as .npy, .csv, .parquet, not .txt"),
        ((calibrator, tmp_path / "none.npy", q), "none.npy does not exist"),
        ((tmp_path / "none.json", good, q), "none.json"),
        ((calibrator, good, tmp_path / "no" / "q.npy"), "q.npy"),
    ]:
        arguments = [
            f"{option}={path}" for option, path in zip(("--calibrator", "--predictions", "--out"), given, strict=True)
        ]
        assert _main(["calibrate", *arguments]) == 1
        assert sentence in capsys.readouterr().err
    assert not q.exists()


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    import nbformat

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Hello"), nbformat.v4.new_code_cell("secret = 1")]
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    _write_page(tmp_path / "a.ipynb", tmp_path / "a.html", "a <b>.npy")
    page = (tmp_path / "a.html").read_text()
    assert "Hello" in page
    assert "secret" not in page
    assert 'src="http' not in page
    assert "a &lt;b&gt;.npy" in page


def test_columns_in_another_order_are_refused(
    tmp_path: Path, calibrator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame(softmax(draw(20)[0]), columns=["dog", "cat", "eel"]).to_csv(tmp_path / "p.csv", index=False)
    command = ["calibrate", "--calibrator", str(calibrator), "--predictions", str(tmp_path / "p.csv")]
    assert _main([*command, "--out", str(tmp_path / "q.npy")]) == 1
    assert "has class 'dog' in column 0 of its scores, but" in capsys.readouterr().err
    assert not (tmp_path / "q.npy").exists()


def test_the_predictions_are_not_overwritten(
    tmp_path: Path, calibrator: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "p.npy", draw(20)[0])
    before = (tmp_path / "p.npy").read_bytes()
    path = str(tmp_path / "p.npy")
    assert _main(["calibrate", "--calibrator", str(calibrator), "--predictions", path, "--out", path]) == 1
    assert "is the file of predictions itself" in capsys.readouterr().err
    assert (tmp_path / "p.npy").read_bytes() == before


class Killed(BaseException):
    pass


def fake_audit(out: Path, file: str, monkeypatch: pytest.MonkeyPatch, steps: int | None = None) -> None:
    """An audit whose notebook writes the name of the file and no more; it is killed at this step of what follows."""
    left, killed = steps, False

    def run(notebooks: list[Path], *, parameters: dict[str, str], out: Path, **_: object) -> list[SimpleNamespace]:
        for name in ("numbers.json", "classes.csv"):
            (Path(parameters["out"]) / name).write_text(file)
        out.mkdir()
        (out / "executed.ipynb").write_text(file)
        return [SimpleNamespace(status="ok", executed=out / "executed.ipynb")]

    def step(original: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal left, killed
            if left is not None:
                if left == 0:
                    killed = True
                    raise Killed
                left -= 1
            return original(*arguments, **options)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(command, "run_notebooks", run)
        patch.setattr(command, "_write_page", lambda notebook, page, title: page.write_text(file))
        patch.setattr(os, "replace", step(os.replace))
        patch.setattr(Path, "unlink", step(Path.unlink))
        # A killed process does not clear up.
        patch.setattr(shutil, "rmtree", lambda *a, rmtree=shutil.rmtree, **k: killed or rmtree(*a, **k))
        command._audit("collapse", Path(file), {}, out, ("numbers.json", "classes.csv"), 1.0)


def test_a_killed_audit_leaves_no_page_over_the_results_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"report.html", "report.ipynb", "numbers.json", "classes.csv"}
    for steps in range(9):
        out = tmp_path / str(steps)
        fake_audit(out, "old", monkeypatch)
        (out / ".audit").mkdir()
        (out / ".audit/left").touch()
        try:
            fake_audit(out, "new", monkeypatch, steps)
        except Killed:
            pass
        else:
            break
        if (out / "report.html").exists():
            assert len({(out / name).read_text() for name in files}) == 1
        fake_audit(out, "new", monkeypatch)
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(files, "new")
        with (
            _files.locked(out),
            pytest.raises(command.RunError, match="another command is writing to .*: wait for it"),
        ):
            fake_audit(out, "new", monkeypatch)
    assert steps == 5


@pytest.mark.slow
def test_a_relative_folder_and_results_of_an_earlier_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rows: no calibrator, so that of the audit before must not stay beside the new report."""
    monkeypatch.chdir(tmp_path)
    z, _ = draw(3)
    np.savez("my file.npz", logits=z, labels=[0, 1, 2])
    Path("old report").mkdir()
    (Path("old report") / "calibrator.json").write_text("of an earlier audit")
    assert _main(["audit", "calibration", "--predictions", "my file.npz", "--out", "old report"]) == 0
    assert "No calibrator was tried" in capsys.readouterr().out
    assert {path.name for path in Path("old report").iterdir()} == {
        "report.html", "report.ipynb", "numbers.json", "classes.csv",
    }  # fmt: skip
