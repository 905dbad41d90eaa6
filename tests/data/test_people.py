from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from lossbook import data, metrics
from lossbook.data import DataError, fetch

PROBS = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]])
LABELS = np.array([0, 0, 1, 1, 2], np.uint16)
# Row 1 is wrong and can be corrected; row 2 is wrong, and nobody knows what it is; the other two are right after all.
# On row 3 the guess is the given label, so the file counts every answer twice.
VERDICTS = [
    (4, 2, 0, {"given": 2, "guessed": 0, "both": 1, "neither": 2}),
    (1, 0, 1, {"given": 1, "guessed": 4, "both": 0, "neither": 0}),
    (3, 1, 1, {"given": 4, "guessed": 4, "neither": 1}),
    (2, 1, 2, {"given": 0, "guessed": 2, "both": 1, "neither": 2}),
]


def entry(row, given, guess, mturk):
    return {"id": row, "given_original_label": given, "our_guessed_label": guess, "mturk": mturk}


@pytest.fixture
def closed(monkeypatch):
    for name, remote in fetch.REMOTES.items():
        monkeypatch.setitem(fetch.REMOTES, name, remote._replace(urls=("http://127.0.0.1:9/file",)))


@pytest.fixture
def small(tmp_path):
    """A root with a set called cifar10 of five rows and a CIFAR-10H of two."""
    folder = tmp_path / "label-errors"
    folder.mkdir()
    np.save(folder / "cifar10_test_set_pyx.npy", PROBS)
    np.save(folder / "cifar10_test_set_original_labels.npy", LABELS)
    (folder / "cifar10_mturk.json").write_text(json.dumps([entry(*verdict) for verdict in VERDICTS]))
    (tmp_path / "cifar10h").mkdir()
    np.save(tmp_path / "cifar10h" / "cifar10h-counts.npy", np.array([[0] * 9 + [50], [1, 2] + [5] * 8], np.uint16))
    return tmp_path


def test_a_small_set(small):
    probs, labels, verdicts = data.label_error_set("cifar10", root=small)
    assert probs.dtype == torch.float64 and torch.equal(probs, torch.from_numpy(PROBS))
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 0, 1, 1, 2]
    assert verdicts.row.tolist() == [4, 1, 3, 2] and verdicts.guess.tolist() == [0, 1, 1, 2]
    assert verdicts.votes.tolist() == [[2, 0, 1, 2], [1, 4, 0, 0], [4, 0, 0, 1], [0, 2, 1, 2]]
    assert verdicts.wrong.tolist() == [True, True, False, True]
    assert verdicts.guess_is_right.tolist() == [False, True, False, False]
    assert verdicts.given_fits.tolist() == [True, False, True, False]


def test_corrected_labels(small):
    found = data.label_error_set("cifar10", root=small)
    labels, known = found.corrected()
    assert labels.tolist() == [0, 1, 1, 1, 2] and known.tolist() == [True, True, False, True, False]
    assert found.labels.tolist() == [0, 0, 1, 1, 2], "the given labels stay"


def test_reviews_are_found_by_their_names(small):
    """imdb's verdicts name a file; one of the five reviews occurs twice, under one name."""
    folder = small / "label-errors"
    np.save(folder / "imdb_test_set_pyx.npy", np.array([[0.9, 0.1]] * 4 + [[1.00001, 1e-5]]))
    np.save(folder / "imdb_test_set_original_labels.npy", np.array([0, 0, 0, 1, 1], np.uint16))
    names = ["neg/3_1.txt", "neg/3_1.txt", "neg/0_4.txt", "pos/0_9.txt", "pos/7_8.txt"]
    (folder / "imdb_test_set_index_to_filename.json").write_text(json.dumps(names))
    votes = {"given": 1, "guessed": 1, "neutral": 2, "off-topic": 1}
    verdicts = [entry("test/pos/0_9", "Positive", "Negative", votes)]
    (folder / "imdb_mturk.json").write_text(json.dumps(verdicts))
    found = data.label_error_set("imdb", root=small)
    assert found.verdicts.row.tolist() == [3] and found.verdicts.guess.tolist() == [0]
    assert found.verdicts.votes.tolist() == [[1, 1, 0, 3]]
    assert found.probs.max() == 1, "what rounding put above 1 is cut off"
    verdicts = [entry("test/neg/3_1", "Negative", "Positive", votes)]
    (folder / "imdb_mturk.json").write_text(json.dumps(verdicts))
    with pytest.raises(DataError, match="imdb_mturk.json: entry 0 is no verdict"):
        data.label_error_set("imdb", root=small)
    (folder / "imdb_test_set_index_to_filename.json").write_text(json.dumps(names[:4]))
    with pytest.raises(DataError, match="names 4 reviews, but there are probabilities for 5 rows"):
        data.label_error_set("imdb", root=small)


def test_counts(small):
    counts = data.cifar10h(root=small)
    assert counts.dtype == torch.int64 and counts.sum(dim=1).tolist() == [50, 43]


@pytest.mark.parametrize("name", ["cifar100", "", None, 3, ["mnist"]])
def test_unknown_sets(name):
    with pytest.raises(ValueError, match="name must be one of mnist, cifar10, 20news, imdb"):
        data.label_error_set(name)


def test_missing_files_are_named_with_their_source(tmp_path, closed):
    with pytest.raises(DataError, match=r"label-errors/mnist_test_set_pyx.npy is missing; it is published as http"):
        data.label_error_set("mnist", root=tmp_path, download=False)
    with pytest.raises(
        DataError, match=r"mnist_test_set_pyx.npy is missing and could not be downloaded: .*LOSSBOOK_DATA"
    ):
        data.label_error_set("mnist", root=tmp_path)
    with pytest.raises(DataError, match=r"cifar10h-counts.npy is missing; it is published as http"):
        data.cifar10h(root=tmp_path, download=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_missing_files_are_downloaded_from_the_official_repositories():
    ours = {name: remote.urls[0] for name, remote in fetch.REMOTES.items() if name.startswith(("label", "cifar10h"))}
    assert len(ours) == 14
    for name, url in ours.items():
        owner = "cleanlab/label-errors/main" if name.startswith("label") else "jcpeterson/cifar-10h/master"
        assert f"/{owner}/" in url


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PROBS[:, 0], r"floating-point numbers of shape \(N, K\), but holds float64 of shape"),
        (PROBS.astype(int), r"floating-point numbers of shape \(N, K\), but holds int64"),
        (PROBS[:0], "but holds float64 of shape"),
        (PROBS[:, :1], r"row 0 is \[0.9\]"),
        (changed(PROBS, (3, 1), np.nan), r"sum to 1, but row 3 is \[0.1, nan, 0.1\]"),
        (changed(PROBS, (3, 1), np.inf), "row 3 is"),
        (changed(PROBS, (2, 0), 0.31), "row 2 is"),
        (changed(PROBS, 1, [1.2, -0.1, -0.1]), "row 1 is"),
        (PROBS[:4], "holds 5 labels, but there are probabilities for 4 rows"),
        (PROBS[:, :2] / PROBS[:, :2].sum(axis=1, keepdims=True), "has label 2 in row 4, but there are 2 classes"),
    ],
)
def test_probabilities_that_are_none(small, array, message):
    np.save(small / "label-errors" / "cifar10_test_set_pyx.npy", array)
    with pytest.raises(DataError, match=message) as error:
        data.label_error_set("cifar10", root=small)
    assert "label-errors/cifar10_test_set_" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (LABELS.astype(float), r"whole numbers of shape \(N,\), but holds float64"),
        (LABELS[:, None], r"whole numbers of shape \(N,\), but holds uint16 of shape"),
        (changed(LABELS.astype(int), 2, -1), "has label -1 in row 2, but there are 3 classes"),
    ],
)
def test_labels_that_are_none(small, array, message):
    np.save(small / "label-errors" / "cifar10_test_set_original_labels.npy", array)
    with pytest.raises(DataError, match=message):
        data.label_error_set("cifar10", root=small)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was run')",)


def test_files_of_another_kind_are_refused_and_no_pickle_is_run(small):
    path = small / "label-errors" / "cifar10_test_set_pyx.npy"
    whole = path.read_bytes()
    np.save(path, np.array([[Trap()]], dtype=object), allow_pickle=True)
    objects = path.read_bytes()
    np.savez(path.with_suffix(".npz"), PROBS)
    archive = path.with_suffix(".npz").read_bytes()
    announced = whole.replace(b"(5, 3)", b"(5000000000, 3)")
    for content in (objects, pickle.dumps(Trap()), archive, whole[:-1], whole[:20], b"", b"text", announced):
        path.write_bytes(content)
        with pytest.raises(
            DataError,
            match=r"cifar10_test_set_pyx.npy (holds Python objects|is no .npy array|has a header|is truncated)",
        ):
            data.label_error_set("cifar10", root=small)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (1, {"id": 5}, "entry 1 names a row that the set does not have"),
        (1, {"id": -1}, "entry 1 names a row that the set does not have"),
        (2, {"id": 4, "given_original_label": 2}, "entry 2 names a row that an earlier one names"),
        (1, {"given_original_label": 1}, "entry 1 has another given label than the file of labels"),
        (1, {"our_guessed_label": 3}, "entry 1 proposes a class that the set does not have"),
        (1, {"mturk": {"given": 1, "guessed": 3}}, "entry 1 has not 5 answers"),
        (2, {"mturk": {"given": 4, "guessed": 3, "neither": 1}}, None),
        (1, {"mturk": {"given": 6, "guessed": -1}}, "entry 1 is no verdict"),
        (1, {"mturk": {"given": 1.0, "guessed": 4}}, "entry 1 is no verdict"),
        (1, {"mturk": {"given": True, "guessed": 4}}, "entry 1 is no verdict"),
        (1, {"mturk": {"maybe": 5}}, "entry 1 is no verdict"),
        (1, {"mturk": [5]}, "entry 1 is no verdict"),
        (1, {"id": "1"}, "entry 1 is no verdict"),
        (1, {"id": 10**30}, "entry 1 is no verdict"),
        (1, {"id": True}, "entry 1 is no verdict"),
    ],
)
def test_verdicts_that_are_none(small, place, change, message):
    path = small / "label-errors" / "cifar10_mturk.json"
    content = json.loads(path.read_text())
    content[place].update(change)
    path.write_text(json.dumps(content))
    if message is None:
        # Where the guess is the given label, its column repeats the answers, and is not added.
        assert data.label_error_set("cifar10", root=small).verdicts.votes[place].tolist() == [4, 0, 0, 1]
        return
    with pytest.raises(DataError, match=f"cifar10_mturk.json: {message}"):
        data.label_error_set("cifar10", root=small)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", "[null]", "[{}]", "[" * 100_000, '[{"id": 1}]', "\xff"])
def test_json_that_holds_no_verdicts(small, content):
    (small / "label-errors" / "cifar10_mturk.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"cifar10_mturk.json"):
        data.label_error_set("cifar10", root=small)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 9), 5), "for each of the 10 classes, but has shape"),
        (np.full((3, 10), 5.0), r"whole numbers of shape \(N, K\)"),
        (np.array([[5] * 10, [0] * 10]), "counts of answers, but row 1 is"),
        (np.array([[5] * 10, [-1] + [9] * 9]), "counts of answers, but row 1 is"),
    ],
)
def test_counts_that_are_none(small, array, message):
    np.save(small / "cifar10h" / "cifar10h-counts.npy", array)
    with pytest.raises(DataError, match=message):
        data.cifar10h(root=small)


# Rows, classes, judged rows; of these wrong, corrected to the guess, and said not to fit even beside the guess.
PUBLISHED = {
    "mnist": (10_000, 10, 100, 15, 10, 15),
    "cifar10": (10_000, 10, 275, 54, 18, 37),
    "20news": (7_532, 20, 93, 82, 22, 42),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_files(shared_data, name):
    """The numbers by which the notebook on wrong labels was written; 15 for mnist is the authors' own count."""
    found = data.label_error_set(name, root=shared_data, download=False)
    verdicts = found.verdicts
    counts = tuple(int(mask.sum()) for mask in (verdicts.wrong, verdicts.guess_is_right, ~verdicts.given_fits))
    assert (*found.probs.shape, len(verdicts.row), *counts) == PUBLISHED[name]
    predicted = found.probs.argmax(dim=1)[verdicts.row]
    assert torch.equal(predicted, verdicts.guess), "every guess is the prediction of these probabilities"
    labels, known = found.corrected()
    assert int((labels != found.labels).sum()) == counts[1] and int((~known).sum()) == counts[0] - counts[1]


def test_official_counts(shared_data):
    counts = data.cifar10h(root=shared_data, download=False)
    labels = data.label_error_set("cifar10", root=shared_data, download=False).labels
    assert counts.shape == (10_000, 10) and 47 <= int(counts.sum(dim=1).min()) <= int(counts.sum(dim=1).max()) <= 63
    assert (counts.argmax(dim=1) == labels).double().mean() > 0.99, "the order is that of the official test batch"


def test_what_the_official_files_say_together(shared_data):
    """What the notebook on wrong labels says in words about CIFAR-10: held here, since claims need no files."""
    found = data.label_error_set("cifar10", root=shared_data, download=False)
    counts = data.cifar10h(root=shared_data, download=False)
    people, (row, _, _), wrong = counts / counts.sum(dim=1, keepdim=True), found.verdicts, found.verdicts.wrong
    label, probs = people.argmax(dim=1), found.probs / found.probs.sum(dim=1, keepdim=True)
    assert not (probs.argmax(dim=1) == found.labels)[row[wrong]].any(), "a confirmed error was an error of the model"
    assert int((label == found.labels)[row[wrong]].sum()) == 43, "of 54 confirmed errors, the label of most of fifty"
    elsewhere = ((label != found.labels) & (people.amax(dim=1) > 0.5)).nonzero()[:, 0]
    assert (len(elsewhere), int(torch.isin(elsewhere, row).sum())) == (54, 12)
    corrected, known = found.corrected()
    accuracy = [
        round(metrics.accuracy(p, y), 4)
        for p, y in ((probs, found.labels), (probs[known], corrected[known]), (probs, label))
    ]
    assert accuracy == [0.9294, 0.9346, 0.9265], "up by the correction, down by people's most frequent answer"
    against_label = metrics.expected_calibration_error(probs, found.labels)
    assert metrics.true_top_label_ece(probs, people) > 1.9 * against_label > 0.06
