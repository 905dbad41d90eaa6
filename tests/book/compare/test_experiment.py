"""Training and judging losses on the same rows: the choice, the measures, and a comparison that is killed."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from lossbook.book import compare as comparing
from lossbook.book.compare import Comparison, Rows, compare, experiment, interval, measures, summary, verdict
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


@pytest.mark.parametrize("rates", [[0.01, 1e30], [1e30]])
def test_losses_that_diverge(rates: list[float]) -> None:
    found = compare(blobs(), parse_losses("cross_entropy, focal"), seeds=[0, 1, 2], rates=rates, epochs=2, device="cpu")
    assert (found.results.diverged == 1).all()
    judged = len(rates) == 2
    assert (found.results.accuracy.notna() == judged).all()
    assert (found.results.lr == 0.01).all() == judged
    # A network that is none is not wrong about any row.
    assert (found.classes["rows"].sum() > 0) == judged
    assert (comparing.class_accuracy(found).notna() == judged).all(axis=None)
    assert any("diverged at every learning rate" in sentence for sentence in verdict(found)) != judged


@pytest.mark.parametrize(
    ("how", "error", "sentence"),
    [
        ({"seeds": [0, 1]}, ValueError, "seeds must be 3 or more different ones"),
        ({"seeds": [0, 1, 1]}, ValueError, "seeds must be 3 or more different ones"),
        ({"metric": "f1"}, ValueError, "metric must be one of 'accuracy'"),
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
