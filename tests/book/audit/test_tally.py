"""The sums of the audit: the package's own measures of the same rows, in any chunks, with honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import metrics
from lossbook.book.audit import tally as tally_module
from lossbook.book.audit.tally import FLOOR, MEASURES, Shadows, Tally, measure, reflected
from lossbook.metrics import calibration


def draw(n: int, *, temperature: float = 1.0, k: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are calibrated at temperature 1, overconfident below."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, k))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    stated = np.exp(z / temperature)
    return stated / stated.sum(axis=1, keepdims=True), y


def tally_of(probs: np.ndarray, y: np.ndarray, **kwargs) -> Tally:
    tally = Tally(probs.shape[1], len(probs), **kwargs)
    tally.add(probs, y)
    return tally


def values(tally: Tally) -> dict[str, float]:
    return {m.name: m.value(tally.total()) for m in MEASURES}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_measures_are_the_packages_own(temperature: float) -> None:
    p, y = draw(3000, temperature=temperature)
    found = values(tally_of(p, y))
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    exact = {
        "accuracy": metrics.accuracy(p, y),
        "mean confidence": confidence.mean(),
        "overconfidence": confidence.mean() - correct.mean(),
        "log-loss": calibration.negative_log_likelihood(p, y),
        "Brier score": calibration.brier_score(p, y),
        "ECE": calibration.expected_calibration_error(p, y),
        "ECE, debiased": calibration.expected_calibration_error(p, y, debias=True),
        "RMS calibration error": calibration.expected_calibration_error(p, y, norm=2),
        "RMS, debiased": calibration.expected_calibration_error(p, y, norm=2, debias=True),
        "MCE": calibration.maximum_calibration_error(p, y, min_count=30),
        "ACE": calibration.average_calibration_error(p, y),
        "classwise ECE": calibration.classwise_calibration_error(p, y),
        "top-label ECE": calibration.top_label_calibration_error(p, y),
    }
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=1e-9)
    # From 4096 fine bins instead of the sorted rows.
    binned = {
        "ECE, equal mass": calibration.expected_calibration_error(p, y, strategy="quantile"),
        "smooth ECE": calibration.smooth_calibration_error(p, y),
        "KDE error": calibration.kde_calibration_error(p, y),
        "KS error": calibration.ks_calibration_error(p, y),
    }
    assert {name: found[name] for name in binned} == pytest.approx(binned, abs=5e-4)
    assert set(found) == set(exact) | set(binned)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 400), max_size=4), seed=st.integers(0, 100))
def test_chunks_play_no_part(cuts: list[int], seed: int) -> None:
    p, y = draw(400, seed=seed)
    whole, parts = tally_of(p, y, seed=seed), Tally(5, 400, seed=seed)
    for i, j in zip([0, *sorted(cuts)], [*sorted(cuts), 400], strict=True):
        if j > i:
            parts.add(p[i:j], y[i:j])
    for name, sums in whole.sums.items():
        torch.testing.assert_close(parts.sums[name], sums)


def test_few_rows_are_their_own_groups() -> None:
    p, y = draw(50)
    tally = tally_of(p, y)
    assert tally.groups == 50
    assert (tally.sums["losses"][:, 0] == 1).all()


def test_many_classes_take_fewer_groups() -> None:
    tally = Tally(5000, 10**6)
    assert sum(sums.numel() for sums in tally.sums.values()) * 8 < 2**28
    assert tally.groups >= 20


def test_groups_are_even() -> None:
    p, y = draw(20_000)
    sizes = tally_of(p, y, seed=3).sums["losses"][:, 0]
    assert sizes.sum() == 20_000
    assert sizes.std() == pytest.approx(100**0.5, rel=0.25)  # as the multinomial distribution has it


def test_a_zero_at_the_label_is_floored_and_counted() -> None:
    p = np.array([[1.0, 0.0], [0.5, 0.5]])
    tally = tally_of(p, np.array([1, 0]))
    assert tally.floored == 1
    assert values(tally)["log-loss"] == pytest.approx((-np.log(FLOOR) + np.log(2)) / 2)


@pytest.mark.slow
def test_intervals_hold_the_truth() -> None:
    """Overconfident predictions: of 40 data sets nearly all intervals hold what 400,000 rows say."""
    truth = values(tally_of(*draw(400_000, temperature=0.5, seed=1)))
    names = ["accuracy", "overconfidence", "log-loss", "ECE", "ECE, equal mass", "classwise ECE", "top-label ECE"]
    held = dict.fromkeys(names, 0)
    for seed in range(40):
        found = measure(tally_of(*draw(2000, temperature=0.5, seed=100 + seed)), names=names, n_resamples=100)
        for name, (_, low, high) in found.items():
            held[name] += low <= truth[name] <= high
    # At 90 % in truth, fewer than 30 of 40 come about once in a thousand times.
    assert min(held.values()) >= 30, held


def test_percentiles_of_a_biased_error_would_miss() -> None:
    """Why the intervals are reflected: resamples of a small classwise error lie above it."""
    tally = tally_of(*draw(500, temperature=0.7))
    value = values(tally)["classwise ECE"]
    [classwise] = [m for m in MEASURES if m.name == "classwise ECE"]
    drawn = [classwise.value(sums) for sums in tally.resamples(100)]
    assert np.mean(drawn) > value
    low, high = reflected(value, drawn)
    assert low < value
    assert high < np.quantile(drawn, 0.975)


@pytest.mark.parametrize(("temperature", "noise"), [(1.0, True), (0.5, False)])
def test_shadows_show_what_noise_makes(temperature: float, noise: bool) -> None:
    p, y = draw(2000, temperature=temperature, seed=5)
    shadows = Shadows(5, len(p))
    shadows.add(p[:700])
    shadows.add(p[700:])
    floor, found = shadows.floor(), values(tally_of(p, y))
    assert set(floor) == {m.name for m in MEASURES if m.is_error}
    assert len(shadows.tallies) == 20
    for name in ("ECE", "classwise ECE", "smooth ECE"):
        assert (found[name] <= 1.3 * floor[name][1]) == noise, name
    # The closed form: a bin's gap is a mean of errors of variance c (1 - c).
    total = tally_of(p, y).total()["bins"]
    expected = ((total[1] - total[3]).clamp_min(0) * 2 / np.pi).sqrt().sum() / len(p)
    assert floor["ECE"][0] == pytest.approx(float(expected), rel=0.15)


def test_many_rows_need_few_shadows() -> None:
    assert len(Shadows(10, 10**7).tallies) == 1


@pytest.mark.parametrize(
    ("probs", "y", "sentence"),
    [
        (np.full((2, 3), 1 / 3), [0, 3], r"target\[1\] is label 3"),
        (np.full((2, 3), 0.5), [0, 1], r"probs\[0\] sums to 1.5"),
        (np.full((2, 2), 0.5), [0, 1], "probs has 2 columns, but there are 3 classes"),
        (np.array([[np.nan, 0.5, 0.5]]), [0], r"probs\[0, 0\] is nan"),
    ],
)
def test_bad_rows_are_refused(probs: np.ndarray, y: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Tally(3, 2).add(probs, np.array(y))


def test_no_rows_no_measures() -> None:
    with pytest.raises(ValueError, match="no rows"):
        Tally(3, 2).total()
    with pytest.raises(ValueError, match="n_resamples"):
        measure(tally_of(*draw(30)), n_resamples=3)


def test_few_shadows_are_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single draw, mirrored group by group, the noise is that of twenty: no false alarm every other time."""
    p, _ = draw(4000)
    floors = []
    for cells in (tally_module._SHADOW_CELLS, 1):
        monkeypatch.setattr(tally_module, "_SHADOW_CELLS", cells)
        shadows = Shadows(5, len(p))
        shadows.add(p)
        floors.append(shadows.floor())
    assert len(shadows.tallies) == 1
    many, one = floors
    for name in ("ECE", "classwise ECE", "top-label ECE", "smooth ECE", "KDE error"):
        assert one[name] == pytest.approx(many[name], rel=0.3), name
        assert one[name][1] > 1.05 * one[name][0]
