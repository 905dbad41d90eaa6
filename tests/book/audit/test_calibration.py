"""The audit of a file: its numbers, its sentences, its tables, and what it saves."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lossbook.book.audit import calibration as audits
from lossbook.book.audit.compare import NONE, from_json
from lossbook.data import read_predictions
from lossbook.metrics import calibration


def draw(n: int, temperature: float, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, k))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return z / temperature, (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def audit_of(folder: Path, z: np.ndarray, y: np.ndarray, **kwargs) -> audits.Audit:
    np.savez(folder / "p.npz", logits=z, labels=y)
    return audits.audit(read_predictions(folder / "p.npz"), **kwargs)


@pytest.fixture(scope="module")
def overconfident(tmp_path_factory: pytest.TempPathFactory) -> audits.Audit:
    return audit_of(tmp_path_factory.mktemp("over"), *draw(2000, 0.5))


def test_logits_and_their_probabilities_give_the_same(overconfident: audits.Audit, tmp_path: Path) -> None:
    z, y = draw(2000, 0.5)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.savez(tmp_path / "p.npz", probs=p, labels=y)
    found = audits.audit(read_predictions(tmp_path / "p.npz"))
    pd.testing.assert_frame_equal(found.measures, overconfident.measures, rtol=1e-6)
    assert found.measures.value["ECE"] == pytest.approx(calibration.expected_calibration_error(p, y))
    assert found.comparison is not None
    assert overconfident.comparison is not None
    pd.testing.assert_frame_equal(found.comparison.table, overconfident.comparison.table, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("temperature", "word"), [(0.5, "overconfident"), (2.0, "underconfident"), (1.0, "neither")])
def test_it_says_which_way_the_model_is_off(tmp_path: Path, temperature: float, word: str) -> None:
    found = audit_of(tmp_path, *draw(3000, temperature))
    assert audits.direction(found) == word
    first, error, advice, *_ = audits.verdict(found)
    assert ("**The model is" in first) == (word != "neither")
    assert ("times what noise explains" in error) == (word != "neither")
    assert ("No calibrator gains more than chance" in advice) == (word == "neither")


def test_classes_add_up(overconfident: audits.Audit) -> None:
    table = audits.class_table(overconfident)
    z, y = draw(2000, 0.5)
    predicted = z.argmax(axis=1)
    assert table.rows.sum() == table.predicted.sum() == 2000
    for row in table.itertuples():
        k = int(row[1])
        assert row.recall == pytest.approx((predicted[y == k] == k).mean())
        assert row.right == pytest.approx((y[predicted == k] == k).mean())
    assert table.error.mean() == pytest.approx(overconfident.measures.value["classwise ECE"])
    assert ((table["gap low"] < table.gap) & (table.gap < table["gap high"])).all()
    assert (np.diff((table.gap * table.predicted).abs()) <= 1e-9).all()


def test_a_class_without_rows_has_no_interval(tmp_path: Path) -> None:
    z, y = draw(300, 1.0)
    z = np.concatenate([z, np.full((300, 1), -50.0)], axis=1)
    found = audit_of(tmp_path, z, y)
    last = audits.class_table(found).set_index("class").loc["4"]
    assert (last.rows, last.predicted) == (0, 0)
    assert last[["recall", "right", "gap", "gap low"]].isna().all()
    assert any("1 of 5 classes have no row with their label: 4." in s for s in audits.verdict(found))


def test_selective_accuracy(overconfident: audits.Audit) -> None:
    table = audits.selective_accuracy(overconfident)
    z, y = draw(2000, 0.5)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    row = table.iloc[(table.threshold - 0.75).abs().argmin()]
    sure = p.max(axis=1) > 0.75
    assert row.coverage == pytest.approx(sure.mean())
    assert row.accuracy == pytest.approx((p.argmax(axis=1) == y)[sure].mean())
    assert table.coverage.is_monotonic_decreasing
    assert table.coverage.iloc[0] == 1


def test_saved(overconfident: audits.Audit, tmp_path: Path) -> None:
    audits.save(overconfident, tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text(), parse_constant=pytest.fail)
    assert numbers["direction"] == "overconfident"
    assert numbers["measures"]["ECE"]["value"] == overconfident.measures.value["ECE"]
    assert numbers["calibrators"][NONE]["gain"] == 0
    assert len(pd.read_csv(tmp_path / "classes.csv")) == 4
    calibrator, names = from_json((tmp_path / "calibrator.json").read_text())
    assert names == ("0", "1", "2", "3")
    assert calibrator.temperature_ == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("rows", "why"), [(1, "1 rows are too few for 5 folds"), (8, "8 rows are too few for 5 folds"), (40, None)]
)
def test_few_rows(tmp_path: Path, rows: int, why: str | None) -> None:
    found = audit_of(tmp_path, *draw(rows, 1.0))
    sentences = " ".join(audits.verdict(found))
    assert f"With {rows} rows every number here is rough" in sentences
    assert (f"No calibrator was tried: {why}" in sentences) == (why is not None)
    audits.save(found, tmp_path)
    assert (tmp_path / "calibrator.json").exists() == (why is None)


def test_a_single_label(tmp_path: Path) -> None:
    z, y = draw(60, 1.0)
    found = audit_of(tmp_path, z, np.zeros_like(y))
    assert "all labels are 0" in " ".join(audits.verdict(found))


def test_the_seed_decides_the_draws_and_nothing_else(tmp_path: Path) -> None:
    one, two, other = (audit_of(tmp_path, *draw(500, 0.7), seed=seed).measures for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    pd.testing.assert_series_equal(one.value, other.value)
    assert not one.low.equals(other.low)


@pytest.mark.parametrize(
    ("name", "word"),
    [("cifar10", "overconfident"), ("imdb", "overconfident"), ("20news", "underconfident"), ("mnist", "neither")],
)
def test_real_predictions(shared_data: Path, name: str, word: str) -> None:
    folder = shared_data / "label-errors"
    read = read_predictions(folder / f"{name}_test_set_pyx.npy", labels=folder / f"{name}_test_set_original_labels.npy")
    found = audits.audit(read, sample_rows=500)
    assert audits.direction(found) == word


def test_rows_that_are_all_right_prove_nothing(tmp_path: Path) -> None:
    """Resamples of them do not differ, but 12 of 20 calibrated models would show as much."""
    p = np.repeat([[0.95, 0.05], [0.05, 0.95]], 10, axis=0)
    found = audit_of(tmp_path, np.log(p), p.argmax(axis=1))
    assert audits.direction(found) == "neither"
    low, high = found.measures.loc["overconfidence", ["low", "high"]]
    assert (low, high) == pytest.approx((-0.05 - 1.96 * (0.0475 / 20) ** 0.5, -0.05 + 1.96 * (0.0475 / 20) ** 0.5))
    classes = audits.class_table(found)
    assert ((classes["gap low"] < 0) & (classes["gap high"] > 0)).all()
    first, *_, advice, _ = audits.verdict(found)
    assert "These rows do not show whether" in first
    assert "No calibrator was tried: every prediction is right" in advice


@pytest.mark.parametrize("huge", [False, True])
def test_confidences_of_exactly_1(tmp_path: Path, huge: bool) -> None:
    """No noise at all: nothing is divided by it."""
    z, y = draw(300, 1.0)
    np.savez(tmp_path / "p.npz", **({"logits": 1e4 * z} if huge else {"probs": np.eye(4)[z.argmax(axis=1)]}), labels=y)
    found = audits.audit(read_predictions(tmp_path / "p.npz"))
    assert audits.direction(found) == "overconfident"
    assert "more than noise explains" in audits.verdict(found)[1]
    audits.save(found, tmp_path)


def test_what_gains_is_said_when_a_simpler_one_is_kept(overconfident: audits.Audit) -> None:
    assert overconfident.comparison is not None
    table = overconfident.comparison.table.copy()
    table[["gain", "gain ±"]] = 0.0
    table.loc["temperature", "gain ±"] = table.loc["vector", "gain"] = 0.1
    changed = replace(overconfident, comparison=replace(overconfident.comparison, table=table))
    assert "*vector* gains more than chance, but not clearly more than *temperature*" in audits.verdict(changed)[2]


def test_names_of_classes_are_text(tmp_path: Path) -> None:
    z, y = draw(60, 1.0, k=3)
    names = ["cat", "dog", "<b>_$x"]
    pd.DataFrame(z, columns=names).assign(label=y % 2).to_csv(tmp_path / "p.csv", index=False)
    found = audits.audit(read_predictions(tmp_path / "p.csv"))
    [sentence] = [s for s in audits.verdict(found) if "have no row" in s]
    assert sentence.endswith(": &#60;b&#62;&#95;&#36;x.")
    assert html.unescape(sentence).endswith(": <b>_$x.")
