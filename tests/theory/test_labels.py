"""Confident learning by hand, against cleanlab and on real label errors; rankings that cross; worth of noisy labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from lossbook.data import label_error_set
from lossbook.theory import confident_joint, effective_label_count, prevalence_crossing


def noisy(seed=0, n=600, k=4, noise=0.2):
    """Calibrated probabilities, labels drawn from them and then flipped to the next class with some probability."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, k))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = (probs.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return np.where(rng.random(n) < noise, (true + 1) % k, true), true, probs


def test_by_hand():
    """Thresholds 0.6, 0.5, 0.8: row 2 is confidently of class 1, row 4 reaches none, row 5 reaches 0.5 of class 1."""
    labels = [0, 0, 0, 1, 1, 1, 2]
    probs = np.array(
        [
            [0.9, 0.1, 0.0],
            [0.7, 0.3, 0.0],
            [0.2, 0.8, 0.0],
            [0.1, 0.7, 0.2],
            [0.35, 0.25, 0.4],
            [0.0, 0.55, 0.45],
            [0.1, 0.1, 0.8],
        ]
    )
    found = confident_joint(labels, probs)
    np.testing.assert_allclose(found.thresholds, [0.6, 0.5, 0.8])
    assert found.guess.tolist() == [0, 0, 1, 1, -1, 1, 2]
    assert found.counts.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    np.testing.assert_allclose(found.joint, [[2 / 7, 1 / 7, 0], [0, 3 / 7, 0], [0, 0, 1 / 7]])


def test_of_several_classes_over_their_thresholds_the_likeliest_counts():
    """The last row's largest entry, 0.46, is below that class's threshold of 0.93; of the others 0.3 is the larger."""
    probs = [[0.93, 0.04, 0.03], [0.7, 0.25, 0.05], [0.7, 0.05, 0.25], [0.46, 0.3, 0.24]]
    found = confident_joint([0, 1, 2, 1], probs)
    np.testing.assert_allclose(found.thresholds, [0.93, 0.275, 0.25])
    assert found.guess.tolist() == [0, -1, 2, 1]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 6))
def test_row_by_row(seed, k):
    labels, _, probs = noisy(seed, n=80, k=k)
    found = confident_joint(labels, probs)
    counts = np.zeros((k, k), dtype=int)
    for label, row in zip(labels, probs, strict=True):
        passed = [j for j in range(k) if (labels == j).any() and row[j] >= probs[labels == j, j].mean() - 1e-6]
        if passed:
            counts[label, max(passed, key=lambda j: row[j])] += 1
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.joint.sum(dim=1), np.bincount(labels, minlength=k) / 80, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 6))
def test_ideal_probabilities_give_the_true_joint(seed, k):
    """Theorem 1 of confident learning: where P_i is the channel's row of the true label, every row is told apart.

    The channel must have its largest entry on the diagonal, of every row and every column.
    """
    rng = np.random.default_rng(seed)
    channel = 0.45 * rng.dirichlet(np.ones(k), size=k) + 0.55 * np.eye(k)
    true = rng.integers(k, size=400)
    labels = (channel[true].cumsum(axis=1) > rng.random((400, 1))).argmax(axis=1)
    found = confident_joint(labels, channel[true])
    np.testing.assert_array_equal(found.guess, true)
    joint = np.zeros((k, k))
    np.add.at(joint, (labels, true), 1 / 400)
    np.testing.assert_allclose(found.joint, joint, atol=1e-12)


def test_doubtful_rows_count_as_errors():
    """With probabilities that are right but unsure, the estimate is too high: what confident learning assumes away."""
    labels, true, probs = noisy(n=20_000, noise=0.2)
    found = confident_joint(labels, torch.from_numpy(probs))
    suspect = ((found.guess >= 0) & (found.guess != torch.from_numpy(labels))).numpy()
    wrong = labels != true
    assert 1 - found.joint.trace() > 1.3 * wrong.mean()
    assert wrong[suspect].mean() > 2 * wrong.mean() and suspect[wrong].mean() > 0.7


def test_classes_without_rows_and_rows_without_a_class():
    """Label 2 does not occur: nothing is guessed to be of it. Label 1's only row is confidently of class 0."""
    found = confident_joint([0, 0, 1], [[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.7, 0.1, 0.2]])
    assert found.thresholds[2] == math.inf and not (found.guess == 2).any()
    uncounted = confident_joint([0, 1, 1], [[0.9, 0.1], [0.5, 0.5], [0.5, 0.5]])
    assert uncounted.counts.tolist() == [[1, 0], [0, 2]], "equal probabilities reach their mean, whatever it rounds to"
    none = confident_joint([0, 0, 0, 1], [[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.9, 0.1]])
    assert none.joint.sum().item() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 6), noise=st.floats(0, 0.5))
def test_cleanlab_on_random_data(seed, k, noise):
    """Row by row the same, except where several classes pass and the row's argmax is not one of them.

    Those rows are left out on both sides, and cleanlab is given the thresholds of all rows. Then every count agrees off
    the diagonal, and on it up to cleanlab's floor of 1; and Q is cleanlab's calibrated joint before it is rounded.
    """
    count = pytest.importorskip("cleanlab.count")
    labels, _, probs = noisy(seed, n=200, k=k, noise=noise)
    if len(np.unique(labels)) < k:
        return
    found = confident_joint(labels, probs)
    thresholds = found.thresholds.numpy()
    np.testing.assert_allclose(thresholds, count.get_confident_thresholds(labels, probs), atol=1e-12)
    passed = probs >= thresholds - 1e-6
    same = (passed.sum(axis=1) <= 1) | passed[np.arange(len(probs)), probs.argmax(axis=1)]
    theirs, suspects = count.compute_confident_joint(
        labels[same], probs[same], thresholds=thresholds, calibrate=False, return_indices_of_off_diagonals=True
    )
    guess = found.guess.numpy()
    np.testing.assert_array_equal(np.flatnonzero((guess[same] >= 0) & (guess[same] != labels[same])), suspects)
    ours = np.zeros((k, k), dtype=int)
    np.add.at(ours, (labels[same & (guess >= 0)], guess[same & (guess >= 0)]), 1)
    np.testing.assert_array_equal(ours - np.diag(np.diag(ours)), theirs - np.diag(np.diag(theirs)))
    np.testing.assert_array_equal(np.diag(ours).clip(min=1), np.diag(theirs))
    if (found.counts.diagonal() > 0).all():
        calibrated = count.calibrate_confident_joint(found.counts.numpy(), labels)
        np.testing.assert_array_equal(calibrated.sum(axis=1), np.bincount(labels, minlength=k))
        assert np.abs(calibrated - len(labels) * found.joint.numpy()).max() < 1


def test_cleanlab_counts_the_same():
    """On data where no row takes the branch in which the two differ on purpose, and every diagonal is above 0."""
    count = pytest.importorskip("cleanlab.count")
    labels, _, probs = noisy(n=3000, noise=0.45)
    found = confident_joint(labels, probs)
    passed = probs >= found.thresholds.numpy() - 1e-6
    own = passed[np.arange(len(probs)), probs.argmax(axis=1)]
    several = passed.sum(axis=1) > 1
    assert several.sum() > 100 and own[several].all() and (found.counts.diagonal() > 0).all()
    theirs, suspects = count.compute_confident_joint(
        labels, probs, calibrate=False, return_indices_of_off_diagonals=True
    )
    np.testing.assert_array_equal(found.counts, theirs)
    np.testing.assert_array_equal(
        np.flatnonzero((found.guess >= 0) & (found.guess != torch.from_numpy(labels))), suspects
    )
    calibrated = count.compute_confident_joint(labels, probs, calibrate=True)
    assert np.abs(calibrated - 3000 * found.joint.numpy()).max() < 1, "cleanlab's are whole numbers"
    np.testing.assert_allclose(count.estimate_joint(labels, probs), found.joint, atol=1 / 3000)


# Suspects off the diagonal, those of them that people judged, and how many they called wrong.
REAL = {"cifar10": (244, 227, 48), "20news": (55, 46, 40), "mnist": (15, 15, 7)}


@pytest.mark.parametrize("name", REAL)
def test_real_label_errors(shared_data, name):
    """How many of the errors that people confirmed in a real test set are off the diagonal of the confident joint."""
    probs, labels, verdicts = label_error_set(name, root=shared_data, download=False)
    found = confident_joint(labels, probs)
    suspect = (found.guess >= 0) & (found.guess != labels)
    judged = suspect[verdicts.row]
    # The authors' own guess, from cleanlab, for every row that both suspect.
    assert torch.equal(found.guess[verdicts.row][judged], verdicts.guess[judged])
    assert (int(suspect.sum()), int(judged.sum()), int((judged & verdicts.wrong).sum())) == REAL[name]
    cleanlab = pytest.importorskip("cleanlab.filter")
    theirs = cleanlab.find_label_issues(labels.numpy(), probs.numpy(), filter_by="confident_learning", n_jobs=1)
    np.testing.assert_array_equal(suspect, theirs)


@pytest.mark.parametrize(
    ("labels", "probs", "sentence"),
    [
        ([0, 3], [[0.5, 0.5], [0.5, 0.5]], r"labels\[1\] is label 3, but probs has 2 classes"),
        ([0, -1], [[0.5, 0.5], [0.5, 0.5]], r"labels\[1\] is label -1"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"labels must have shape \(2,\)"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], "labels must hold integer labels"),
        ([0, 1], [[0.5, 0.5], [0.5, 0.6]], r"probs\[1\] sums to 1.1, not 1"),
        ([0, 1], [[0.5, 0.5], [1.5, -0.5]], r"probs\[1, 0\] is 1.5"),
        ([0, 1], [0.5, 0.5], r"probs must have shape \(N, K\)"),
    ],
)
def test_confident_joint_refuses_by_name(labels, probs, sentence):
    with pytest.raises(ValueError, match=sentence):
        confident_joint(labels, probs)


ACCURACY = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=100, deadline=None)
@given(a=ACCURACY, b=ACCURACY)
def test_the_lead_changes_at_the_crossing_and_nowhere_else(a, b):
    def lead(x):
        return (1 - x) * (a[0] - b[0]) + x * (a[1] - b[1])

    x = prevalence_crossing(a, b)
    assert x == prevalence_crossing(b, a) or x == pytest.approx(prevalence_crossing(b, a))
    if x is None:
        signs = {np.sign(lead(t)) for t in np.linspace(0, 1, 11)}
        assert not {-1, 1} <= signs
    else:
        assert 0 <= x <= 1 and abs(lead(x)) < 1e-12
        assert lead(x / 2) * lead((1 + x) / 2) <= 0


def test_crossing_of_measured_accuracies():
    """Predictions on a test set of which ever more rows are mislabelled: the accuracies meet where the formula says."""
    a, b = (0.95, 0.10), (0.90, 0.40)
    x = prevalence_crossing(a, b)
    assert x == pytest.approx(0.05 / 0.35)
    rng = np.random.default_rng(0)
    n = 200_000
    for share, leader in ((x - 0.03, 0), (x + 0.03, 1)):
        mislabelled = rng.random(n) < share
        found = [(rng.random(n) < np.where(mislabelled, model[1], model[0])).mean() for model in (a, b)]
        assert int(np.argmax(found)) == leader
    assert prevalence_crossing((0.9, 0.4), (0.8, 0.3)) is None
    assert prevalence_crossing((0.9, 0.4), (0.9, 0.3)) is None


def information(p, accuracy):
    """Fisher information about the logit of p in a label that is right with some probability, by its definition."""
    q = (1 - accuracy) + (2 * accuracy - 1) * p
    slope = (2 * accuracy - 1) * p * (1 - p)
    return q * (slope / q) ** 2 + (1 - q) * (slope / (1 - q)) ** 2


@settings(max_examples=50, deadline=None)
@given(accuracy=st.floats(0.01, 0.99), logit=st.floats(-4, 4), n=st.integers(0, 1000))
def test_noisy_labels_carry_that_share_of_the_information(accuracy, logit, n):
    worth = effective_label_count(n, accuracy)
    assert n * information(0.5, accuracy) == pytest.approx(worth * information(0.5, 1 - 1e-15), abs=1e-9)
    p = float(expit(logit))
    assert n * information(p, accuracy) <= worth * p * (1 - p) + 1e-9
    assert effective_label_count(n, 1 - accuracy) == pytest.approx(worth)


def test_worth_by_simulation():
    """The spread of an estimated share near 1/2, from noisy labels and from the equivalent number of right ones."""
    rng = np.random.default_rng(0)
    accuracy, n = 0.75, 4000
    q = (1 - accuracy) + (2 * accuracy - 1) * 0.5
    noisy_estimate = (rng.binomial(n, q, size=20_000) / n - (1 - accuracy)) / (2 * accuracy - 1)
    right_estimate = rng.binomial(int(effective_label_count(n, accuracy)), 0.5, size=20_000) / 1000
    assert noisy_estimate.std() == pytest.approx(right_estimate.std(), rel=0.03)


def test_worth_at_the_ends():
    assert effective_label_count(100, 1.0) == effective_label_count(100, 0.0) == 100
    assert effective_label_count(100, 0.5) == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: prevalence_crossing((0.9,), (0.8, 0.1)), r"a must be a pair \(clean, mislabelled\), but is \(0.9,\)"),
        (lambda: prevalence_crossing((0.9, 0.1), (0.8, 1.1)), r"b\[1\] must lie in \[0, 1\], but is 1.1"),
        (lambda: effective_label_count(-1, 0.9), "n must lie in .* but is -1"),
        (lambda: effective_label_count(10, 1.2), r"accuracy must lie in \[0, 1\], but is 1.2"),
    ],
)
def test_bad_numbers_are_refused_by_name(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
