"""Losses compared on a user's rows: the interval, the choice, the verdict, the report, and one that is killed."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lossbook.book import compare as comparing
from lossbook.book.cli import _main
from lossbook.book.compare import Comparison, compare, experiment, interval, measures, summary, verdict
from lossbook.book.compare.data import Rows
from lossbook.book.compare.losses import parse_losses
from lossbook.data import DataError


def blobs(n: int = 120, k: int = 3, distance: float = 1.5, seed: int = 0, images: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    names = tuple(f"class {i}" for i in range(k))
    if images:
        pixels = np.clip(rng.random((n, 1, 8, 8)) + 0.3 * y[:, None, None, None], 0, 2).astype(np.float32) / 2
        return Rows("pictures", y, names, n, images=pixels)
    x = rng.standard_normal((n, 4)) + distance * np.eye(k, 4)[y]
    return Rows("blobs.csv", y, names, n, x, tuple("abcd"))


@pytest.fixture(scope="module")
def small() -> Comparison:
    candidates = parse_losses("cross_entropy, focal(gamma=[1, 3]), mae")
    return compare(blobs(), candidates, seeds=[0, 1, 2], rates=[0.01, 0.03], epochs=6, device="cpu")


def test_without_sharing_it_is_the_textbook_interval() -> None:
    x = np.random.default_rng(0).normal(3, 2, 7)
    low, high = stats.t.interval(0.9, 6, x.mean(), stats.sem(x))
    np.testing.assert_allclose(interval(x, test_share=0, level=0.9), (x.mean(), low, high))


def test_sharing_widens_by_nadeau_and_bengio() -> None:
    x = [0.0, 1.0, 2.0, 5.0]
    _, low, high = interval(x, test_share=0.2)
    _, plain_low, plain_high = interval(x, test_share=0)
    assert math.isclose((high - low) / (plain_high - plain_low), math.sqrt((1 / 4 + 1 / 4) / (1 / 4)))
    # Values that agree by the coarseness of the measure are not exact.
    assert interval([0.5] * 4) == (0.5, 0.5, 0.5)
    _, low, high = interval([0.5] * 4, floor=0.01)
    assert math.isclose(high - low, 2 * stats.t.ppf(0.975, 3) * 0.01 * math.sqrt(1 / 2))
    for bad in ([1.0], [1.0, math.nan], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match="values must be two or more finite"):
            interval(bad)


def test_measures_of_a_hand_made_case() -> None:
    # Three rows of class 0, two of them right, and one of class 1, right; all confidences are 0.75.
    logits = torch.log(torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]))
    found = measures(logits, torch.tensor([0, 0, 0, 1]))
    assert math.isclose(found["accuracy"], 0.75)
    assert math.isclose(found["macro_accuracy"], (2 / 3 + 1) / 2)
    assert math.isclose(found["log_loss"], -(3 * math.log(0.75) + math.log(0.25)) / 4, rel_tol=1e-6)
    assert abs(found["ece"]) < 1e-6
    assert math.isnan(measures(logits * math.nan, torch.tensor([0, 0, 0, 1]))["accuracy"])


def test_a_comparison(small: Comparison) -> None:
    assert small.labels == ["cross_entropy", "focal(gamma=[1, 3])", "mae"]
    assert len(small.results) == 9
    assert small.results.settings.tolist() == [2, 4, 2] * 3
    assert set(small.results.setting) <= {"", "gamma=1", "gamma=3"}
    assert (small.results[small.results.loss != "focal(gamma=[1, 3])"].setting == "").all()
    assert small.results[["val", *comparing.MEASURES]].notna().all(axis=None)
    assert (small.results.seconds > 0).all()
    # Each row of the results is the classes' sum: the test part of 24 rows.
    by_class = small.classes.groupby(["loss", "seed"])[["rows", "right"]].sum()
    assert (by_class["rows"] == 24).all()
    accuracy = small.results.set_index(["loss", "seed"]).accuracy
    np.testing.assert_allclose(accuracy, (by_class.right / by_class["rows"]).loc[accuracy.index])
    assert float(small.bins["mae"][0].sum()) == 3 * 24
    assert comparing.class_accuracy(small).shape == (3, 3)


def test_the_summary_pairs_the_seeds(small: Comparison) -> None:
    table = summary(small)
    by_seed = small.results.pivot(index="seed", columns="loss", values="accuracy")
    expected = interval(by_seed["mae"] - by_seed["cross_entropy"], level=0.975, floor=1 / 24)
    np.testing.assert_allclose(
        table.loc["mae", ["difference", "difference low", "difference high"]].astype(float), expected
    )
    assert math.isnan(table.difference["cross_entropy"])
    assert table.tried.tolist() == [2, 4, 2]
    assert (table["accuracy high"] <= 1).all()


def test_the_choice_sees_validation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = blobs()
    plain = compare(rows, parse_losses("cross_entropy"), seeds=[0, 1, 2], rates=[0.0001, 0.03], epochs=4, device="cpu")
    cut = comparing.split

    def with_labels_of_the_test_part_shifted(rows: Rows, seed: int) -> object:
        parts = cut(rows, seed)
        return parts._replace(test=parts.test._replace(y=(parts.test.y + 1) % 3))

    monkeypatch.setattr(experiment, "split", with_labels_of_the_test_part_shifted)
    other = compare(rows, parse_losses("cross_entropy"), seeds=[0, 1, 2], rates=[0.0001, 0.03], epochs=4, device="cpu")
    assert plain.results.lr.tolist() == other.results.lr.tolist() == [0.03] * 3
    assert plain.results.val.tolist() == other.results.val.tolist()
    assert (plain.results.accuracy > other.results.accuracy).all()


@pytest.mark.parametrize(("metric", "model"), [("log_loss", "linear"), ("macro_accuracy", "cnn")])
def test_metrics_and_models(metric: str, model: str) -> None:
    rows = blobs(60, images=model == "cnn")
    found = compare(rows, parse_losses("cross_entropy, brier"), seeds=[0, 1, 2], rates=[0.01], epochs=2, metric=metric,
                    model=model, device="cpu")  # fmt: skip
    by_seed = found.results.pivot(index="seed", columns="loss", values=metric)
    assert math.isclose(summary(found).difference["brier"], (by_seed["brier"] - by_seed["cross_entropy"]).mean())
    assert found.settings["model"] == model


def faked(differences: list[float], metric: str = "accuracy", **columns: object) -> SimpleNamespace:
    """A comparison of a baseline and one loss with these differences."""
    j = len(differences)
    base = pd.DataFrame({"loss": "mae", "seed": range(j), "lr": 0.01, "setting": "", "settings": 2, "seconds": 1.0})
    base = base.assign(**{name: 0.8 for name in comparing.MEASURES})
    other = base.assign(loss="focal", **{metric: 0.8 + np.array(differences)}).assign(**columns)
    epochs = range(10, 110, 10)
    curves = pd.DataFrame(
        [(loss, e, 0.9) for loss in ("mae", "focal") for e in epochs], columns=["loss", "epoch", "val_accuracy"]
    )
    settings = {"metric": metric, "rates": [0.001, 0.01, 0.1], "seeds": list(range(j))}
    return SimpleNamespace(rows=blobs(3000), labels=["mae", "focal"], settings=settings, curves=curves,
                           seeds=list(range(j)), results=pd.concat([base, other]))  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "metric", "sentence"),
    [
        ([0.05, 0.051, 0.049, 0.05], "accuracy", "**focal is ahead of mae**: accuracy +5.0 points [+4.6, +5.4] with 4"),
        ([-0.05, -0.051, -0.049], "accuracy", "**focal is behind mae**: accuracy -5.0 points"),
        ([0.05, 0.051, 0.049], "log_loss", "**focal is behind mae**: log-loss +0.0500 nats"),
        ([-0.05, -0.051, -0.049], "log_loss", "**focal is ahead of mae**"),
        (
            [0.05, -0.04, 0.01],
            "accuracy",
            "**No difference in accuracy to mae can be seen with 3 seeds for focal.** This",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(differences: list[float], metric: str, sentence: str) -> None:
    found = verdict(faked(differences, metric))  # type: ignore[arg-type]
    assert found[0].replace("&#45;", "-").startswith(sentence)
    if "No difference" in sentence:
        half = np.diff(interval(differences, floor=1 / 600)[1:])[0] / 2
        assert f"would have been seen: {100 * half:.1f} points (focal)" in found[0]
    assert len(found) == 1  # one difference needs no correction, and nothing is amiss


def test_warnings() -> None:
    found = faked([0.05, -0.04, 0.01], lr=[0.1, 0.1, 0.01], settings=6)
    found.curves.loc[found.curves.loss == "focal", "val_accuracy"] = np.linspace(0.5, 0.9, 10)
    text = "\n".join(verdict(found))  # type: ignore[arg-type]
    assert "The largest learning rate was the best with most seeds for focal: larger ones may gain" in text
    assert "The validation accuracy of focal still rises at the end" in text
    assert "(mae 2, focal 6): more is an advantage" in text
    gone = faked([0.05, math.nan, 0.01], lr=[0.01, math.nan, 0.01])
    assert "focal diverged at every learning rate with seed 1, and is left out" in "\n".join(verdict(gone))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ({"seeds": [0, 1]}, ValueError, "seeds must be 3 or more different ones"),
        ({"seeds": [0, 1, 1]}, ValueError, "seeds must be 3 or more different ones"),
        ({"metric": "f1"}, ValueError, "metric must be one of accuracy"),
        ({"model": "tree"}, ValueError, "model must be one of"),
        ({"model": "cnn"}, DataError, "blobs.csv holds a table, and a cnn wants images"),
        ({"model": "linear", "losses": "bias_loss"}, DataError, "bias_loss reads the features"),
        ({"k": 2, "losses": "z_loss"}, DataError, "blobs.csv has 2 classes: z_loss: the Z-loss needs at least 3"),
        ({"rates": [-1.0]}, ValueError, "lr must lie in"),
    ],
)
def test_what_is_refused_before_training(how: dict, error: type[Exception], sentence: str) -> None:
    rows, losses = blobs(k=how.pop("k", 3)), parse_losses(how.pop("losses", "focal"))
    with pytest.raises(error, match=sentence):
        compare(rows, losses, **{"seeds": [0, 1, 2], "device": "cpu", "epochs": 1, **how})


KILLED = """
import sys
from lossbook.book.compare import compare, save
from lossbook.book.compare.data import read
from lossbook.book.compare.losses import parse_losses
found = compare(read(sys.argv[1]), parse_losses("cross_entropy, focal(gamma=[1, 2]), brier"), seeds=range(3),
                rates=[0.01, 0.03], epochs=20, device="cpu", folder=sys.argv[2])
save(found, sys.argv[3])
"""


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_the_same(tmp_path: Path, tools: SimpleNamespace) -> None:
    rows = blobs(600)
    table = pd.DataFrame(rows.numbers, columns=list("abcd")).assign(label=rows.y)
    table.to_csv(tmp_path / "t.csv", index=False)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()

    def start(name: str) -> subprocess.Popen[bytes]:
        paths = [tmp_path / "t.csv", tmp_path / f"networks-{name}", tmp_path / name]
        return subprocess.Popen([sys.executable, "-c", KILLED, *map(str, paths)])

    assert start("once").wait(120) == 0
    first = start("twice")
    kept = tmp_path / "networks-twice"
    tools.wait_for(lambda: len(list(kept.glob("*/*.part"))) >= 2, 60)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    before = {path: path.stat().st_mtime_ns for path in kept.glob("*/*.part")}
    assert 2 <= len(before) < 9
    assert start("twice").wait(120) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # they were not trained again
    assert len(list(kept.glob("*/*.part"))) == 9
    one, two = (pd.read_csv(tmp_path / name / "results.csv").drop(columns="seconds") for name in ("once", "twice"))
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert (tmp_path / "once" / "classes.csv").read_bytes() == (tmp_path / "twice" / "classes.csv").read_bytes()


def test_a_further_loss_trains_only_itself(tmp_path: Path) -> None:
    how = {"seeds": [0, 1, 2], "rates": [0.01], "epochs": 2, "device": "cpu", "folder": tmp_path}
    first = compare(blobs(), parse_losses("mae"), **how)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.part")}
    second = compare(blobs(), parse_losses("brier, mae"), **how)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert len(list(tmp_path.glob("*/*.part"))) == 6
    again = second.results[second.results.loss == "mae"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first.results, again)  # the seconds too: they are those of the training
    more = compare(blobs(), parse_losses("mae"), **{**how, "rates": [0.01, 0.03]})
    assert len(list(tmp_path.glob("*/*.part"))) == 9  # one rate is new
    assert more.results.seconds.isna().all()


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
