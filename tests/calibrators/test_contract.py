"""What every calibrator keeps: scikit-learn's rules, rows that sum to one, the same after JSON, clear refusals."""

from __future__ import annotations

import copy
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from lossbook import calibrators
from lossbook.calibrators import (
    BetaCalibration,
    CorrectnessAwareScaling,
    DirichletCalibration,
    HistogramBinning,
    IsotonicCalibration,
    MatrixScaling,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
    from_dict,
)
from lossbook.calibrators.saved import KINDS

ALL = [
    TemperatureScaling(),
    TemperatureScaling("brier"),
    VectorScaling(),
    MatrixScaling(),
    DirichletCalibration(),
    PlattScaling(),
    BetaCalibration(),
    IsotonicCalibration(),
    IsotonicCalibration(mode="top_label"),
    HistogramBinning(),
    HistogramBinning(n_bins=4, strategy="uniform"),
    HistogramBinning(mode="top_label"),
    CorrectnessAwareScaling(steps=20),
    CorrectnessAwareScaling(steps=20, activation="clamp", loss="ce"),
]
every = pytest.mark.parametrize("calibrator", ALL, ids=str)

NOT_LOGITS = "it feeds labels beyond the number of columns, which are no labels of those logits"
FAILING = {
    "check_classifiers_classes": "labels are column numbers, not strings",
    "check_classifier_data_not_an_array": NOT_LOGITS,
    "check_classifiers_train": NOT_LOGITS,
    "check_estimators_fit_returns_self": NOT_LOGITS,
    "check_estimators_overwrite_params": NOT_LOGITS,
    "check_readonly_memmap_input": NOT_LOGITS,
}


@pytest.mark.filterwarnings("ignore:the loss has no minimum")
@parametrize_with_checks([kind() for kind in {type(c): None for c in ALL}], expected_failed_checks=lambda _: FAILING)
def test_scikit_learn(estimator, check):
    check(estimator)


def problem(seed=0, n=300, k=5, scale=3.0):
    """Logits that are `scale` times those of the distribution that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    y = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return scale * logits, y


def fitted(calibrator, logits, y):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss has no minimum")
        return clone(calibrator).fit(logits, y)


def is_distribution(probs):
    return (probs >= 0).all() and (probs <= 1).all() and np.allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-12)


@every
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 5), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_rows_are_distributions(calibrator, seed, k, scale):
    logits, y = problem(seed, n=40, k=k, scale=scale)
    scaler = fitted(calibrator, logits, y)
    fresh, _ = problem(seed + 1, n=60, k=k, scale=10 * scale)
    probs = scaler.predict_proba(fresh)
    assert probs.shape == (60, k) and probs.dtype == np.float64
    assert is_distribution(probs)
    np.testing.assert_array_equal(scaler.predict(fresh), probs.argmax(axis=1))


@pytest.mark.parametrize("calibrator", [TemperatureScaling(), CorrectnessAwareScaling(steps=20)], ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_decisions_are_kept_where_promised(calibrator, seed):
    logits, y = problem(seed, n=50)
    fresh, _ = problem(seed + 1)
    scaler = fitted(calibrator, logits, y)
    np.testing.assert_array_equal(scaler.predict(fresh), fresh.argmax(axis=1))
    np.testing.assert_array_equal(scaler.predict_proba(fresh).argmax(axis=1), fresh.argmax(axis=1))


@every
def test_better_log_loss_on_new_data(calibrator):
    """The logits are three times too large; every calibrator repairs most of that."""
    logits, y = problem(n=2000, k=3)
    fresh, truth = problem(seed=1, n=2000, k=3)
    probs = fitted(
        clone(calibrator).set_params(steps=200) if "steps" in calibrator.get_params() else calibrator, logits, y
    )

    def loss(p):
        return -np.log(np.clip(p[np.arange(len(truth)), truth], 1e-3, 1)).mean()

    best = loss(softmax(fresh / 3, axis=1))
    # A histogram's steps, and a temperature that is learned for confidence only, lose some of it.
    assert loss(probs.predict_proba(fresh)) - best < 0.5 * (loss(softmax(fresh, axis=1)) - best)


HARD = {
    "separated": (5 * np.eye(3), [0, 1, 2]),
    "separated and huge": (1e4 * np.eye(3), [0, 1, 2]),
    "always wrong": (-1e4 * np.eye(3), [0, 1, 2]),
    "constant": (np.zeros((4, 3)), [0, 1, 2, 2]),
    "a missing class": (problem(n=50, k=4)[0], np.arange(50) % 3),
    "fewer rows than classes": (problem(n=4, k=10)[0], [0, 1, 1, 9]),
    "the largest floats": (1e306 * problem(n=50, k=3)[0], np.arange(50) % 3),
    "the smallest floats": (1e-306 * problem(n=50, k=3)[0], np.arange(50) % 3),
    "two rows": (np.array([[0.0, 1.0], [2.0, 0.0]]), [0, 1]),
    "equal confidences": (np.array([[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]), [1, 0, 0]),
}


@every
@pytest.mark.parametrize("case", HARD)
def test_hard_data_has_a_finite_answer(calibrator, case):
    logits, y = HARD[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the loss has no minimum")
        scaler = clone(calibrator).fit(logits, y)
        assert is_distribution(scaler.predict_proba(logits))
        assert is_distribution(scaler.predict_proba(-3 * logits))
        json.dumps(scaler.to_dict(), allow_nan=False)


@every
@pytest.mark.parametrize("k", [2, 5])
def test_json_and_pickle_change_nothing(calibrator, k):
    logits, y = problem(n=100, k=k)
    scaler = fitted(calibrator, logits, y)
    fresh, _ = problem(seed=1, k=k)
    saved = json.loads(json.dumps(scaler.to_dict(), allow_nan=False))
    for again in (from_dict(saved), pickle.loads(pickle.dumps(scaler))):
        np.testing.assert_array_equal(again.predict_proba(fresh), scaler.predict_proba(fresh))
        np.testing.assert_array_equal(again.predict(fresh), scaler.predict(fresh))
        assert again.to_dict() == scaler.to_dict()
        assert type(again) is type(scaler) and again.n_features_in_ == k


def leaves(value, path=()):
    """Where the numbers of nested lists and dicts are."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    elif isinstance(value, float):
        yield path


def at(value, path):
    for key in path:
        value = value[key]
    return value


@every
def test_damaged_saves_are_refused(calibrator):
    """Each number replaced by what is none, each list shortened, each field left out or added."""
    good = fitted(calibrator, *problem(n=60, k=3)).to_dict()
    from_dict(good)
    numbers = list(leaves(good["fitted"], ("fitted",)))
    assert numbers
    for path in {numbers[0], numbers[-1]}:
        for wrong in (float("nan"), float("inf"), "1", None, True, 10**400, [1.0]):
            bad = copy.deepcopy(good)
            at(bad, path[:-1])[path[-1]] = wrong
            with pytest.raises(ValueError, match=r"^fitted\."):
                from_dict(bad)
    for path in {number[:i] for number in numbers for i in range(1, len(number))}:
        bad = copy.deepcopy(good)
        inner = at(bad, path)
        if isinstance(inner, list):
            inner.pop()
        else:
            inner["extra"] = 1.0
            with pytest.raises(ValueError, match="has an unknown field 'extra'"):
                from_dict(bad)
            inner.pop("extra")
            del inner[next(iter(inner))]
        with pytest.raises(ValueError, match="^fitted"):
            from_dict(bad)
        bad = copy.deepcopy(good)
        at(bad, path[:-1])[path[-1]] = 3
        with pytest.raises(ValueError, match="^fitted"):
            from_dict(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "os.system"}, "kind must be 'TemperatureScaling' or .*, but is 'os.system'"),
        ({"kind": ["TemperatureScaling"]}, "kind must be"),
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2, but is 1"),
        ({"num_classes": 4}, "fitted.weight must hold 4 entries, but holds 3"),
        ({"parameters": {"odir": 1.0}}, "parameters has no field 'intercept'"),
        ({"parameters": {"odir": -1.0, "intercept": 1.0}}, "odir must lie in"),
        ({"parameters": {"odir": 1.0, "intercept": 1.0, "x": 1}}, "parameters has an unknown field 'x'"),
        ({"fitted": None}, "fitted must be an object, but is None"),
        ({"version": 2}, "calibrator has an unknown field 'version'"),
    ],
)
def test_bad_heads_are_refused(change, message):
    good = MatrixScaling().fit(*problem(k=3)).to_dict()
    with pytest.raises(ValueError, match=message):
        from_dict({**good, **change})


def test_a_temperature_needs_no_saved_objective():
    logits, y = problem()
    good = TemperatureScaling(objective="brier").fit(logits, y)
    read = from_dict({**good.to_dict(), "parameters": {}})
    assert read.objective == "nll"
    np.testing.assert_array_equal(read.predict_proba(logits), good.predict_proba(logits))
    with pytest.raises(ValueError, match="parameters must be an object, but is None"):
        from_dict({**good.to_dict(), "parameters": None})
    with pytest.raises(ValueError, match="parameters has no field 'mode'"):
        from_dict({**IsotonicCalibration().fit(logits, y).to_dict(), "parameters": {}})


def test_not_an_object_is_refused():
    with pytest.raises(ValueError, match=r"calibrator must be an object, but is \[\]"):
        from_dict([])
    with pytest.raises(ValueError, match="calibrator has no field 'fitted'"):
        from_dict({"kind": "PlattScaling", "num_classes": 2, "parameters": {}})


def test_every_exported_estimator_can_be_saved():
    exported = {name for name in calibrators.__all__ if isinstance(getattr(calibrators, name), type)}
    assert exported >= set(KINDS) == {type(calibrator).__name__ for calibrator in ALL}


def test_numpy_parameters_become_plain():
    saved = HistogramBinning(n_bins=np.int64(3)).fit(*problem()).to_dict()
    assert type(saved["parameters"]["n_bins"]) is int
    json.dumps(saved)


@every
def test_tensors_are_welcome_and_gradients_may_be_off(calibrator):
    logits, y = problem(n=100)
    expected = fitted(calibrator, logits, y).predict_proba(logits)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            scaler = fitted(calibrator, torch.from_numpy(logits), torch.from_numpy(y))
            np.testing.assert_array_equal(scaler.predict_proba(torch.from_numpy(logits)), expected)
    tensor = torch.from_numpy(logits).bfloat16().requires_grad_()
    np.testing.assert_array_equal(
        fitted(calibrator, tensor, y).predict_proba(tensor),
        fitted(calibrator, tensor.detach().double().numpy(), y).predict_proba(tensor.detach().double().numpy()),
    )


NAN = float("nan")


@every
@pytest.mark.parametrize(
    ("logits", "y", "message"),
    [
        ([[0.0, 1.0], [NAN, 0.0]], [0, 1], r"logits\[1, 0\] is NaN"),
        ([[0.0, 1.0], [1.0, 0.0]], [1, 1], "y holds one class only, label 1"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 2], r"y\[1\] is label 2, but logits have 2 classes"),
        ([[0.0, 1.0], [1.0, 0.0]], [0, 1, 1], "y has 3 labels, but logits have 2 rows"),
        ([[0.0], [1.0]], [0, 1], "minimum of 2 is required"),
    ],
)
def test_bad_fit_is_refused(calibrator, logits, y, message):
    with pytest.raises(ValueError, match=message):
        clone(calibrator).fit(logits, y)


@every
def test_bad_predict_is_refused(calibrator):
    with pytest.raises(ValueError, match="not fitted yet"):
        clone(calibrator).predict_proba(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="not fitted yet"):
        clone(calibrator).to_dict()
    scaler = fitted(calibrator, *problem())
    with pytest.raises(ValueError, match="X has 4 features"):
        scaler.predict_proba(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"logits\[0, 0\] is NaN"):
        scaler.predict(np.full((2, 5), NAN))


@pytest.mark.parametrize(
    ("calibrator", "message"),
    [
        (TemperatureScaling("nlp"), "objective must be 'nll' or 'brier' or 'ece', but is 'nlp'"),
        (MatrixScaling(odir=-1), "odir must lie in"),
        (DirichletCalibration(intercept=NAN), "intercept must lie in"),
        (HistogramBinning(n_bins=0), "n_bins must be a whole number of at least 1, but is 0"),
        (HistogramBinning(strategy="kmeans"), "strategy must be 'quantile' or 'uniform', but is 'kmeans'"),
        (HistogramBinning(mode="all"), "mode must be 'one_vs_rest' or 'top_label', but is 'all'"),
        (IsotonicCalibration(mode=None), "mode must be .* but is None"),
        (CorrectnessAwareScaling(hidden=0), "hidden must be a whole number"),
        (CorrectnessAwareScaling(lr=0.0), "lr must lie in"),
        (CorrectnessAwareScaling(loss="nll"), "loss must be 'ca' or 'ce' or 'mse', but is 'nll'"),
        (CorrectnessAwareScaling(activation="exp"), "activation must be"),
        (CorrectnessAwareScaling(balanced=1), "balanced must be True or False, but is 1"),
        (CorrectnessAwareScaling(random_state=None), "random_state must be a whole number"),
    ],
)
def test_bad_parameters_are_refused(calibrator, message):
    with pytest.raises(ValueError, match=message):
        calibrator.fit(*problem())
