"""Calibrators compared on unseen rows, and the file of the one that is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lossbook import calibrators
from lossbook.book.audit import compare as module
from lossbook.book.audit.compare import NONE, candidates, compare, fitted, from_json, log_probabilities, to_json


def draw(n: int, temperature: float, k: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal((n, k))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (true.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    stated = np.exp(z / temperature)
    return stated / stated.sum(axis=1, keepdims=True), y


def test_the_simplest_that_repairs_is_kept() -> None:
    """The error is one of temperature: the others can do no better but by chance."""
    p, y = draw(2000, 0.5)
    found = compare(p, y)
    assert found.best == "temperature"
    table = found.table
    assert table.index[0] == NONE
    assert table.loc["temperature", "ECE"] < 0.3 * table.loc[NONE, "ECE"]
    assert table.loc["temperature", "gain"] > 3 * table.loc["temperature", "gain ±"]
    assert table.loc["temperature", "decisions changed"] == 0
    assert table.loc[NONE, "gain"] == 0
    assert not found.left_out


def test_nothing_is_judged_on_rows_it_was_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calibrator that learns its rows by heart must gain nothing."""

    class Memory(calibrators.TemperatureScaling):
        def fit(self, z, y):
            self.known = {row.tobytes(): label for row, label in zip(z, y, strict=True)}
            return super().fit(z, y)

        def predict_proba(self, z):
            p = super().predict_proba(z)
            for i, row in enumerate(z):
                if row.tobytes() in self.known:
                    p[i] = np.eye(p.shape[1])[self.known[row.tobytes()]]
            return p

    monkeypatch.setattr(module, "candidates", lambda k: ({"memory": Memory()}, {}))
    p, y = draw(600, 1.0)
    assert compare(p, y).table.loc["memory", "gain"] < 0.01


def test_calibrated_predictions_gain_nothing() -> None:
    table = compare(*draw(1500, 1.0)).table
    assert table.loc["temperature", "gain"] < 0.01
    assert table.loc["matrix", "gain"] < 0.01


def test_many_classes_leave_out_what_would_learn_noise() -> None:
    tried, left_out = candidates(1000)
    assert set(tried) == {"temperature", "vector", "isotonic, top label"}
    assert "1,001,000 numbers" in left_out["matrix"]
    assert not candidates(10)[1]


def test_a_calibrator_that_cannot_be_fitted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(calibrators.TemperatureScaling):
        def fit(self, z, y):
            raise ValueError("too odd")

    good = calibrators.TemperatureScaling()
    monkeypatch.setattr(module, "candidates", lambda k: ({"odd": Refuses(), "good": good}, {}))
    found = compare(*draw(100, 1.0))
    assert (found.left_out, found.best) == ({"odd": "too odd"}, "good")
    monkeypatch.setattr(module, "candidates", lambda k: ({"odd": Refuses()}, {}))
    with pytest.raises(ValueError, match="no calibrator could be fitted: odd: too odd"):
        compare(*draw(100, 1.0))


@pytest.mark.parametrize(
    ("n", "labels", "sentence"), [(9, None, "9 rows are too few for 5 folds"), (40, 1, "all labels are 1")]
)
def test_too_little_to_compare(n: int, labels: int | None, sentence: str) -> None:
    p, y = draw(n, 1.0)
    with pytest.raises(ValueError, match=sentence):
        compare(p, y if labels is None else np.full(n, labels))


def test_a_label_too_few() -> None:
    p, y = draw(40, 1.0)
    with pytest.raises(ValueError, match=r"target must have shape \(40,\).*has shape \(39,\)"):
        compare(p, y[:-1])


def test_zeros_are_no_trouble() -> None:
    p, y = draw(400, 0.3)
    p[p < 0.05] = 0
    p /= p.sum(axis=1, keepdims=True)
    assert np.isfinite(compare(p, y).table.astype(float)).all(axis=None)


@pytest.mark.parametrize("name", list(candidates(4)[0]))
def test_saved_and_read_back(name: str) -> None:
    p, y = draw(500, 0.6)
    calibrator = fitted(name, p, y)
    again, classes = from_json(to_json(calibrator, ("a", "b", "c", "d")))
    assert classes == ("a", "b", "c", "d")
    z = log_probabilities(draw(100, 0.6, seed=1)[0])
    np.testing.assert_array_equal(again.predict_proba(z), calibrator.predict_proba(z))


def saved(**changes) -> str:
    content = json.loads(to_json(fitted("temperature", *draw(100, 1.0)), tuple("abcd")))
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a saved calibrator"),
        ("{}", "not a saved calibrator"),
        (saved(version=2), "version is 2"),
        (saved(classes=["a"]), "names of 4 classes"),
        (saved(classes=[1, 2, 3, 4]), "names of 4 classes"),
        (saved(calibrator=None), "calibrator must be an object"),
        (saved(calibrator={"kind": "os.system", "num_classes": 4, "parameters": {}, "fitted": {}}), "kind"),
        ('{"format": "lossbook-calibrator", "version": NaN}', "holds NaN"),
    ],
)
def test_bad_files_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_json(text)


def test_no_mistake_nothing_to_compare() -> None:
    p, _ = draw(100, 1.0)
    with pytest.raises(ValueError, match="every prediction is right"):
        compare(p, p.argmax(axis=1))


def test_vector_scaling_needs_rows() -> None:
    """Of 1,000 classes and 2,000 rows it took five minutes, and gained nothing."""
    found = compare(*draw(300, 1.0, k=250))
    assert found.left_out["vector"] == "it would fit 500 numbers to 300 rows"
    assert set(found.tallies) == {NONE, "temperature", "isotonic, top label"}
