"""What a comparison supports: the interval, the summary, the verdict with its warnings."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lossbook.book import compare as comparing
from lossbook.book.compare import Rows, interval, summary, verdict


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
    rows = Rows("t.csv", np.arange(3000) % 3, ("a", "b", "c"), 3000)
    return SimpleNamespace(rows=rows, labels=["mae", "focal"], settings=settings, curves=curves,
                           seeds=list(range(j)), results=pd.concat([base, other]))  # fmt: skip


@pytest.mark.parametrize(
    ("differences", "metric", "sentence"),
    [
        (
            [0.05, 0.051, 0.049, 0.05],
            "accuracy",
            "**focal is ahead of mae**: accuracy +5.0 points [+4.6, +5.4] with 4",
        ),
        ([-0.05, -0.051, -0.049], "accuracy", "**focal is behind mae**: accuracy -5.0 points"),
        ([0.05, 0.051, 0.049], "log_loss", "**focal is behind mae**: log-loss +0.0500 nats"),
        ([-0.05, -0.051, -0.049], "log_loss", "**focal is ahead of mae**"),
        (
            [0.05, -0.04, 0.01],
            "accuracy",
            "**No difference in accuracy to mae can be seen with 3 seeds for focal.** That",
        ),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(differences: list[float], metric: str, sentence: str) -> None:
    found = verdict(faked(differences, metric))  # type: ignore[arg-type]
    assert found[0].replace("&#45;", "-").startswith(sentence)
    if "No difference" in sentence:
        low, high = (f"{100 * end:+.1f}" for end in interval(differences, floor=1 / 600)[1:])
        assert f"the interval goes from {low} to {high} points (focal)." in found[0].replace("&#43;", "+")
    assert len(found) == 1  # one difference needs no correction, and nothing is amiss


def test_warnings() -> None:
    found = faked([0.05, -0.04, 0.01], lr=[0.1, 0.1, 0.01], settings=6)
    found.curves.loc[found.curves.loss == "focal", "val_accuracy"] = np.linspace(0.5, 0.9, 10)
    text = "\n".join(verdict(found))  # type: ignore[arg-type]
    assert "The largest learning rate was the best with most seeds for focal: larger ones may gain" in text
    assert "The validation accuracy of focal still rises at the end" in text
    assert "(mae 2, focal 6): more is an advantage" in text
    gone = faked([0.05, math.nan, 0.01], lr=[0.01, math.nan, 0.01])
    assert "focal diverged at every learning rate with seed 1, so it is left out" in "\n".join(verdict(gone))  # type: ignore[arg-type]


def test_a_baseline_that_diverged_and_a_loss_alone() -> None:
    gone = faked([0.01, 0.02, 0.03])
    gone.results.loc[gone.results.loss == "mae", list(comparing.MEASURES)] = math.nan
    text = "\n".join(verdict(gone))  # type: ignore[arg-type]
    assert "mae diverged at every learning rate with seed 0, 1 and 2, so nothing can be held against it" in text
    assert "focal is" not in text
    alone = faked([0.01, 0.02, 0.03])
    alone.labels, alone.results = ["mae"], alone.results[alone.results.loss == "mae"]
    assert verdict(alone) == ["mae is the only loss: name a second one to see a difference."]  # type: ignore[arg-type]
    assert summary(alone)["difference"].isna().all()  # type: ignore[arg-type]


def test_rounding_is_no_difference() -> None:
    # What two names of one loss showed: all of one sign, and nothing.
    found = verdict(faked([1e-6, 1.1e-6, 0.9e-6], "log_loss"))  # type: ignore[arg-type]
    assert found[0].startswith("**No difference in log-loss")
